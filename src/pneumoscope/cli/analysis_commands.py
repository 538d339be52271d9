"""The commands `plan`, `compare`, `readings` and `stress`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from pneumoscope.cli.data_commands import DataArgument
from pneumoscope.cli.model_commands import ModelOption, SplitChoice
from pneumoscope.cli.options import TERMINAL, Outcome, command, settings
from pneumoscope.config import (
    CompareConfig,
    IntervalConfig,
    PlanConfig,
    PlanTarget,
    StressConfig,
    replace_from,
)
from pneumoscope.errors import UsageError

_TARGETS = ("prevalence", "min_sensitivity", "min_specificity", "threshold", "band", "sets")


class KeyChoice(StrEnum):
    """The column that identifies a case in scores and readings."""

    accession = "accession"
    study = "study"
    image = "image"


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    command(app, "plan")(plan)
    command(app, "compare")(compare)
    command(app, "readings")(readings)
    command(app, "stress")(stress)


@settings(PlanTarget, *_TARGETS)
@settings(PlanConfig, "confidence", "power", "margin", "resamples")
def plan(
    evaluation: Annotated[
        Path,
        typer.Argument(metavar="EVALUATION_DIR", help="folder that `evaluate` wrote, or a run"),
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="folder to write (default: the evaluation's)")
    ] = None,
    apply: Annotated[
        Path | None,
        typer.Option(metavar="BUNDLE", help="write a model with the new operating point"),
    ] = None,
    recalibrate: Annotated[
        Path | None,
        typer.Option(metavar="DATA", help="labelled images of the site, to recalibrate on first"),
    ] = None,
    cost: Annotated[
        str | None,
        typer.Option(
            metavar="MISSED:ALARM",
            help="cost of a missed case and of a false alarm, such as 20:1; given alone, chooses "
            "the threshold with the lowest cost",
        ),
    ] = None,
    model: ModelOption = "default",
    **options: Any,
) -> Outcome:
    """Choose an operating point: all thresholds at your prevalence, and one with a guarantee.

    Example: pneumoscope plan evaluation --prevalence 0.1 --min-sensitivity 0.95
    """
    from pneumoscope.workflows.plan import PlanRequest, run_plan

    costs = _pair(cost, ":", "--cost", "costs of a missed case and a false alarm, such as 20:1")
    target = PlanTarget(**{name: options.pop(name) for name in _TARGETS}, costs=costs)
    config = replace_from(PlanConfig(), **options)
    request = PlanRequest(evaluation, target, out, model, apply, recalibrate)
    return Outcome(*run_plan(request, config, TERMINAL.progress))


def _pair(text: str | None, mark: str, option: str, wanted: str) -> tuple[float, float] | None:
    """Parse two numbers.

    Raises:
        UsageError: the text is not two numbers.
    """
    if text is None:
        return None
    try:
        first, second = (float(part) for part in text.split(mark))
    except ValueError:
        raise UsageError(f"{option}: found {text!r}, wanted {wanted}") from None
    return first, second


@settings(
    CompareConfig,
    *("auc_margin", "sensitivity_margin", "specificity_margin", "confidence", "fewest"),
    "resamples",
)
def compare(
    old: Annotated[
        str, typer.Argument(metavar="OLD", help="a model, an evaluation's folder, or a column")
    ],
    new: Annotated[str, typer.Argument(metavar="NEW", help="its candidate replacement, likewise")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="folder for compare.json and .html")],
    data: Annotated[
        Path | None, typer.Argument(metavar="[DATA]", help="labelled images, to compare two models")
    ] = None,
    scores: Annotated[
        Path | None,
        typer.Option(metavar="FILE.csv", help="table with labels; OLD and NEW are its columns"),
    ] = None,
    thresholds: Annotated[
        str | None,
        typer.Option(
            metavar="A,B", help="thresholds of the columns (default: columns NAME_threshold)"
        ),
    ] = None,
    split: Annotated[SplitChoice, typer.Option(help="which part of DATA")] = SplitChoice.test,
    **options: Any,
) -> Outcome:
    """Test whether NEW is non-inferior to OLD on the same images; exit code 3 if not shown.

    With DATA, OLD and NEW are models. Without DATA they are folders that `evaluate` wrote, or with
    --scores two score columns of one table; no model is needed then.

    Example: pneumoscope compare default runs/a chest_xray --out comparison
    """
    config = replace_from(CompareConfig(), **options)
    if data is not None and scores is not None:
        raise UsageError("compare: found DATA and --scores, wanted one of them")
    if thresholds is not None and scores is None:
        raise UsageError("compare: --thresholds needs --scores")
    if scores is not None:
        from pneumoscope.workflows.compare import run_compare_columns

        at = _pair(thresholds, ",", "--thresholds", "two thresholds, such as 0.5,40")
        return Outcome(*run_compare_columns(scores, (old, new), at, out, config))
    if data is None:
        from pneumoscope.workflows.compare import run_compare_evaluations

        return Outcome(*run_compare_evaluations(Path(old), Path(new), out, config))
    from pneumoscope.workflows.compare import run_compare

    chosen: Any = split.value
    return Outcome(*run_compare(old, new, data, out, chosen, config, TERMINAL.progress))


@settings(PlanConfig, "confidence", "power", "margin", "resamples")
def readings(
    scores: Annotated[
        Path, typer.Argument(metavar="SCORES", help="CSV of `node results`, `predict` or a vendor")
    ],
    table: Annotated[
        Path,
        typer.Argument(metavar="READINGS.csv", help="a reading per case, with reader if known"),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="folder for the page and its tables")],
    by: Annotated[
        KeyChoice, typer.Option(help="column that identifies a case in both")
    ] = KeyChoice.accession,
    score_column: Annotated[
        str, typer.Option(metavar="NAME", help="column of SCORES (default: score, probability)")
    ] = "",
    threshold: Annotated[
        float | None,
        typer.Option(help="threshold in use (default: the column 'threshold' of SCORES)"),
    ] = None,
    min_sensitivity: Annotated[
        float | None, typer.Option(help="sensitivity to verify", min=0, max=1)
    ] = None,
    min_specificity: Annotated[
        float | None, typer.Option(help="specificity to verify", min=0, max=1)
    ] = None,
    **options: Any,
) -> Outcome:
    """Compare a pilot's scores with radiologists' readings: weekly rates, agreement, sample size.

    READINGS.csv has the column accession, study or image, and the column reading (NORMAL or
    PNEUMONIA, 0 or 1). Cases that are missing on either side are listed.

    Example: pneumoscope readings scores.csv readings.csv --by accession --out pilot
    """
    from pneumoscope.workflows.readings import ReadingsRequest, run_readings

    key: Any = by.value
    request = ReadingsRequest(
        *(scores, table, key, out, score_column, threshold, min_sensitivity, min_specificity)
    )
    return Outcome(*run_readings(request, replace_from(PlanConfig(), **options)))


@settings(StressConfig, "limit", "seed", "largest_fall")
@settings(IntervalConfig, "resamples")
def stress(
    data: DataArgument,
    out: Annotated[Path, typer.Option(metavar="DIR", help="folder for numbers, page, figures")],
    model: ModelOption = "default",
    split: Annotated[SplitChoice, typer.Option(help="which part of DATA")] = SplitChoice.test,
    shortcuts: Annotated[
        bool,
        typer.Option(
            "--shortcuts/--no-shortcuts", help="also test whether the model uses the lungs"
        ),
    ] = True,
    masks: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="your own lung masks: PNG, with the names of the images"),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="continue from the journal in --out")
    ] = False,
    **options: Any,
) -> Outcome:
    """Measure a model under image perturbations, masked regions and background swaps.

    Example: pneumoscope stress chest_xray --model runs/a --out stress
    """
    from pneumoscope.workflows.stress import run_stress

    interval = replace_from(IntervalConfig(), resamples=options.pop("resamples"))
    config = replace_from(StressConfig(shortcuts=shortcuts), **options)
    chosen: Any = split.value
    found = run_stress(
        data, out, model, chosen, config, interval, masks, TERMINAL.progress, resume=resume
    )
    return Outcome(*found)
