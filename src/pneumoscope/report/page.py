"""What every page is built of, and the writing of one.

Comes in: a template's name, the page's heading and its sections. Goes out: one HTML file that
holds all it shows (styles, figures, pictures) and asks the network for nothing.
Knows nothing of evaluations or audits.

Jinja2 environments over the templates inside the package.

Comes in: nothing. Goes out: environments that escape (pages) or quote (Markdown) what they are
given and refuse undefined names. Knows nothing of what is rendered.
"""

from __future__ import annotations

import hashlib
import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from pneumoscope.report.svg import Svg
from pneumoscope.storage import write_text

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


@dataclass(frozen=True, slots=True)
class Section:
    """One section of a page.

    Attributes:
        identifier: unique in the page; the target of its link.
        title: its heading.
        short: its name in the list of sections.
        template: what lays it out.
        view: what the template shows, already in words.
        flows: on paper it may follow the section before on the same sheet.
    """

    identifier: str
    title: str
    short: str
    template: str
    view: Any
    flows: bool = False


@dataclass(frozen=True, slots=True)
class Column:
    """A table's column: numbers are set flush right, code in a fixed-width font."""

    title: str
    numeric: bool = False
    code: bool = False


@dataclass(frozen=True, slots=True)
class Head:
    """The cell that heads a row, with a quiet line below."""

    text: str
    note: str


@dataclass(frozen=True, slots=True)
class Table:
    """A table of text cells; the first cell of a row heads it."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[Sequence[str | Head], ...]
    note: str = ""
    total: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Drawn:
    """A figure under its title (none if the figure bears its own), with a further sentence."""

    title: str
    svg: Svg
    caption: str = ""


@dataclass(frozen=True, slots=True)
class FiguresView:
    """A section of figures.

    Attributes:
        intro: a sentence above them.
        figures: two in a row.
        beside: a table that stands among them.
        tables: below them.
        small: three figures in a row.
    """

    intro: str
    figures: tuple[Drawn, ...]
    beside: Table | None = None
    tables: tuple[Table, ...] = ()
    small: bool = False


@dataclass(frozen=True, slots=True)
class TablesView:
    """A section of tables, with a sentence above."""

    intro: str
    tables: tuple[Table, ...]


def render_page(template: str, page: Any, sections: Sequence[Section], script: str = "") -> str:
    """The page as HTML; whatever the views hold is escaped.

    `script` names a file of `templates/`: the one script that the page's policy lets run, by its
    hash (Content Security Policy Level 3, section 6.7.3.3).
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


def write_page(
    path: Path, template: str, page: Any, sections: Sequence[Section], script: str = ""
) -> None:
    """Render a page and write it to `path`, whole or not at all.

    Raises:
        OSError: the folder can't be written or the disk is full; `path` is then untouched.
    """
    write_text(path, render_page(template, page, sections, script))


def data_uri(png: bytes) -> str:
    """PNG bytes as an image's address inside the page."""
    return f"data:image/png;base64,{b64encode(png).decode('ascii')}"


def pairs(facts: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Facts that are known, in order."""
    return tuple((name, value) for name, value in facts.items() if value)
