"""The command line: parse, call a workflow, turn its outcome or its error into an exit code.

Exit codes: 0 done · 1 a defect of ours · 2 wrong usage · 3 the input was refused · 4 something
needed is missing · 130 interrupted. Knows nothing of how anything is computed.
"""

from __future__ import annotations

import io
import sys


def main() -> None:
    """Run `pneumoscope` with the arguments of this process and exit with its code."""
    try:
        from pneumoscope.cli.app import run
    except KeyboardInterrupt:
        sys.exit(130)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that lacks a character shows its code
        sys.stdout.reconfigure(errors="backslashreplace")
    sys.exit(run(sys.argv[1:]))
