"""Render and write self-contained pages from sections, tables and figures.

A page is one HTML file that includes its styles, figures and images, and loads nothing from the
network. The Jinja2 environments escape every value (HTML) or quote it (Markdown), and raise an
error for undefined names.
"""

from __future__ import annotations

import hashlib
import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata, resources
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from pneumoscope.report.svg import Svg

_MARKDOWN_SPECIAL = str.maketrans({c: f"\\{c}" for c in "\\`*_[]<>|#"})


@cache
def page_environment() -> Environment:
    """The HTML environment: escapes everything except the package's own figures and styles."""
    environment = Environment(
        loader=FunctionLoader(template_text),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figure_markup"] = _figure_markup
    environment.filters["style_markup"] = Markup  # the package's own style sheet
    environment.filters["script_markup"] = Markup  # the package's own script
    environment.filters["json_markup"] = _json_markup
    return environment


@cache
def markdown_environment() -> Environment:
    """The Markdown environment: its filter `md` escapes Markdown's special characters."""
    environment = Environment(
        loader=FunctionLoader(template_text),
        autoescape=False,  # noqa: S701 - Markdown, not HTML: the filter `md` escapes
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["md"] = _as_markdown_text
    return environment


def template_text(name: str) -> str:
    """The text of a file in `templates/`."""
    folder = resources.files("pneumoscope.report") / "templates"
    return folder.joinpath(*name.split("/")).read_text(encoding="utf-8")


def _figure_markup(drawn: Svg) -> Markup:
    # Matplotlib escapes every label, and `svg` escapes the description.
    return Markup(drawn.inline)  # noqa: S704


def _json_markup(document: Any) -> Markup:
    # Inside <script type="application/json"> only `<` can end the element or begin a comment.
    text = json.dumps(document, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c"))  # noqa: S704


def _as_markdown_text(text: str) -> str:
    return " ".join(text.split()).translate(_MARKDOWN_SPECIAL)


@dataclass(frozen=True, slots=True)
class Section:
    """One section of a page.

    Attributes:
        identifier: unique on the page; the target of its link.
        title: its heading.
        short: its name in the navigation.
        template: the template that renders it.
        view: the texts and figures that the template shows.
        flows: whether, in print, it may start on the same sheet as the section before it.
    """

    identifier: str
    title: str
    short: str
    template: str
    view: Any
    flows: bool = False


@dataclass(frozen=True, slots=True)
class Column:
    """A table column; numbers are right-aligned, code is set in a fixed-width font."""

    title: str
    numeric: bool = False
    code: bool = False


@dataclass(frozen=True, slots=True)
class Head:
    """The first cell of a row, with a note in smaller type below it."""

    text: str
    note: str


@dataclass(frozen=True, slots=True)
class Table:
    """A table of text cells; the first cell of each row is its heading."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[Sequence[str | Head], ...]
    note: str = ""
    total: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Drawn:
    """A figure with its title (`""` if the figure shows its own) and a caption."""

    title: str
    svg: Svg
    caption: str = ""


@dataclass(frozen=True, slots=True)
class FiguresView:
    """A section of figures.

    Attributes:
        intro: text above the figures.
        figures: shown two in a row.
        beside: a table placed among the figures.
        tables: tables below the figures.
        small: whether to show three figures in a row.
    """

    intro: str
    figures: tuple[Drawn, ...]
    beside: Table | None = None
    tables: tuple[Table, ...] = ()
    small: bool = False


@dataclass(frozen=True, slots=True)
class TablesView:
    """A section of tables, with text above them."""

    intro: str
    tables: tuple[Table, ...]


@dataclass(frozen=True, slots=True)
class FindingGroup:
    """The findings of one severity, with the CSS class that colours their border."""

    title: str
    css: str
    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FindingsView:
    """All findings, problems first."""

    groups: tuple[FindingGroup, ...]


def notes(texts: Sequence[str]) -> Section | None:
    """The section of what to know before the results, as a list; `None` if there is nothing."""
    if not texts:
        return None
    view = FindingsView((FindingGroup("", "notable", tuple(texts)),))
    return Section("notes", "Notes", "Notes", "sections/findings.html.j2", view)


def render_page(template: str, page: Any, sections: Sequence[Section], script: str = "") -> str:
    """Render a page as HTML; all values in the views are escaped.

    Args:
        template: name of the page's template.
        page: the texts at the top of the page.
        sections: in order.
        script: a file in `templates/`, or `""`. The page's Content Security Policy allows only
            this script, by its hash (CSP Level 3, section 6.7.3.3).
    """
    code = template_text(script) if script else ""
    digest = b64encode(hashlib.sha256(code.encode("utf-8")).digest()).decode("ascii")
    return (
        page_environment()
        .get_template(template)
        .render(
            page=page,
            sections=sections,
            style=template_text("style.css"),
            version=metadata.version("pneumoscope"),
            script=code,
            script_policy=f"; script-src 'sha256-{digest}'" if code else "",
        )
    )


def data_uri(png: bytes) -> str:
    """PNG bytes as a data URI."""
    return f"data:image/png;base64,{b64encode(png).decode('ascii')}"


def pairs(facts: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """The facts that are known, in order."""
    return tuple((name, value) for name, value in facts.items() if value)
