"""The command line: parse arguments, call a workflow, return an exit code.

Exit codes: 0 done · 1 internal error (bug) · 2 wrong usage · 3 input rejected · 4 something needed
is missing · 130 interrupted.
"""

from __future__ import annotations

import atexit
import io
import os
import sys


def main() -> None:
    """Run `pneumoscope` with the arguments of this process and exit with its code."""
    try:
        from pneumoscope.cli.app import run
    except KeyboardInterrupt:
        sys.exit(130)
    if isinstance(sys.stdout, io.TextIOWrapper):  # show codes of characters that the terminal lacks
        sys.stdout.reconfigure(errors="backslashreplace")
    _leave(run(sys.argv[1:]))


def _leave(code: int) -> None:
    """Exit with `code` without tearing down the interpreter.

    The teardown of training frameworks takes seconds; the system frees the memory anyway.
    """
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):  # the reader of the pipe is gone: Python reports it
        sys.exit(code)
    os._exit(code)
