"""`pneumoscope export`, `node`: take a model elsewhere, or let others ask it."""

from __future__ import annotations

from dataclasses import fields
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from pneumoscope.cli.model_commands import ModelOption
from pneumoscope.cli.options import TERMINAL, Outcome, command, settings
from pneumoscope.config import NodeConfig, replace_from


class TargetChoice(StrEnum):
    """Formats of an exported graph."""

    onnx = "onnx"
    openvino = "openvino"


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    command(app, "export")(export)
    command(app, "node")(node)


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


_NODE_SETTINGS = [f.name for f in fields(NodeConfig) if f.name != "callers"]


@settings(NodeConfig, *_NODE_SETTINGS)
def node(
    model: ModelOption = "default",
    callers: Annotated[
        str | None,
        typer.Option(metavar="AET,AET,…", help="AE titles that may call (default: every one)"),
    ] = None,
    **options: Any,
) -> Outcome:
    """Run as a DICOM node: films in by C-STORE, reports and heatmaps out by C-STORE.

    Example: pneumoscope node --aet PNEUMOSCOPE --port 11112 --forward PACS@10.0.0.5:104
    """
    from pneumoscope.workflows.node import run_node

    allowed = tuple(title.strip() for title in callers.split(",")) if callers else None
    config = replace_from(NodeConfig(), callers=allowed, **options)
    return Outcome(*run_node(config, model))
