"""A calibration fitted anew to a sample of one site, and how sure it is."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from pneumoscope.config import IntervalConfig
from pneumoscope.errors import DataError
from pneumoscope.evaluation.calibration import Calibration, sigmoid
from pneumoscope.evaluation.operating_point import SHOWN, composed, moved_probabilities, recalibrate

CONFIG = IntervalConfig(resamples=60)
OLD = Calibration("platt", 1.3, 0.4)


def site(
    n: int, slope: float, intercept: float, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Logits whose true log odds are slope × (old calibrated logit) + intercept."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2.0, n)
    truth = slope * (OLD.slope * logits + OLD.intercept) + intercept
    return (rng.random(n) < sigmoid(truth)).astype(int), logits, [f"p{k}" for k in range(n)]


def test_a_site_that_differs_gets_its_own_line() -> None:
    labels, logits, patients = site(1500, 0.6, -1.2)
    found = recalibrate(labels, logits, patients, OLD, CONFIG)
    assert found.changed
    fitted = LogisticRegression(C=1e9).fit(logits[:, None], labels)
    assert found.calibration.slope == pytest.approx(fitted.coef_[0, 0], rel=0.02)
    assert found.calibration.intercept == pytest.approx(fitted.intercept_[0], rel=0.05)
    assert found.loss == pytest.approx(log_loss(labels, OLD.apply(logits)))
    assert found.gain.low is not None
    assert found.gain.low > 0
    truth = sigmoid(0.6 * np.log(np.array(SHOWN) / (1 - np.array(SHOWN))) - 1.2)
    for value, moved in zip(truth, found.moved, strict=True):
        assert moved.low is not None
        assert moved.high is not None
        assert moved.low - 0.02 < value < moved.high + 0.02
    assert found.before.slope.high is not None
    assert found.before.slope.high < 1.0


def test_a_site_that_does_not_differ_keeps_the_old_one() -> None:
    labels, logits, patients = site(200, 1.0, 0.0)
    found = recalibrate(labels, logits, patients, OLD, CONFIG)
    assert not found.changed
    assert found.calibration == OLD
    assert found.gain.value == 0.0
    assert [moved.value for moved in found.moved] == pytest.approx(SHOWN)


def test_lines_in_a_row_are_one_line() -> None:
    added = Calibration("platt", 0.5, -0.7)
    logits = np.linspace(-4, 4, 9)
    once = OLD.apply(logits)
    twice = added.apply(np.log(once / (1 - once)))
    assert composed(OLD, added).apply(logits) == pytest.approx(twice)
    assert moved_probabilities(once, OLD, composed(OLD, added)) == pytest.approx(twice)
    scaled = composed(Calibration("temperature", 2.0, 0.0), Calibration("temperature", 0.5, 0.0))
    assert (scaled.method, scaled.slope) == ("temperature", 1.0)


def test_a_handful_is_rejected() -> None:
    labels, logits, patients = site(30, 1.0, -4.0)
    with pytest.raises(DataError, match="wanted at least 10 of each class"):
        recalibrate(labels, logits, patients, OLD, CONFIG)
