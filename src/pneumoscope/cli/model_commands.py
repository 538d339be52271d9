"""The commands `train`, `crossvalidate`, `evaluate` and `predict`."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from pneumoscope.cli.data_commands import DataArgument
from pneumoscope.cli.options import TERMINAL, Outcome, command, help_of, settings
from pneumoscope.config import (
    BatchConfig,
    CrossValidationConfig,
    FitConfig,
    FramingConfig,
    IntervalConfig,
    NodeConfig,
    ScoresConfig,
    TrainConfig,
    check_ranges,
    named_in,
    replace_from,
    training_config,
)
from pneumoscope.errors import UsageError

_MODEL: Any = {"metavar": "MODEL", "help": "a bundle, a run folder, or 'default'"}
_CHECK: Any = {"help": help_of(BatchConfig, "input_check")}

ModelOption = Annotated[str, typer.Option("--model", **_MODEL)]
CheckOption = Annotated[bool, typer.Option("--input-check/--no-input-check", **_CHECK)]


class SplitChoice(StrEnum):
    """Which part of the data is evaluated."""

    test = "test"
    val = "val"
    train = "train"
    all = "all"


class Framing(StrEnum):
    """Whether images are cropped before scoring."""

    as_is = "as-is"
    matched = "matched"


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    command(app, "train")(train)
    command(app, "crossvalidate")(crossvalidate)
    command(app, "evaluate")(evaluate)
    command(app, "predict")(predict)


@settings(
    TrainConfig,
    *("recipe", "backbone", "weights", "views", "seed", "flip", "backend", "keep_val"),
)
@settings(FitConfig, "epochs")
def train(  # noqa: PLR0913 - as the command
    data: DataArgument,
    out: Annotated[Path, typer.Option(metavar="RUN", help="folder of the run")],
    config: Annotated[
        Path | None, typer.Option(metavar="FILE.toml", help="settings; options override them")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="continue the interrupted run in --out")
    ] = False,
    seeds: Annotated[
        str | None, typer.Option(metavar="N,N,…", help="one network per seed, averaged")
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            metavar="RUN,RUN,…",
            help="scratch: distil from these models; default or bundled: the model that ships",
        ),
    ] = None,
    ages: Annotated[
        str | None,
        typer.Option(
            metavar="YEARS-YEARS",
            help="age range of the model, such as 1-5; the model then rejects DICOM images of "
            "other patients",
        ),
    ] = None,
    tensorboard: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="write TensorBoard event files there as training goes on"),
    ] = None,
    mlflow: Annotated[
        bool, typer.Option("--mlflow", help="log every epoch to MLflow ($MLFLOW_TRACKING_URI)")
    ] = False,
    **options: Any,
) -> Outcome:
    """Train a model: split by patient, train, choose the threshold on validation, write a report.

    Example: pneumoscope train chest_xray --out runs/a --weights imagenet --views 4
    """
    from pneumoscope.images.dicom.patient import parse_ages
    from pneumoscope.workflows.train import run_training

    options["ages"] = None if ages is None else parse_ages(ages)
    chosen, given = _training(
        config, options | {"seeds": _seeds(seeds), "teachers": _listed(teacher)}
    )
    found = run_training(
        data,
        out,
        chosen,
        TERMINAL.progress,
        resume=resume,
        given=given,
        tensorboard=tensorboard,
        mlflow=mlflow,
    )
    return Outcome(*found)


@settings(CrossValidationConfig, "folds", "by")
@settings(TrainConfig, "recipe", "backbone", "weights", "views", "seed", "flip", "backend")
@settings(FitConfig, "epochs")
def crossvalidate(
    data: DataArgument,
    out: Annotated[Path, typer.Option(metavar="DIR", help="folder for runs, predictions, report")],
    config: Annotated[
        Path | None, typer.Option(metavar="FILE.toml", help="settings; options override them")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="keep the finished folds in --out and continue")
    ] = False,
    teacher: Annotated[
        str | None,
        typer.Option(
            metavar="RUN,RUN,…",
            help="scratch: distil from these models; {fold} in a name is the fold's number",
        ),
    ] = None,
    framing: Annotated[
        Framing,
        typer.Option(
            help="matched: also score each image cropped so that the lungs fill the same share "
            "of it"
        ),
    ] = Framing.as_is,
    **options: Any,
) -> Outcome:
    """Train once per fold; score every image with a model not trained on its patient.

    Example: pneumoscope crossvalidate chest_xray --folds 5 --by block --out cv
    """
    from pneumoscope.workflows.crossvalidate import run_crossvalidation

    division = replace_from(
        CrossValidationConfig(), folds=options.pop("folds"), by=options.pop("by")
    )
    chosen, given = _training(config, options | {"teachers": _listed(teacher)})
    outcome = run_crossvalidation(
        data,
        out,
        chosen,
        division,
        TERMINAL.progress,
        matched=framing is Framing.matched,
        resume=resume,
        given=given,
    )
    return Outcome(*outcome)


def _training(file: Path | None, options: dict[str, Any]) -> tuple[TrainConfig, set[str]]:
    """The settings of a training, and the dotted names of those that the user gave."""
    chosen = training_config(options.get("recipe"), file)
    given = {
        "fit.epochs" if name == "epochs" else name
        for name, value in options.items()
        if value is not None
    }
    given |= named_in(file) if file else set()
    chosen = replace(chosen, fit=replace_from(chosen.fit, epochs=options.pop("epochs")))
    return replace_from(chosen, **options), given


def _listed(text: str | None) -> tuple[str, ...] | None:
    """Split a comma-separated list."""
    return None if text is None else tuple(part.strip() for part in text.split(",") if part.strip())


def _seeds(text: str | None) -> tuple[int, ...] | None:
    """Parse a comma-separated list of seeds.

    Raises:
        UsageError: they are not distinct whole numbers.
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


def _share(framing: Framing, given: float | None) -> float | None:
    """The share of each side that the lungs must fill; `None` to score images unmodified.

    Raises:
        UsageError: a share was given without --framing matched, or is out of range.
    """
    if framing is Framing.as_is:
        if given is not None:
            raise UsageError(
                "--framing-share: needs --framing matched. Add it, or leave out --framing-share."
            )
        return None
    config = replace_from(FramingConfig(), framing_share=given)
    check_ranges(config)
    return config.framing_share


@settings(IntervalConfig, "resamples")
@settings(FramingConfig, "framing_share")
@settings(ScoresConfig, "score_column", "threshold")
@settings(BatchConfig, "any_age")
def evaluate(
    out: Annotated[Path, typer.Option(metavar="DIR", help="folder for metrics, pages, figures")],
    data: Annotated[
        Path | None, typer.Argument(metavar="[DATA]", help="labelled images, for a model")
    ] = None,
    scores: Annotated[
        Path | None,
        typer.Option(metavar="FILE.csv", help="or labels and existing scores of any system"),
    ] = None,
    model: Annotated[str | None, typer.Option(**_MODEL, show_default="default")] = None,
    split: Annotated[
        SplitChoice | None,
        typer.Option(
            help="which part of DATA, or of --scores by its column split",
            show_default="test; all rows of --scores",
        ),
    ] = None,
    input_check: Annotated[
        bool | None,
        typer.Option("--input-check/--no-input-check", **_CHECK, show_default="input-check"),
    ] = None,
    framing: Annotated[
        Framing | None,
        typer.Option(
            help="matched: crop each image so that the lungs fill the same share of it",
            show_default="as-is",
        ),
    ] = None,
    **options: Any,
) -> Outcome:
    """Evaluate a model on labelled images: all metrics with intervals, curves, a report.

    With --scores instead of DATA, evaluate existing scores without model or images. The file has
    the columns label and score, and optionally patient, threshold and groups.

    Example: pneumoscope evaluate chest_xray --model runs/a --out evaluation
    """
    from pneumoscope.workflows.evaluate import run_evaluation
    from pneumoscope.workflows.evaluate_scores import run_evaluate_scores

    interval = replace_from(IntervalConfig(), resamples=options["resamples"])
    chosen: Any = split and split.value
    if (data is None) == (scores is None):
        raise UsageError("evaluate: wanted either DATA, to evaluate a model, or --scores FILE.csv")
    if scores is not None:
        _refuse_without_images(
            model=model,
            input_check=input_check,
            framing=framing,
            framing_share=options["framing_share"],
            any_age=options["any_age"] or None,
        )
        how = replace_from(
            ScoresConfig(), score_column=options["score_column"], threshold=options["threshold"]
        )
        return Outcome(*run_evaluate_scores(scores, out, interval, how, chosen or "all"))
    if data is None or options["threshold"] is not None or options["score_column"]:
        raise UsageError("evaluate DATA: --threshold and --score-column need --scores")
    share = _share(framing or Framing.as_is, options["framing_share"])
    progress = TERMINAL.progress
    outcome = run_evaluation(
        data,
        out,
        model or "default",
        chosen or "test",
        interval,
        progress,
        input_check=input_check is not False,
        any_age=bool(options["any_age"]),
        framing=share,
    )
    return Outcome(*outcome)


def _refuse_without_images(**given: Any) -> None:
    """Reject options that say how a model scores images; `None` if one was not given.

    Raises:
        UsageError: names them.
    """
    names = [
        f"--{'no-' if value is False else ''}{name.replace('_', '-')}"
        for name, value in given.items()
        if value is not None
    ]
    if names:
        raise UsageError(
            f"evaluate --scores: found {', '.join(names)}, which state how a model scores images; "
            "the scores of a table are taken as they are. Leave them out, or give DATA."
        )


@settings(BatchConfig, "engine", "workers", "precision", "device", "any_age", "strict")
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
        Path | None,
        typer.Option(
            metavar="FILE",
            help="table to write: .csv, .jsonl or .parquet (default: print a table)",
        ),
    ] = None,
    heatmaps: Annotated[
        Path | None, typer.Option(metavar="DIR", help="folder for Grad-CAM overlays, PNG")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="continue from the .partial file of --out")
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
    """Predict pneumonia on images: one row each, with a reason code if an image is rejected.

    Example: pneumoscope predict images/ --model runs/a --out predictions.csv --heatmaps heatmaps
    """
    from pneumoscope.workflows.predict import ResultFolders, run_prediction

    folders = ResultFolders(dicom_out, fhir, segmentation=bool(options.pop("segmentation")))
    batch = replace_from(BatchConfig(input_check=input_check), **options)
    outcome = run_prediction(
        paths,
        model,
        out,
        heatmaps,
        TERMINAL.progress,
        resume=resume,
        folders=folders,
        batch=batch,
    )
    files = (out, heatmaps, dicom_out, fhir)
    return Outcome(*outcome, alone=all(each is None for each in files))
