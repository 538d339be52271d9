"""Counters for Prometheus: how fast, what was answered, what was refused, and whether films change.

Comes in: every request and every prediction. Goes out: the text of /metrics. Holds sums alone, and
the last thousand scores; nothing of any one film can be told from it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from pneumoscope.records import Prediction

CONTENT_TYPE = CONTENT_TYPE_LATEST

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0)
_SHARES = tuple(k / 20 for k in range(21))
_RECENT = 1000
_QUANTILES = (0.05, 0.5, 0.95)


class Metrics:
    """The counters of one server.

    Args:
        validation: of the model's bundle; its histogram of probabilities is what drift is measured
            from.
    """

    def __init__(self, validation: dict[str, Any]) -> None:
        registry = self._registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._requests = Counter(
            "pneumoscope_requests", "requests", ("route", "code"), registry=registry
        )
        self._seconds = Histogram(
            "pneumoscope_request_seconds",
            "from the first byte in to the last byte out",
            ("route",),
            buckets=_SECONDS,
            registry=registry,
        )
        self._films = Counter(
            "pneumoscope_films",
            "films, by answer or reason",
            ("status", "reason", "prediction"),
            registry=registry,
        )
        self._probability = Histogram(
            "pneumoscope_probability", "of pneumonia", buckets=_SHARES, registry=registry
        )
        self._recent: deque[float] = deque(maxlen=_RECENT)
        self._input_scores: deque[float] = deque(maxlen=_RECENT)
        self._reference = _reference(validation)
        self._drift(registry)

    def gauge(self, name: str, words: str, value: Callable[[], float]) -> None:
        """One more number, asked for when it is wanted."""
        Gauge(name, words, registry=self._registry).set_function(value)

    def _drift(self, registry: CollectorRegistry) -> None:
        self.gauge(
            "pneumoscope_probability_shift",
            f"population stability index of the last {_RECENT} probabilities against validation's",
            lambda: stability_index(self._reference, self._recent),
        )
        self.gauge(
            "pneumoscope_input_score_mean",
            f"how unlike the training films the last {_RECENT} films are, NaN where not measured",
            lambda: _mean(self._input_scores),
        )
        scores = Gauge(
            "pneumoscope_input_score", "quantiles of the same", ("quantile",), registry=registry
        )
        for share in _QUANTILES:
            scores.labels(str(share)).set_function(partial(_quantile, self._input_scores, share))

    def count_request(self, route: str, code: int, seconds: float) -> None:
        """One request that was answered, however."""
        self._requests.labels(route, str(code)).inc()
        self._seconds.labels(route).observe(seconds)

    def count_film(self, prediction: Prediction) -> None:
        """One film that was answered for or refused."""
        reason = "" if prediction.reason is None else prediction.reason.value
        self._films.labels(prediction.status, reason, prediction.prediction or "").inc()
        if prediction.probability is not None:
            self._probability.observe(prediction.probability)
            self._recent.append(prediction.probability)
        if prediction.input_score is not None:
            self._input_scores.append(prediction.input_score)

    def text(self) -> bytes:
        """All of it, in the format of Prometheus."""
        return generate_latest(self._registry)


def stability_index(reference: Sequence[float], probabilities: Sequence[float]) -> float:
    """How far two distributions of probabilities are apart: 0 alike, above 0.25 very different.

    The population stability index Σ (p - q) ln(p / q) over equal bins of [0, 1] (Siddiqi, Credit
    Risk Scorecards, 2006), each bin with half a film more so that empty ones count.

    Args:
        reference: films per bin, any number of bins.
        probabilities: of the films that are compared.

    Returns:
        NaN if there is no film on one of the sides.
    """
    if not sum(reference) or not probabilities:
        return math.nan
    counts = [0.0] * len(reference)
    for value in probabilities:
        counts[min(int(value * len(counts)), len(counts) - 1)] += 1
    index = 0.0
    for before, now in zip(reference, counts, strict=True):
        p = (before + 0.5) / (sum(reference) + 0.5 * len(counts))
        q = (now + 0.5) / (len(probabilities) + 0.5 * len(counts))
        index += (p - q) * math.log(p / q)
    return index


def _reference(validation: dict[str, Any]) -> list[float]:
    """Films per bin of probability on validation; none if the bundle does not tell."""
    histogram = validation.get("curves", {}).get("histogram", {})
    normal, pneumonia = histogram.get("normal", []), histogram.get("pneumonia", [])
    return [float(a + b) for a, b in zip(normal, pneumonia, strict=False)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _quantile(values: Sequence[float], share: float) -> float:
    if not values:
        return math.nan
    return sorted(values)[min(int(share * len(values)), len(values) - 1)]
