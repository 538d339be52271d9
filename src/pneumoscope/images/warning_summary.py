"""Format the warnings of images: in one table cell, and counted over many images."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

SEPARATOR = "; "
"""Separates the warnings of one image in the column `warnings`; no warning contains it."""

_MAX_TYPES = 5
_VALUE = re.compile(r"""'[^']*'|"[^"]*"|(?<![A-Za-z_\d])-?\d+(?:[.,]\d+)*(?:e[+-]?\d+)?""")


def join_warnings(warnings: Iterable[str]) -> str:
    """The warnings of one image as the text of one cell; empty if there are none."""
    return SEPARATOR.join(warning.replace(SEPARATOR, ", ") for warning in warnings)


def split_warnings(text: str) -> tuple[str, ...]:
    """The warnings in a cell that `join_warnings` wrote."""
    return tuple(text.split(SEPARATOR)) if text else ()


def warning_type(warning: str) -> str:
    """A warning without its numbers and quoted values, so that equal ones can be counted.

    No patient data from a header remains in it.
    """
    return _VALUE.sub("…", warning.replace(SEPARATOR, ", "))


def count_warnings(images: Iterable[Sequence[str]]) -> Counter[str]:
    """How many images have each type of warning."""
    counts: Counter[str] = Counter()
    for warnings in images:
        counts.update({warning_type(warning) for warning in warnings})
    return counts


def summary(counts: Counter[str]) -> str:
    """The counts in one line, most frequent first; empty if there are none."""
    listed = [f"{count} × {kind}" for kind, count in counts.most_common(_MAX_TYPES)]
    more = len(counts) - len(listed)
    listed += [f"{more} more types"] if more > 0 else []
    return SEPARATOR.join(listed)


def summary_lines(counts: Counter[str]) -> list[str]:
    """The line about warnings at the end of a run; no line if there are none."""
    return [f"warnings  {summary(counts)}"] if counts else []
