"""The commands `demo`, `info`, `doctor`, `input-check` and `upgrade`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pneumoscope.cli.data_commands import DataArgument
from pneumoscope.cli.model_commands import ModelOption
from pneumoscope.cli.options import TERMINAL, Outcome, command


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    command(app, "demo")(demo)
    command(app, "info")(info)
    command(app, "doctor")(doctor)
    command(app, "input-check")(input_check)
    command(app, "upgrade")(upgrade)


def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="folder to write")] = Path("demo"),
) -> Outcome:
    """Run the whole workflow offline on synthetic X-rays: draw, train, evaluate, explain, report.

    Example: pneumoscope demo --out demo
    """
    from pneumoscope.workflows.demo import run_demo

    return Outcome(*run_demo(out, TERMINAL.progress))


def info(model: ModelOption = "default") -> Outcome:
    """Show architecture, training data, threshold, validation results and hashes of a model.

    Example: pneumoscope info --model runs/a --json
    """
    from pneumoscope.workflows.inspect import run_info

    return Outcome(*run_info(model), alone=True)


def doctor(
    model: ModelOption = "default",
    state: Annotated[
        Path | None,
        typer.Option(metavar="BUNDLE", help="write the model with its score of the phantom"),
    ] = None,
) -> Outcome:
    """Check this installation: versions, extras, cache, and every engine on a known phantom.

    The model states its score of the phantom; every installed engine and precision must reproduce
    it, otherwise the exit code is 4. `serve` and `node` test their engine at start.

    Example: pneumoscope doctor
    """
    from pneumoscope.workflows.inspect import run_doctor, run_state

    if state is not None:
        return Outcome(*run_state(model, state))
    return Outcome(*run_doctor(model), alone=True)


def input_check(
    data: DataArgument,
    model: ModelOption = "default",
    out: Annotated[
        Path | None,
        typer.Option(metavar="BUNDLE", help="write the model with the check to this folder"),
    ] = None,
) -> Outcome:
    """Fit the out-of-distribution detection of a model to its training images (`train` does this).

    DATA is the training data of the model with its splits: train for statistics, val for limits.

    Example: pneumoscope input-check runs/a/split.csv --model runs/a --out checked
    """
    from pneumoscope.workflows.input_check import run_input_check

    return Outcome(*run_input_check(data, model, out, TERMINAL.progress), alone=out is None)


def upgrade(
    out: Annotated[
        Path, typer.Option(metavar="BUNDLE", help="write the converted model to this folder")
    ],
    model: ModelOption = "default",
) -> Outcome:
    """Convert a model of an older version of pneumoscope; its predictions stay the same.

    Example: pneumoscope upgrade --model runs/old --out upgraded
    """
    from pneumoscope.workflows.export import run_upgrade

    return Outcome(*run_upgrade(model, out))
