"""Groups of patients: rates, gaps, and the warning where a group is too small."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as sk
from statsmodels.stats.proportion import proportion_confint

from pneumoscope.errors import DataError
from pneumoscope.evaluation.groups import FEWEST, GroupColumn, by_group
from pneumoscope.evaluation.intervals import delong_interval


def simulated(n: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.5).astype(int)
    sex = np.where(rng.random(n) < 0.3, "female", "male")
    logits = 2.0 * (labels - 0.5) + rng.normal(size=n) - 1.5 * ((sex == "female") & (labels == 1))
    return labels, 1 / (1 + np.exp(-logits)), np.arange(n), sex


def test_rates_and_intervals_of_each_group() -> None:
    labels, scores, patients, sex = simulated()
    (column,) = by_group(labels, scores, patients, 0.5, {"sex": list(sex)}, 0.95)
    assert [group.name for group in column.groups] == ["male", "female"]
    for group in column.groups:
        inside = sex == group.name
        y, p = labels[inside], scores[inside]
        assert (group.images, group.positives) == (inside.sum(), y.sum())
        hits = int((p[y == 1] >= 0.5).sum())
        assert group.sensitivity.value == pytest.approx(sk.recall_score(y, p >= 0.5))
        assert (group.sensitivity.low, group.sensitivity.high) == pytest.approx(
            proportion_confint(hits, int(y.sum()), 0.05, "wilson")
        )
        assert group.specificity.value == pytest.approx(sk.recall_score(y, p >= 0.5, pos_label=0))
        assert group.auc.value == pytest.approx(sk.roc_auc_score(y, p))
        assert group.auc == delong_interval(y, p, 0.95, patients[inside])
        assert group.too_few == ()


def test_the_gap_is_seen_and_the_one_that_is_not_there_is_not() -> None:
    labels, scores, patients, sex = simulated()
    (column,) = by_group(labels, scores, patients, 0.5, {"sex": list(sex)}, 0.95)
    male, female = column.groups
    gap = female.gaps["sensitivity"]
    assert gap.value == pytest.approx(
        (female.sensitivity.value or 0) - (male.sensitivity.value or 0)
    )
    assert gap.high is not None
    assert gap.high < 0
    assert male.gaps["sensitivity"].value == pytest.approx(-(gap.value or 0))
    other = female.gaps["specificity"]
    assert other.low is not None
    assert other.high is not None
    assert other.low < 0 < other.high


def test_too_few_to_tell() -> None:
    labels, scores, patients, _ = simulated()
    rare = ["a"] * 380 + ["b"] * 20
    (column,) = by_group(labels, scores, patients, 0.5, {"site": rare}, 0.95)
    assert column.groups[0].too_few == ()
    assert column.groups[1].too_few == ("sensitivity", "specificity", "auc")
    # Patients are counted, not their images.
    y, p, owners = (part[:40].repeat(10) for part in (labels, scores, patients))
    (column,) = by_group(y, p, owners, 0.5, {"site": ["a", "b"] * 200}, 0.95)
    assert len(y) > 6 * FEWEST
    assert all(group.too_few for group in column.groups)


def test_columns_that_make_no_groups_are_left_out() -> None:
    labels, scores, patients, _ = simulated()
    columns = {
        "same": ["x"] * 400,
        "id": [f"id-{k}" for k in range(400)],
        "empty": [""] * 400,
        "good": ["a", "", "b", "b"] * 100,
    }
    column, same, without = by_group(labels, scores, patients, 0.5, columns, 0.95)
    assert (same.name, same.groups, same.note) == ("same", (), "only one value, x")
    assert (without.name, without.groups) == ("id", ())
    assert without.note == "400 different values, too many to compare (limit 12)"
    assert column.name == "good"
    assert column.without == 100
    assert [group.images for group in column.groups] == [200, 100]


def test_numbers_are_cut_into_quarters() -> None:
    labels, scores, patients, _ = simulated()
    ages = [f"{k / 10:g}" for k in range(400)]
    (column,) = by_group(labels, scores, patients, 0.5, {"age": ages}, 0.95)
    assert [group.images for group in column.groups] == [100] * 4
    assert {group.name for group in column.groups} == {
        "up to 9.975",
        "9.975 to 19.95",
        "19.95 to 29.925",
        "above 29.925",
    }
    assert "quarters" in column.note


def test_a_group_of_one_class_has_half_its_rates() -> None:
    labels = np.array([1, 1, 0, 0] * 10)
    subtypes = ["virus", "bacteria", "", ""] * 10
    (column,) = by_group(labels, labels * 0.9, np.arange(40), 0.5, {"subtype": subtypes}, 0.95)
    group = column.groups[0]
    assert group.sensitivity.value == 1.0
    assert group.specificity.value is None
    assert group.gaps["specificity"].value is None
    assert group.too_few == ("sensitivity",)


def test_documents_read_back() -> None:
    labels, scores, patients, sex = simulated()
    (column,) = by_group(labels, scores, patients, 0.5, {"sex": list(sex)}, 0.95)
    document = column.to_dict()
    assert set(document["groups"][0]["gaps"]) == {"sensitivity", "specificity", "auc"}
    assert GroupColumn.from_dict(document) == column


def test_one_value_per_image_is_wanted() -> None:
    with pytest.raises(DataError, match="one per image"):
        by_group([0, 1], [0.1, 0.9], ["a", "b"], 0.5, {"sex": ["f"]}, 0.95)


def _made(name: str, values: list[str]) -> tuple[list[str], str]:
    """Names of a column's groups, and its note."""
    n = len(values)
    labels = np.arange(n) % 2
    found = by_group(labels, labels * 0.8 + 0.1, np.arange(n), 0.5, {name: values}, 0.95)
    return ([group.name for group in found[0].groups], found[0].note) if found else ([], "")


@pytest.mark.parametrize(
    ("name", "values", "groups"),
    [
        ("age", ["9"] * 8 + ["4"] * 30 + ["2"] * 2 + ["8"] * 20, ["2", "4", "8", "9"]),
        ("age", ["10", "9", "100"] * 20, ["9", "10", "100"]),
        ("age_band", ["1 to 4", "under 1", "65 or older", "5 to 17"] * 15,
         ["under 1", "1 to 4", "5 to 17", "65 or older"]),
        ("site", ["p10", "p2", "p2"] * 20, ["p2", "p10"]),
        ("sex", ["male", "male", "female"] * 20, ["male", "female"]),
        ("year", ["2019", "2018"] * 30, ["2018", "2019"]),
    ],
)  # fmt: skip
def test_groups_stand_in_order(name: str, values: list[str], groups: list[str]) -> None:
    assert _made(name, values)[0] == groups


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("site", [str(100 + k % 20) for k in range(200)]),
        ("siteId", [str(k % 20) for k in range(200)]),
        ("accession", [str(730000 + k) for k in range(200)]),
        ("Accession Number", [str(k) for k in range(200)]),
        ("scanner", [f"{k % 15}" for k in range(200)]),
        ("anything", [f"{k % 40:04}" for k in range(200)]),  # leading zeros
        ("anything", [str(20260000 + k % 50) for k in range(200)]),  # long numbers
        ("anything", [str(1000 + 7 * k) for k in range(200)]),  # hardly one twice
        ("ward", [f"W{k % 30}" for k in range(200)]),
    ],
)
def test_codes_are_not_cut_into_quarters(name: str, values: list[str]) -> None:
    groups, note = _made(name, values)
    assert groups == []
    assert "too many to compare" in note


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("age", [str(k % 60) for k in range(200)]),
        ("ageYears", [f"{k / 7:.2f}" for k in range(200)]),
        ("weight_kg", [str(5 + k % 40) for k in range(200)]),
        ("crp", [str(k % 90) for k in range(200)]),
        ("anything", [f"{k / 10:g}" for k in range(200)]),
    ],
)
def test_quantities_are_cut_into_quarters(name: str, values: list[str]) -> None:
    groups, note = _made(name, values)
    assert len(groups) == 4
    assert groups[0].startswith("up to")
    assert groups[-1].startswith("above")
    assert "quarters" in note


def test_codes_that_are_few_make_groups() -> None:
    assert _made("site", [str(101 + k % 3) for k in range(90)])[0] == ["101", "102", "103"]
