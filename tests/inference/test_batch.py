"""Which files a PATH means, and predictions files in all three formats."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import polars
import pytest

from pneumoscope.errors import ManifestError, Reason, UsageError
from pneumoscope.inference.batch import COLUMNS, expand, heatmap_name, write_predictions
from pneumoscope.records import Prediction

ROWS = [
    Prediction("a, b.png", "ok", probability=0.25, prediction="NORMAL", threshold=0.5),
    Prediction("ü\n.png", "refused", Reason.TOO_SMALL, detail="1×1"),
    Prediction("gone.png", "error", Reason.NOT_FOUND),
]


def test_folders_are_searched_in_order_without_hidden_files(tmp_path: Path) -> None:
    for name in ("b.png", "a/c.png", ".hidden", "a/.DS_Store", "readme.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    found = [path.relative_to(tmp_path).as_posix() for path in expand([tmp_path])]
    assert found == ["a/c.png", "b.png", "readme.txt"]


def test_csv_paths_are_relative_to_it_and_missing_files_stay(tmp_path: Path) -> None:
    table = tmp_path / "list.csv"
    table.write_text("\ufeffpath,label\nx.png,1\nsub/y.png,0\n", encoding="utf-8")
    assert expand([table, tmp_path / "none.png"]) == [
        tmp_path / "x.png",
        tmp_path / "sub/y.png",
        tmp_path / "none.png",
    ]


@pytest.mark.parametrize("content", [b"file\nx.png\n", b"\xff\xfe\x00path"])
def test_bad_csv_is_refused(tmp_path: Path, content: bytes) -> None:
    table = tmp_path / "list.csv"
    table.write_bytes(content)
    with pytest.raises(ManifestError, match=r"list\.csv"):
        expand([table])


def test_csv_is_the_contracts(tmp_path: Path) -> None:
    out = tmp_path / "p.csv"
    write_predictions(out, ROWS)
    with out.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert tuple(rows[0]) == COLUMNS
    assert rows[0] == {
        "path": "a, b.png",
        "status": "ok",
        "reason": "",
        "probability": "0.25",
        "prediction": "NORMAL",
        "threshold": "0.5",
        "input_score": "",
    }
    assert (rows[1]["path"], rows[1]["reason"]) == ("ü\n.png", "too_small")
    assert [row["status"] for row in rows] == ["ok", "refused", "error"]


def test_jsonl_and_parquet_say_the_same(tmp_path: Path) -> None:
    write_predictions(tmp_path / "p.jsonl", ROWS)
    write_predictions(tmp_path / "p.parquet", ROWS)
    lines = (tmp_path / "p.jsonl").read_text(encoding="utf-8").splitlines()
    documents = [json.loads(line) for line in lines]
    assert polars.read_parquet(tmp_path / "p.parquet").to_dicts() == documents
    assert documents[1]["reason"] == "too_small"
    assert documents[2]["probability"] is None


def test_unknown_suffix_is_wrong_usage_and_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"wanted one of \.csv"):
        write_predictions(tmp_path / "p.xlsx", ROWS)
    assert list(tmp_path.iterdir()) == []


def test_heatmap_names_differ_and_stay_short() -> None:
    assert heatmap_name("a/x.png") != heatmap_name("b/x.png")
    assert heatmap_name("a/x.png").startswith("x-")
    assert len(heatmap_name("a/" + "x" * 300 + ".png")) < 100
