"""What all commands share: options from the config dataclasses, `--json`, `-q`, `-v`.

A command function takes the options named in `@settings(...)` as keyword arguments, `None` where
the user gave none, and returns an `Outcome`. `@command` registers it with Typer.
"""

from __future__ import annotations

import inspect
import json
import logging
import os
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Annotated, Any

import typer

from pneumoscope.config import RECIPES
from pneumoscope.progress import SILENT, Progress, TerminalProgress
from pneumoscope.storage import terminal_text

Command = Callable[..., "Outcome"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a command.

    Attributes:
        document: the JSON document of `--json`.
        text: the same as text, printed on stdout without `--json`.
        exit_code: 0, or 3 if input was rejected without stopping the command.
        alone: the command writes no file, so `-q` still prints the text.
    """

    document: Mapping[str, Any]
    text: str
    exit_code: int = 0
    alone: bool = False


@dataclass(slots=True)
class Terminal:
    """Output settings of this process, set by `begin` and by the shared options."""

    as_json: bool = False
    quiet: bool = False
    exit_code: int = 0
    progress: Progress = field(default_factory=lambda: SILENT)


TERMINAL = Terminal()


def begin(arguments: Sequence[str]) -> None:
    """Reset the output settings; `--json` also applies if the command line can't be parsed."""
    TERMINAL.as_json = "--json" in arguments
    TERMINAL.quiet = False
    TERMINAL.exit_code = 0
    TERMINAL.progress = SILENT


def settings(kind: type, *names: str) -> Callable[[Command], Command]:
    """Add one option per named field of a config dataclass, with its help text and default."""

    def decorate(command: Command) -> Command:
        hints = typing.get_type_hints(kind)
        extra = []
        for name in names:
            help_text = f"{help_of(kind, name)}{_default_in_words(kind, name)}"
            flag = f"--{name.replace('_', '-')}"
            optional: Any = hints[name] | None
            option = typer.Option(flag, help=help_text)
            extra.append(_keyword(name, Annotated[optional, option], None))
        return _with_parameters(command, extra)

    return decorate


def help_of(kind: type, name: str) -> str:
    """The help text of a field of a config dataclass."""
    (text,) = (str(f.metadata["help"]) for f in fields(kind) if f.name == name)
    return text


def _default_in_words(kind: type, name: str) -> str:
    """The default of a field; of a setting that depends on the recipe, that of each recipe."""
    by_recipe = {
        recipe: getattr(part, name)
        for recipe, config in RECIPES.items()
        for part in (config, *(getattr(config, f.name) for f in fields(config)))
        if type(part) is kind and name != "recipe"
    }
    if len(set(by_recipe.values())) > 1:
        listed = ", ".join(f"{recipe} {value}" for recipe, value in by_recipe.items())
        return f" (default: {listed})"
    (default,) = (f.default for f in fields(kind) if f.name == name)
    return "" if default in ("", None) else f" (default {default})"


def command(app: typer.Typer, name: str) -> Callable[[Command], Command]:
    """Register a command under `name`, with `--json`, `-q` and `-v`; it prints its outcome."""

    def decorate(function: Command) -> Command:
        flag = typer.Option("--json", help="print one JSON document on stdout, all else on stderr")
        quiet = typer.Option("--quiet", "-q", help="print errors only; results are in the files")
        verbose = typer.Option("--verbose", "-v", help="print more")
        parameters = [
            _keyword("json_output", Annotated[bool, flag], False),
            _keyword("quiet", Annotated[bool, quiet], False),
            _keyword("verbose", Annotated[bool, verbose], False),
        ]

        def run(**given: Any) -> None:
            _configure(given.pop("json_output"), given.pop("quiet"), given.pop("verbose"))
            outcome = function(**given)
            if TERMINAL.as_json:
                # ASCII, because a terminal or pipe may have any encoding.
                text = json.dumps(outcome.document, allow_nan=False)
            elif TERMINAL.quiet and not outcome.alone:
                text = ""
            else:
                text = terminal_text(outcome.text)
            TERMINAL.exit_code = outcome.exit_code
            if text:
                _print(text)

        run.__doc__ = function.__doc__
        run.__signature__ = _signature(function, parameters)  # type: ignore[attr-defined]
        app.command(name)(run)
        return function

    return decorate


def _print(text: str) -> None:
    try:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()  # reports a full disk with its exit code
    except BrokenPipeError:
        # The reader has closed the pipe (`| head`), which is no failure. Without this, Python
        # would report it again when it flushes at exit.
        with open(os.devnull, "wb") as nowhere:  # noqa: PTH123 - a device, not a path of ours
            os.dup2(nowhere.fileno(), sys.stdout.fileno())


def _configure(as_json: bool, quiet: bool, verbose: bool) -> None:
    TERMINAL.as_json, TERMINAL.quiet = as_json, quiet
    TERMINAL.progress = SILENT if quiet else TerminalProgress()
    level = logging.ERROR if quiet else logging.DEBUG if verbose else logging.INFO
    logger = logging.getLogger("pneumoscope")
    logger.setLevel(level)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_TerminalFormatter("%(levelname)s: %(message)s"))
    logger.handlers[:] = [handler]


class _TerminalFormatter(logging.Formatter):
    """Formats log lines for a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return terminal_text(super().format(record))


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=default, annotation=annotation)


def _signature(function: Command, extra: list[inspect.Parameter]) -> inspect.Signature:
    signature = inspect.signature(function, eval_str=True)
    kept = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    return signature.replace(parameters=kept + extra, return_annotation=None)


def _with_parameters(function: Command, extra: list[inspect.Parameter]) -> Command:
    signature = inspect.signature(function, eval_str=True)
    rest = [p for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD]
    kept = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    function.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*kept, *extra, *rest]
    )
    return function
