"""`pneumoscope stress`: change the films, hide their parts, and see what the model makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pneumoscope.cli.data_commands import DataArgument
from pneumoscope.cli.model_commands import ModelOption, SplitChoice
from pneumoscope.cli.options import TERMINAL, Outcome, command, settings
from pneumoscope.config import IntervalConfig, StressConfig, replace_from


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    command(app, "stress")(stress)


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
            "--shortcuts/--no-shortcuts", help="ask as well whether it reads the lungs at all"
        ),
    ] = True,
    masks: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="lung masks of your own: PNG, named as the films are"),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="go on with the answers in --out")
    ] = False,
    **options: Any,
) -> Outcome:
    """Change the films in every way and strength, hide their parts, and measure what it costs.

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
