"""The `pneumoscope` application: every command, and the way from an error to an exit code."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

import typer

from pneumoscope.cli import data_commands, look_commands, model_commands
from pneumoscope.cli.options import TERMINAL
from pneumoscope.errors import InterruptedRunError, MissingError, PneumoscopeError, UsageError

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
look_commands.register(app)
model_commands.register(app)
data_commands.register(_data)
app.add_typer(_data, name="data")


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code. An unforeseen error keeps its traceback (code 1).

    Errors go to stderr; with `--json` also as a document to stdout, so that scripts need not
    parse prose.
    """
    try:
        app(list(arguments), standalone_mode=False, prog_name="pneumoscope")
    except typer.TyperException as error:
        message = error.format_message().rstrip(".")
        if not message:  # no command was given, and the help is printed already
            return error.exit_code
        return _report(UsageError(f"{message}. See: pneumoscope {_asked(arguments)}"))
    except typer.Exit as error:
        return error.exit_code
    except PneumoscopeError as error:
        return _report(error)
    except (KeyboardInterrupt, typer.Abort):
        text = "interrupted; what was finished is kept, and the same command with --resume goes on"
        return _report(InterruptedRunError(text))
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        return _report(MissingError(f"{what}. Make room or allow access, then try again."))
    return TERMINAL.exit_code


def _asked(arguments: Sequence[str]) -> str:
    """The help that fits: of the command that was named, as far as there is one."""
    named = list(arguments[: 2 if arguments[:1] == ["data"] else 1])
    return " ".join([*(word for word in named if not word.startswith("-")), "--help"])


def _report(error: PneumoscopeError) -> int:
    if TERMINAL.as_json:
        document = {
            "error": {
                "type": type(error).__name__,
                "message": str(error),
                "exit_code": error.exit_code,
            }
        }
        sys.stdout.write(json.dumps(document, ensure_ascii=False) + "\n")
    sys.stderr.write(f"{type(error).__name__}: {error}\n")
    return error.exit_code
