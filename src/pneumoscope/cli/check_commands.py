"""`pneumoscope input-check`, `upgrade`: a model with what it lacked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pneumoscope.cli.data_commands import DataArgument
from pneumoscope.cli.model_commands import ModelOption
from pneumoscope.cli.options import TERMINAL, Outcome, command


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    command(app, "input-check")(input_check)
    command(app, "upgrade")(upgrade)


def input_check(
    data: DataArgument,
    model: ModelOption = "default",
    out: Annotated[
        Path | None, typer.Option(metavar="BUNDLE", help="write the model with the check here")
    ] = None,
) -> Outcome:
    """Give a model the statistics to refuse what is unlike its training images (`train` does).

    DATA are those it was trained on, split as then: statistics come from train, limits from val.

    Example: pneumoscope input-check runs/a/split.csv --model runs/a --out checked
    """
    from pneumoscope.workflows.input_check import run_input_check

    return Outcome(*run_input_check(data, model, out, TERMINAL.progress), alone=out is None)


def upgrade(
    out: Annotated[Path, typer.Option(metavar="BUNDLE", help="write the converted model here")],
    model: ModelOption = "default",
) -> Outcome:
    """Convert a model that an older version of pneumoscope wrote; its predictions stay the same.

    Example: pneumoscope upgrade --model runs/old --out upgraded
    """
    from pneumoscope.workflows.upgrade import run_upgrade

    return Outcome(*run_upgrade(model, out))
