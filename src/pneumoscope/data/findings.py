"""What an audit's counts mean, in sentences, the gravest first.

Comes in: the records of an audit. Goes out: findings with severity and a stable code.
Knows nothing of how anything was measured.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from pneumoscope.data.audit_record import (
    DuplicateGroup,
    Finding,
    Group,
    Separation,
    Severity,
    SharedPatient,
    Unreadable,
)
from pneumoscope.data.masks import FLAT_WORDS, FlatKind
from pneumoscope.data.validation import MIN_VAL_IMAGES_PER_CLASS
from pneumoscope.records import CLASS_NAMES

_ORDER: dict[Severity, int] = {"problem": 0, "warning": 1, "note": 2}
_SHORTCUT_AUC = 0.80
_SHIFT_AUC = 0.75
_LOPSIDED = 10.0
_WORDS = {
    "width": "image width",
    "height": "image height",
    "aspect": "aspect ratio",
    "file_bytes": "file size",
    "mean": "mean intensity",
    "deviation": "contrast (deviation of intensity)",
}


def findings_of(
    groups: Sequence[Group],
    unreadable: Sequence[Unreadable],
    duplicates: Sequence[DuplicateGroup],
    near_search_stopped: bool,
    shared: Sequence[SharedPatient],
    separations: Sequence[Separation],
    further: Sequence[Finding] = (),
) -> tuple[Finding, ...]:
    """Everything worth saying, problems before warnings before notes.

    Args:
        groups: the table of splits by classes.
        unreadable: images without pixels.
        duplicates: byte-equal and near groups.
        near_search_stopped: the search for near duplicates met its limit.
        shared: patients in more than one split.
        separations: how well simple quantities tell groups apart.
        further: findings made elsewhere, sorted in.
    """
    found = [
        *_on_patients(shared),
        *_on_duplicates(duplicates),
        *_on_classes(groups),
        *_on_unreadable(groups, unreadable),
        *_on_formats(groups),
        *_on_separations(separations),
        *further,
    ]
    if near_search_stopped:
        found.append(
            Finding(
                "warning",
                "near_search_stopped",
                "So many images look alike that the search for near duplicates was stopped early; "
                "its list is incomplete.",
            )
        )
    if not any(finding.severity == "problem" for finding in found):
        found.append(Finding("note", "no_problem", "Nothing was found that makes results wrong."))
    return tuple(sorted(found, key=lambda finding: _ORDER[finding.severity]))


def flat_findings(flat: Sequence[tuple[str, FlatKind]], images: int) -> tuple[Finding, ...]:
    """Images with two grey values, or nearly one.

    Args:
        flat: their paths and kinds.
        images: of the data set.
    """
    found = []
    for kind, words in FLAT_WORDS.items():
        paths = [path for path, its in flat if its == kind]
        if paths:
            text = f"{len(paths)} of {images} images {words}: they are no X-rays. The first: "
            found.append(Finding("problem", kind, f"{text}{paths[0]}. Take them out."))
    return tuple(found)


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


def _on_patients(shared: Sequence[SharedPatient]) -> Iterator[Finding]:
    if shared:
        where = " and ".join(f"{name} ({images})" for name, images in shared[0].images)
        yield Finding(
            "problem",
            "shared_patients",
            f"{_count(len(shared), 'patient stands', 'patients stand')} in more than one split, "
            f"such as {shared[0].patient!r} in {where}: results on val and test look better than "
            "they are. Make a new split: pneumoscope data split DATA --out split.csv",
        )


def _on_duplicates(duplicates: Sequence[DuplicateGroup]) -> Iterator[Finding]:
    named = {"identical": "byte-equal images", "near": "near duplicates"}
    for kind, what in named.items():
        groups = [group for group in duplicates if group.kind == kind]
        conflicts = [group for group in groups if group.label_conflict]
        across = [group for group in groups if group.across_splits and not group.label_conflict]
        inside = [g for g in groups if not g.across_splits and not g.label_conflict]
        patients = [group for group in inside if group.across_patients]
        same = [group for group in inside if not group.across_patients]
        if conflicts:
            yield _on_group(
                "problem",
                f"{kind}_label_conflict",
                conflicts,
                f"of {what} bear both labels: at least one of the labels is wrong",
            )
        if across:
            yield _on_group(
                "problem" if kind == "identical" else "warning",
                f"{kind}_across_splits",
                across,
                f"of {what} reach across splits: results on val and test look better than they are",
            )
        if patients:
            yield _on_group(
                "warning",
                f"{kind}_across_patients",
                patients,
                f"of {what} bear several patient ids inside one split: the ids may be wrong",
            )
        if same:
            yield _on_group(
                "note", f"{kind}_same_patient", same, f"of {what} belong to one patient and split"
            )


def _on_group(
    severity: Severity, code: str, groups: Sequence[DuplicateGroup], what: str
) -> Finding:
    images = sum(len(group.members) for group in groups)
    one, other = groups[0].members[:2]
    return Finding(
        severity,
        code,
        f"{_count(len(groups), 'group')} ({images} images) {what}. "
        f"The first: {one.path} and {other.path}.",
    )


def _on_classes(groups: Sequence[Group]) -> Iterator[Finding]:
    images: dict[str, dict[str, int]] = defaultdict(dict)
    for group in groups:
        images[group.split][group.label] = group.images
    if not images:
        yield Finding("problem", "no_images", "The data set holds no image.")
    for split, counts in images.items():
        where = "The data set" if split == "none" else split
        absent = [name for name in CLASS_NAMES if name not in counts]
        if absent:
            text = f"{where} has no {absent[0]} image: neither training nor AUC is possible on it."
            yield Finding("problem", "class_absent", text)
            continue
        few, many = sorted(counts.values())
        shown = " and ".join(f"{counts[name]} {name}" for name in CLASS_NAMES)
        if split == "val" and few < MIN_VAL_IMAGES_PER_CLASS:
            yield Finding(
                "warning",
                "small_val",
                f"val has {shown} images, under {MIN_VAL_IMAGES_PER_CLASS} per class: too few to "
                "choose a model or threshold by. `train` makes a val from train instead.",
            )
        yield Finding(
            "warning" if many > _LOPSIDED * few else "note",
            "class_balance",
            f"{where} has {shown} images, {many / few:.1f} to 1.",
        )


def _on_unreadable(groups: Sequence[Group], unreadable: Sequence[Unreadable]) -> Iterator[Finding]:
    if not unreadable:
        return
    total = sum(group.images for group in groups)
    reasons: dict[str, int] = defaultdict(int)
    for image in unreadable:
        reasons[image.reason] += 1
    listed = ", ".join(f"{reason} ({n})" for reason, n in sorted(reasons.items()))
    yield Finding(
        "problem" if len(unreadable) == total else "warning",
        "unreadable",
        f"{len(unreadable)} of {total} images can't be used: {listed}. "
        f"The first: {unreadable[0].path}.",
    )


def _on_formats(groups: Sequence[Group]) -> Iterator[Finding]:
    formats: dict[str, dict[str, set[str]]] = defaultdict(dict)
    for group in groups:
        if group.formats:
            formats[group.split][group.label] = {name for name, _ in group.formats}
    for split, by_class in formats.items():
        if len(by_class) == len(CLASS_NAMES) and not set.intersection(*by_class.values()):
            shown = "; ".join(
                f"{label}: {', '.join(sorted(by_class[label]))}" for label in CLASS_NAMES
            )
            yield Finding(
                "warning",
                "format_by_class",
                f"In {'the data set' if split == 'none' else split} the classes differ in file "
                f"format ({shown}): they come from different sources, and a network may learn "
                "the source in place of the disease.",
            )


def _on_separations(separations: Sequence[Separation]) -> Iterator[Finding]:
    for pair in sorted(separations, key=lambda separation: -separation.auc):
        what = _WORDS[pair.quantity]
        if pair.between == "classes" and pair.auc >= _SHORTCUT_AUC:
            text = (
                f"{what} alone tells {pair.first} from {pair.second} with AUC {pair.auc:.2f}: a "
                "shortcut that a network may take in place of the lungs."
            )
            yield Finding("warning", "shortcut", text[0].upper() + text[1:])
        elif pair.between == "splits" and pair.auc >= _SHIFT_AUC:
            text = (
                f"{what} alone tells {pair.first} from {pair.second} with AUC {pair.auc:.2f}: the "
                "splits differ in how images were taken, so results on one may not hold on another."
            )
            yield Finding("warning", "shift", text[0].upper() + text[1:])
