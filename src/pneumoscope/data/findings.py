"""Express the results of an audit in sentences, problems first.

`findings_of` covers counts, duplicates and separations; `evidence_findings` covers patient
similarity, split shift and label-noise candidates. Each finding has a severity and a stable code.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from pneumoscope.data.audit_record import (
    Driver,
    DuplicateGroup,
    Evidence,
    Finding,
    Group,
    LabelReview,
    PatientSimilarity,
    Separation,
    Severity,
    SharedPatient,
    SplitTest,
    Unreadable,
)
from pneumoscope.data.splits import MIN_VAL_IMAGES_PER_CLASS
from pneumoscope.data.thumbnails import MIN_PER_CLASS
from pneumoscope.data.tree import FLAT_WORDS, FlatKind
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
    "deviation": "contrast (standard deviation of intensity)",
}

PROPERTY_WORDS = {
    "width": "width",
    "height": "height",
    "aspect": "aspect ratio",
    "file_bytes": "file size",
    "mean": "brightness",
    "deviation": "contrast",
    "border": "brightness of the border",
    "centre": "brightness of the centre",
}
_SURE = 0.01
_ENOUGH_IDS = 20
_HARDLY_ALIKE = 0.05
"""Upper limit of the difference up to which images of one id are not more similar than others."""

_SLIGHT_AUC = 0.6
_SPLIT_ALONE = 0.6
"""A property with a lower AUC than this explains nothing."""


def findings_of(
    groups: Sequence[Group],
    unreadable: Sequence[Unreadable],
    duplicates: Sequence[DuplicateGroup],
    near_search_stopped: bool,
    shared: Sequence[SharedPatient],
    separations: Sequence[Separation],
    further: Sequence[Finding] = (),
) -> tuple[Finding, ...]:
    """All findings, problems before warnings before notes.

    Args:
        groups: the table of splits by classes.
        unreadable: images without readable pixels.
        duplicates: byte-equal and near groups.
        near_search_stopped: the search for near duplicates reached its limit.
        shared: patients in more than one split.
        separations: how well simple quantities separate groups.
        further: other findings, which are sorted in.
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
    """Findings on images with two grey values, or nearly one.

    Args:
        flat: their paths and kinds.
        images: number of images of the data set.
    """
    found = []
    for kind, words in FLAT_WORDS.items():
        paths = [path for path, its in flat if its == kind]
        if paths:
            text = f"{len(paths)} of {images} images {words}: they are not X-rays. The first: "
            found.append(Finding("problem", kind, f"{text}{paths[0]}. Remove them."))
    return tuple(found)


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


def _on_patients(shared: Sequence[SharedPatient]) -> Iterator[Finding]:
    if shared:
        where = " and ".join(f"{name} ({images})" for name, images in shared[0].images)
        yield Finding(
            "problem",
            "shared_patients",
            f"{_count(len(shared), 'patient is', 'patients are')} in more than one split, "
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
                f"of {what} have both labels: at least one of the labels is wrong",
            )
        if across:
            yield _on_group(
                "problem" if kind == "identical" else "warning",
                f"{kind}_across_splits",
                across,
                f"of {what} span several splits: results on val and test look better than they are",
            )
        if patients:
            yield _on_group(
                "warning",
                f"{kind}_across_patients",
                patients,
                f"of {what} have several patient ids inside one split: the ids may be wrong",
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
        yield Finding("problem", "no_images", "The data set contains no image.")
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
                "choose a model or threshold. `train` makes a val from train instead.",
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
                "the source instead of the disease.",
            )


def _on_separations(separations: Sequence[Separation]) -> Iterator[Finding]:
    for pair in sorted(separations, key=lambda separation: -separation.auc):
        what = _WORDS[pair.quantity]
        if pair.between == "classes" and pair.auc >= _SHORTCUT_AUC:
            text = (
                f"{what} alone separates {pair.first} from {pair.second} with AUC "
                f"{pair.auc:.2f}: a shortcut that a network may use instead of the lungs."
            )
            yield Finding("warning", "shortcut", text[0].upper() + text[1:])
        elif pair.between == "splits" and pair.auc >= _SHIFT_AUC:
            text = (
                f"{what} alone separates {pair.first} from {pair.second} with AUC {pair.auc:.2f}: "
                "the splits were acquired differently, so results on one may not hold on another."
            )
            yield Finding("warning", "shift", text[0].upper() + text[1:])


def evidence_findings(
    evidence: Evidence, predicted: Mapping[str, int] | None = None
) -> tuple[Finding, ...]:
    """All findings of the three analyses, in their order.

    Args:
        evidence: the analyses.
        predicted: number of images with a given prediction, by class; `None` if none were given.
    """
    return (
        *_on_likeness(evidence.likeness),
        *_on_splits(evidence.split_tests),
        *_on_labels(evidence.labels),
        *(_too_few(predicted) if predicted and evidence.labels is None else ()),
    )


def _on_likeness(found: tuple[PatientSimilarity, ...]) -> Iterator[Finding]:
    for one in found:
        if one.kind == "patient":
            yield from _on_ids(one)
        elif one.kind == "across":
            yield _on_shared(one, _control(one, found))
        else:
            yield _on_numbers(one, _control(one, found))


def _control(one: PatientSimilarity, found: tuple[PatientSimilarity, ...]) -> float | None:
    """The similarity of images of one patient: without it, a negative result proves nothing."""
    label = next((name for name in CLASS_NAMES if one.where.startswith(name)), "")
    alike = [
        other.difference
        for other in found
        if other.kind == "patient" and other.where.startswith(label) and other.p_value <= _SURE
    ]
    return max(alike, default=None)


def _figures(one: PatientSimilarity) -> str:
    p_value = "p below 0.01" if one.p_value <= _SURE else f"p {one.p_value:.2f}"
    return (
        f"similarity {_short(one.same)}, against {_short(one.strangers)} for different patients; "
        f"difference {_short(one.difference)} (95 % interval {_short(one.low)} to "
        f"{_short(one.high)}), {p_value}"
    )


def _short(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}"  # + 0.0 avoids a negative zero


def _on_ids(one: PatientSimilarity) -> Iterator[Finding]:
    who = f"{one.where}: images of one patient ({one.patients} patients with several)"
    if one.p_value <= _SURE:
        yield Finding(
            "note",
            "patients_alike",
            f"{who} are more similar than those of different patients: {_figures(one)}. "
            f"{_beside_neighbours(one)}",
        )
    elif one.patients >= _ENOUGH_IDS and one.high <= _HARDLY_ALIKE:
        yield Finding(
            "warning",
            "patients_not_alike",
            f"{who} are not more similar than those of different patients: {_figures(one)}. "
            "The ids may not identify persons; then splits by patient do not prevent leaks.",
        )
    elif one.patients >= _ENOUGH_IDS:
        yield _unclear("note", "patients_unclear", who, one)


def _beside_neighbours(one: PatientSimilarity) -> str:
    if one.neighbours is None:
        return "The ids are informative."
    drift = f"different patients with consecutive ids have {_short(one.neighbours)}"
    if one.exceeds_neighbours:
        return f"The ids identify persons: {drift}."
    return f"But {drift}: the similarity may reflect the time of acquisition, not the person."


def _on_shared(one: PatientSimilarity, control: float | None) -> Finding:
    who = f"{one.where}: {one.patients} ids occur in both splits, and images that share one"
    if one.p_value <= _SURE:
        return Finding(
            "problem",
            "shared_patients_alike",
            f"{who} look like the same person: {_figures(one)}. The leak is real. Make a new "
            "split: pneumoscope data split DATA --out split.csv",
        )
    if control is not None and one.high < control / 2:
        return Finding(
            "warning",
            "shared_patients_differ",
            f"{who} are not more similar than those of different patients: {_figures(one)}; for "
            f"patients inside one split the difference is {control:.2f}. Very likely the ids start "
            "again in each split: give a manifest with ids of their own.",
        )
    return _unclear("warning", "shared_patients_unclear", who, one)


def _on_numbers(one: PatientSimilarity, control: float | None) -> Finding:
    who = f"{one.where}: images whose ids share a number ({one.patients} numbers)"
    if one.p_value <= _SURE:
        return Finding(
            "warning",
            "numbers_alike",
            f"{who} are more similar than those of different patients: {_figures(one)}. The same "
            "number may be the same person; then give a manifest with one id for both.",
        )
    if control is not None and one.high < control / 2:
        return Finding(
            "note",
            "numbers_not_alike",
            f"{who} are not more similar than those of different patients: {_figures(one)}; for "
            f"true pairs the difference is {control:.2f}. The numbers start again in each series: "
            "it is right to treat them as different persons.",
        )
    return _unclear("note", "numbers_unclear", who, one)


def _unclear(severity: Severity, code: str, who: str, one: PatientSimilarity) -> Finding:
    return Finding(
        severity,
        code,
        f"{who} can't be distinguished from different patients by thumbnails: {_figures(one)}. "
        "That does not show that they are different persons.",
    )


def _on_splits(found: tuple[SplitTest, ...]) -> Iterator[Finding]:
    for test in sorted(found, key=lambda test: -test.auc):
        what = f"{test.label} images of {test.first} and {test.second}"
        figure = f"AUC {test.auc:.2f} (95 % interval {test.low:.2f} to {test.high:.2f})"
        if test.auc >= _SHIFT_AUC and test.low > 0.5:
            yield Finding(
                "warning",
                "splits_told_apart",
                f"{what} can be separated: {figure}. {_cause(test)} Results on one may not hold "
                "on the other.",
            )
        elif test.low > 0.5 and test.high >= _SLIGHT_AUC:
            yield Finding(
                "note",
                "splits_slightly_apart",
                f"{what} differ somewhat: {figure}. {_cause(test)}",
            )
    if alike := [test for test in found if test.high < _SLIGHT_AUC]:
        text = "A classifier can hardly determine from which split an image comes (AUC, upper "
        text += f"limits below {_SLIGHT_AUC}): {_areas(alike)}."
        yield Finding("note", "splits_alike", text)
    if unclear := [test for test in found if test.low <= 0.5 and test.high >= _SLIGHT_AUC]:
        text = "These images do not show whether a classifier can determine from which split an "
        text += f"image comes (AUC, 95 % interval): {_areas(unclear)}."
        yield Finding("note", "splits_unclear", text)


def _areas(tests: Sequence[SplitTest]) -> str:
    return "; ".join(
        f"{test.label} of {test.first} and {test.second} "
        f"({test.auc:.2f}, {test.low:.2f} to {test.high:.2f})"
        for test in tests
    )


def _cause(test: SplitTest) -> str:
    strong = [driver for driver in test.drivers if driver.auc >= _SPLIT_ALONE]
    framed = (
        f" Without brightness and contrast it is still {test.shape_auc:.2f}: framing, "
        "position or build differ too."
        if test.shape_auc >= _SHIFT_AUC
        else ""
    )
    if not strong:
        return (
            "No single property explains it (brightness, contrast, border, aspect, file size)."
            f"{framed}"
        )
    return f"They differ most in {_driver_in_words(strong[0], test)}.{framed}"


def _driver_in_words(driver: Driver, test: SplitTest) -> str:
    first, second = (_value(driver, value) for value in (driver.first, driver.second))
    return (
        f"{PROPERTY_WORDS[driver.name]} (median {first} in {test.first}, {second} in "
        f"{test.second}; AUC of it alone {driver.auc:.2f})"
    )


def _value(driver: Driver, value: float) -> str:
    if driver.name == "file_bytes":
        return f"{value / 1000:.1f} kB"
    return f"{value:.0f} px" if driver.name in ("width", "height") else f"{value:.2f}"


def _too_few(predicted: Mapping[str, int]) -> Iterator[Finding]:
    """A review by predictions was requested, so its absence is stated."""
    counts = " and ".join(f"{predicted[name]} {name}" for name in CLASS_NAMES)
    yield Finding(
        "note",
        "labels_not_judged",
        "No label was reviewed: too few images have a given prediction "
        f"({counts}; wanted at least {MIN_PER_CLASS} of each).",
    )


def _on_labels(review: LabelReview | None) -> Iterator[Finding]:
    if review is not None and not review.expected:
        yield Finding(
            "note",
            "labels_not_judged",
            "No label was reviewed: thumbnails or predictions separate the classes too poorly "
            f"(AUC {review.auc:.2f}).",
        )
    if review is None or not review.doubts:
        return
    judge = (
        "classifiers on thumbnails that were not trained on the patient"
        if review.source == "thumbnails"
        else "the given predictions"
    )
    counts = {label: sum(d.label == label for d in review.doubts) for label, _ in review.expected}
    listed = " and ".join(f"{number} {label}" for label, number in counts.items() if number)
    estimated = sum(number for _, number in review.expected)
    first = review.doubts[0]
    yield Finding(
        "warning",
        "doubtful_labels",
        f"{listed} of {review.judged} labels contradict {judge} (AUC {review.auc:.3f}); about "
        f"{estimated:.0f} may be wrong, or the images are hard to classify. Check these "
        f"label-noise candidates, the strongest first: {first.path} is labelled {first.label}, "
        f"with a probability of {first.probability:.2f}.",
    )
