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
from typing import Any

from pneumoscope.errors import ManifestError, UsageError
from pneumoscope.records import Prediction
from pneumoscope.storage import write_bytes, write_text

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


def expand(paths: Iterable[Path]) -> list[Path]:
    """The files that `paths` mean: a file itself, a folder's files, the `path` column of a CSV.

    Folders are searched recursively in sorted order, hidden files left out; links are followed,
    loops are not. A path that is not there stays in the list, so that it gets a row that says so.

    Raises:
        ManifestError: a CSV has no `path` column or is no text.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            found += _files_below(path, frozenset())
        elif path.suffix.lower() == ".csv" and path.is_file():
            found += _listed_in(path)
        else:
            found.append(path)
    return found


def _files_below(folder: Path, above: frozenset[Path]) -> list[Path]:
    real = folder.resolve()
    if real in above:
        return []
    found: list[Path] = []
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        found += _files_below(entry, above | {real}) if entry.is_dir() else [entry]
    return found


def _listed_in(table: Path) -> list[Path]:
    try:
        rows = list(csv.DictReader(io.StringIO(table.read_text(encoding="utf-8-sig"))))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ManifestError(f"{table}: is no CSV in UTF-8: {error}. Save it as such.") from error
    if rows and "path" not in rows[0]:
        raise ManifestError(
            f"{table}: found the columns {', '.join(map(str, rows[0]))}, wanted one named 'path'. "
            "Name the column of image files 'path'."
        )
    return [table.parent / row["path"] for row in rows]


def check_format(out: Path) -> None:
    """Refuse an output name that no format goes by, before any work is done.

    Raises:
        UsageError: the suffix is none of `FORMATS`.
    """
    if out.suffix.lower() not in FORMATS:
        raise UsageError(
            f"--out {out}: found the suffix {out.suffix!r}, wanted one of {', '.join(FORMATS)}"
        )


def as_row(prediction: Prediction) -> dict[str, Any]:
    """A prediction as a row of the contract: JSON types, `None` for what there is not."""
    row = {name: getattr(prediction, name) for name in COLUMNS}
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
    mark = hashlib.sha256(path.encode("utf-8", "surrogateescape")).hexdigest()[:8]
    return f"{Path(path).stem[:80]}-{mark}.png"
