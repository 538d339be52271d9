"""A pilot's page: every figure on it recomputed from the tables."""

from __future__ import annotations

import csv
import json
from collections import Counter
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom, ks_2samp
from sklearn.metrics import cohen_kappa_score, roc_auc_score

from pneumoscope.cli.app import run
from pneumoscope.data.scores import Case, Reading, ScoreRow, join
from pneumoscope.workflows.readings import MOST_READERS, _between_readers
from support.readings_by_hand import by_hand, rows_of

THRESHOLD = 0.45
FIRST_MONDAY = date(2026, 8, 31)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def pilot(folder: Path) -> tuple[Path, Path]:
    """240 images of 235 accessions over 6 weeks, and what one or two readers said of them."""
    rng = np.random.default_rng(8)
    scores, readings = [], []
    for k in range(240):
        positive = int(rng.random() < 0.3)
        accession = f"A{k - (k % 48 == 47)}"  # five of two images
        score = float(np.clip(rng.normal(0.3 + 0.4 * positive, 0.2), 0, 1))
        refused = k % 17 == 3
        day = FIRST_MONDAY + timedelta(days=k // 6)
        scores.append(
            {
                "image": f"1.2.{k}",
                "accession": accession,
                "patient": f"P{k // 2}",
                "study_date": f"{day:%Y%m%d}",
                "sex": "FM"[k % 3 == 0],
                "status": "refused" if refused else "ok",
                "reason": ("lateral_view", "outside_age_range")[k % 2] if refused else "",
                "probability": "" if refused else repr(score),
                "threshold": THRESHOLD,
                "model": "abc" if k < 120 else "def",
            }
        )
        if k % 11 == 5 or accession != f"A{k}":
            continue
        readings.append({"accession": accession, "reading": positive, "reader": "R1"})
        if k % 4 == 0:
            other = (
                ("PNEUMONIA" if positive else "normal")
                if k % 8
                else ("normal", "PNEUMONIA")[positive ^ 1]
            )
            readings.append({"accession": accession, "reading": other, "reader": "R2"})
    readings.append({"accession": "Z9", "reading": 1, "reader": "R1"})
    readings.append({"accession": "A0", "reading": "", "reader": "R3"})
    scores.append({**scores[0], "image": "1.2.999", "accession": ""})
    return write_rows(folder / "scores.csv", scores), write_rows(folder / "read.csv", readings)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("pilot")
    scores, readings = pilot(folder)
    asked = ["readings", scores, readings, "--by", "accession", "--out", folder / "out"]
    assert run([*map(str, asked), "--resamples", "100", "-q"]) == 0
    return folder, json.loads((folder / "out" / "readings.json").read_text())


def test_what_is_missing_on_either_side(told: tuple[Path, dict[str, Any]]) -> None:
    folder, document = told
    cases = by_hand(folder)
    missing = document["missing"]
    matched = [c for c in cases if c["score"] is not None and c["label"] is not None]
    assert missing == {
        "scores": 241,
        "cases": len(cases),
        "images_of_several": 5,
        "keyless": 1,
        "unread": sum(not c["read"] for c in cases),
        "divided": sum(c["read"] and c["label"] is None for c in cases),
        "unscored": 1,
        "refused": sum(c["score"] is None and c["label"] is not None for c in cases),
        "matched": len(matched),
        "uncertain": 0,
        "nameless": 0,
    }
    assert missing["divided"] > 10
    assert [row["accession"] for row in rows_of(folder / "out" / "unscored.csv")] == ["Z9"]
    unread = [row["accession"] for row in rows_of(folder / "out" / "unread.csv")]
    assert unread == [c["accession"] for c in cases if not c["read"]]


def test_few_of_many_readers_are_compared() -> None:
    """The work is that of the pairs within a case, whatever the number of readers."""
    looked_at: list[str] = []

    class Named(str):
        """A reader's name that notes each time it is hashed."""

        __slots__ = ()

        def __hash__(self) -> int:
            looked_at.append(self)
            return super().__hash__()

    score = ScoreRow("", None, 0.5)
    cases = []
    for k in range(400):
        readers = [Reading(f"c{k}", k % 2, Named(f"r{n}")) for n in (k % 4, k)]
        cases.append(Case(f"c{k}", score, 1, tuple(readers), k % 2, None))
    found, further = _between_readers(cases, 0.95)
    assert len(further) == 400 - MOST_READERS
    assert found["r10 and r2"].images == 1
    assert len(looked_at) < 100 * len(cases)


@pytest.mark.parametrize(
    ("rows", "votes", "reference"),
    [
        ("A1 A1 A1 B0 C0", "A1 B0 C0", 0),
        ("A1 B0 C0 A1 A1", "A1 B0 C0", 0),
        ("A1 A0 B0", "A? B0", 0),
        ("A0 A1 A1", "A?", None),
        ("A? A1", "A?", None),
        ("1 1 0", "1 1 0", 1),
        ("A1 B0", "A1 B0", None),
    ],
)
def test_a_reader_has_one_vote_however_many_rows(
    rows: str, votes: str, reference: int | None
) -> None:
    labels = {"1": 1, "0": 0, "?": None}
    readings = [Reading("c", labels[row[-1]], row[:-1]) for row in rows.split()]
    score = ScoreRow("c", None, 0.5, values={"image": "c"})
    joined = join([score], "image", readings)
    (case,) = joined.cases
    assert case.reference == case.score.label == reference
    assert case.readings == tuple(Reading("c", labels[v[-1]], v[:-1]) for v in votes.split())
    assert (joined.unread, joined.divided) == ((), ("c",) if reference is None else ())


def test_rates_and_agreement(told: tuple[Path, dict[str, Any]]) -> None:
    folder, document = told
    matched = [c for c in by_hand(folder) if c["score"] is not None and c["label"] is not None]
    truth = np.array([c["label"] for c in matched])
    scores = np.array([c["score"] for c in matched])
    called = scores >= THRESHOLD
    metrics = document["metrics"]
    assert metrics["sensitivity"]["value"] == pytest.approx(called[truth == 1].mean())
    assert metrics["specificity"]["value"] == pytest.approx(1 - called[truth == 0].mean())
    assert metrics["auc"]["value"] == pytest.approx(roc_auc_score(truth, scores))
    kappa = document["agreement"]["kappa"]
    assert kappa["value"] == pytest.approx(cohen_kappa_score(truth, called))
    assert kappa["low"] < kappa["value"] < kappa["high"]
    said: dict[str, dict[str, int]] = {}
    for row in rows_of(folder / "read.csv"):
        if row["reading"]:
            positive = int(row["reading"] in ("1", "PNEUMONIA"))
            said.setdefault(row["accession"], {})[row["reader"]] = positive
    both = [(votes["R1"], votes["R2"]) for votes in said.values() if len(votes) == 2]
    readers = document["readers"]["R1 and R2"]
    assert readers["images"] == len(both)
    assert readers["kappa"]["value"] == pytest.approx(cohen_kappa_score(*zip(*both, strict=True)))
    # The folder evaluation/ is what `evaluate --scores joined.csv` gives.
    again = folder / "again"
    asked = ["evaluate", "--scores", folder / "out" / "joined.csv", "--out", again]
    assert run([*map(str, asked), "--resamples", "100", "-q"]) == 0
    first, second = (
        json.loads((place / "metrics.json").read_text())
        for place in (folder / "out" / "evaluation", again)
    )
    assert first == second


def test_every_week(told: tuple[Path, dict[str, Any]]) -> None:
    folder, document = told
    cases = by_hand(folder)
    table = rows_of(folder / "out" / "weeks.csv")
    mondays = sorted({c["week"] for c in cases})
    assert [week["monday"] for week in document["weeks"]] == [m.isoformat() for m in mondays]
    for monday, week, row in zip(mondays, document["weeks"], table, strict=True):
        mine = [c for c in cases if c["week"] == monday]
        so_far = [c for c in cases if c["week"] <= monday and c["score"] is not None]
        before = [c["score"] for c in so_far if c["week"] < monday]
        scores = [c["score"] for c in mine if c["score"] is not None]
        assert week["cases"] == int(row["cases"]) == len(mine)
        assert week["refused"] == dict(Counter(c["reason"] for c in mine if c["score"] is None))
        assert week["quartiles"] == pytest.approx(np.quantile(scores, (0.25, 0.5, 0.75)))
        assert week["called"]["value"] == pytest.approx(np.mean(np.array(scores) >= THRESHOLD))
        for name, label in (("sensitivity", 1), ("specificity", 0)):
            known = [c for c in so_far if c["label"] == label]
            right = [(c["score"] >= THRESHOLD) == bool(label) for c in known]
            assert week[name]["value"] == pytest.approx(np.mean(right))
            assert float(row[f"{name}_so_far"]) == week[name]["value"]
            assert week[name]["low"] < week[name]["value"]
        if len(before) >= 20:
            found = ks_2samp(scores, before)
            assert (week["drift"], week["drift_p"]) == pytest.approx(
                (found.statistic, found.pvalue)
            )
        else:
            assert week["drift"] is None
    # All cases up to the last week are all cases: a number has one interval on a page.
    for name in ("sensitivity", "specificity"):
        last, whole = document["weeks"][-1][name], document["metrics"][name]
        assert [last[key] for key in ("value", "low", "high")] == [
            whole[key] for key in ("value", "low", "high")
        ]


def test_new_thresholds_and_how_many_more(told: tuple[Path, dict[str, Any]]) -> None:
    folder, document = told
    cases = by_hand(folder)
    scores = [c["score"] for c in cases if c["score"] is not None]
    matched = [c for c in cases if c["score"] is not None and c["label"] is not None]
    assert [line["in_use"] for line in document["thresholds"]].count(True) == 1
    for line in document["thresholds"]:
        at = line["threshold"]
        assert (line["called"], line["scored"]) == (sum(s >= at for s in scores), len(scores))
        positive = [c["score"] >= at for c in matched if c["label"] == 1]
        assert line["sensitivity"]["value"] == pytest.approx(np.mean(positive))
    needed = document["still_needed"]["sensitivity"]
    positive = [c["score"] >= THRESHOLD for c in matched if c["label"] == 1]
    assert needed["have"] == len(positive)
    assert needed["expected"] == pytest.approx(np.mean(positive))
    n, hits = needed["patients"], needed["hits"]
    assert binom.sf(hits - 1, n, needed["least"]) <= 0.05
    assert binom.sf(hits - 1, n, needed["expected"]) >= 0.9
    assert needed["missing"] == n - len(positive)
    assert needed["weeks"] == pytest.approx(
        needed["missing"] * len(document["weeks"]) / len(positive)
    )


def test_pages(told: tuple[Path, dict[str, Any]]) -> None:
    folder, document = told
    page = (folder / "out" / "readings.html").read_text()
    for part in ("outside age range", "Cohen’s kappa", "R1 and R2", "Remaining", "in use"):
        assert part in page
    assert "A1<" not in page  # no accession on the page
    checklist = (folder / "out" / "checklist.html").read_text()
    assert "DECIDE-AI" in checklist
    assert "2 models were in use, in this order: abc, def." in checklist
    assert f"kappa {document['agreement']['kappa']['value']:.3f}" in checklist


def test_withheld_results_and_weeks_without_cases(tmp_path: Path) -> None:
    """Cases in weeks 1, 2 and 10; a tenth of them has the prediction `uncertain`."""
    rows = [
        {
            "accession": f"A{k}",
            "study_date": f"{FIRST_MONDAY + timedelta(weeks=(0, 1, 9)[k % 3]):%Y%m%d}",
            "probability": 0.3 + 0.4 * (k % 2),
            "threshold": 0.5,
            "prediction": "uncertain" if k % 10 == 0 else ("NORMAL", "PNEUMONIA")[k % 2],
        }
        for k in range(60)
    ]
    rows.append({**rows[1], "accession": "undated", "study_date": ""})
    scores = write_rows(tmp_path / "s.csv", rows)
    read = [{"accession": row["accession"], "reading": k % 2} for k, row in enumerate(rows[:60])]
    read.append({"accession": "undated", "reading": 1})
    readings = write_rows(tmp_path / "r.csv", read)
    out = tmp_path / "out"
    asked = ["readings", scores, readings, "--by", "accession", "--out", out, "--resamples", 50]
    assert run([*map(str, asked), "-q"]) == 0
    document = json.loads((out / "readings.json").read_text())
    assert document["missing"]["uncertain"] == 6
    calls = Counter(row["prediction"] for row in rows_of(out / "joined.csv"))
    assert calls == {"PNEUMONIA": 31, "NORMAL": 24, "uncertain": 6}
    page = (out / "readings.html").read_text()
    assert "withheld 6 results as indeterminate" in page
    caution = "The system abstains: 6 of 61 predictions are indeterminate."
    cautions = json.loads((out / "evaluation" / "metrics.json").read_text())["cautions"]
    assert any(caution in found for found in cautions)
    assert caution in page
    assert "61 of 61 rows name no patient" in page
    assert "intervals, not clustered, since no case names its patient." in page
    assert "clustered by patient" not in page
    # Thirty dated cases with pneumonia came in ten weeks.
    assert "over 10 weeks" in page
    assert page.count("12 Oct") == 3  # each figure leaves room for the weeks without cases
    needed = document["still_needed"]["sensitivity"]
    assert needed["have"] == 31
    assert needed["weeks"] == pytest.approx(needed["missing"] * 10 / 30)


def test_the_page_repeats_what_casts_doubt_on_its_rates(tmp_path: Path) -> None:
    """Reversed scores, and no dates: the same cautions as in the evaluation's metrics.json."""
    rows = [
        {"accession": f"A{k}", "patient": f"P{k}", "probability": 0.8 - 0.6 * (k % 2)}
        for k in range(60)
    ]
    scores = write_rows(tmp_path / "s.csv", rows)
    read = [{"accession": f"A{k}", "reading": k % 2} for k in range(60)]
    readings, out = write_rows(tmp_path / "r.csv", read), tmp_path / "out"
    asked = ["readings", scores, readings, "--by", "accession", "--threshold", 0.5, "--out", out]
    assert run([*map(str, asked), "--resamples", "50", "-q"]) == 0
    cautions = json.loads((out / "evaluation" / "metrics.json").read_text())["cautions"]
    assert any("below 0.5" in caution for caution in cautions)
    page = (out / "readings.html").read_text()
    assert all(caution in page for caution in cautions)
    assert "a reading; no case has a date." in page
    assert "over 0 weeks" not in page


def test_other_keys_and_what_can_not_be_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = write_rows(
        tmp_path / "s.csv",
        [
            {"sop_uid": f"1.{k}", "score": 10 * k, "received": "2026-09-01T10:00:00"}
            for k in range(9)
        ],
    )
    readings = write_rows(
        tmp_path / "r.csv", [{"path": f"1.{k}", "label": int(k > 4)} for k in range(9)]
    )

    def asked(*more: Any, code: int) -> dict[str, Any]:
        line = ["readings", scores, readings, "--out", tmp_path / "o", *more, "--resamples", 20]
        assert run([*map(str, line), "--json", "-q"]) == code
        document: dict[str, Any] = json.loads(capsys.readouterr().out)
        return document

    assert "states no threshold" in asked("--by", "image", code=2)["error"]["message"]
    found = asked("--by", "image", "--threshold", 45, code=0)
    assert found["confusion_matrix"] == {"tn": 5, "fp": 0, "fn": 0, "tp": 4}
    assert found["agreement"]["kappa"]["value"] == 1.0
    assert found["weeks"][0]["monday"] == "2026-08-31"
    assert "accession or accession_number" in asked("--by", "accession", code=3)["error"]["message"]
    readings.write_text("image,reading\n1.0,perhaps\n")
    assert "found the reading 'perhaps'" in asked("--by", "image", code=3)["error"]["message"]
    readings.write_text("image,reading\n7.7,1\n")
    found = asked("--by", "image", "--threshold", 45, code=0)
    assert (found["metrics"], found["missing"]["unscored"]) == (None, 1)
