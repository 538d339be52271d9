"""Select the usable images of a public data set, count the others, and write the manifest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pneumoscope.config import AdoptConfig
from pneumoscope.data.public_tables import (
    CONTRADICTED,
    DUPLICATE_FILE,
    NOT_FOUND,
    Record,
    Source,
    with_dicom_header,
)
from pneumoscope.errors import DataError, UsageError
from pneumoscope.progress import SILENT, Progress
from pneumoscope.records import CLASS_NAMES
from pneumoscope.storage import csv_text, full_path, safe_path, write_text

_AGES = AdoptConfig()
_COLUMNS = ("path", "label", "patient", "age", "sex", "view", "finding", "labelled_by")


@dataclass(frozen=True, slots=True)
class Adopted:
    """The result of adopting a data set.

    Attributes:
        source: the data set.
        folder: its folder.
        cases: the images that are kept, each with a label and a file.
        left_out: (reason, number of images), the most frequent first.
        keeps_splits: the owner's splits become the manifest's `split`.
    """

    source: Source
    folder: Path
    cases: tuple[Record, ...]
    left_out: tuple[tuple[str, int], ...]
    keeps_splits: bool


def adopt(
    source: Source, folder: Path, config: AdoptConfig, progress: Progress = SILENT
) -> Adopted:
    """Read every image of `folder` and keep those with a label and a file that pass the filters.

    Raises:
        DataError: the tables are missing or can't be read, or no image is kept.
        UsageError: the range of ages is empty.
    """
    if config.min_age > config.max_age:
        raise UsageError(
            f"--min-age {config.min_age:g} is above --max-age {config.max_age:g}; give a range."
        )
    folder = Path(full_path(folder))
    left_out: Counter[str] = Counter()
    kept: list[Record] = []
    judged: list[tuple[Record, str]] = []
    listed = list(source.read(folder, config))
    with progress.task("Adopting", len(listed), "images") as task:
        for case in listed:
            judged.append(_judged(case, source, config))
            task.advance()
    divided = _contradicted(judged)
    seen: set[Path | None] = set()
    for case, why in judged:
        if case.path in divided:
            why = CONTRADICTED
        if case.path in seen and why in ("", CONTRADICTED):
            why = DUPLICATE_FILE
        if why:
            left_out[why] += 1
        else:
            kept.append(case)
        if why in ("", CONTRADICTED):
            seen.add(case.path)
    if not kept:
        reasons = ", ".join(f"{why} ({count})" for why, count in left_out.most_common())
        raise DataError(
            f"{folder}: none of {len(listed)} images can be kept: "
            f"{reasons or 'the tables are empty'}. "
            "Check the folder and the filters."
        )
    return Adopted(
        source, folder, tuple(kept), tuple(left_out.most_common()), config.splits == "keep"
    )


def _judged(case: Record, source: Source, config: AdoptConfig) -> tuple[Record, str]:
    """The record with the data of its header, and why it is left out; `""` if it is kept."""
    if case.label is None:
        return case, case.why
    if case.path is None:
        return case, NOT_FOUND
    if source.headers:
        case = with_dicom_header(case)
    return case, _filtered(case, config)


def _contradicted(judged: Sequence[tuple[Record, str]]) -> set[Path | None]:
    """Files whose rows differ in label, patient, split or why they are left out: none counts."""
    found: dict[Path, set[tuple[int | None, str, str, str]]] = {}
    for case, why in judged:
        if case.path is not None:
            verdict = (case.label, case.patient, case.split or case.split_word, why)
            found.setdefault(case.path, set()).add(verdict)
    return {path for path, verdicts in found.items() if len(verdicts) > 1}


def _filtered(case: Record, config: AdoptConfig) -> str:
    if config.view == "frontal" and case.view in ("lateral", "other"):
        return f"{case.view} view"
    if config.view in ("AP", "PA") and case.view != config.view:
        return f"view not {config.view}" if case.view else "view not known"
    if (config.min_age, config.max_age) != (_AGES.min_age, _AGES.max_age):
        if case.age is None:
            return "age not known"
        if not config.min_age <= case.age <= config.max_age:
            return "age outside the range"
    return ""


def write_manifest(out: Path, adopted: Adopted) -> None:
    """Write a manifest (docs/researcher/data.md) with further columns for subgroups.

    Images below its folder have relative paths, others absolute ones, so that it may lie anywhere.

    The columns are `path,label,patient,age,sex,view,finding,labelled_by` and the owner's split: as
    `split` if it is kept, else as `official_split`, which no command uses.
    """
    header = (*_COLUMNS, "split" if adopted.keeps_splits else "official_split")
    rows = _rows(adopted, Path(full_path(out.parent)))
    write_text(out, csv_text(header, rows))


def _rows(adopted: Adopted, place: Path) -> Iterator[tuple[str, ...]]:
    for case in adopted.cases:
        if case.path is None or case.label is None:  # `adopt` keeps no such record
            continue
        image = Path(full_path(case.path))
        inside = image.is_relative_to(place)
        yield (
            safe_path((image.relative_to(place) if inside else image).as_posix()),
            CLASS_NAMES[case.label],
            case.patient,
            "" if case.age is None else f"{case.age:.3g}",
            case.sex,
            case.view,
            case.finding,
            case.labelled_by,
            case.split or case.split_word,
        )
