"""The `data` commands: download, adopt, audit, split and phantom.

Each returns a JSON document and a text for the terminal. No model runs here: the label review of
the audit reads the probabilities from a predictions file.
"""

from __future__ import annotations

import csv
import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any, Literal

from pneumoscope.config import AdoptConfig, SplitConfig, check_ranges
from pneumoscope.data.adopt import Adopted, adopt, write_manifest
from pneumoscope.data.audit import audit, member_of
from pneumoscope.data.audit_record import Audit
from pneumoscope.data.index import class_counts, index
from pneumoscope.data.public_sets import SOURCES
from pneumoscope.data.public_tables import Source
from pneumoscope.data.sources import download
from pneumoscope.data.splits import refuse_empty, split, write_split
from pneumoscope.data.splitting import check_shares
from pneumoscope.data.tree import class_words, notes_on_flat_images
from pneumoscope.errors import DataError, ImageRefusedError, UsageError
from pneumoscope.images.phantom.folder import write_phantoms
from pneumoscope.images.read import read_image
from pneumoscope.inference.overlay import image_png
from pneumoscope.progress import Progress
from pneumoscope.records import CLASS_NAMES, Dataset
from pneumoscope.report.audit_page import render_audit_page
from pneumoscope.storage import claim_folder, full_path, path_text, write_json, write_text

MOST_PICTURES = 24
_SIDE = 224
_WANTED = ("path", "status", "probability")

_SHOWN_FINDINGS = 12


def probabilities_for(dataset: Dataset, predictions: Path) -> dict[Path, float]:
    """Read the probabilities of pneumonia from a predictions file, by image.

    Paths in the file may be absolute or relative to the current folder. A path that matches
    neither is matched by its file name, if only one image has that name.

    Args:
        dataset: the images.
        predictions: a `predictions.csv` of `predict`.

    Returns:
        Probabilities by image path.

    Raises:
        DataError: the file is unreadable, is not a predictions file, or has none of the images.
    """
    by_path = {full_path(path_text(record.path)): record.path for record in dataset.records}
    by_name: dict[str, list[Path]] = {}
    for record in dataset.records:
        by_name.setdefault(path_text(record.path.name), []).append(record.path)
    found: dict[Path, float] = {}
    for path, probability in _rows(predictions):
        same_name = by_name.get(Path(path).name, [])
        image = by_path.get(full_path(path))
        if image is None and len(same_name) == 1:
            image = same_name[0]
        if image is not None:
            found[image] = probability
    if not found:
        raise DataError(
            f"{predictions}: has a probability for none of the {len(dataset.records)} images of "
            f"{dataset.root}; wanted rows with their paths. Make it: pneumoscope predict "
            f"{dataset.root} --out {predictions}"
        )
    return found


def _rows(predictions: Path) -> list[tuple[str, float]]:
    """Path and probability of every row with status `ok`."""
    try:
        with predictions.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, strict=True)
            missing = [name for name in _WANTED if name not in (reader.fieldnames or ())]
            if missing:
                raise DataError(
                    f"{predictions}: lacks the column {missing[0]!r}; wanted a file as "
                    "`pneumoscope predict --out FILE.csv` writes it."
                )
            rows = [(row["path"], row["probability"]) for row in reader if row["status"] == "ok"]
        return [(path, _probability(text, predictions, path)) for path, text in rows]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(
            f"{predictions}: can't be read ({error}); wanted a CSV in UTF-8. "
            "Give the file that `pneumoscope predict --out FILE.csv` wrote."
        ) from error


def _probability(text: str, predictions: Path, path: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise DataError(
            f"{predictions}: found the probability {text!r} for {path}, wanted a number from 0 to "
            "1. Make the file again: pneumoscope predict"
        )
    return value


def pictures_of(found: Audit, dataset: Dataset) -> dict[str, bytes]:
    """Small PNGs of the images whose labels are most likely wrong, by `LabelCandidate.path`."""
    paths = {member_of(record, dataset.root).path: record.path for record in dataset.records}
    pictures: dict[str, bytes] = {}
    review = found.evidence.labels
    for doubt in review.doubts[:MOST_PICTURES] if review else ():
        try:
            image = read_image(paths[doubt.path])
        except ImageRefusedError:  # removed since the audit read it
            continue
        pictures[doubt.path] = image_png(image.pixels, _SIDE)
    return pictures


def run_download(
    source: str, out: Path, sha256: str | None, progress: Progress
) -> tuple[dict[str, Any], str]:
    """Download a data set into `out`; raises as `data.sources.download` does."""
    report = download(source, out, progress, sha256)
    document = dataclasses.asdict(report) | {"out": str(report.out)}
    counts = [
        f"  {c.split or 'all':<6} NORMAL {c.normal:>6}  PNEUMONIA {c.pneumonia:>6}"
        for c in report.images
    ]
    text = "\n".join([f"{report.source} → {report.out}", *counts, *report.warnings, report.licence])
    return document, f"{text}\nnext    pneumoscope data audit {report.out}"


def run_audit(
    data: Path,
    out: Path | None,
    progress: Progress,
    predictions: Path | None = None,
    *,
    pictures: bool = True,
) -> tuple[dict[str, Any], str]:
    """Audit `data`; with `out` also write `audit.json` and `audit.html` there.

    Args:
        data: a folder with class folders, or a CSV manifest; its splits may share patients.
        out: folder for the two files.
        progress: receives each image and each analysis.
        predictions: a predictions file of these images, for the label review.
        pictures: include the images whose labels are most likely wrong in the page.
    """
    if out is not None:
        claim_folder(out)
    dataset = index(data, progress=progress, refuse_leaks=False)
    probabilities = None if predictions is None else probabilities_for(dataset, predictions)
    found = audit(dataset, progress=progress, predictions=probabilities)
    document = found.to_dict()
    findings = [f"{finding.severity:<8} {finding.text}" for finding in found.findings]
    lines = findings[:_SHOWN_FINDINGS]
    if len(findings) > _SHOWN_FINDINGS:
        lines.append(f"… and {len(findings) - _SHOWN_FINDINGS} more")
    if out is None:
        lines.append("for figures and lists add --out DIR")
    else:
        write_json(out / "audit.json", document)
        shown = pictures_of(found, dataset) if pictures else {}
        write_text(out / "audit.html", render_audit_page(found, shown))
        lines.append(f"page    {out / 'audit.html'}")
    return document, "\n".join(lines)


def run_split(
    data: Path,
    out: Path,
    config: SplitConfig,
    progress: Progress,
    pneumonia: str = "",
    normal: str = "",
) -> tuple[dict[str, Any], str]:
    """Split the patients of `data` into train, val and test; write the manifest `out`.

    Args:
        data: a folder with class folders, or a CSV manifest.
        out: the CSV; further columns of a manifest are kept.
        config: shares of patients, method, seed.
        progress: advances by one for each image.
        pneumonia: further folder names, or labels of a manifest, that mean PNEUMONIA, separated by
            commas.
        normal: likewise for NORMAL.
    """
    check_shares(config)
    if out.is_dir():
        raise UsageError(f"--out {out}: is a folder, wanted a file such as {out / 'split.csv'}")
    claim_folder(out.parent)
    classes = class_words(pneumonia, normal)
    found = index(data, progress=progress, refuse_leaks=False, classes=classes)
    dealt = split(found, config)
    refuse_empty(dealt, config)
    flat = notes_on_flat_images(dealt.records, progress)
    dealt = dataclasses.replace(dealt, warnings=(*dealt.warnings, *flat))
    write_split(out, dealt)
    document = {
        "out": str(out),
        "splits": [dataclasses.asdict(counts) for counts in class_counts(dealt)],
        "warnings": list(dealt.warnings),
    }
    return document, "\n".join([*_count_lines(dealt), *dealt.warnings, f"split   {out}"])


def run_phantom(
    out: Path, n: int, seed: int, file_format: Literal["png", "dicom"], progress: Progress
) -> tuple[dict[str, Any], str]:
    """Draw `n` phantoms (synthetic chest X-rays) into `out`."""
    write_phantoms(out, n, seed, file_format, progress=progress)
    drawn = index(out)
    document = {
        "out": str(out),
        "splits": [dataclasses.asdict(counts) for counts in class_counts(drawn)],
    }
    return document, "\n".join([*_count_lines(drawn), f"phantoms  {out}"])


def _count_lines(dataset: Dataset) -> list[str]:
    lines = [f"{'split':<7}{'NORMAL':>8}{'PNEUMONIA':>11}{'patients':>10}"]
    for c in class_counts(dataset):
        lines.append(f"{c.split or '-':<7}{c.normal:>8}{c.pneumonia:>11}{c.patients:>10}")
    return lines


def run_adoption(
    name: str, folder: Path, out: Path, config: AdoptConfig, progress: Progress
) -> tuple[dict[str, Any], str]:
    """Write the manifest `out` of the public data set `name` in `folder`.

    Raises:
        UsageError: no such data set, or `out` is a folder.
        DataError: its tables are unreadable, or no image is kept.
    """
    check_ranges(config)
    source = SOURCES.get(name)
    if source is None:
        raise UsageError(f"NAME: found {name!r}, wanted one of {', '.join(SOURCES)}")
    _refuse_unread(source, config)
    if out.is_dir():
        raise UsageError(f"--out {out}: is a folder, wanted a file such as {out / f'{name}.csv'}")
    claim_folder(out.parent)
    adopted = adopt(source, folder, config, progress)
    write_manifest(out, adopted)
    return _document(adopted, out), _text(adopted, out)


def _refuse_unread(source: Source, config: AdoptConfig) -> None:
    """Reject a setting that was changed and that the data set does not read."""
    default = AdoptConfig()
    for other in SOURCES.values():
        for name in other.options:
            found = getattr(config, name)
            if name not in source.options and found != getattr(default, name):
                raise UsageError(
                    f"--{name} {found}: is for {other.name}, {source.name} does not read it. "
                    "Leave it out."
                )


def _document(adopted: Adopted, out: Path) -> dict[str, Any]:
    counts = _counts(adopted)
    return {
        "out": str(out),
        "source": adopted.source.name,
        "title": adopted.source.title,
        "paper": adopted.source.paper,
        "labels": adopted.source.labels,
        "images": {name: counts[label] for label, name in enumerate(CLASS_NAMES)},
        "patients": _patients(adopted),
        "left_out": dict(adopted.left_out),
        "notes": list(adopted.source.notes),
    }


def _counts(adopted: Adopted) -> Counter[int | None]:
    return Counter(case.label for case in adopted.cases)


def _patients(adopted: Adopted) -> int:
    """Number of patients; an image without a patient id counts as one patient."""
    named = {case.patient for case in adopted.cases if case.patient}
    return len(named) + sum(not case.patient for case in adopted.cases)


def _text(adopted: Adopted, out: Path) -> str:
    source, counts = adopted.source, _counts(adopted)
    lines = [
        f"{source.title}{f' ({source.paper})' if source.paper else ''}",
        f"labels    {source.labels}",
        *(f"{name:<10}{counts[label]}" for label, name in enumerate(CLASS_NAMES)),
        f"patients  {_patients(adopted)}",
        *(f"left out  {count}: {why}" for why, count in adopted.left_out),
        *(f"note      {note}" for note in source.notes),
    ]
    absent = [name for label, name in enumerate(CLASS_NAMES) if not counts[label]]
    if absent:
        lines.append(
            f"note      No {absent[0]} image is left: AUC and one of the rates are undefined."
        )
    split = " --split all" if adopted.keeps_splits else ""
    lines += [f"manifest  {out}", f"next      pneumoscope evaluate {out}{split} --out evaluation"]
    return "\n".join(lines)
