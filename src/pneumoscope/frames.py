"""Tables for notebooks: columns to a DataFrame, and the paths in one.

Polars is among the package's dependencies. Where it was left out, pandas is used.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from pneumoscope.errors import MissingError, UsageError

PATH_COLUMN = "path"


def make_frame(columns: Mapping[str, Sequence[Any]], numbers: Collection[str] = ()) -> Any:
    """A DataFrame of the given columns: polars if it is installed, else pandas.

    Args:
        columns: values by the name of their column, all of one length; `None` where undefined.
        numbers: columns of numbers. All others hold text, so that a column of `None` has a type.

    Raises:
        MissingError: neither library is installed.

    Example:
        >>> make_frame({"path": ["a.png"], "probability": [0.5]}, {"probability"}).shape
        (1, 2)
    """
    polars = _installed("polars")
    if polars is not None:
        kinds = {name: polars.Float64 if name in numbers else polars.String for name in columns}
        return polars.DataFrame(dict(columns), schema=kinds)
    pandas = _installed("pandas")
    if pandas is None:
        raise MissingError(
            "to_frame() needs polars or pandas, and neither is installed. Install one: "
            "pip install polars"
        )
    frame = pandas.DataFrame(dict(columns))
    return frame.astype({name: "float64" for name in columns if name in numbers})


def is_frame(value: Any) -> bool:
    """Whether a value is a DataFrame, of polars or of pandas."""
    return hasattr(value, "columns") and hasattr(value, "__getitem__")


def paths_of(frame: Any) -> list[str]:
    """The column `path` of a DataFrame.

    Raises:
        UsageError: there is no such column, or a row without a path.

    Example:
        >>> paths_of(make_frame({"path": ["a.png", "b.png"], "label": ["NORMAL", "PNEUMONIA"]}))
        ['a.png', 'b.png']
    """
    names = [str(name) for name in frame.columns]
    if PATH_COLUMN not in names:
        raise UsageError(
            f"DataFrame: found the columns {', '.join(names)}, wanted one named {PATH_COLUMN!r}. "
            "Rename the column of image files."
        )
    found = list(frame[PATH_COLUMN])
    for number, path in enumerate(found):
        if not hasattr(path, "__fspath__") and not isinstance(path, str):
            raise UsageError(
                f"DataFrame, row {number}: found the path {path!r}, wanted the name of a file. "
                "Remove the row."
            )
    return [str(path) for path in found]


def _installed(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None
