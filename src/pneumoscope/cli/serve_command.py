"""`pneumoscope serve`: the model over HTTP, with a page for people."""

from __future__ import annotations

from typing import Any

import typer

from pneumoscope.cli.model_commands import ModelOption
from pneumoscope.cli.options import Outcome, command, settings
from pneumoscope.config import LimitsConfig, ServeConfig, replace_from

_LIMITS = ("max_pixels",)


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    command(app, "serve")(serve)


@settings(
    ServeConfig,
    *("host", "port", "any_age", "readers", "requests", "longest_wait", "timeout", "stop_timeout"),
    *("max_upload", "max_files", "max_held", "rate", "burst"),
    *("api_key_file", "tls_certificate", "tls_key"),
)
@settings(LimitsConfig, *_LIMITS)
def serve(model: ModelOption = "default", **options: Any) -> Outcome:
    """Answer over HTTP, and show a page for people; log lines are JSON on stderr.

    Example: pneumoscope serve --model runs/a --port 8000
    """
    from pneumoscope.workflows.serve import run_serve

    limits = replace_from(LimitsConfig(), **{name: options.pop(name) for name in _LIMITS})
    return Outcome(*run_serve(model, replace_from(ServeConfig(), **options), limits))
