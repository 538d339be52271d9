"""The tables of a stress test: stress.json, stress.csv, answers.csv.

Comes in: `StressContent`, or records and what was said of them. Goes out: documents and files,
whole or not at all.

What a stress test has answered so far, on disk: a line per image, for `--resume`.

Comes in: one `Stressed` record per image, in order. Goes out: the same records read back. The first
line says what the lines are of. A kill costs the image that was being worked on.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pneumoscope.errors import UsageError
from pneumoscope.evaluation.intervals import BOOTSTRAP_METHOD
from pneumoscope.evaluation.stress import METRICS, Metric
from pneumoscope.records import Estimate, ImageRecord
from pneumoscope.report.stress_findings import (
    ExchangeRow,
    Shortcuts,
    StressContent,
    StressRow,
    stress_findings,
)
from pneumoscope.storage import path_text, safe_cell, write_text

Said = float | str | None
"""Of one copy: the probability; the reason for which there is none; `None`: no copy was made."""


@dataclass(frozen=True, slots=True)
class Stressed:
    """One image: what the model said of each copy, and what else was measured of it.

    Attributes:
        said: one per condition, the image as it is first; empty where the file can't be read.
        reason: why it can't.
        lung_quality: of its lung fields; `None`: not looked for, or no mask given.
        lung_share: share of the film that is lung.
        energy: share of the heatmap inside the lungs; `None`: no heatmap, or nothing in it.
        peak: whether the heatmap is hottest inside one of the lungs; `None` as for `energy`.
        box: left, top, right, bottom of the lungs' bounding box, shares of the sides; empty
            without lungs.
        matched_box: the same, detected anew after the image was re-cut to `framing.USUAL_SHARE`.
        properties: width, height, aspect, bytes, mean, deviation of the file's pixels.
        thumbnail: 256 greys.
        outline: 256 shares of lung; empty without lungs.
        warnings: what was odd about the file.
    """

    said: tuple[Said, ...] = ()
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
    """Lines on disk as they come.

    Args:
        path: of the journal.
        origin: digest of the model, the images, the conditions.
        resume: go on with the lines that are there; else they are dropped.

    Attributes:
        done: what is there, in order.

    Raises:
        UsageError: `resume`, and the lines are of something else.
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
        """Read the whole lines; returns where the last of them ends."""
        end = 0
        with path.open("rb") as stream:
            for number, line in enumerate(stream):
                document = _parsed(line)
                if document is None:  # what the kill cut off
                    break
                if number == 0 and document.get("origin") != origin:
                    raise UsageError(
                        f"{path}: holds answers of another model, version, settings or list of "
                        "images; wanted those of this command. Leave out --resume to begin anew."
                    )
                if number:
                    self.done.append(_stressed(document))
                end += len(line)
        return end

    def add(self, stressed: Stressed) -> None:
        """One more image; it is on disk when this returns."""
        self._write(asdict(stressed))
        self.done.append(stressed)

    def close(self) -> None:
        """The lines stay."""
        self._stream.close()

    def _write(self, document: dict[str, Any]) -> None:
        content = memoryview(json.dumps(document).encode() + b"\n")
        while content:
            content = content[self._stream.write(content) :]
        os.fsync(self._stream.fileno())


def _parsed(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        document = json.loads(line)
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


def _stressed(document: dict[str, Any]) -> Stressed:
    lists: Sequence[str] = (
        *("said", "properties", "thumbnail", "outline"),
        *("box", "matched_box", "warnings"),
    )
    values: dict[str, Any] = {n: tuple(v) if n in lists else v for n, v in document.items()}
    return Stressed(**values)


SCHEMA_VERSION = 1


def stress_document(content: StressContent) -> dict[str, Any]:
    """`stress.json`: rows worst first; what is undefined is `None`."""
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
    """`stress.csv`: one row per change, worst first, then parts of the image, matched framing."""
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
    _write(path, columns, rows)


def _cells(estimate: Estimate) -> list[float | None]:
    return [estimate.value, estimate.low, estimate.high]


def write_answers(
    path: Path, records: Sequence[ImageRecord], stressed: Sequence[Stressed], names: Sequence[str]
) -> None:
    """`answers.csv`: `path,label,patient,change,probability,reason`, one row per copy."""
    rows: list[list[Any]] = []
    for record, one in zip(records, stressed, strict=True):
        patient = safe_cell(path_text(record.patient))
        facts = [path_text(record.path), record.label, patient]
        for name, said in zip(names, one.said, strict=False):
            answer = [said, ""] if isinstance(said, float) else ["", said]
            if said is not None:
                rows.append([*facts, name, *answer])
        if not one.said:
            rows.append([*facts, names[0], "", one.reason])
    _write(path, ["path", "label", "patient", "change", "probability", "reason"], rows)


def _write(path: Path, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    write_text(path, text.getvalue())
