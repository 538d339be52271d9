"""`pneumoscope export`: take a model elsewhere."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from pneumoscope.cli.model_commands import ModelOption
from pneumoscope.cli.options import TERMINAL, Outcome, command


class TargetChoice(StrEnum):
    """Formats of an exported graph."""

    onnx = "onnx"
    openvino = "openvino"


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    command(app, "export")(export)


def export(
    to: Annotated[TargetChoice, typer.Option(help="format of the graph")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="folder to write")],
    model: ModelOption = "default",
    check: Annotated[
        Path | None, typer.Option(metavar="DATA", help="images to certify the export on")
    ] = None,
) -> Outcome:
    """Write a model as one graph from pixels to answer, for other programs; certify it on DATA.

    Example: pneumoscope export --to onnx --out onnx --model runs/a --check xrays
    """
    from pneumoscope.workflows.export import run_export

    target: Any = to.value
    return Outcome(*run_export(model, target, out, check, TERMINAL.progress))
