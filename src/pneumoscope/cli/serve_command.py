"""`pneumoscope serve`: the model over HTTP, with a page for people."""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated, Any

import typer

from pneumoscope.cli.model_commands import ModelOption
from pneumoscope.cli.options import Outcome, command, settings
from pneumoscope.config import LimitsConfig, ServeConfig, replace_from

_LIMITS = ("max_pixels",)


def named(setting: str) -> str:
    """The help text of a setting that is a list."""
    (found,) = (f for f in fields(ServeConfig) if f.name == setting)
    return str(found.metadata["help"])


def listed(texts: list[str] | None) -> tuple[str, ...] | None:
    """What stands between commas, of an option that may be given several times."""
    words = (word.strip() for text in texts or () for word in text.split(","))
    return tuple(word for word in words if word) or None


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    command(app, "serve")(serve)


@settings(
    ServeConfig,
    *("host", "port", "root_path", "any_age", "readers", "requests", "longest_wait"),
    *("timeout", "header_timeout", "body_timeout", "write_timeout", "idle_timeout"),
    *("stop_timeout", "connections"),
    *("max_upload", "max_files", "max_held", "rate", "burst"),
    *("api_key_file", "tls_certificate", "tls_key"),
)
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
    """Answer over HTTP, and show a page for people; log lines are JSON on stderr.

    Example: pneumoscope serve --model runs/a --port 8000
    """
    from pneumoscope.workflows.serve import run_serve

    limits = replace_from(LimitsConfig(), **{name: options.pop(name) for name in _LIMITS})
    config = replace_from(
        ServeConfig(),
        allowed_host=listed(allowed_host),
        allowed_origin=listed(allowed_origin),
        **options,
    )
    return Outcome(*run_serve(model, config, limits))
