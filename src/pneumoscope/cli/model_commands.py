"""`pneumoscope train`, `evaluate`, `predict`: make a model, measure it, use it."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from pneumoscope.cli.data_commands import DataArgument
from pneumoscope.cli.options import TERMINAL, Outcome, command, settings
from pneumoscope.config import (
    BatchConfig,
    FitConfig,
    IntervalConfig,
    NodeConfig,
    TrainConfig,
    named_in,
    replace_from,
    training_config,
)
from pneumoscope.errors import UsageError

ModelOption = Annotated[
    str, typer.Option("--model", metavar="MODEL", help="a bundle, a run folder, or 'default'")
]

CheckOption = Annotated[
    bool,
    typer.Option(
        "--input-check/--no-input-check",
        help="refuse what is no chest X-ray of the kind that the model knows, if it can tell",
    ),
]


class SplitChoice(StrEnum):
    """Which part of the data is evaluated."""

    test = "test"
    val = "val"
    train = "train"
    all = "all"


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    command(app, "train")(train)
    command(app, "evaluate")(evaluate)
    command(app, "predict")(predict)


@settings(TrainConfig, "recipe", "weights", "views", "seed", "flip", "backend", "keep_val")
@settings(FitConfig, "epochs")
def train(
    data: DataArgument,
    out: Annotated[Path, typer.Option(metavar="RUN", help="folder of the run")],
    config: Annotated[
        Path | None, typer.Option(metavar="FILE.toml", help="settings; options override them")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="go on with the run in --out where it stopped")
    ] = False,
    seeds: Annotated[
        str | None, typer.Option(metavar="N,N,…", help="one network per seed, averaged")
    ] = None,
    **options: Any,
) -> Outcome:
    """Train a model: split by patient, train, choose the threshold on validation, report.

    Example: pneumoscope train chest_xray --out runs/a --weights imagenet --views 4
    """
    from pneumoscope.workflows.train import run_training

    chosen = training_config(options.get("recipe"), config)
    options["seeds"] = _seeds(seeds)
    given = {
        "fit.epochs" if name == "epochs" else name
        for name, value in options.items()
        if value is not None
    }
    given |= named_in(config) if config else set()
    chosen = replace(chosen, fit=replace_from(chosen.fit, epochs=options.pop("epochs")))
    chosen = replace_from(chosen, **options)
    return Outcome(*run_training(data, out, chosen, TERMINAL.progress, resume=resume, given=given))


def _seeds(text: str | None) -> tuple[int, ...] | None:
    """Seeds as the user gave them.

    Raises:
        UsageError: something else than different whole numbers.
    """
    if text is None:
        return None
    try:
        seeds = tuple(int(part) for part in text.split(","))
    except ValueError:
        seeds = ()
    if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0:
        raise UsageError(f"--seeds: found {text!r}, wanted different whole numbers, as in 0,1,2")
    return seeds


@settings(IntervalConfig, "resamples")
def evaluate(
    out: Annotated[Path, typer.Option(metavar="DIR", help="folder for metrics, pages, figures")],
    data: Annotated[
        Path | None, typer.Argument(metavar="[DATA]", help="labelled images, for a model")
    ] = None,
    scores: Annotated[
        Path | None,
        typer.Option(metavar="FILE.csv", help="or labels and scores that exist, of any system"),
    ] = None,
    score_column: Annotated[
        str, typer.Option(metavar="NAME", help="column of --scores (default: score, probability)")
    ] = "",
    threshold: Annotated[
        float | None, typer.Option(help="of --scores (default: its column 'threshold')")
    ] = None,
    model: ModelOption = "default",
    split: Annotated[SplitChoice, typer.Option(help="which part of DATA")] = SplitChoice.test,
    input_check: CheckOption = True,
    **options: Any,
) -> Outcome:
    """Measure a model on labelled images: every metric with its interval, curves, a report.

    With --scores instead of DATA, measure scores that exist already. No model and no image is
    needed: the file has the columns label and score, and, if known, patient, threshold and groups.

    Example: pneumoscope evaluate chest_xray --model runs/a --out evaluation
    """
    from pneumoscope.workflows.evaluate import run_evaluation
    from pneumoscope.workflows.evaluate_scores import run_evaluate_scores

    interval = replace_from(IntervalConfig(), **options)
    if (data is None) == (scores is None):
        raise UsageError("evaluate: wanted either DATA, to ask a model, or --scores FILE.csv")
    if scores is not None:
        found = run_evaluate_scores(scores, out, interval, column=score_column, threshold=threshold)
        return Outcome(*found)
    if data is None or threshold is not None or score_column:
        raise UsageError("evaluate DATA: --threshold and --score-column belong to --scores")
    chosen: Any = split.value
    found = run_evaluation(
        data, out, model, chosen, interval, TERMINAL.progress, input_check=input_check
    )
    return Outcome(*found)


@settings(BatchConfig, "engine", "workers", "precision", "strict")
@settings(NodeConfig, "segmentation")
def predict(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH...", help="files, folders, patterns in quotes, or a CSV of paths"
        ),
    ],
    model: ModelOption = "default",
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="table to write: .csv, .jsonl or .parquet")
    ] = None,
    heatmaps: Annotated[
        Path | None, typer.Option(metavar="DIR", help="folder for Grad-CAM overlays, PNG")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="go on with the rows in --out's .partial file")
    ] = False,
    dicom_out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="folder for a DICOM SR and capture of every DICOM input"),
    ] = None,
    fhir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="folder for a FHIR R4 Bundle of every input")
    ] = None,
    input_check: CheckOption = True,
    **options: Any,
) -> Outcome:
    """Answer for images: one row each, with a reason where there is no answer.

    Example: pneumoscope predict films/ --model runs/a --out predictions.csv --heatmaps heatmaps
    """
    from pneumoscope.workflows.predict import ResultFolders, run_prediction

    folders = ResultFolders(dicom_out, fhir, segmentation=bool(options.pop("segmentation")))
    batch = replace_from(BatchConfig(input_check=input_check), **options)
    found = run_prediction(
        paths,
        model,
        out,
        heatmaps,
        TERMINAL.progress,
        resume=resume,
        folders=folders,
        batch=batch,
    )
    return Outcome(*found)
