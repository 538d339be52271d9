"""Tables whose rows do not fit their header, or whose quotes do not match, are rejected."""

from __future__ import annotations

from pathlib import Path

import pytest

from pneumoscope.data.public_tables import rows_of
from pneumoscope.data.scores import read_readings, read_scores
from pneumoscope.errors import DataError
from support.public_data_sets import lines


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (("id,label,score", "a,1,0.9", "b,0,0,13"), r"line 3: found 4 fields, wanted 3 .* point"),
        (("id;label;score", "a;1;0,93"), "line 2: found 2 fields, wanted 1 .* semicolons"),
        (("Label,label,score", "1,0,0.9"), "line 1: found the column 'label' more than once"),
        (("label,score,Score", "1,0.1,0.9"), "line 1: found the column 'score' more than once"),
        (("label,score,note", '1,0.9,"the', "0,0.1,", "1,0.8,"), "can't be read as CSV .*end of"),
        (("id,label,score", "a,1,0.9", '"b"c,0,0.1'), "can't be read as CSV .*after line 2"),
    ],
)
def test_what_would_be_lost_is_rejected(tmp_path: Path, rows: tuple[str, ...], told: str) -> None:
    table = lines(tmp_path / "scores.csv", *rows)
    with pytest.raises(DataError, match=told):
        read_scores(table)


def test_readings_are_read_alike(tmp_path: Path) -> None:
    table = lines(tmp_path / "read.csv", "accession,reading,Reading", "A1,1,0")
    with pytest.raises(DataError, match="'reading' more than once"):
        read_readings(table, "accession")


def test_commas_at_the_end_of_lines_are_no_values(tmp_path: Path) -> None:
    """Spreadsheets leave them, with or without empty names in the header; as does the NIH's."""
    table = lines(tmp_path / "t.csv", "id,score,,", 'a,"0,5",,', "b,1,,, ,", "", "c")
    assert [tuple(row.values()) for row in rows_of(table, ("id",))] == [
        ("a", "0,5"),
        ("b", "1"),
        ("c", ""),
    ]
