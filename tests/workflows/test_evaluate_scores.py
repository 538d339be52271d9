"""`evaluate --scores`: any system's scores give the numbers that a model's would."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, brier_score_loss, roc_auc_score

from pneumoscope.cli.app import run
from pneumoscope.config import IntervalConfig
from pneumoscope.data.scores import read_scores
from pneumoscope.images.phantom.folder import write_phantoms
from pneumoscope.report.formatting import percent
from pneumoscope.workflows.evaluate import evaluate_model
from pneumoscope.workflows.evaluate_scores import evaluate_scores, labelled_scores
from pneumoscope.workflows.evaluation_folder import read_evaluation

NUMBERS: tuple[str, ...] = (
    "metrics",
    "wilson",
    "delong",
    "curves",
    "calibration",
    "subgroups",
    "groups",
    "scale",
)
NUMBERS += ("confusion_matrix", "n", "patients", "positives", "refused", "interval")
NUMBERS += ("classification_report",)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def vendor_rows(n: int = 240, *, scale: float = 100.0) -> list[dict[str, Any]]:
    rng = np.random.default_rng(3)
    labels = (np.arange(n) // 2) % 3 == 0
    scores = rng.normal(np.where(labels, 60.0, 40.0), 12.0).clip(0, 100).round(2) / 100 * scale
    return [
        {
            "Accession": f"A{k}",
            "Label": "PNEUMONIA" if labels[k] else "normal",
            "Score": repr(float(scores[k])),
            "Patient": f"p{k // 2}",
            "site": "AB"[k % 2],
        }
        for k in range(n)
    ]


def evaluated(capsys: pytest.CaptureFixture[str], *arguments: Any, code: int = 0) -> dict[str, Any]:
    assert run(["evaluate", *map(str, arguments), "--json", "-q"]) == code
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def test_predictions_of_the_shipped_model_give_its_numbers_to_the_last_digit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = write_phantoms(tmp_path / "images", 24, 5, format="dicom", size=160)
    (next((images / "train" / "NORMAL").iterdir())).write_bytes(b"no image")
    interval = IntervalConfig(resamples=100)
    evaluate_model(images, tmp_path / "images", "default", "all", interval, input_check=False)
    first = json.loads((tmp_path / "images" / "metrics.json").read_text())
    table = tmp_path / "images" / "predictions.csv"
    second = evaluated(capsys, "--scores", table, "--out", tmp_path / "scores", "--resamples", 100)
    assert {name: first[name] for name in NUMBERS} == {name: second[name] for name in NUMBERS}
    assert first["refused"] == 1
    assert [column["name"] for column in second["groups"]] == ["subtype", "age_band"]
    assert first["threshold"]["value"] == second["threshold"]["value"]
    # And again from what that wrote.
    again = tmp_path / "scores" / "predictions.csv"
    third = evaluated(capsys, "--scores", again, "--out", tmp_path / "third", "--resamples", 100)
    assert {name: third[name] for name in NUMBERS} == {name: first[name] for name in NUMBERS}
    assert again.read_bytes() == (tmp_path / "third" / "predictions.csv").read_bytes()


def test_images_that_the_model_rejects_by_default_are_reported_on_the_page(tmp_path: Path) -> None:
    import pydicom

    images = write_phantoms(tmp_path / "images", 12, 5, format="dicom", size=96)
    adult = next((images / "train" / "NORMAL").iterdir())
    header = pydicom.dcmread(adult)
    header.PatientAge = "040Y"
    del header.PatientBirthDate
    header.save_as(adult)
    interval = IntervalConfig(resamples=20)
    out = tmp_path / "e"
    evaluate_model(images, out, "default", "all", interval, input_check=False, any_age=True)
    cautions = json.loads((out / "metrics.json").read_text())["cautions"]
    relaxed = "Evaluated with any age and no input check: the metrics include images that the model"
    warned = "Warnings about images: 1 × "
    page = (out / "report.html").read_text(encoding="utf-8")
    for caution in (relaxed, warned):
        assert any(found.startswith(caution) for found in cautions), cautions
        assert caution in page
    assert "children aged 1–5 years" in page


def test_labels_stand_in_predictions(tmp_path: Path) -> None:
    images = write_phantoms(tmp_path / "images", 12, 5, size=96)
    interval = IntervalConfig(resamples=20)
    evaluate_model(images, tmp_path / "e", "default", "all", interval, input_check=False)
    rows = rows_of(tmp_path / "e" / "predictions.csv")
    assert list(rows[0])[-4:] == ["label", "patient", "split", "subtype"]
    assert all(Path(row["path"]).parent.name == row["label"] for row in rows)
    (tmp_path / "e" / "labels.csv").unlink()  # which older versions needed
    assert read_evaluation(tmp_path / "e").labels.sum() == sum(
        row["label"] == "PNEUMONIA" for row in rows
    )


def test_any_scale_gives_the_numbers_of_the_same_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("--resamples", 60, "--threshold")
    percent = write_rows(tmp_path / "percent.csv", vendor_rows())
    share = write_rows(tmp_path / "share.csv", vendor_rows(scale=1.0))
    wide = evaluated(capsys, "--scores", percent, "--out", tmp_path / "p", *asked, 52.5)
    unit = evaluated(capsys, "--scores", share, "--out", tmp_path / "s", *asked, 0.525)
    for name, estimate in wide["metrics"].items():
        if name in ("brier", "ece"):
            assert estimate == {"value": None, "low": None, "high": None}
            assert unit["metrics"][name]["value"] > 0
        else:
            assert estimate == unit["metrics"][name], name
    assert wide["confusion_matrix"] == unit["confusion_matrix"]
    assert wide["calibration"] is None
    assert wide["threshold"]["value"] == 52.5
    assert wide["scale"]["probability"] is False
    assert wide["curves"]["histogram"]["edges"][-1] == wide["scale"]["high"]
    assert [group["name"] for column in wide["groups"] for group in column["groups"]] == ["A", "B"]
    rows = vendor_rows()
    truth = np.array([row["Label"] == "PNEUMONIA" for row in rows])
    scores = np.array([float(row["Score"]) for row in rows])
    assert wide["metrics"]["auc"]["value"] == pytest.approx(roc_auc_score(truth, scores))
    assert wide["metrics"]["average_precision"]["value"] == pytest.approx(
        average_precision_score(truth, scores)
    )
    brier = brier_score_loss(truth, scores / 100)
    assert unit["metrics"]["brier"]["value"] == pytest.approx(brier)
    called = scores >= 52.5
    assert wide["confusion_matrix"] == {
        "tn": int((~called & ~truth).sum()),
        "fp": int((called & ~truth).sum()),
        "fn": int((~called & truth).sum()),
        "tp": int((called & truth).sum()),
    }
    page = (tmp_path / "p" / "report.html").read_text()
    assert "not a probability" in page
    assert "Reliability" not in page
    assert "threshold 52.50" in page
    assert "not probabilities" in (tmp_path / "p" / "checklist.html").read_text()
    written = rows_of(tmp_path / "p" / "predictions.csv")
    assert written[0]["score"] == rows[0]["Score"]
    assert written[0]["probability"] == ""
    assert {row["prediction"] for row in written} == {"NORMAL", "PNEUMONIA"}


def test_tables_for_a_paper(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = write_rows(tmp_path / "s.csv", vendor_rows(scale=1.0))
    told = evaluated(capsys, "--scores", table, "--out", tmp_path / "e", "--resamples", 40)
    rows = rows_of(tmp_path / "e" / "metrics.csv")
    first = {row["metric"]: row for row in reversed(rows)}
    for name, estimate in told["metrics"].items():
        assert float(first[name]["value"]) == estimate["value"]
        assert float(first[name]["low"]) == estimate["low"]
    assert [row["method"] for row in rows if row["metric"] == "auc"][1].startswith("DeLong")
    markdown = (tmp_path / "e" / "metrics.md").read_text().splitlines()
    assert markdown[1].count("|") == 4
    assert any(line.startswith("| AUC | 0.8") for line in markdown)
    latex = (tmp_path / "e" / "metrics.tex").read_text()
    assert "\\begin{tabular}{lrl}" in latex
    assert latex.count(" \\\\") == 12
    assert "95\\,\\%" in latex or "95 \\%" in latex or "95~\\%" in latex
    assert all(ord(c) < 128 for c in latex)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"Label": "maybe"}, "row 1: found the label 'maybe'"),
        ({"Score": "high"}, "row 1: found 'high' in the column 'score'"),
        ({"Score": "nan"}, "row 1: found 'nan'"),
    ],
)
def test_what_can_not_be_understood_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, str], says: str
) -> None:
    rows = vendor_rows(20)
    rows[0] |= change
    table = write_rows(tmp_path / "s.csv", rows)
    told = evaluated(capsys, "--scores", table, "--out", tmp_path / "e", code=3)
    assert says in told["error"]["message"]


def test_rows_without_label_score_or_patient(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = vendor_rows(60, scale=1.0)
    rows[0]["Label"] = ""
    rows[1]["Score"] = ""
    rows[2]["Patient"] = ""
    table = write_rows(tmp_path / "s.csv", rows)
    told = evaluated(capsys, "--scores", table, "--out", tmp_path / "e", "--resamples", 20)
    assert (told["n"], told["refused"]) == (58, 1)
    assert told["patients"] == 30  # of the pair without its first row; the one without a name
    assert told["threshold"] == {"value": 0.5, "rule": "0.5, since none was stated"}
    page = (tmp_path / "e" / "report.html").read_text()
    for part in (
        "1 of 60 rows have no reference label",
        "1 of 59 rows name no patient",
        "no score",
    ):
        assert part in page


def test_the_flow_counts_the_rows_of_other_splits_and_those_without_a_label(
    tmp_path: Path,
) -> None:
    rows = [
        row | {"split": "train" if k < 20 else "test"}
        for k, row in enumerate(vendor_rows(60, scale=1.0))
    ]
    rows[30]["Label"] = ""
    table = read_scores(write_rows(tmp_path / "s.csv", rows))
    labelled = labelled_scores(table, 0.5, "test")
    found = evaluate_scores(labelled, tmp_path / "out", IntervalConfig(resamples=20))
    flow = found.flow
    assert (flow.found.images, flow.found.patients) == (60, 30)
    assert [(part.name, part.images) for part in flow.elsewhere] == [
        ("split train", 20),
        ("no reference label", 1),
    ]
    assert (flow.evaluated.images, flow.scored.images) == (39, 39)
    assert found.answers["indeterminate"] == "No prediction of the table is indeterminate."


def test_tables_that_contradict_themselves_are_not_believed_in_silence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [row | {"split": "test"} for row in vendor_rows(60, scale=1.0)]
    cases: dict[str, list[dict[str, Any]]] = {
        "Rows of 1 patient are in more than one split, the first is 'p0'": [
            rows[0] | {"split": "train"},
            *rows[1:],
        ],
        "1 of 60 rows belong to the split train": [rows[0] | {"split": "train"}, *rows[1:]],
        "2 of 62 rows repeat the name, label and score of another row, the first is 'A0'": [
            *rows,
            *rows[:2],
        ],
        "labelled both NORMAL and PNEUMONIA (1 name, the first is 'A5')": [
            *rows,
            rows[5] | {"Label": {"normal": "1", "PNEUMONIA": "0"}[rows[5]["Label"]]},
        ],
        "columns score and probability: the scores are those of the column score": [
            row | {"probability": "0.5"} for row in rows
        ],
        "Labels or scores may be reversed": [
            row | {"Score": repr(1 - float(row["Score"]))} for row in rows
        ],
    }
    for k, (wanted, changed) in enumerate(cases.items()):
        table = write_rows(tmp_path / f"{k}.csv", changed)
        out = tmp_path / f"e{k}"
        told = evaluated(capsys, "--scores", table, "--out", out, "--resamples", 20)
        assert any(wanted in caution for caution in told["cautions"]), told["cautions"]
        assert wanted.split(", the first")[0] in (out / "report.html").read_text()
        for page in ("report.html", "checklist.html"):
            assert "No patient is in" not in (out / page).read_text()
    both = write_rows(tmp_path / "b.csv", [row | {"probability": "0.5"} for row in rows])
    asked = ("--score-column", "score", "--out", tmp_path / "b")
    assert len(evaluated(capsys, "--scores", both, *asked)["cautions"]) == 1
    clean = evaluated(
        capsys, "--scores", write_rows(tmp_path / "c.csv", rows), "--out", tmp_path / "c"
    )
    assert clean["cautions"] == [
        "No threshold was stated, in the table or by option: 0.5 was used."
    ]


def test_rows_of_one_name_are_one_patient_if_none_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{key: row[key] for key in ("Accession", "Label", "Score")} for row in vendor_rows(60)]
    table = write_rows(tmp_path / "s.csv", [row for row in rows for _ in range(4)])
    told = evaluated(capsys, "--scores", table, "--out", tmp_path / "e", "--resamples", 20)
    assert (told["n"], told["patients"]) == (240, 60)


@pytest.mark.parametrize(("asked", "wanted"), [(50, "found the threshold 50"), (-0.1, "-0.1")])
def test_a_threshold_outside_of_probabilities(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], asked: float, wanted: str
) -> None:
    table = write_rows(tmp_path / "s.csv", vendor_rows(60, scale=1.0))
    told = evaluated(
        capsys, "--scores", table, "--out", tmp_path / "e", "--threshold", asked, code=2
    )
    assert wanted in told["error"]["message"]
    assert "Give --threshold in the units of the scores" in told["error"]["message"]


def test_one_class_without_a_threshold_says_to_give_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = write_rows(tmp_path / "s.csv", [r | {"Label": "0"} for r in vendor_rows(20)])
    told = evaluated(capsys, "--scores", table, "--out", tmp_path / "e", code=3)
    assert "found only NORMAL and no threshold" in told["error"]["message"]


def test_thresholds_of_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row | {"threshold": "45"} for row in vendor_rows(60)]
    table = write_rows(tmp_path / "s.csv", rows)
    told = evaluated(capsys, "--scores", table, "--out", tmp_path / "e", "--resamples", 20)
    assert told["threshold"] == {"value": 45.0, "rule": "stated in s.csv"}
    rows[3]["threshold"] = "46"
    write_rows(table, rows)
    told = evaluated(capsys, "--scores", table, "--out", tmp_path / "e", code=3)
    assert "holds 2 values, from 45 to 46" in told["error"]["message"]
    told = evaluated(capsys, "--out", tmp_path / "e", code=2)
    assert "either DATA" in told["error"]["message"]


def planned(capsys: pytest.CaptureFixture[str], *arguments: Any, code: int = 0) -> dict[str, Any]:
    assert run(["plan", *map(str, arguments), "--resamples", "60", "--json", "-q"]) == code
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def test_a_plan_repeats_the_cautions_of_its_evaluation_and_says_whose_prevalence_counts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [row | {"split": "train"} for row in vendor_rows(60, scale=1.0)]
    table = write_rows(tmp_path / "s.csv", rows)
    found = evaluated(capsys, "--scores", table, "--out", tmp_path / "e", "--resamples", 20)
    plan = planned(capsys, tmp_path / "e", "--band", 0.4, "--prevalence", 0.1)
    page = (tmp_path / "e" / "plan.html").read_text()
    own = found["positives"] / found["n"]
    for wanted in (
        *found["cautions"],
        "These images are from a training split",
        f"at the prevalence of these images ({percent(own, 1)}), not at {percent(0.1, 1)}",
    ):
        assert any(wanted in note for note in plan["notes"]), wanted
        assert wanted in page
    assert f"where {own:.0%} of the images show pneumonia" in plan["abstention"]["rule"]


def test_a_plan_of_scores_is_in_their_units(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("--resamples", 20, "--threshold")
    percent = write_rows(tmp_path / "percent.csv", vendor_rows())
    share = write_rows(tmp_path / "share.csv", vendor_rows(scale=1.0))
    evaluated(capsys, "--scores", percent, "--out", tmp_path / "p", *asked, 50)
    evaluated(capsys, "--scores", share, "--out", tmp_path / "s", *asked, 0.5)
    wide, unit = (
        planned(capsys, tmp_path / name, "--min-sensitivity", 0.7, "--prevalence", 0.2)
        for name in "ps"
    )
    assert wide["chosen"]["threshold"] == pytest.approx(100 * unit["chosen"]["threshold"])
    assert wide["chosen"]["sensitivity"] == unit["chosen"]["sensitivity"]
    assert wide["current"]["threshold"] == 50.0
    assert wide["decision_curve"] is None
    assert unit["decision_curve"] is not None
    told = planned(capsys, tmp_path / "p", "--band", 0.05, code=2)
    assert "not probabilities" in told["error"]["message"]
    told = planned(capsys, tmp_path / "p", "--threshold", 55, "--apply", tmp_path / "b", code=2)
    assert "without a model to change" in told["error"]["message"]


def test_costs_choose_the_cheapest_threshold(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = write_rows(tmp_path / "s.csv", vendor_rows(scale=1.0))
    evaluated(capsys, "--scores", table, "--out", tmp_path / "e", "--resamples", 20)
    told = planned(capsys, tmp_path / "e", "--cost", "8:2", "--prevalence", 0.2)
    rows = rows_of(tmp_path / "e" / "plan.csv")
    costs = [
        8 * float(row["missed_per_1000"]) + 2 * float(row["false_alarms_per_1000"]) for row in rows
    ]
    assert [float(row["cost_per_1000"]) for row in rows] == pytest.approx(costs)
    cheapest = told["cost"]["cheapest"]
    assert cheapest["cost_per_1000"]["value"] == pytest.approx(min(costs))
    assert told["chosen"]["threshold"] == cheapest["threshold"]
    assert cheapest["low"] <= cheapest["threshold"] <= cheapest["high"]
    assert told["cost"]["call_all_per_1000"] == pytest.approx(2 * 800)
    assert told["cost"]["call_none_per_1000"] == pytest.approx(8 * 200)
    page = (tmp_path / "e" / "plan.html").read_text()
    assert "Cost of a missed case: 8; of a false alarm: 2" in page
    # The dearer a missed case, the lower the threshold.
    dear = planned(capsys, tmp_path / "e", "--cost", "100:1", "--prevalence", 0.2)
    assert dear["chosen"]["threshold"] < told["chosen"]["threshold"]
    # Beside another wish it is told, but does not choose.
    both = planned(capsys, tmp_path / "e", "--cost", "8:2", "--threshold", 0.6)
    assert both["chosen"]["rule"] == "set to 0.6"
    assert both["cost"] is not None
    for wrong in ("8", "a:b", "-1:2", "0:0"):
        assert (
            "--cost" in planned(capsys, tmp_path / "e", "--cost", wrong, code=2)["error"]["message"]
        )


def test_the_rows_of_one_split_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        row | {"split": "Train" if k < 20 else "test"}
        for k, row in enumerate(vendor_rows(60, scale=1.0))
    ]
    rows[20]["Patient"] = rows[0]["Patient"]
    table = write_rows(tmp_path / "s.csv", rows)
    asked = ("--scores", table, "--resamples", 20, "--out")
    told = evaluated(capsys, *asked, tmp_path / "test", "--split", "test")
    alone = write_rows(tmp_path / "alone.csv", rows[20:])
    wanted = evaluated(capsys, "--scores", alone, "--resamples", 20, "--out", tmp_path / "alone")
    assert {name: told[name] for name in NUMBERS} == {name: wanted[name] for name in NUMBERS}
    assert told["n"] == 40
    # A patient that was trained on stays one, although those rows are not evaluated.
    assert any("1 patient are in more than one split" in caution for caution in told["cautions"])
    assert not any("belong to the split train" in caution for caution in told["cautions"])
    for choice in ((), ("--split", "all")):
        assert evaluated(capsys, *asked, tmp_path / "all", *choice)["n"] == 60
    assert run(["evaluate", *map(str, asked), str(tmp_path / "val"), "--split", "val"]) == 3
    found = capsys.readouterr().err
    assert "none of 60 rows is of the split val: the column 'split' holds Train, test" in found


@pytest.mark.parametrize(
    "option",
    [
        ("--model", "default"),
        ("--framing", "as-is"),
        ("--framing-share", "0.7"),
        ("--any-age",),
        ("--input-check",),
        ("--no-input-check",),
    ],
)
def test_options_about_images_do_not_pass_in_silence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: tuple[str, ...]
) -> None:
    table = write_rows(tmp_path / "s.csv", vendor_rows(60))
    out = tmp_path / "e"
    assert run(["evaluate", "--scores", str(table), "--out", str(out), *option]) == 2
    assert f"found {option[0]}, which state" in capsys.readouterr().err
    assert not out.exists()
