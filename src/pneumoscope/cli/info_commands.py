"""`pneumoscope demo`, `info`, `doctor`: see it work, see what a model is, see what is installed.

`pneumoscope input-check`, `upgrade`: a model with what it lacked.
"""

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
    """Everything once, offline, on synthetic X-rays: draw, train, evaluate, explain, report.

    Example: pneumoscope demo --out demo
    """
    from pneumoscope.workflows.demo import run_demo

    return Outcome(*run_demo(out, TERMINAL.progress))


def info(model: ModelOption = "default") -> Outcome:
    """Say what a model is: architecture, data it saw, threshold, validation results, hashes.

    Example: pneumoscope info --model runs/a --json
    """
    from pneumoscope.workflows.inspect import run_info

    return Outcome(*run_info(model), alone=True)


def doctor(
    model: ModelOption = "default",
    state: Annotated[
        Path | None,
        typer.Option(metavar="BUNDLE", help="write the model with its score of the phantom stated"),
    ] = None,
) -> Outcome:
    """Check this installation: versions, extras, cache, and every engine on a known phantom.

    The phantom's score is stated in the model; each engine and precision that is present must give
    it. Exit code 4 where one does not. `serve` and `node` check theirs at start.

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
    from pneumoscope.workflows.export import run_upgrade

    return Outcome(*run_upgrade(model, out))
