"""`predict`: answers for files, as a table on the terminal or a file, with overlays if wanted."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from pneumoscope.errors import InputError, UsageError
from pneumoscope.inference.bundle import BundleManifest
from pneumoscope.inference.inputs import expand
from pneumoscope.inference.overlay import heatmap_name, overlay_png
from pneumoscope.inference.predictor import Answer, Predictor
from pneumoscope.inference.table import Journal, as_row, check_format, journal_of
from pneumoscope.progress import Progress
from pneumoscope.records import Prediction
from pneumoscope.storage import claim_folder, path_text, write_bytes

REFUSED = InputError.exit_code

MOST_LISTED = 10_000
"""Rows that the JSON document holds where there is a table too; of more it names the table only."""

_EXPLAINED = 10
"""Inputs without an answer that the text explains."""


def run_prediction(
    paths: Sequence[Path],
    model: str,
    out: Path | None,
    heatmaps: Path | None,
    progress: Progress,
    *,
    resume: bool = False,
    strict: bool = False,
    input_check: bool = True,
) -> tuple[dict[str, Any], str, int]:
    """Answer for every input of `paths`, one row each, in their order.

    Args:
        paths: files, folders, CSVs.
        model: a bundle, a run, or `default`.
        out: the table; until it is whole its rows are in `OUT.partial`.
        heatmaps: folder for overlays.
        progress: is told of every image.
        resume: go on with the rows of `OUT.partial`, if there are any.
        strict: an input without an answer is a failure.
        input_check: refuse what is unlike the training images, where the model can tell.

    Returns:
        A document, a text, and the exit code: 3 if nothing had an answer, or with `strict` if
        anything had none; else 0.

    Raises:
        UsageError: no such model, `out` has a suffix of no format, a file is where a folder for
            `out` or `heatmaps` should be, or there is nothing of this command to resume.
        InputError: `paths` mean no file at all.
    """
    _check(out, heatmaps, resume)
    files = _without_journal(expand(paths), out)
    if not files:
        named = ", ".join(map(str, paths))
        raise InputError(f"{named}: holds no file. Give images, folders of images, or a CSV.")
    predictor = Predictor.load(model, input_check=input_check)
    origin = _origin(predictor.manifest, files, input_check)
    journal = Journal(out, origin, resume=resume) if out else None
    before = journal.rows if journal else 0
    predictions = _predictions(files, before, predictor, heatmaps, progress)
    told = _to_journal(predictions, journal) if journal else _listed(predictions)
    document = {
        "counts": {status: told.counts[status] for status in ("ok", "refused", "error")},
        "resumed_after": before,
        "predictions": told.rows,
        "out": None if out is None else str(out),
        "heatmaps": None if heatmaps is None else str(heatmaps),
    }
    unanswered = len(files) - told.counts["ok"]
    failed = not told.counts["ok"] or (strict and unanswered)
    text = "\n".join([*told.table, *_summary(told, out, heatmaps)])
    return document, text, REFUSED if failed else 0


@dataclass(frozen=True, slots=True)
class _Told:
    """What is told at the end, however many rows there are.

    Attributes:
        counts: rows of each status.
        rows: of the contract; `None` if there are more than `MOST_LISTED` and a table has them.
        unanswered: the first inputs of this run without an answer.
        table: lines for the terminal, where no file is written.
    """

    counts: Counter[str]
    rows: list[dict[str, Any]] | None
    unanswered: list[Prediction]
    table: list[str]


def _to_journal(predictions: Iterator[Prediction], journal: Journal) -> _Told:
    """Every prediction into the journal as it comes, and at the end the table."""
    unanswered: list[Prediction] = []
    try:
        for prediction in predictions:
            journal.add(prediction)
            if prediction.reason and len(unanswered) < _EXPLAINED:
                unanswered.append(prediction)
    finally:
        journal.close()
    rows = list(journal.read()) if journal.rows <= MOST_LISTED else None
    journal.finish()
    return _Told(journal.counts, rows, unanswered, [])


def _listed(predictions: Iterator[Prediction]) -> _Told:
    """Every prediction at once, for the terminal."""
    rows = list(predictions)
    counts = Counter[str](prediction.status for prediction in rows)
    return _Told(counts, [as_row(p) for p in rows], [], _table(rows))


def _without_journal(files: list[Path], out: Path | None) -> list[Path]:
    """The files but the rows of this very command, which may lie in a folder of films."""
    if out is None:
        return files
    journal = journal_of(out).absolute()
    return [path for path in files if path.absolute() != journal]


def _check(out: Path | None, heatmaps: Path | None, resume: bool) -> None:
    if resume and out is None:
        raise UsageError("--resume: wanted --out FILE, the table to go on with. Give it too.")
    if out is not None:
        check_format(out)
        claim_folder(out.parent)
    if heatmaps is not None:
        claim_folder(heatmaps)


def _origin(manifest: BundleManifest, files: Sequence[Path], input_check: bool) -> str:
    """What decides the rows: this version, the model, its check, the inputs in their order."""
    model = json.dumps([asdict(manifest), input_check], sort_keys=True)
    digest = hashlib.sha256(f"{metadata.version('pneumoscope')} {model}".encode())
    for path in files:
        digest.update(path_text(path).encode() + b"\0")
    return digest.hexdigest()


def _predictions(
    files: Sequence[Path],
    done: int,
    predictor: Predictor,
    heatmaps: Path | None,
    progress: Progress,
) -> Iterator[Prediction]:
    """The predictions of all files after the first `done`; overlays are written on the way."""
    with progress.task("predicting", len(files), "images") as task:
        task.advance(done)
        for answer in predictor.predict_files(files[done:], keep_images=heatmaps is not None):
            if heatmaps is not None:
                _write_overlay(heatmaps, answer, predictor)
            yield answer.prediction
            task.advance()


def _write_overlay(folder: Path, answer: Answer, predictor: Predictor) -> None:
    if answer.image is None or answer.cam is None:
        return
    png = overlay_png(answer.image.pixels, answer.cam, predictor.manifest.preprocessing)
    write_bytes(folder / heatmap_name(answer.prediction.path), png)


def _summary(told: _Told, out: Path | None, heatmaps: Path | None) -> list[str]:
    counts = told.counts
    lines = [f"{counts['ok']} answered, {counts['refused']} refused, {counts['error']} unreadable"]
    for prediction in told.unanswered:
        lines.append(_shown(f"  {prediction.path}: {prediction.reason}: {prediction.detail}"))
    lines += [f"table     {out}"] if out else []
    lines += [f"heatmaps  {heatmaps}"] if heatmaps else []
    return lines


def _shown(text: str) -> str:
    """Text for a terminal: a file's name must not break the line, nor command the terminal."""
    kept = path_text(text)
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in kept)


def _table(predictions: Sequence[Prediction]) -> list[str]:
    width = min(max(len(_shown(prediction.path)) for prediction in predictions), 60)
    lines = [f"{'path':<{width}}  {'probability':>11}  answer"]
    for p in predictions:
        path = _shown(p.path)
        path = path if len(path) <= width else "…" + path[1 - width :]
        if p.probability is None:
            lines.append(f"{path:<{width}}  {'–':>11}  {p.status}: {p.reason} ({_shown(p.detail)})")
        else:
            lines.append(f"{path:<{width}}  {p.probability:>11.4f}  {p.prediction}")
    return [*lines, ""]
