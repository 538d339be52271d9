"""`data …`: download, audit, split and phantom, each with a document and a text."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

from pneumoscope.config import SplitConfig
from pneumoscope.data.audit import audit
from pneumoscope.data.index import class_counts, index
from pneumoscope.data.masks import notes_on_flat_images
from pneumoscope.data.sources import download
from pneumoscope.data.split_files import refuse_empty, split, write_split
from pneumoscope.data.splitting import check_shares
from pneumoscope.data.tree import class_words
from pneumoscope.errors import UsageError
from pneumoscope.images.phantom.folder import write_phantoms
from pneumoscope.progress import Progress
from pneumoscope.records import Dataset
from pneumoscope.report.audit_page import write_audit_page
from pneumoscope.storage import claim_folder, write_json
from pneumoscope.workflows.label_review import answers_for, pictures_of

_SHOWN_FINDINGS = 12


def run_download(
    source: str, out: Path, sha256: str | None, progress: Progress
) -> tuple[dict[str, Any], str]:
    """Fetch a data set into `out`; raises as `data.sources.download` does."""
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
        data: DATA by the contract; its splits may share patients.
        out: folder for the two files.
        progress: told of each image and each analysis.
        predictions: a predictions file of these films, to review labels by.
        pictures: show the films whose labels are most doubtful in the page.
    """
    if out is not None:
        claim_folder(out)
    dataset = index(data, progress=progress, refuse_leaks=False)
    answers = None if predictions is None else answers_for(dataset, predictions)
    found = audit(dataset, progress=progress, answers=answers)
    document = found.to_dict()
    told = [f"{finding.severity:<8} {finding.text}" for finding in found.findings]
    lines = told[:_SHOWN_FINDINGS]
    if len(told) > _SHOWN_FINDINGS:
        lines.append(f"… and {len(told) - _SHOWN_FINDINGS} more")
    if out is None:
        lines.append("figures and lists: the same command with --out DIR")
    else:
        write_json(out / "audit.json", document)
        shown = pictures_of(found) if pictures else {}
        write_audit_page(out / "audit.html", found, shown)
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
    """Deal the patients of `data` and write the manifest `out`.

    Args:
        data: DATA by the contract.
        out: the CSV; further columns of a manifest are kept in it.
        config: shares of patients, how to choose them, seed.
        progress: told of the images.
        pneumonia: further names of folders, or labels of a manifest, that mean PNEUMONIA, parted by
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
    further = dict.fromkeys(name for record in dealt.records for name in record.extra)
    write_split(out, dealt, tuple(further))
    document = {
        "out": str(out),
        "splits": [dataclasses.asdict(counts) for counts in class_counts(dealt)],
        "warnings": list(dealt.warnings),
    }
    return document, "\n".join([*_count_lines(dealt), *dealt.warnings, f"split   {out}"])


def run_phantom(
    out: Path, n: int, seed: int, file_format: Literal["png", "dicom"], progress: Progress
) -> tuple[dict[str, Any], str]:
    """Draw `n` phantoms into `out`."""
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
