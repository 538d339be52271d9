from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import classification_report

from pneumoscope.config import IntervalConfig
from pneumoscope.errors import DataError, UsageError
from pneumoscope.evaluation.evaluate import (
    Evaluation,
    HeadlineRow,
    evaluate,
    from_metrics_json,
    headline,
)
from pneumoscope.evaluation.intervals import bootstrap_metrics
from pneumoscope.evaluation.proportions import wilson_interval
from pneumoscope.records import Estimate
from support.known import known, limits

FEW = IntervalConfig(resamples=80, seed=2)
NAMES = [
    "accuracy",
    "balanced_accuracy",
    "sensitivity",
    "specificity",
    "ppv",
    "npv",
    "f1",
    "auc",
    "average_precision",
    "brier",
    "ece",
]


def sample(n: int = 200) -> tuple[np.ndarray, np.ndarray, list[str], list[str]]:
    rng = np.random.default_rng(0)
    labels = (rng.random(n) < 0.6).astype(int)
    scores = 1 / (1 + np.exp(-(rng.normal(size=n) + 2 * labels - 1)))
    patients = [f"p{i // 2}" for i in range(n)]
    subtypes = np.where(labels == 1, np.where(np.arange(n) % 3 == 0, "virus", "bacteria"), "")
    return labels, scores, patients, [str(kind) for kind in subtypes]


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    labels, scores, patients, subtypes = sample()
    return evaluate(labels, scores, patients, 0.4, "chosen so", FEW, refused=7, subtypes=subtypes)


def test_the_document_is_the_contract(evaluation: Evaluation) -> None:
    labels, scores, *_ = sample()
    document = json.loads(json.dumps(evaluation.to_metrics_json(), allow_nan=False))
    called = scores >= 0.4
    expected = {
        "schema_version": 1,
        "n": 200,
        "patients": 100,
        "positives": int(labels.sum()),
        "refused": 7,
        "threshold": {"value": 0.4, "rule": "chosen so"},
        "confusion_matrix": {
            "tn": int((~called & (labels == 0)).sum()),
            "fp": int((called & (labels == 0)).sum()),
            "fn": int((~called & (labels == 1)).sum()),
            "tp": int((called & (labels == 1)).sum()),
        },
    }
    assert {key: document[key] for key in expected} == expected
    assert document["interval"]["level"] == 0.95
    assert document["interval"]["method"].startswith("expanded percentile bootstrap over patients")
    assert list(document["metrics"]) == NAMES
    for estimate in document["metrics"].values():
        assert list(estimate) == ["value", "low", "high"]
        assert estimate["low"] <= estimate["value"] <= estimate["high"]


def test_its_text_is_one_short_line(evaluation: Evaluation) -> None:
    area = evaluation.metrics["auc"].value
    assert repr(evaluation) == (
        f"<Evaluation: {evaluation.n} images of {evaluation.patients} patients, AUC {area:.3f}>"
    )


def test_parts_are_those_of_the_single_functions(evaluation: Evaluation) -> None:
    labels, scores, patients, subtypes = sample()
    found = bootstrap_metrics(labels, scores, patients, 0.4, FEW)
    assert evaluation.metrics == found.estimates
    matrix = evaluation.confusion_matrix
    assert evaluation.wilson["npv"] == wilson_interval(matrix.tn, matrix.tn + matrix.fn, 0.95)
    for name, wilson in evaluation.wilson.items():
        assert wilson.value == pytest.approx(evaluation.metrics[name].value)
    assert evaluation.delong.value == pytest.approx(evaluation.metrics["auc"].value)
    report = classification_report(
        labels, scores >= 0.4, target_names=["NORMAL", "PNEUMONIA"], digits=4
    )
    assert evaluation.classification_report == report
    assert list(evaluation.subgroups) == ["bacteria", "virus"]
    virus = np.array(subtypes) == "virus"
    group = evaluation.subgroups["virus"]
    assert group.images == virus.sum()
    assert group.patients == len({p for p, inside in zip(patients, virus, strict=True) if inside})
    assert group.sensitivity.value == pytest.approx((scores[virus] >= 0.4).mean())
    assert group.wilson.value == group.sensitivity.value
    low, high = limits(group.sensitivity)
    assert low < known(group.sensitivity.value) < high


def test_an_evaluation_comes_back_from_json(evaluation: Evaluation) -> None:
    document = json.loads(json.dumps(evaluation.to_metrics_json(), allow_nan=False))
    assert from_metrics_json(document) == evaluation


@pytest.mark.parametrize(
    ("labels", "scores", "patients"),
    [
        ([1, 1, 1], [0.1, 0.7, 1.0], ["a", "b", "c"]),
        ([0, 0, 0], [0.0, 0.7, 1.0], ["a", "b", "c"]),
        ([0], [0.5], ["a"]),
        ([0, 1, 0, 1], [0.5] * 4, ["a", "b", "c", "d"]),
        ([0, 1, 0, 1], [0.0, 1.0, 0.0, 1.0], ["a", "b", "c", "d"]),
        ([0, 1, 1], [0.2, 0.1, 0.9], ["a", "a", "a"]),
    ],
)
def test_small_and_odd_sets_give_null_and_never_nan(
    labels: list[int], scores: list[float], patients: list[str]
) -> None:
    subtypes = ["virus" if label else "" for label in labels]
    found = evaluate(labels, scores, patients, 0.5, "fixed", FEW, subtypes=subtypes)
    document = json.loads(json.dumps(found.to_metrics_json(), allow_nan=False))
    assert from_metrics_json(document) == found
    one_class = len(set(labels)) < 2
    assert (document["metrics"]["auc"]["value"] is None) == one_class
    assert (document["curves"]["roc"] is None) == one_class
    assert document["metrics"]["accuracy"]["value"] is not None


def test_headline_has_the_rows_of_the_contract(evaluation: Evaluation) -> None:
    rows = headline(evaluation)
    assert [row.name for row in rows] == NAMES
    auc = evaluation.metrics["auc"]
    assert rows[7] == HeadlineRow("auc", auc.value, auc.low, auc.high)
    bare = dataclasses.replace(evaluation, metrics={name: Estimate(None) for name in NAMES})
    assert headline(bare)[0] == HeadlineRow("accuracy", None, None, None)


def test_nothing_to_evaluate_is_rejected() -> None:
    with pytest.raises(DataError, match=r"no image with a result \(5 rejected\)"):
        evaluate([], [], [], 0.5, "fixed", FEW, refused=5)
    with pytest.raises(UsageError, match="threshold: found nan"):
        evaluate([0], [0.1], ["a"], float("nan"), "fixed", FEW)
    with pytest.raises(DataError, match=r"subtypes: found shape \(1,\)"):
        evaluate([0, 1], [0.1, 0.2], ["a", "b"], 0.5, "fixed", FEW, subtypes=["virus"])


def test_a_document_that_is_none_is_rejected(evaluation: Evaluation) -> None:
    document = evaluation.to_metrics_json()
    with pytest.raises(DataError, match="found schema_version 2, wanted 1"):
        from_metrics_json(document | {"schema_version": 2})
    without = {key: value for key, value in document.items() if key != "curves"}
    with pytest.raises(DataError, match="KeyError 'curves'"):
        from_metrics_json(without)
    changes: list[dict[str, Any]] = [
        {"n": "many"},
        {"metrics": []},
        {"confusion_matrix": {"tn": 1}},
    ]
    for broken in changes:
        with pytest.raises(DataError, match="can't be read"):
            from_metrics_json(document | broken)


def test_importing_evaluation_loads_neither_scikit_learn_nor_scipy() -> None:
    code = (
        "import sys, pneumoscope.evaluation.evaluate, pneumoscope.evaluation.operating_point;"
        "print(sorted({'sklearn', 'scipy', 'matplotlib', 'keras', 'PIL'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
