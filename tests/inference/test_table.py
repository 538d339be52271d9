"""Prediction files in all three formats, complete or resumed."""

from __future__ import annotations

import csv
import errno
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import polars
import pytest

from pneumoscope.errors import DataError, Reason, UsageError
from pneumoscope.images.grey import summary_lines
from pneumoscope.inference.overlay import heatmap_name
from pneumoscope.inference.results import COLUMNS, Journal, write_predictions
from pneumoscope.records import Prediction

ROWS = [
    Prediction("a, b.png", "ok", probability=0.25, prediction="NORMAL", threshold=0.5),
    Prediction("ü\n.png", "refused", Reason.TOO_SMALL, detail="1×1"),
    Prediction("gone.png", "error", Reason.NOT_FOUND),
]
ODD = Prediction(
    *("odd.dcm", "refused", Reason.BLANK),
    detail='it is white, "all" of it. Fetch it again',
    warnings=("it has 3 sides; cut off", "b 'x'"),
)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_warnings_and_detail_are_the_last_columns(tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"p{suffix}"
    write_predictions(out, [ODD, *ROWS])
    rows = rows_of(out)
    assert tuple(rows[0])[-2:] == ("warnings", "detail")
    assert rows[0]["warnings"] == "it has 3 sides, cut off; b 'x'"
    assert [row["detail"] for row in rows] == [ODD.detail, "", "1×1", ""]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_detail_is_one_line_of_utf8(tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"p{suffix}"
    detail = os.fsdecode(b"=it is\r\nno \xe9")
    write_predictions(out, [Prediction("a.png", "error", Reason.CORRUPT, detail=detail)])
    lines = out.read_text(encoding="utf-8").splitlines() if suffix != ".parquet" else []
    assert len(lines) == {".csv": 2, ".jsonl": 1, ".parquet": 0}[suffix]
    quote = "'" if suffix == ".csv" else ""
    assert [row["detail"] for row in rows_of(out)] == [rf"{quote}=it is no \udce9"]


def test_warnings_are_counted_over_a_kill(tmp_path: Path) -> None:
    out = tmp_path / "p.csv"
    journal = Journal(out, "one", resume=False)
    journal.add(ODD)
    journal.close()
    journal = Journal(out, "one", resume=True)
    journal.add(replace(ODD, warnings=("it has 7 sides; cut off",)))
    journal.close()
    assert journal.warned == {"it has … sides, cut off": 2, "b …": 1}
    assert summary_lines(journal.warned) == ["warnings  2 × it has … sides, cut off; 1 × b …"]


@pytest.mark.parametrize("missing", [("warnings", "detail"), ("detail",)])
def test_rows_of_a_release_without_the_column_are_not_gone_on_with(
    tmp_path: Path, missing: tuple[str, ...]
) -> None:
    out = tmp_path / "p.csv"
    columns = COLUMNS[: -len(missing)]
    # The first release did not name its columns.
    head = {"origin": "one"} | ({"columns": columns} if "warnings" in columns else {})
    row = dict.fromkeys(columns) | {"path": "a", "status": "ok"}
    lines = [json.dumps(head), json.dumps(row)]
    (tmp_path / "p.csv.partial").write_text("\n".join(lines) + "\n", encoding="utf-8")
    with pytest.raises(UsageError, match=rf"{columns[-1]}; wanted .*detail.*Leave out --resume"):
        Journal(out, "one", resume=True)
    journal = Journal(out, "one", resume=False)
    journal.add(ODD)
    journal.finish()
    assert "warnings" in out.read_text(encoding="utf-8")


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
        "warnings": "",
        "detail": "",
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


def rows_of(out: Path) -> list[dict[str, Any]]:
    """The rows of a table of any format, as from JSON."""
    if out.suffix == ".parquet":
        return polars.read_parquet(out).to_dicts()
    if out.suffix == ".jsonl":
        return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    with out.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_journal_becomes_the_table(tmp_path: Path, suffix: str) -> None:
    out, wanted = tmp_path / f"p{suffix}", tmp_path / f"whole{suffix}"
    journal = Journal(out, "o", resume=False)
    for row in ROWS:
        journal.add(row)
    assert not out.exists()
    journal.finish()
    write_predictions(wanted, ROWS)
    assert out.read_bytes() == wanted.read_bytes()
    assert len(rows_of(out)) == len(ROWS)
    assert not (tmp_path / f"p{suffix}.partial").exists()


def test_a_row_that_was_damaged_on_disk_is_not_left_out(tmp_path: Path) -> None:
    out, partial = tmp_path / "p.csv", tmp_path / "p.csv.partial"
    journal = Journal(out, "o", resume=False)
    for row in ROWS:
        journal.add(row)
    journal.flush()
    lines = partial.read_bytes().splitlines(keepends=True)
    lines[2] = b"?" + lines[2][1:]
    partial.write_bytes(b"".join(lines))
    with pytest.raises(DataError, match=r"was damaged on disk.*--resume"):
        journal.finish()
    assert not out.exists()
    journal.close()
    again = Journal(out, "o", resume=True)
    again.close()
    assert again.rows == 1


@pytest.mark.parametrize("cut", range(0, 400, 7))
def test_wherever_a_kill_cuts_it_resuming_gives_the_same_table(tmp_path: Path, cut: int) -> None:
    out = tmp_path / "p.csv"
    journal = Journal(out, "o", resume=False)
    for row in ROWS:
        journal.add(row)
    journal.close()
    partial = tmp_path / "p.csv.partial"
    partial.write_bytes(partial.read_bytes()[:-cut] if cut else partial.read_bytes())
    again = Journal(out, "o", resume=True)
    assert again.rows == sum(again.counts.values()) <= len(ROWS)
    for row in ROWS[again.rows :]:
        again.add(row)
    again.finish()
    write_predictions(tmp_path / "whole.csv", ROWS)
    assert out.read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_zeros_that_a_power_cut_leaves_are_dropped(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "p.csv", "o", resume=False)
    journal.add(ROWS[0])
    journal.close()
    with (tmp_path / "p.csv.partial").open("ab") as stream:
        stream.write(bytes(300) + b"\n")
    again = Journal(tmp_path / "p.csv", "o", resume=True)
    again.close()
    assert again.rows == 1


def test_rows_of_something_else_are_not_gone_on_with(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "p.csv", "one model", resume=False)
    journal.add(ROWS[0])
    journal.close()
    with pytest.raises(UsageError, match="another model"):
        Journal(tmp_path / "p.csv", "another", resume=True)
    anew = Journal(tmp_path / "p.csv", "another", resume=False)
    anew.close()
    assert anew.rows == 0


def test_rows_are_on_disk_chunk_by_chunk(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "p.csv", "o", resume=False)
    for _ in range(1200):
        journal.add(ROWS[0])
    there = (tmp_path / "p.csv.partial").read_bytes().count(b"\n")
    journal.close()
    assert there == 1 + 1024


def test_a_full_disk_doubles_no_row(tmp_path: Path) -> None:
    """A half-written row is overwritten by the next write."""
    journal = Journal(tmp_path / "p.csv", "o", resume=False)
    journal.add(ROWS[0])

    class Full:
        def __init__(self, stream: IO[bytes]) -> None:
            self._stream, self.full = stream, True

        def write(self, content: memoryview) -> int:
            if self.full:
                self._stream.write(content[: len(content) // 2])
                raise OSError(errno.ENOSPC, "No space left on device")
            return self._stream.write(content)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._stream, name)

    full: Any = Full(journal._stream)
    journal._stream = full
    with pytest.raises(OSError, match="No space"):
        journal.flush()
    full.full = False
    for row in ROWS[1:]:
        journal.add(row)
    journal.finish()
    write_predictions(tmp_path / "whole.csv", ROWS)
    assert (tmp_path / "p.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_no_rows_make_an_empty_table(tmp_path: Path) -> None:
    for suffix in (".csv", ".jsonl", ".parquet"):
        write_predictions(tmp_path / f"p{suffix}", [])
        assert rows_of(tmp_path / f"p{suffix}") == []


def test_two_runs_dont_share_a_table(tmp_path: Path) -> None:
    out = tmp_path / "p.csv"
    journal = Journal(out, "o", resume=False)
    journal.add(ROWS[0])
    for resume in (False, True):
        with pytest.raises(UsageError, match=r"another process is writing it.* give another file"):
            Journal(out, "o", resume=resume)
    Journal(tmp_path / "q.csv", "o", resume=False).close()
    journal.finish()
    assert len(rows_of(out)) == 1
    Journal(out, "o", resume=False).close()


def test_a_killed_run_keeps_its_table_from_nobody(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path\n"
        "from pneumoscope.inference.results import Journal\n"
        "journal = Journal(Path(sys.argv[1]), 'o', resume=False)\n"
        "print('open', flush=True); time.sleep(60)\n"
    )
    out = tmp_path / "p.csv"
    with subprocess.Popen(
        [sys.executable, "-c", script, str(out)], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(UsageError, match="another process"):
            Journal(out, "o", resume=True)
        process.kill()
        process.wait()
        Journal(out, "o", resume=True).close()


def test_a_name_that_a_spreadsheet_would_calculate(tmp_path: Path) -> None:
    names = ["=HYPERLINK(1).png", "@x.png", "+y.png", "-z.png", "a.png", "/abs/=b.png"]
    write_predictions(tmp_path / "p.csv", [Prediction(name, "error") for name in names])
    with (tmp_path / "p.csv").open(newline="") as stream:
        written = [row["path"] for row in csv.DictReader(stream)]
    assert written == [f"./{name}" for name in names[:4]] + names[4:]
    assert [Path(name) for name in written] == [Path(name) for name in names]
