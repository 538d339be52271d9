"""`demo`: the whole way once, offline, on phantoms: draw, ask the default model, train, report."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

from pneumoscope.config import FitConfig, IntervalConfig, TrainConfig
from pneumoscope.errors import MissingError, UsageError
from pneumoscope.images.phantom.folder import write_phantoms
from pneumoscope.progress import Progress
from pneumoscope.storage import claim_folder
from pneumoscope.workflows.evaluate import run_evaluation
from pneumoscope.workflows.predict import run_prediction
from pneumoscope.workflows.train import run_training

PHANTOMS = 600
_EXPLAINED = 12
_MARK = ".pneumoscope-demo"


def run_demo(out: Path, progress: Progress) -> tuple[dict[str, Any], str]:
    """Run the demonstration into `out`, over an earlier one if there is one.

    Raises:
        UsageError: `out` holds something else.
        ExtraMissingError: the extra `train` is not installed.
    """
    claim_folder(out)
    if any(out.iterdir()) and not (out / _MARK).exists():
        raise UsageError(f"--out {out}: holds something else. Give an empty or a new folder.")
    shutil.rmtree(out)
    out.mkdir()
    (out / _MARK).touch()
    phantoms = write_phantoms(out / "phantoms", PHANTOMS, progress=progress)
    films = sorted((phantoms / "test").rglob("*.png"))
    films = films[:: max(len(films) // _EXPLAINED, 1)][:_EXPLAINED]
    answered, answers = _ask_default(films, progress)
    config = TrainConfig(
        weights="none", views=1, keep_val=True, fit=dataclasses.replace(FitConfig(), epochs=40)
    )
    trained, _ = run_training(phantoms, out / "run", config, progress)
    evaluated, table = run_evaluation(
        phantoms, out / "evaluation", str(out / "run"), "test", IntervalConfig(), progress
    )
    run_prediction(films, str(out / "run"), out / "predictions.csv", out / "heatmaps", progress)
    document = {"default": answered, "run": trained, "evaluation": evaluated, "out": str(out)}
    text = (
        f"{answers}A small model trained here, just now, on drawings, tested on others.\n"
        "Synthetic X-rays, drawn here: the figures show that the way works, not how well a model "
        f"does on patients.\n\n{table}\n"
        f"trained {out / 'run' / 'report.html'}\nheatmaps {out / 'heatmaps'}\n"
        "next    pneumoscope train DATA --out runs/a    (your own folder of X-rays)"
    )
    return document, text


def _ask_default(films: list[Path], progress: Progress) -> tuple[dict[str, Any] | None, str]:
    """What the model that ships says of the films, where this installation has it."""
    try:
        document, table, _ = run_prediction(films, "default", None, None, progress)
    except MissingError:
        return None, ""
    return document, (
        f"The model that ships, trained on real X-rays, asked about drawings:\n{table}\n"
        f"{_judged(document['counts']['refused'], len(films))}\n\n"
    )


def _judged(refused: int, films: int) -> str:
    """What it means that a model refused so many drawings, and answered for the others."""
    if refused == films:
        return "It refuses them all: they are unlike the X-rays that it was trained on."
    told = f"It refuses {refused} of {films} as unlike its X-rays. " if refused else ""
    return (
        f"{told}It never saw a drawing and answers all the same: a high probability is no sign "
        "that a model knows what it is shown."
    )
