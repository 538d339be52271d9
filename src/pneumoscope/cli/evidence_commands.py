"""`pneumoscope plan` and `compare`: where to cut, and whether a new model is as good as an old."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pneumoscope.cli.data_commands import DataArgument
from pneumoscope.cli.model_commands import ModelOption, SplitChoice
from pneumoscope.cli.options import TERMINAL, Outcome, command, settings
from pneumoscope.config import CompareConfig, PlanConfig, PlanTarget, replace_from

_TARGETS = ("prevalence", "min_sensitivity", "min_specificity", "threshold", "band", "sets")


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    command(app, "plan")(plan)
    command(app, "compare")(compare)


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
        Path | None, typer.Option(metavar="BUNDLE", help="write a model that answers by the plan")
    ] = None,
    recalibrate: Annotated[
        Path | None,
        typer.Option(metavar="DATA", help="labelled images of the site to calibrate on first"),
    ] = None,
    model: ModelOption = "default",
    **options: Any,
) -> Outcome:
    """Choose an operating point: every threshold at your prevalence, and one that surely holds.

    Example: pneumoscope plan evaluation --prevalence 0.1 --min-sensitivity 0.95
    """
    from pneumoscope.workflows.plan import PlanRequest, run_plan

    target = PlanTarget(**{name: options.pop(name) for name in _TARGETS})
    config = replace_from(PlanConfig(), **options)
    request = PlanRequest(evaluation, target, out, model, apply, recalibrate)
    return Outcome(*run_plan(request, config, TERMINAL.progress))


@settings(
    CompareConfig,
    *("auc_margin", "sensitivity_margin", "specificity_margin", "confidence", "fewest"),
    "resamples",
)
def compare(
    old: Annotated[str, typer.Argument(metavar="OLD", help="a bundle, a run, or 'default'")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="the model to take its place")],
    data: DataArgument,
    out: Annotated[Path, typer.Option(metavar="DIR", help="folder for compare.json and .html")],
    split: Annotated[SplitChoice, typer.Option(help="which part of DATA")] = SplitChoice.test,
    **options: Any,
) -> Outcome:
    """Say whether NEW is as good as OLD on the same images; exit code 3 where that is not shown.

    Example: pneumoscope compare default runs/a chest_xray --out comparison
    """
    from pneumoscope.workflows.compare import run_compare

    chosen: Any = split.value
    config = replace_from(CompareConfig(), **options)
    return Outcome(*run_compare(old, new, data, out, chosen, config, TERMINAL.progress))
