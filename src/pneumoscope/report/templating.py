"""Jinja2 environments over the templates inside the package.

Comes in: nothing. Goes out: environments that escape (pages) or quote (Markdown) what they are
given and refuse undefined names. Knows nothing of what is rendered.
"""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from pneumoscope.report.svg import Svg

_MARKDOWN_SPECIAL = str.maketrans({c: f"\\{c}" for c in "\\`*_[]<>|#"})


@cache
def page_environment() -> Environment:
    """For HTML: everything is escaped, but for our own figures through `figure_markup`."""
    environment = Environment(
        loader=FunctionLoader(template_text),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figure_markup"] = _figure_markup
    environment.filters["style_markup"] = Markup  # our own style sheet, from the package
    environment.filters["script_markup"] = Markup  # our own script, from the package
    environment.filters["json_markup"] = _json_markup
    return environment


@cache
def markdown_environment() -> Environment:
    """For Markdown: `md` takes the meaning out of its special characters."""
    environment = Environment(
        loader=FunctionLoader(template_text),
        autoescape=False,  # noqa: S701 - HTML's escapes mean nothing here; `md` does its part
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["md"] = _as_markdown_text
    return environment


def template_text(name: str) -> str:
    """A file of `templates/`, as text."""
    folder = resources.files("pneumoscope.report") / "templates"
    return folder.joinpath(*name.split("/")).read_text(encoding="utf-8")


def _figure_markup(drawn: Svg) -> Markup:
    # Matplotlib has escaped every label in it, and `svg` the reading.
    return Markup(drawn.inline)  # noqa: S704


def _json_markup(document: Any) -> Markup:
    # Inside <script type="application/json"> only `<` could end the element, or begin a comment.
    text = json.dumps(document, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c"))  # noqa: S704


def _as_markdown_text(text: str) -> str:
    return " ".join(text.split()).translate(_MARKDOWN_SPECIAL)
