"""The files of a stress test: stress.json, stress.csv, answers.csv, and the journal answers.jsonl.

The journal holds one line per scored image, in order, and serves `--resume`. Its first line
identifies the model, the settings and the images. An interruption loses at most the image in
progress. The other files are written whole or not at all.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pneumoscope.errors import UsageError
from pneumoscope.evaluation.intervals import BOOTSTRAP_METHOD
from pneumoscope.evaluation.stress import METRICS, Metric
from pneumoscope.reading import json_lines
from pneumoscope.records import Estimate, ImageRecord
from pneumoscope.report.stress_findings import (
    ExchangeRow,
    Shortcuts,
    StressContent,
    StressRow,
    stress_findings,
)
from pneumoscope.storage import csv_text, path_text, safe_path, write_text

Output = float | str | None
"""For one copy: its probability, or the reason code of a refusal; `None`: the copy was not made."""

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Stressed:
    """One image: the model's output for each copy, and further measurements.

    Attributes:
        outputs: one per condition, the unmodified image first; empty if the file can't be read.
        reason: the reason code if the file can't be read.
        lung_quality: quality of the segmentation; `None`: not segmented, or no mask.
        lung_share: fraction of the image that is lung.
        energy: fraction of the heatmap's energy inside the lungs; `None`: no heatmap, or all zero.
        peak: whether the heatmap's maximum lies inside the lungs; `None` as for `energy`.
        box: left, top, right, bottom of the lungs' bounding box, as fractions of the sides; empty
            without lungs.
        matched_box: the same, segmented again after cropping to `lungs.USUAL_SHARE`.
        properties: width, height, aspect, file size in bytes, mean and deviation of the pixels.
        thumbnail: 16×16 mean grey values, row by row.
        outline: 16×16 fractions of lung, row by row; empty without lungs.
        warnings: unusual properties of the file.
    """

    outputs: tuple[Output, ...] = ()
    reason: str = ""
    lung_quality: float | None = None
    lung_share: float | None = None
    energy: float | None = None
    peak: bool | None = None
    properties: tuple[float, ...] = field(default=())
    thumbnail: tuple[float, ...] = field(default=())
    outline: tuple[float, ...] = field(default=())
    box: tuple[float, ...] = field(default=())
    matched_box: tuple[float, ...] = field(default=())
    warnings: tuple[str, ...] = field(default=())


class StressJournal:
    """An append-only journal of scored images, each on disk before the next one starts.

    Args:
        path: of the journal.
        origin: digest of the model, the images and the conditions.
        resume: keep the lines of an earlier run; otherwise they are dropped.

    Attributes:
        done: the images scored so far, in order.

    Raises:
        UsageError: with `resume`, the journal has another origin.
        OSError: the folder can't be written.
    """

    def __init__(self, path: Path, origin: str, *, resume: bool) -> None:
        self.done: list[Stressed] = []
        end = self._read(path, origin) if resume and path.exists() else 0
        self._stream = path.open("r+b" if end else "wb", buffering=0)
        self._stream.truncate(end)
        self._stream.seek(end)
        if not end:
            self._write({"origin": origin})

    def _read(self, path: Path, origin: str) -> int:
        """Read all complete lines; returns the offset in bytes at which the last one ends."""
        whole = 0
        for number, (document, end) in enumerate(json_lines(path)):
            if document is None:  # cut off by an interruption
                break
            if number == 0 and document.get("origin") != origin:
                raise UsageError(
                    f"{path}: belongs to another model, version, settings or list of images "
                    "than this command. Omit --resume to start again."
                )
            if number:
                self.done.append(_stressed(document))
            whole = end
        return whole

    def add(self, stressed: Stressed) -> None:
        """Append one image; it is on disk when this returns."""
        self._write(asdict(stressed))
        self.done.append(stressed)

    def close(self) -> None:
        """Close the file; its lines remain."""
        self._stream.close()

    def _write(self, document: dict[str, Any]) -> None:
        content = memoryview(json.dumps(document).encode() + b"\n")
        while content:
            content = content[self._stream.write(content) :]
        os.fsync(self._stream.fileno())


def _stressed(document: dict[str, Any]) -> Stressed:
    lists: Sequence[str] = (
        *("outputs", "properties", "thumbnail", "outline"),
        *("box", "matched_box", "warnings"),
    )
    values: dict[str, Any] = {n: tuple(v) if n in lists else v for n, v in document.items()}
    return Stressed(**values)


def stress_document(content: StressContent) -> dict[str, Any]:
    """`stress.json`: rows worst first; undefined values are `None`."""
    return {
        "schema_version": SCHEMA_VERSION,
        "model": content.model.name,
        "data": content.data.name,
        "split": content.split,
        "n": content.images,
        "drawn_from": content.drawn_from,
        "patients": content.patients,
        "positives": content.positives,
        "refused": dict(content.refused),
        "warnings": dict(content.warned),
        "threshold": content.threshold,
        "interval": asdict(content.interval) | {"method": BOOTSTRAP_METHOD},
        "config": asdict(content.config),
        "plain": _metrics(content.plain),
        "largest_fall": content.config.largest_fall,
        "holds": content.holds,
        "beyond": [row.name for row in content.judged("fails")],
        "uncertain": None if content.uncertain is None else dict(content.uncertain),
        "rows": [_row(row) for row in content.worst_first],
        "shortcuts": None if content.shortcuts is None else _shortcuts(content.shortcuts),
        "findings": [asdict(finding) for finding in stress_findings(content)],
        "seconds": dict(content.run.seconds),
    }


def _row(row: StressRow) -> dict[str, Any]:
    found = row.found
    return {
        "sweep": row.sweep,
        "name": row.name,
        "title": row.title,
        "strength": row.strength,
        "plausible": row.plausible,
        "judgement": row.judgement,
        "n": found.images,
        "patients": found.patients,
        "refused": found.refused,
        "fall": found.fall,
        "plain": _metrics(found.plain),
        "changed": _metrics(found.changed),
        "difference": _metrics(found.difference),
    }


def _exchange(row: ExchangeRow) -> dict[str, Any]:
    found = row.found
    return {
        "name": row.name,
        "title": row.title,
        "n": found.images,
        "patients": found.patients,
        "same_class": _metrics(found.plain),
        "other_class": _metrics(found.changed),
        "difference": _metrics(found.difference),
    }


def _metrics(found: Mapping[Metric, Estimate]) -> dict[str, Any]:
    return {metric: asdict(found[metric]) for metric in METRICS}


def _shortcuts(shortcuts: Shortcuts) -> dict[str, Any]:
    return {
        "lungs_from": shortcuts.lungs_from,
        "with_lungs": shortcuts.with_lungs,
        "without_lungs": shortcuts.without_lungs,
        "lung_share": asdict(shortcuts.lung_share),
        "heatmap_energy_in_lungs": asdict(shortcuts.energy) | {"n": shortcuts.energy_images},
        "heatmaps": {
            "n": shortcuts.localisation.images,
            "peak_in_a_lung": asdict(shortcuts.localisation.peak),
            "energy_over_area": asdict(shortcuts.localisation.gain),
        },
        "parts": [_row(row) for row in shortcuts.rows],
        "framing": [_row(row) for row in shortcuts.framing],
        "exchanges": [_exchange(row) for row in shortcuts.exchanges],
        "controls": {
            name: None if control is None else asdict(control)
            for name, control in shortcuts.baselines.items()
        },
    }


def write_rows(path: Path, content: StressContent) -> None:
    """Write `stress.csv`: perturbations, worst first, then masked parts, matched framing."""
    columns = ["sweep", "name", "title", "strength", "plausible", "judgement", "n", "refused"]
    for metric in METRICS:
        columns += [f"{metric}{part}" for part in ("", "_low", "_high")]
        columns += [f"{metric}_change{part}" for part in ("", "_low", "_high")]
    shortcuts = content.shortcuts
    parts = (*shortcuts.rows, *shortcuts.framing) if shortcuts else ()
    rows = []
    for row in (*content.worst_first, *parts):
        cells: list[Any] = [row.sweep, row.name, row.title, row.strength, row.plausible]
        cells += [row.judgement, row.found.images, row.found.refused]
        for metric in METRICS:
            cells += _cells(row.found.changed[metric]) + _cells(row.found.difference[metric])
        rows.append(cells)
    write_text(path, csv_text(columns, rows))


def _cells(estimate: Estimate) -> list[float | None]:
    return [estimate.value, estimate.low, estimate.high]


def write_copies(
    path: Path, records: Sequence[ImageRecord], stressed: Sequence[Stressed], names: Sequence[str]
) -> None:
    """Write `answers.csv`: `path,label,patient,change,probability,reason`, one row per copy."""
    rows: list[list[Any]] = []
    for record, one in zip(records, stressed, strict=True):
        facts = [safe_path(path_text(record.path)), record.label, path_text(record.patient)]
        for name, output in zip(names, one.outputs, strict=False):
            cells = [output, ""] if isinstance(output, float) else ["", output]
            if output is not None:
                rows.append([*facts, name, *cells])
        if not one.outputs:
            rows.append([*facts, names[0], "", one.reason])
    columns = ["path", "label", "patient", "change", "probability", "reason"]
    write_text(path, csv_text(columns, rows))
