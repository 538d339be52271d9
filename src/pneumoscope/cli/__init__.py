"""The command line: parse, call a workflow, turn its outcome or its error into an exit code.

Exit codes: 0 done · 1 a defect of ours · 2 wrong usage · 3 the input was refused · 4 something
needed is missing · 130 interrupted. Knows nothing of how anything is computed.
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
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that lacks a character shows its code
        sys.stdout.reconfigure(errors="backslashreplace")
    _leave(run(sys.argv[1:]))


def _leave(code: int) -> None:
    """End the process as `sys.exit` does, but leave its memory for the system to clear away.

    Training frameworks take themselves apart piece by piece, which whoever waits can do without.
    """
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):  # nobody reads any more: Python has its own way to say so
        sys.exit(code)
    os._exit(code)
