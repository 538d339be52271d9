"""Abstention, and the fingerprint of what predictions depend on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pneumoscope.config import PreprocessConfig
from pneumoscope.errors import BundleError
from pneumoscope.evaluation.calibration import Calibration
from pneumoscope.inference.bundle import (
    Abstention,
    BundleManifest,
    OperatingPoint,
    load_bundle,
    model_fingerprint,
    write_revised,
)
from pneumoscope.inference.results import Result, decide
from pneumoscope.records import Prediction

MANIFEST = BundleManifest(threshold=OperatingPoint(0.5, "for the test", ""))
BAND = Abstention("band", 0.3, 0.8, "for the test", "nothing")


@pytest.mark.parametrize(
    ("logit", "wanted"),
    [(-2.0, "NORMAL"), (-0.5, "uncertain"), (1.0, "uncertain"), (2.0, "PNEUMONIA")],
)
def test_inside_the_band_the_prediction_is_uncertain(logit: float, wanted: str) -> None:
    plain = decide(Result(Prediction("x", "ok"), logit=logit), MANIFEST).prediction
    banded = decide(
        Result(Prediction("x", "ok"), logit=logit), replace(MANIFEST, abstention=BAND)
    ).prediction
    assert banded.prediction == wanted
    assert banded.probability == plain.probability
    assert plain.prediction == ("PNEUMONIA" if logit >= 0 else "NORMAL")


def test_ends_of_the_band() -> None:
    manifest = replace(MANIFEST, abstention=replace(BAND, low=0.5, high=0.5))
    result = decide(Result(Prediction("x", "ok"), logit=0.0), manifest)
    assert result.prediction.prediction == "PNEUMONIA"  # an empty band withholds nothing
    manifest = replace(MANIFEST, abstention=replace(BAND, low=0.5, high=0.6))
    assert decide(result, manifest).prediction.prediction == "uncertain"


def test_bundle_keeps_the_band(tmp_path: Path) -> None:
    bundle = load_bundle("default")
    at = bundle.manifest.threshold.value
    band = Abstention("band", at / 2, at, "for the test", "nothing")
    made = write_revised(
        tmp_path / "made", bundle, replace(bundle.manifest, abstention=band), "A card."
    )
    assert load_bundle(made.folder).manifest.abstention == band
    path = made.folder / "bundle.json"
    document = json.loads(path.read_text())
    document["abstention"] = {
        "method": "band",
        "low": at + 0.01,
        "high": 1.0,
        "rule": "",
        "chosen_on": "",
    }
    path.write_text(json.dumps(document))
    with pytest.raises(BundleError, match="wanted the threshold in between"):
        load_bundle(made.folder)


def test_fingerprint_is_of_what_probabilities_depend_on() -> None:
    weights = {"model.keras": "aa", "MODEL_CARD.md": "bb"}
    base = replace(MANIFEST, files=weights)
    fingerprint = model_fingerprint(base)
    same = (
        replace(base, threshold=OperatingPoint(0.9, "", "")),
        replace(base, abstention=BAND),
        replace(base, files={**weights, "MODEL_CARD.md": "cc"}),
    )
    assert {model_fingerprint(manifest) for manifest in same} == {fingerprint}
    other = (
        replace(base, calibration=Calibration("temperature", 2.0, 0.0)),
        replace(base, flip=True),
        replace(base, files={**weights, "model.keras": "cc"}),
        replace(base, preprocessing=PreprocessConfig(fit="pad")),
    )
    assert len({model_fingerprint(manifest) for manifest in other} | {fingerprint}) == 5
