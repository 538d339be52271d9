"""`predict`: answers for files, as a table on the terminal or a file, with overlays if wanted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pneumoscope.errors import InputError
from pneumoscope.inference.batch import (
    as_row,
    check_format,
    expand,
    heatmap_name,
    write_predictions,
)
from pneumoscope.inference.overlay import overlay_png
from pneumoscope.inference.predictor import Answer, Predictor
from pneumoscope.progress import Progress
from pneumoscope.records import Prediction
from pneumoscope.storage import claim_folder, path_text, write_bytes

REFUSED = InputError.exit_code


def run_prediction(
    paths: Sequence[Path],
    model: str,
    out: Path | None,
    heatmaps: Path | None,
    progress: Progress,
    *,
    strict: bool = False,
) -> tuple[dict[str, Any], str, int]:
    """Answer for every input of `paths`, one row each, in their order.

    Returns:
        A document, a text, and the exit code: 3 if nothing had an answer, or with `strict` if
        anything had none; else 0.

    Raises:
        UsageError: no such model, `out` has a suffix of no format, or a file is where a folder for
            `out` or `heatmaps` should be.
        InputError: `paths` mean no file at all.
    """
    if out is not None:
        check_format(out)
        claim_folder(out.parent)
    if heatmaps is not None:
        claim_folder(heatmaps)
    files = expand(paths)
    if not files:
        named = ", ".join(map(str, paths))
        raise InputError(f"{named}: holds no file. Give images, folders of images, or a CSV.")
    predictor = Predictor.load(model)
    predictions: list[Prediction] = []
    with progress.task("predicting", len(files), "images") as task:
        for answer in predictor.predict_files(files, keep_images=heatmaps is not None):
            if heatmaps is not None:
                _write_overlay(heatmaps, answer, predictor)
            predictions.append(answer.prediction)
            task.advance()
    if out is not None:
        write_predictions(out, predictions)
    counts = Counter(prediction.status for prediction in predictions)
    document = {
        "counts": {status: counts[status] for status in ("ok", "refused", "error")},
        "predictions": [as_row(prediction) for prediction in predictions],
        "out": None if out is None else str(out),
        "heatmaps": None if heatmaps is None else str(heatmaps),
    }
    unanswered = len(predictions) - counts["ok"]
    failed = not counts["ok"] or (strict and unanswered)
    return document, _text(predictions, counts, out, heatmaps), REFUSED if failed else 0


def _write_overlay(folder: Path, answer: Answer, predictor: Predictor) -> None:
    if answer.image is None or answer.cam is None:
        return
    png = overlay_png(answer.image.pixels, answer.cam, predictor.manifest.preprocessing)
    write_bytes(folder / heatmap_name(answer.prediction.path), png)


def _text(
    predictions: Sequence[Prediction],
    counts: Counter[Any],
    out: Path | None,
    heatmaps: Path | None,
) -> str:
    lines = [] if out else _table(predictions)
    summary = f"{counts['ok']} answered, {counts['refused']} refused, {counts['error']} unreadable"
    lines.append(summary)
    for prediction in [p for p in predictions if p.reason][:10] if out else []:
        lines.append(_shown(f"  {prediction.path}: {prediction.reason}: {prediction.detail}"))
    lines += [f"table     {out}"] if out else []
    lines += [f"heatmaps  {heatmaps}"] if heatmaps else []
    return "\n".join(lines)


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
