"""docs/commands.md is what the program says of itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def test_page_is_current() -> None:
    code = "import make_commands; print(make_commands.page(), end='')"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=DOCS, capture_output=True, text=True, check=True
    )
    current = (DOCS / "commands.md").read_text(encoding="utf-8")
    assert done.stdout == current, "run: python docs/make_commands.py"
    assert "## pneumoscope data phantom" in current
