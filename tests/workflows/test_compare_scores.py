"""`compare` of two evaluations, or of two score columns of one table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from statsmodels.stats.contingency_tables import mcnemar

from pneumoscope.cli.app import run


def table(path: Path) -> Path:
    """200 cases with the score of a vendor from 0 to 100 and of another from 0 to 1."""
    rng = np.random.default_rng(5)
    labels = np.arange(200) % 2
    first = rng.normal(40 + 25 * labels, 15).clip(0, 100)
    second = (first / 100 + rng.normal(0, 0.1, 200)).clip(0, 1)
    lines = ["id,label,patient,vendor,vendor_threshold,other"]
    lines += [f"c{k},{labels[k]},p{k},{first[k]:.3f},52,{second[k]:.5f}" for k in range(200)]
    lines[1] = lines[1].rsplit(",", 1)[0] + ","  # the other did not score the first
    path.write_text("\n".join(lines))
    return path


def told(capsys: pytest.CaptureFixture[str], *arguments: Any, code: int) -> dict[str, Any]:
    assert run([*map(str, arguments), "--resamples", "60", "--json", "-q"]) == code
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def test_two_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = table(tmp_path / "t.csv")
    asked = ["compare", "vendor", "other", "--scores", file, "--out", tmp_path / "c"]
    found = told(capsys, *asked, code=3)
    assert found["n"] == 199
    assert found["answered_by_one"] == {"old": 1, "new": 0}
    assert found["thresholds"] == [52.0, 0.5]
    assert found["old"]["brier"]["value"] is None
    for limits in ("lower", "upper"):
        assert found["differences"][limits]["brier"] is None
        assert found["differences"][limits]["auc"] is not None
    assert found["carried"]["sensitivity"]["value"] is None
    everyone = found["disagreement"]["all"]
    assert everyone["only_old"] + everyone["only_new"] == len(found["flipped"]) > 10
    pair = [[0, everyone["only_old"]], [everyone["only_new"], 0]]
    assert everyone["exact"] == pytest.approx(mcnemar(pair, exact=True).pvalue)
    row = found["flipped"][0]
    assert set(row["old"]) == {"score", "prediction"}
    assert (row["old"]["score"] >= 52) == (row["old"]["prediction"] == "PNEUMONIA")
    page = (tmp_path / "c" / "compare.html").read_text()
    assert "Comparison of two scores" in page
    assert "<img" not in page
    assert "New, at the old threshold" not in page
    assert found["notes"] == [
        "Old: The scores range from 4.157 to 100 and are not probabilities, so calibration, Brier "
        "score and ECE are not reported.",
        "New: No threshold was stated, in the table or by option: 0.5 was used.",
    ]
    assert all(note in page for note in found["notes"])
    found = told(capsys, *asked, "--thresholds", "52,0.6", code=3)
    assert found["thresholds"] == [52.0, 0.6]


def test_two_evaluations_agree_with_the_columns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = table(tmp_path / "t.csv")
    for name in ("vendor", "other"):
        asked = ["evaluate", "--scores", file, "--score-column", name, "--out", tmp_path / name]
        told(capsys, *asked, code=0)
    both = told(
        capsys, "compare", tmp_path / "vendor", tmp_path / "other", "--out", tmp_path / "c", code=3
    )
    columns = told(
        capsys, "compare", "vendor", "other", "--scores", file, "--out", tmp_path / "d", code=3
    )
    same = (
        "n",
        "thresholds",
        "old",
        "new",
        "differences",
        "auc",
        "disagreement",
        "flipped",
        "notes",
    )
    for name in same:
        assert both[name] == columns[name], name


def test_what_can_not_be_matched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, cases in (("a", "xy"), ("b", "zw"), ("c", "xx")):
        lines = ["id,label,score"] + [f"{c},{k % 2},0.{k + 3}" for k, c in enumerate(cases)]
        (tmp_path / f"{name}.csv").write_text("\n".join(lines))
        asked = ["evaluate", "--scores", tmp_path / f"{name}.csv", "--out", tmp_path / name]
        told(capsys, *asked, code=0)

    def message(old: str, new: str) -> str:
        asked = ["compare", tmp_path / old, tmp_path / new, "--out", tmp_path / "o"]
        return str(told(capsys, *asked, code=3)["error"]["message"])

    assert "share no image" in message("a", "b")
    assert "names 'x' 2 times" in message("a", "c")
    (tmp_path / "d.csv").write_text("id,label,score\nx,1,0.3\ny,0,0.4")
    told(capsys, "evaluate", "--scores", tmp_path / "d.csv", "--out", tmp_path / "d", code=0)
    assert "has one label" in message("a", "d")


def test_moved_images_are_matched_by_file_name_if_patients_agree(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, folder, patient in (
        ("old", "/a", "p{}"),
        ("moved", "/b/c", "p{}"),
        ("others", "/b/c", "q{}"),
        ("unnamed", "/b/c", ""),
    ):
        lines = ["path,label,score,patient"]
        lines += [
            f"{folder}/{k}.png,{k % 2},0.{k % 2 * 4 + 3},{patient.format(k)}" for k in range(40)
        ]
        (tmp_path / f"{name}.csv").write_text("\n".join(lines))
        asked = ["evaluate", "--scores", tmp_path / f"{name}.csv", "--out", tmp_path / name]
        told(capsys, *asked, code=0)

    def compared(new: str) -> dict[str, Any]:
        return told(capsys, "compare", tmp_path / "old", tmp_path / new, "--out", out, code=3)

    out = tmp_path / "o"
    assert not any("file name" in note for note in compared("old")["notes"])
    for new in ("moved", "unnamed"):
        found = compared(new)
        assert found["n"] == 40
        assert "matched by file name alone" in found["notes"][0]
    message = compared("others")["error"]["message"]
    assert "0.png: is of patient 'p0' in" in message
    assert "'q0'" in message
