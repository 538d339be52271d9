"""The `pneumoscope` application: every command, and the way from an error to an exit code."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import typer
from typer.main import get_command

from pneumoscope.cli import (
    analysis_commands,
    data_commands,
    delivery_commands,
    info_commands,
    model_commands,
)
from pneumoscope.cli.options import TERMINAL, begin
from pneumoscope.errors import InterruptedRunError, MissingError, PneumoscopeError, UsageError
from pneumoscope.storage import terminal_text

_MAY_BE_EMPTY = frozenset({"--columns", "--pneumonia", "--normal", "--table"})

app = typer.Typer(
    name="pneumoscope",
    help="Tell pneumonia from normal on chest X-rays, and know how far to believe the answer. "
    "Research software, not a medical device.",
    epilog="Start here: pneumoscope demo. Exit codes: 0 done, 1 a defect of ours, 2 wrong usage, "
    "3 input refused, 4 something needed is missing, 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_data = typer.Typer(help="Get, check and split images; draw synthetic ones.", no_args_is_help=True)
info_commands.register(app)
model_commands.register(app)
analysis_commands.register(app)
delivery_commands.register(app)
data_commands.register(_data)
app.add_typer(_data, name="data")


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code.

    Errors go to stderr; with `--json` also as a document to stdout, so that scripts need not
    parse prose.

    Raises:
        Exception: a defect of ours, for the traceback that its report needs; Python makes it 1.
    """
    begin(arguments)
    try:
        _refuse_empty(arguments)
        code = app(list(arguments), standalone_mode=False, prog_name="pneumoscope")
    except typer.TyperException as error:
        message = error.format_message().rstrip(".").replace("Value error, ", "")
        if not message:  # no command was given, and the help is printed already
            return error.exit_code
        return _report(UsageError(f"{message}. See: pneumoscope {_asked(arguments)}"))
    except typer.Exit as error:
        return error.exit_code
    except PneumoscopeError as error:
        return _report(error)
    except (KeyboardInterrupt, typer.Abort):
        return _report(_interruption(arguments))
    except OSError as error:
        name = error.filename2 or error.filename
        what = f"{name}: {error.strerror}" if name else str(error)
        return _report(MissingError(f"{what}. Make room or allow access, then try again."))
    except Exception as error:
        _print_json(error, 1)
        raise
    if code == InterruptedRunError.exit_code:  # which is what Typer makes of Ctrl-C
        return _report(_interruption(arguments))
    return TERMINAL.exit_code


def _refuse_empty(arguments: Sequence[str]) -> None:
    """An empty argument is a shell variable without a value; as a path it would mean this folder.

    Raises:
        UsageError: names the word before it.
    """
    for before, word in pairwise(["pneumoscope", *arguments]):
        emptied = word.startswith("--") and word.endswith("=")
        if not emptied and (word.strip() or before in _MAY_BE_EMPTY):
            continue
        place = word if emptied else f"'' after {before}"
        raise UsageError(
            f"found an empty argument ({place}), wanted a path or a value. Is a variable of the "
            "shell empty? For the current folder give a dot: ."
        )


def _interruption(arguments: Sequence[str]) -> InterruptedRunError:
    way = "Go on: the same command with --resume" if _begun(arguments) else "Run it again"
    return InterruptedRunError(f"interrupted; no file is left half-written. {way}.")


def _begun(arguments: Sequence[str]) -> bool:
    """Whether the command got as far as having something to resume."""
    named = Path(dict(pairwise(arguments)).get("--out", ""))
    marks = {
        "train": named / "config.toml",
        "crossvalidate": named / "folds.csv",
        "predict": Path(f"{named}.partial"),
        "stress": named / "answers.jsonl",
    }
    mark = marks.get("".join(arguments[:1]))
    return mark is not None and mark.is_file()


def _asked(arguments: Sequence[str]) -> str:
    """The help that fits: of the command that was named, as far as there is one."""
    known: list[str] = []
    within: Any = get_command(app)
    for word in arguments[:2]:
        within = getattr(within, "commands", {}).get(word)
        if within is None:
            break
        known.append(word)
    return " ".join([*known, "--help"])


def _report(error: PneumoscopeError) -> int:
    _print_json(error, error.exit_code)
    sys.stderr.write(terminal_text(f"{type(error).__name__}: {error}\n"))
    return error.exit_code


def _print_json(error: Exception, exit_code: int) -> None:
    if TERMINAL.as_json:
        told = {"type": type(error).__name__, "message": str(error), "exit_code": exit_code}
        sys.stdout.write(json.dumps({"error": told}) + "\n")
