"""Hooks of the documentation site: pages that show a file of the repository, and links to files.

MkDocs calls `on_page_markdown` for every page (`hooks` in mkdocs.yml). Two things are done:

- A line `<!-- include: ../../ARCHITECTURE.md -->` is replaced with that file, so that a text that
  people also read in the repository exists once.
- Links to files outside docs/ work in the repository, but such files are not part of the site. A
  link to a file that a page includes leads to that page. Any other link to a file outside docs/
  becomes its path in plain text.

Imports nothing but the standard library, so that the tests use it without MkDocs.
"""

from __future__ import annotations

import os
import re
from functools import cache
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
ROOT = DOCS.parent

INCLUDE = re.compile(r"^<!-- include: (\S+) -->$", re.MULTILINE)
_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)


@cache
def included_files() -> dict[Path, Path]:
    """Files of the repository that a page includes, with the page that does so."""
    found = {}
    for page in sorted(DOCS.rglob("*.md")):
        for name in INCLUDE.findall(page.read_text(encoding="utf-8")):
            found[(page.parent / name).resolve()] = page
    return found


def relink(text: str, source: Path, page: Path) -> str:
    """The text with its links rewritten for the site.

    Args:
        text: Markdown.
        source: the file that it was written in; its links are relative to this file.
        page: the page of docs/ that shows it.
    """

    def rewritten(match: re.Match[str]) -> str:
        label, target = match[1], match[2]
        if "://" in target or target.startswith(("#", "mailto:")):
            return match[0]
        path, _, anchor = target.partition("#")
        found = (source.parent / path).resolve()
        found = included_files().get(found, found)
        if not found.is_relative_to(DOCS):
            name = found.relative_to(ROOT).as_posix() if found.is_relative_to(ROOT) else path
            return label if label.strip("`") == name else f"{label} (`{name}`)"
        relative = os.path.relpath(found, page.parent).replace(os.sep, "/")
        return f"[{label}]({relative}{'#' + anchor if anchor else ''})"

    parts, end = [], 0
    for fence in _FENCE.finditer(text):
        parts += [_LINK.sub(rewritten, text[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, _LINK.sub(rewritten, text[end:])])


def with_includes(text: str, page: Path) -> str:
    """The text of a page, its included files in place and all links rewritten.

    Args:
        text: Markdown of the page.
        page: its file in docs/.
    """

    def content(match: re.Match[str]) -> str:
        source = (page.parent / match[1]).resolve()
        return relink(_FRONT_MATTER.sub("", source.read_text(encoding="utf-8")), source, page)

    parts, end = [], 0
    for include in INCLUDE.finditer(text):
        parts += [relink(text[end : include.start()], page, page), content(include)]
        end = include.end()
    return "".join([*parts, relink(text[end:], page, page)])


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Called by MkDocs for each page."""
    return with_includes(markdown, DOCS / page.file.src_path)
