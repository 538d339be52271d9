"""JSON from outside is read strictly; what is invalid is rejected by the name of its file."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pneumoscope.errors import DataError, InputError
from pneumoscope.reading import json_lines, read_json
from pneumoscope.workflows.evaluation_folder import read_evaluation

DOCUMENT = {"threshold": {"value": 0.5, "rule": "r"}, "model": {"fingerprint": "f", "name": "n"}}
ROWS = (
    "path,status,probability,label,patient,split\n"
    "a,ok,0.9,PNEUMONIA,p,test\n"
    "b,ok,0.1,NORMAL,q,test\n"
)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("[" * 100_000, "recursion"),
        ('{"a": ' + "1" * 5000 + "}", "digits"),
        ('{"a": NaN}', "NaN, expected a finite one"),
        ('{"a": 1e999}', "1e999, expected a finite one"),
        ('{"a": 1, "a": 2}', "'a' more than once"),
        ("{", "can't be read as JSON"),
    ],
)
def test_json_that_is_none_is_rejected(tmp_path: Path, content: str, fault: str) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(InputError, match=rf"x\.json: .*{fault}"):
        read_json(tmp_path / "x.json")


def test_long_json_is_rejected_unread(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("[1, 2, 3]")
    assert read_json(tmp_path / "x.json", 9) == [1, 2, 3]
    with pytest.raises(InputError, match=r"x\.json: found more than 8 bytes"):
        read_json(tmp_path / "x.json", 8)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.json")
    with pytest.raises(InputError, match="not a regular file"):
        read_json(tmp_path / "x.json")


def test_a_nested_line_is_no_document(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(b"[" * 100_000 + b'\n{"a": 1}\n')
    assert [document for document, _ in json_lines(tmp_path / "x.jsonl")] == [None, {"a": 1}]


@pytest.mark.parametrize(
    ("document", "rows"),
    [
        ("[" * 100_000, ROWS),
        (json.dumps(DOCUMENT).replace("0.5", "1" + "0" * 400), ROWS),
        (json.dumps(DOCUMENT).replace("0.5", "NaN"), ROWS),
        (json.dumps(DOCUMENT), ROWS.replace("0.9", "nan")),
        (json.dumps(DOCUMENT), ROWS.replace("0.9", "7")),
    ],
)
def test_an_impossible_evaluation_is_rejected(tmp_path: Path, document: str, rows: str) -> None:
    (tmp_path / "predictions.csv").write_text(rows)
    (tmp_path / "metrics.json").write_text(json.dumps(DOCUMENT))
    if rows == ROWS:
        assert read_evaluation(tmp_path).threshold == 0.5
    (tmp_path / "metrics.json").write_text(document)
    with pytest.raises(DataError, match="Evaluate again"):
        read_evaluation(tmp_path)
