"""Write docs/commands.md: what every command says of itself.

    python docs/make_commands.py

A test compares the file with what this prints, so the page can't fall behind the program.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path

import typer
from typer.main import get_command

TARGET = Path(__file__).with_name("commands.md")
WIDTH = "96"


def commands(app: typer.Typer) -> Iterator[list[str]]:
    """Every command and group, as the words that name it."""

    def walk(command: object, words: list[str]) -> Iterator[list[str]]:
        yield words
        for name, inner in getattr(command, "commands", {}).items():
            yield from walk(inner, [*words, name])

    yield from walk(get_command(app), [])


def page() -> str:
    """The whole page as Markdown."""
    os.environ["COLUMNS"] = WIDTH
    os.environ["TERM"] = "dumb"
    from pneumoscope.cli.app import app, run

    parts = ["# Commands", "", "Made by `python docs/make_commands.py`; do not edit."]
    for words in commands(app):
        shown = io.StringIO()
        with contextlib.redirect_stdout(shown):
            run([*words, "--help"])
        text = "\n".join(line.rstrip() for line in shown.getvalue().strip().splitlines())
        parts += ["", f"## {' '.join(['pneumoscope', *words])}", "```", text, "```"]
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    TARGET.write_text(page(), encoding="utf-8")
