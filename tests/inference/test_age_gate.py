"""Patients outside a model's age range are rejected with a reason on every path."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pneumoscope.errors import Reason, UsageError
from pneumoscope.images.dicom.patient import AgeGate, describe_ages, parse_ages
from pneumoscope.inference.bundle import load_bundle
from pneumoscope.inference.predictor import Predictor, mark_of
from pneumoscope.records import Prediction
from support.dicom_reports import MANIFEST, BrightnessBackend, xray_bytes
from support.image_files import encoded, smooth_grey

UNKNOWN = "for children aged 1–5 years, the age of this patient is not known"


def predicted(
    content: bytes, *, any_age: bool = False, ages: tuple[int, ...] = (1, 5)
) -> Prediction:
    model = Predictor(replace(MANIFEST, ages=ages), BrightnessBackend(), any_age=any_age)
    return model.predict_bytes(content, "x").prediction


def aged(age: str | None = None, birth: str | None = None, **more: Any) -> bytes:
    return xray_bytes(PatientAge=age, PatientBirthDate=birth, StudyDate="20240101", **more)


@pytest.mark.parametrize("age", ["001Y", "005Y", "012M", "071M", "052W", "365D", "313W"])
def test_the_ages_that_it_is_for_are_scored(age: str) -> None:
    found = predicted(aged(age))
    assert (found.status, found.warnings) == ("ok", ())


@pytest.mark.parametrize("age", ["000Y", "006Y", "067Y", "011M", "072M", "051W", "314W", "010D"])
def test_others_are_rejected(age: str) -> None:
    found = predicted(aged(age))
    assert (found.status, found.reason) == ("refused", Reason.OUTSIDE_AGE_RANGE)
    assert found.probability is None
    assert "children aged 1–5 years" in found.detail
    assert "--any-age" in found.detail


@pytest.mark.parametrize(
    ("birth", "reason"),
    [
        ("20230102", Reason.OUTSIDE_AGE_RANGE),
        ("20230101", None),
        ("20180102", None),
        ("20180101", Reason.OUTSIDE_AGE_RANGE),
        ("19570101", Reason.OUTSIDE_AGE_RANGE),
    ],
)
def test_dates_tell_where_no_age_is_stated(birth: str, reason: Reason | None) -> None:
    assert predicted(aged(None, birth)).reason is reason


@pytest.mark.parametrize("age", [None, "four"])
def test_an_unknown_age_is_warned_of_once(age: str | None) -> None:
    found = predicted(aged(age))
    assert found.status == "ok"
    assert found.warnings[-1] == UNKNOWN
    assert len(found.warnings) == (1 if age is None else 2)


def test_any_age_is_scored_with_a_warning() -> None:
    found = predicted(aged("067Y"), any_age=True)
    assert found.status == "ok"
    assert found.probability is not None
    assert "67 years" in found.warnings[0]
    assert "--any-age" in found.warnings[0]


def test_pictures_and_models_without_ages_are_not_asked() -> None:
    from PIL import Image

    picture = encoded(Image.fromarray(smooth_grey().astype("u1")), "PNG")
    assert predicted(picture).warnings == ()
    assert predicted(aged("067Y"), ages=()).status == "ok"


def test_it_decides_predictions() -> None:
    models = [
        Predictor(replace(MANIFEST, ages=(1, 5)), BrightnessBackend(), any_age=any_age)
        for any_age in (False, True)
    ]
    assert mark_of(models[0]) != mark_of(models[1])


@pytest.mark.parametrize(
    ("text", "ages"), [("1-5", (1, 5)), ("0–18", (0, 18)), ("18-120", (18, 120))]
)
def test_ages_as_a_user_gives_them(text: str, ages: tuple[int, ...]) -> None:
    assert parse_ages(text) == ages


@pytest.mark.parametrize("text", ["", "5", "5-1", "1-500", "a-b", "1-2-3", "-1-5"])
def test_what_are_no_ages(text: str) -> None:
    with pytest.raises(UsageError, match="youngest and the oldest"):
        parse_ages(text)


def test_whom_a_model_is_for() -> None:
    assert describe_ages((1, 5)) == "children aged 1–5 years"
    assert describe_ages((18, 90)) == "adults aged 18–90 years"
    assert describe_ages((0, 90)) == "patients aged 0–90 years"


def test_the_model_that_ships_is_for_children_of_one_to_five() -> None:
    assert load_bundle("default").manifest.ages == (1, 5)
    assert AgeGate().ages == ()
