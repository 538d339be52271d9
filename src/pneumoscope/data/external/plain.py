"""Any CSV table of images: the user states its columns and the words for both classes.

Reads one CSV in the folder. Columns have common names or are given by `--columns`; the words for
the classes are given by `--normal` and `--pneumonia`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pneumoscope.config import AdoptConfig
from pneumoscope.data.external.table import (
    NO_LABEL,
    NORMAL,
    PNEUMONIA,
    Record,
    Source,
    age_in_years,
    images_below,
    other_finding,
    rows_of,
    sex_of,
    table_in,
    view_of,
)
from pneumoscope.data.patients import parse_split
from pneumoscope.errors import DataError, UsageError
from pneumoscope.records import Split

_USUAL = {
    "path": ("path", "file", "filename", "file_name", "image", "image_path", "image_id"),
    "label": ("label", "class", "finding", "diagnosis", "target"),
    "patient": ("patient", "patient_id", "patientid", "subject_id", "subject"),
    "split": ("split", "set", "fold"),
    "age": ("age", "patient_age"),
    "sex": ("sex", "gender", "patient_sex"),
    "view": ("view", "view_position", "projection"),
}
_NEEDED = ("path", "label")


def read(folder: Path, config: AdoptConfig) -> Iterator[Record]:
    """Every row, in order."""
    table = _table(folder, config.table)
    names = _columns(table, config.columns)
    words = dict.fromkeys(_listed(config.normal), NORMAL)
    words |= dict.fromkeys(_listed(config.pneumonia), PNEUMONIA)
    images = images_below(folder)
    for row in rows_of(table, [names[what] for what in _NEEDED]):
        values = {what: row.get(column, "") for what, column in names.items()}
        word = values["label"].lower()
        label, why = (words[word], "") if word in words else other_finding(config.others)
        if not word:
            label, why = None, NO_LABEL
        yield Record(
            path=_image(table.parent, values["path"], images),
            label=label,
            patient=values.get("patient", ""),
            split=_split(values.get("split", "")),
            age=age_in_years(values.get("age", "")),
            sex=sex_of(values.get("sex", "")),
            view=view_of(values.get("view", "")),
            finding=values["label"],
            why=why,
        )


def _listed(text: str) -> list[str]:
    return [word.strip().lower() for word in text.split(",") if word.strip()]


def _table(folder: Path, name: str) -> Path:
    if name:
        return table_in(folder, name)
    tables = sorted(folder.glob("*.csv")) if folder.is_dir() else []
    if len(tables) == 1:
        return tables[0]
    shown = ", ".join(table.name for table in tables[:5]) or "none"
    raise DataError(f"{folder}: found the tables {shown}; wanted one CSV. Name it: --table FILE")


def _columns(table: Path, given: str) -> dict[str, str]:
    """The table's own column names by their meaning."""
    header = next(rows_of(table, ()), None)
    if header is None:
        raise DataError(f"{table}: found no row below the header; wanted one per image.")
    by_lower = {name.lower(): name for name in header}
    found = {
        what: by_lower[usual[0]]
        for what, names in _USUAL.items()
        if (usual := [name for name in names if name in by_lower])
    }
    for part in _parts(given):
        what, _, column = part.partition("=")
        if what not in _USUAL or column.lower() not in by_lower:
            raise UsageError(
                f"--columns: found {part!r}; wanted WHAT=COLUMN with WHAT one of "
                f"{', '.join(_USUAL)} and COLUMN one of {', '.join(header)}"
            )
        found[what] = by_lower[column.lower()]
    missing = [what for what in _NEEDED if what not in found]
    if missing:
        raise UsageError(
            f"{table}: found the columns {', '.join(header)}, none of which is known as the "
            f"{missing[0]}. Give its name: --columns {missing[0]}=COLUMN"
        )
    return found


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _image(folder: Path, text: str, images: dict[str, Path]) -> Path | None:
    """The file at that path below the table's folder, else one with that name anywhere below."""
    if not text:
        return None
    path = folder / text
    inside = ".." not in Path(text).parts and not Path(text).is_absolute()
    return path if inside and path.is_file() else images.get(Path(text).name)


def _split(text: str) -> Split | None:
    return parse_split(text)


SOURCE = Source(
    name="csv",
    title="A table of your own",
    paper="",
    layout="one CSV, images below the folder",
    labels="the words of --pneumonia → PNEUMONIA, those of --normal → NORMAL",
    read=read,
)
