"""`node results`: what a node predicted, as a table that can be joined with readings."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pynetdicom", reason="needs the extra 'dicom': pip install '.[dicom]'")
pytest.importorskip("highdicom", reason="needs the extra 'dicom': pip install '.[dicom]'")

from pneumoscope.cli.app import run
from pneumoscope.config import NodeConfig
from pneumoscope.data.scores import read_scores, stated_threshold
from pneumoscope.delivery.dicom_node.node import Node
from pneumoscope.delivery.dicom_node.status import (
    COLUMNS,
    RESULTS_FILE,
    note_result,
    read_results,
)
from pneumoscope.delivery.dicom_report.objects import Reporter
from support.dicom_peers import send, until
from support.dicom_reports import MANIFEST, predicted, predictor, xray_bytes


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_results_can_be_had_while_the_node_runs(tmp_path: Path) -> None:
    spool, table = tmp_path / "spool", tmp_path / "scores.csv"
    config = NodeConfig(port=0, spool=str(spool), min_free=0, grace=2.0)
    node = Node(config, predictor(ages=(1, 5)))
    common: dict[str, Any] = {"StudyDate": "20260907", "PatientBirthDate": None}
    try:
        images = [
            xray_bytes(k, **common, AccessionNumber=f"A{k}", PatientAge=age)
            for k, age in enumerate((None, None, "030M"))
        ]
        images.append(xray_bytes(3, AccessionNumber="A3", Modality="CT"))
        assert send(node.port, images) == [0] * 4
        until(lambda: node.spool.count("films", "answered") == 4, "four results")
        assert run(["node", "results", "--spool", str(spool), "--out", str(table), "-q"]) == 0
    finally:
        node.stop()
    rows = rows_of(table)
    assert tuple(rows[0]) == COLUMNS
    assert {row["accession"]: row["status"] for row in rows} == {
        "A0": "ok",
        "A1": "ok",
        "A2": "ok",
        "A3": "refused",
    }
    by_accession = {row["accession"]: row for row in rows}
    assert by_accession["A1"]["patient"] == "P-0001"
    assert by_accession["A1"]["study_date"] == "20260907"
    assert [by_accession[name]["age"] for name in ("A1", "A2")] == ["", "2.5"]
    assert by_accession["A1"]["warnings"].endswith("the age of this patient is not known")
    assert by_accession["A2"]["warnings"] == ""
    assert by_accession["A3"]["reason"] == "wrong_modality"
    assert by_accession["A3"]["probability"] == ""
    assert "CT" in by_accession["A3"]["detail"]
    assert by_accession["A1"]["detail"] == ""
    assert len({row["model"] for row in rows}) == 1
    # And it is a table of scores like any other.
    scores = read_scores(table, needs_labels=False)
    assert stated_threshold(scores) == 0.6
    assert [row.score is None for row in scores.rows].count(True) == 1
    assert (spool / RESULTS_FILE).stat().st_mode & 0o077 == 0


def test_a_line_that_came_twice_or_was_cut_off(tmp_path: Path) -> None:
    first = {"image": "1.2", "model": "m", "status": "ok", "probability": 0.25}
    lines = [
        json.dumps(row) for row in (first, {**first, "model": "n"}, {**first, "probability": 0.5})
    ]
    (tmp_path / RESULTS_FILE).write_text("\n".join([*lines, '{"image": "1.3", "mo']))
    table = tmp_path / "scores.csv"
    assert run(["node", "results", "--spool", str(tmp_path), "--out", str(table), "-q"]) == 0
    found = [(row["model"], row["probability"]) for row in rows_of(table)]
    assert found == [("m", "0.5"), ("n", "0.25")]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["results", "--out", "s.csv"], "found no results.jsonl"),
        (["results"], "is required by"),
        (["--out", "s.csv"], "not used otherwise"),
        (["results", "--out", "s.txt"], "wanted .csv"),
    ],
)
def test_wrong_usage(
    arguments: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more: list[Any] = ["--spool", str(tmp_path)]
    assert run(["node", *arguments, *more]) == 2
    assert says in capsys.readouterr().err


def test_two_images_under_one_uid_have_a_row_each(tmp_path: Path) -> None:
    content, reporter = xray_bytes(1), Reporter(MANIFEST)
    for sha256, probability in (("a", 0.2), ("b", 0.7), ("a", 0.3)):
        result = predicted(content, probability)
        made = reporter.objects(content, result)
        note_result(tmp_path, sha256, made, result.prediction, reporter.author)
    assert [row["probability"] for row in read_results(tmp_path)] == [0.3, 0.7]
    # Lines of older nodes state no content: the last one of an image counts.
    lines = [json.loads(x) for x in (tmp_path / RESULTS_FILE).read_text().splitlines()]
    old = [{name: row[name] for name in COLUMNS} for row in lines]
    (tmp_path / RESULTS_FILE).write_text("".join(json.dumps(row) + "\n" for row in old))
    assert [row["probability"] for row in read_results(tmp_path)] == [0.3]
