"""Many inputs: which files a PATH means, and the table of their predictions.

Comes in: paths as users give them, answers as the predictor yields them. Goes out: a list of files
and `predictions.csv`, `.jsonl` or `.parquet`, whole or not at all. Knows nothing of models.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from pneumoscope.errors import ManifestError, UsageError
from pneumoscope.records import Prediction
from pneumoscope.storage import path_text, write_bytes, write_text

COLUMNS = (
    "path",
    "status",
    "reason",
    "probability",
    "prediction",
    "threshold",
    "input_score",
)
"""The columns of a predictions file, in order."""

FORMATS = (".csv", ".jsonl", ".parquet")

_SNIFFED_BYTES = 4096


def expand(paths: Iterable[Path]) -> list[Path]:
    """The files that `paths` mean: a file itself, a folder's files, the `path` column of a CSV.

    Folders are searched recursively in sorted order, hidden files left out; links are followed,
    and each real folder is read once. A path that is not there, and a folder that can't be listed,
    stay in the list, so that they get a row that says so.

    Raises:
        ManifestError: a CSV can't be read, has no `path` column, or a row without a path.
    """
    found: list[Path] = []
    for path in paths:
        if _is(path, "dir"):
            found += _files_below(path)
        elif path.suffix.lower() == ".csv" and _is_text(path):
            found += _listed_in(path)
        else:
            found.append(path)
    return found


def _is(path: Path, what: Literal["dir", "file"]) -> bool:
    try:
        return path.is_dir() if what == "dir" else path.is_file()
    except (OSError, ValueError):  # not allowed to look, or a name that no file system holds
        return False


def _is_text(path: Path) -> bool:
    """Whether a file is text by its content: an image that is named .csv is an image."""
    if not _is(path, "file"):
        return False
    try:
        with path.open("rb") as stream:
            return b"\0" not in stream.read(_SNIFFED_BYTES)
    except OSError:
        return False


def _files_below(top: Path) -> list[Path]:
    found: list[Path] = []
    seen: set[tuple[int, int]] = set()
    waiting = [top]
    while waiting:
        path = waiting.pop()
        if not _is(path, "dir"):
            found.append(path)
            continue
        try:
            status = path.stat()
            inside = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
        except OSError:
            found.append(path)
            continue
        if (status.st_dev, status.st_ino) not in seen:
            seen.add((status.st_dev, status.st_ino))
            waiting += reversed(inside)
    return found


def _listed_in(table: Path) -> list[Path]:
    try:
        with table.open(newline="", encoding="utf-8-sig") as stream:
            lines = list(csv.reader(stream, strict=True))
    except OSError as error:
        raise ManifestError(
            f"{table}: can't be read ({error.strerror}). Give a CSV that you may read."
        ) from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise ManifestError(f"{table}: is no CSV in UTF-8: {error}. Save it as such.") from error
    rows = [(number, line) for number, line in enumerate(lines, 1) if any(map(str.strip, line))]
    if not rows:
        return []
    columns = [name.strip().lower() for name in rows[0][1]]
    if "path" not in columns:
        raise ManifestError(
            f"{table}: found the columns {', '.join(columns)}, wanted one named 'path'. "
            "Name the column of image files 'path'."
        )
    place = columns.index("path")
    for number, line in rows[1:]:
        if len(line) <= place or not line[place].strip():
            raise ManifestError(
                f"{table}, row {number}: found no path, wanted one in each row. Remove the row, or "
                "name its image."
            )
    return [table.parent / line[place].strip() for _, line in rows[1:]]


def check_format(out: Path) -> None:
    """Refuse an output name that no format goes by, before any work is done.

    Raises:
        UsageError: the suffix is none of `FORMATS`, or `out` is a folder.
    """
    if out.is_dir():
        raise UsageError(f"--out {out}: is a folder, wanted a file such as {out / 'p.csv'}")
    if out.suffix.lower() not in FORMATS:
        raise UsageError(
            f"--out {out}: found the suffix {out.suffix!r}, wanted one of {', '.join(FORMATS)}"
        )


def as_row(prediction: Prediction) -> dict[str, Any]:
    """A prediction as a row of the contract: JSON types, `None` for what there is not."""
    row = {name: getattr(prediction, name) for name in COLUMNS}
    row["path"] = path_text(prediction.path)
    row["reason"] = prediction.reason.value if prediction.reason else None
    return row


def write_predictions(out: Path, predictions: Sequence[Prediction]) -> None:
    """Write one row per prediction, in order, in the format of the suffix.

    Raises:
        UsageError: an unknown suffix.
        OSError: the file can't be written; what was there is untouched.
    """
    check_format(out)
    rows = [as_row(prediction) for prediction in predictions]
    if out.suffix.lower() == ".csv":
        write_text(out, _csv_text(rows))
    elif out.suffix.lower() == ".jsonl":
        write_text(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    else:
        write_bytes(out, _parquet(rows))


def _csv_text(rows: list[dict[str, Any]]) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    import polars

    text, number = polars.String, polars.Float64
    schema = {
        name: number if name in {"probability", "threshold", "input_score"} else text
        for name in COLUMNS
    }
    stream = io.BytesIO()
    polars.DataFrame(rows, schema=schema).write_parquet(stream)
    return stream.getvalue()


def heatmap_name(path: str) -> str:
    """A file name for the heatmap of `path`: its own name, told apart from others of that name."""
    mark = hashlib.sha256(path_text(path).encode()).hexdigest()[:16]
    # File systems allow 255 bytes, and a character may have four.
    return f"{path_text(Path(path).stem)[:50]}-{mark}.png"
