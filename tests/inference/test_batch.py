"""Which files a PATH means, and predictions files in all three formats."""

from __future__ import annotations

import csv
import json
import os
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


@pytest.mark.parametrize(
    "content",
    [
        b"file\nx.png\n",
        b"file\n",
        b"\xff\xfepath",
        b"label,path\n1\n",
        b"path,label\n ,1\n",
        b'path\n"x.png\n',
    ],
)
def test_bad_csv_is_refused(tmp_path: Path, content: bytes) -> None:
    table = tmp_path / "list.csv"
    table.write_bytes(content)
    with pytest.raises(ManifestError, match=r"list\.csv"):
        expand([table])


def test_csv_columns_and_lines_are_read_leniently(tmp_path: Path) -> None:
    table = tmp_path / "LIST.CSV"
    table.write_bytes(b'Label, Path \r\n\r\n1,"a, b.png"\r\n0, c.png\r\n')
    assert expand([table]) == [tmp_path / "a, b.png", tmp_path / "c.png"]
    table.write_bytes(b"")
    assert expand([table]) == []


def test_each_folder_is_read_once_but_a_path_given_twice_stays_twice(tmp_path: Path) -> None:
    """Links among folders would else name the same files in every order there is."""
    for k in range(8):
        folder = tmp_path / f"d{k}"
        folder.mkdir()
        (folder / "x.png").touch()
        for other in range(8):
            (folder / f"to-{other}").symlink_to(tmp_path / f"d{other}")
    once = expand([tmp_path])
    assert len(once) == 8
    assert expand([tmp_path, tmp_path]) == once * 2


def test_what_cant_be_looked_at_stays_in_the_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long, null = Path("x" * 5000), Path("a\0b.png")
    assert expand([long, null]) == [long, null]
    (tmp_path / "closed").mkdir()
    (tmp_path / "open.png").touch()
    real = Path.iterdir

    def iterdir(path: Path):  # type: ignore[no-untyped-def]
        if path.name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    assert expand([tmp_path]) == [tmp_path / "closed", tmp_path / "open.png"]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_names_that_are_no_utf8_are_written_escaped(tmp_path: Path, suffix: str) -> None:
    odd = os.fsdecode(b"caf\xe9.png")
    out = tmp_path / f"p{suffix}"
    write_predictions(out, [Prediction(odd, "error", Reason.NOT_FOUND)])
    if suffix == ".csv":
        found = polars.read_csv(out)["path"][0]
    elif suffix == ".jsonl":
        found = json.loads(out.read_text(encoding="utf-8"))["path"]
    else:
        found = polars.read_parquet(out)["path"][0]
    assert found == "caf\\udce9.png"
    heatmap_name(odd).encode("utf-8")


def test_out_may_lie_in_a_missing_folder_and_replaces_an_older_table(tmp_path: Path) -> None:
    out = tmp_path / "a" / "b" / "p.csv"
    for rows in (ROWS, ROWS[:1]):
        write_predictions(out, rows)
        with out.open(newline="", encoding="utf-8") as stream:
            assert len(list(csv.DictReader(stream))) == len(rows)
    assert [path.name for path in out.parent.iterdir()] == ["p.csv"]


def test_a_folder_as_out_is_wrong_usage(tmp_path: Path) -> None:
    (tmp_path / "p.csv").mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        write_predictions(tmp_path / "p.csv", ROWS)


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
    assert len(heatmap_name("a/" + "𠮷" * 60 + ".png").encode()) < 255


def test_an_image_named_csv_is_an_image(tmp_path: Path) -> None:
    picture = tmp_path / "picture.csv"
    picture.write_bytes(b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR")
    assert expand([picture]) == [picture]
