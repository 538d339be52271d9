"""The `pneumoscope` application: all commands, and the mapping of errors to exit codes.

The commands `demo`, `info`, `doctor`, `input-check` and `upgrade` are defined here.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.main import get_command

from pneumoscope.cli import analysis_commands, data_commands, delivery_commands, model_commands
from pneumoscope.cli.data_commands import DataArgument
from pneumoscope.cli.model_commands import ModelOption
from pneumoscope.cli.options import TERMINAL, Outcome, begin, command
from pneumoscope.errors import InterruptedRunError, MissingError, PneumoscopeError, UsageError
from pneumoscope.storage import terminal_text

_MAY_BE_EMPTY = frozenset({"--columns", "--pneumonia", "--normal", "--table"})


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
        typer.Option(
            metavar="BUNDLE",
            help="write a copy of the model that states its score of the phantom (for models of "
            "older versions)",
        ),
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
        typer.Option(
            metavar="BUNDLE",
            help="folder for the model with the check; without it nothing is saved",
        ),
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


app = typer.Typer(
    name="pneumoscope",
    help="Classify chest X-rays of children as pneumonia or normal, and measure how reliable "
    "the predictions are. Research software, not a medical device.",
    epilog="Start here: pneumoscope demo. Exit codes: 0 done, 1 internal error (bug), 2 wrong "
    "usage, 3 input rejected, 4 something needed is missing, 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _show_version(asked: bool) -> None:
    if asked:
        sys.stdout.write(f"pneumoscope {metadata.version('pneumoscope')}\n")
        raise typer.Exit()


@app.callback()
def _whole(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the version and exit.", callback=_show_version, is_eager=True
        ),
    ] = False,
) -> None:
    pass


_data = typer.Typer(
    help="Download, audit and split images; draw synthetic ones.", no_args_is_help=True
)
register(app)
model_commands.register(app)
analysis_commands.register(app)
delivery_commands.register(app)
data_commands.register(_data)
app.add_typer(_data, name="data")


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code.

    Errors go to stderr; with `--json` also as a document to stdout, for scripts.

    Args:
        arguments: the command line without the program name.

    Raises:
        Exception: an internal error (bug); Python prints its traceback and exits with 1.
    """
    begin(arguments)
    try:
        _refuse_empty(arguments)
        code = app(list(arguments), standalone_mode=False, prog_name="pneumoscope")
    except typer.TyperException as error:
        message = error.format_message().rstrip(".").replace("Value error, ", "")
        if not message:  # no command was given; the help is already printed
            return error.exit_code
        return _report(UsageError(f"{message}. See: pneumoscope {_help_of(arguments)}"))
    except typer.Exit as error:
        return error.exit_code
    except PneumoscopeError as error:
        return _report(error)
    except (KeyboardInterrupt, typer.Abort):
        return _report(_interruption(arguments))
    except OSError as error:
        name = error.filename2 or error.filename
        what = f"{name}: {error.strerror}" if name else str(error)
        return _report(MissingError(f"{what}. Free space or allow access, then try again."))
    except Exception as error:
        _print_json(error, 1)
        raise
    if code == InterruptedRunError.exit_code:  # Typer returns it on Ctrl-C
        return _report(_interruption(arguments))
    return TERMINAL.exit_code


def _refuse_empty(arguments: Sequence[str]) -> None:
    """Reject empty arguments, usually an unset shell variable; as a path one would mean `.`.

    Raises:
        UsageError: names the preceding word.
    """
    for previous, word in pairwise(["pneumoscope", *arguments]):
        emptied = word.startswith("--") and word.endswith("=")
        if not emptied and (word.strip() or previous in _MAY_BE_EMPTY):
            continue
        place = word if emptied else f"'' after {previous}"
        raise UsageError(
            f"found an empty argument ({place}), wanted a path or a value. Is a shell variable "
            "unset? For the current folder give a dot: ."
        )


def _interruption(arguments: Sequence[str]) -> InterruptedRunError:
    advice = (
        "Continue: the same command with --resume" if _can_resume(arguments) else "Run it again"
    )
    return InterruptedRunError(f"interrupted; no file is incomplete. {advice}.")


def _can_resume(arguments: Sequence[str]) -> bool:
    """Whether the command has written something to resume from."""
    words = [part for word in arguments for part in word.split("=", 1 if word[:2] == "--" else 0)]
    named = Path(dict(pairwise(words)).get("--out", ""))
    marks = {
        "train": named / "config.toml",
        "crossvalidate": named / "folds.csv",
        "predict": Path(f"{named}.partial"),
        "stress": named / "answers.jsonl",
    }
    mark = marks.get("".join(arguments[:1]))
    return mark is not None and mark.is_file()


def _help_of(arguments: Sequence[str]) -> str:
    """The help arguments of the command that was given, or of the program."""
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
        document = {"type": type(error).__name__, "message": str(error), "exit_code": exit_code}
        sys.stdout.write(json.dumps({"error": document}) + "\n")
