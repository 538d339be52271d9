"""The commands `export`, `certify`, `node`, `fetch` and `serve`."""

from __future__ import annotations

from dataclasses import fields
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from pneumoscope.cli.data_commands import DataArgument
from pneumoscope.cli.model_commands import ModelOption, SplitChoice
from pneumoscope.cli.options import TERMINAL, Outcome, command, settings
from pneumoscope.config import FetchConfig, LimitsConfig, NodeConfig, ServeConfig, replace_from
from pneumoscope.errors import UsageError

_NODE_SETTINGS = [f.name for f in fields(NodeConfig) if f.name != "callers"]
_LIMITS = ("max_pixels",)
_SERVE_SETTINGS = [f.name for f in fields(ServeConfig) if not f.name.startswith("allowed_")]


class TargetChoice(StrEnum):
    """Formats of an exported graph."""

    onnx = "onnx"
    openvino = "openvino"


class ActionChoice(StrEnum):
    """Actions of `node`."""

    run = "run"
    status = "status"
    retry = "retry"
    results = "results"


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    command(app, "export")(export)
    command(app, "node")(node)
    command(app, "fetch")(fetch)
    command(app, "certify")(certify)
    command(app, "serve")(serve)


def export(
    to: Annotated[TargetChoice, typer.Option(help="format of the graph")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="folder to write")],
    model: ModelOption = "default",
    check: Annotated[
        Path | None, typer.Option(metavar="DATA", help="images to measure the agreement on")
    ] = None,
) -> Outcome:
    """Export a model as one graph from pixels to prediction; measure its agreement on DATA.

    Example: pneumoscope export --to onnx --out onnx --model runs/a --check xrays
    """
    from pneumoscope.workflows.export import run_export

    target: Any = to.value
    return Outcome(*run_export(model, target, out, check, TERMINAL.progress))


@settings(NodeConfig, *_NODE_SETTINGS)
def node(
    action: Annotated[
        ActionChoice,
        typer.Argument(
            help="run the node, show its spool, retry failed items, or write results to --out"
        ),
    ] = ActionChoice.run,
    model: ModelOption = "default",
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.csv", help="table that `node results` writes")
    ] = None,
    callers: Annotated[
        str | None,
        typer.Option(metavar="AET,AET,…", help="AE titles that may connect (default: all)"),
    ] = None,
    **options: Any,
) -> Outcome:
    """Run as a DICOM node: receive images by C-STORE, send reports and heatmaps by C-STORE.

    `node status` shows the items in the spool and the failed ones, `node retry` queues these
    again. `node results` writes a row for every image with a result, to be joined with readings.
    All of them also work while a node is running.

    Example: pneumoscope node --host 10.0.0.7 --callers PACS --forward PACS@10.0.0.5:104
    """
    from pneumoscope.workflows.services import node_results, node_retry, node_status, run_node

    if (action is ActionChoice.results) != (out is not None):
        raise UsageError(
            "node: --out FILE.csv is required by `node results` and not used otherwise"
        )
    if action is not ActionChoice.run:
        spool = Path(options.get("spool") or NodeConfig().spool)
        if out is not None:
            return Outcome(*node_results(spool, out))
        shown = node_status if action is ActionChoice.status else node_retry
        return Outcome(*shown(spool), alone=True)
    allowed = tuple(title.strip() for title in callers.split(",")) if callers else None
    config = replace_from(NodeConfig(), callers=allowed, **options)
    return Outcome(*run_node(config, model))


@settings(FetchConfig, *[f.name for f in fields(FetchConfig)])
def fetch(
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="folder for the images; resumes if it has some")
    ],
    pacs: Annotated[
        str,
        typer.Option(metavar="AET@HOST:PORT", help="PACS, queried by C-FIND and C-GET or C-MOVE"),
    ] = "",
    dicomweb: Annotated[
        str, typer.Option(metavar="URL", help="or a DICOMweb service (QIDO-RS, WADO-RS)")
    ] = "",
    first: Annotated[
        str, typer.Option("--from", metavar="DATE", help="first study date, such as 2026-09-01")
    ] = "",
    last: Annotated[
        str, typer.Option("--to", metavar="DATE", help="last study date (default: the first)")
    ] = "",
    ids: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="or a file with an accession or study UID per line"),
    ] = None,
    token_file: Annotated[
        str, typer.Option(metavar="FILE", help="file with the access token of --dicomweb")
    ] = "",
    **options: Any,
) -> Outcome:
    """Fetch X-rays from a PACS into a folder, with a table of them; resumes if interrupted.

    Example: pneumoscope fetch --pacs PACS@10.0.0.5:104 --from 2026-09-01 --to 2026-09-30 --out got
    """
    from pneumoscope.workflows.fetch import FetchRequest, run_fetch

    request = FetchRequest(out, pacs, dicomweb, first, last, ids, token_file)
    return Outcome(*run_fetch(request, replace_from(FetchConfig(), **options), TERMINAL.progress))


def certify(
    data: DataArgument,
    model: Annotated[
        str, typer.Option(metavar="MODEL", help="a bundle, a run folder, or 'default'")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="BUNDLE", help="folder of the revised model (default: replace the model)"
        ),
    ] = None,
    split: Annotated[SplitChoice, typer.Option(help="images to compare on")] = SplitChoice.val,
    precision: Annotated[
        str, typer.Option(metavar="bf16,int8", help="precisions to certify")
    ] = "bf16,int8",
) -> Outcome:
    """Enable bfloat16 or int8 inference if its predictions on DATA agree with float32.

    int8 is calibrated on the training images. A precision that changes more than 2 decisions in
    1,000, or the AUC by more than 0.001, is rejected.

    Example: pneumoscope certify split.csv --model runs/a
    """
    from pneumoscope.workflows.certify import LOWER, run_certify

    names = [name.strip() for name in precision.split(",")]
    precisions = [name for name in LOWER if name in names]
    if not precisions or set(names) - set(precisions):
        raise UsageError(f"--precision: found {precision!r}, wanted some of {', '.join(LOWER)}")
    found = run_certify(data, model, out, split.value, precisions, TERMINAL.progress)
    return Outcome(*found)


def named(setting: str) -> str:
    """The help text of a list setting of `serve`."""
    (found,) = (f for f in fields(ServeConfig) if f.name == setting)
    return str(found.metadata["help"])


def listed(texts: list[str] | None) -> tuple[str, ...] | None:
    """The comma-separated values of an option that may be given several times."""
    words = (word.strip() for text in texts or () for word in text.split(","))
    return tuple(word for word in words if word) or None


@settings(ServeConfig, *_SERVE_SETTINGS)
@settings(LimitsConfig, *_LIMITS)
def serve(
    model: ModelOption = "default",
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME,…", help=named("allowed_host")),
    ] = None,
    allowed_origin: Annotated[
        list[str] | None,
        typer.Option(metavar="URL,…", help=named("allowed_origin")),
    ] = None,
    **options: Any,
) -> Outcome:
    """Run an HTTP service with a REST API and a web page; log lines are JSON on stderr.

    Example: pneumoscope serve --model runs/a --port 8000
    """
    from pneumoscope.workflows.services import run_serve

    limits = replace_from(LimitsConfig(), **{name: options.pop(name) for name in _LIMITS})
    config = replace_from(
        ServeConfig(),
        allowed_host=listed(allowed_host),
        allowed_origin=listed(allowed_origin),
        **options,
    )
    return Outcome(*run_serve(model, config, limits))
