"""JSON log lines without file names, addresses or patient data, and Prometheus metrics.

Every log record of this process becomes one line. Events of the package are logged with their
fields. Of library messages and exceptions only the place in the code is logged, because their text
may hold file content. Repeated messages are counted instead of written.

Metrics hold sums and the last thousand scores; no single image can be identified from them.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from pneumoscope.records import Prediction

LOGGER = logging.getLogger("pneumoscope.serve")

_OURS = "pneumoscope"
_MOST_LINES, _PER_SECONDS = 20, 10.0
"""Lines of one kind in so many seconds; each request and each image is logged."""

_MOST_KINDS = 1000
_EACH = frozenset({"request", "film"})

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0)
_SHARES = tuple(k / 20 for k in range(21))
_RECENT = 1000
_FEWEST_FOR_SHIFT = 200
"""Chance alone moves the stability index of fewer images beyond 0.25, where alarms are set."""

_QUANTILES = (0.05, 0.5, 0.95)


class JsonFormatter(logging.Formatter):
    """One line of JSON per record: time, level, event, and the fields of `event`."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of one record."""
        ours = _is_ours(record)
        told: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage() if ours else "library",
        }
        if record.exc_info:
            told["event"] = "defect"
        if not ours:
            told |= {"logger": record.name, "at": f"{record.filename}:{record.lineno}"}
        told |= getattr(record, "fields", {})
        if unsaid := getattr(record, "unsaid", 0):
            told["not_said"] = unsaid
        if record.exc_info and record.exc_info[0] is not None:
            told["exception"] = record.exc_info[0].__name__
            frames = traceback.extract_tb(record.exc_info[2])
            told["where"] = [f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in frames[-8:]]
        return json.dumps(told)


class Seldom(logging.Filter):
    """Limits the rate of records of one kind; the next one states how many were dropped.

    A kind is a place in the code, or the name of an event of the package.
    """

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.Lock()
        self._kinds: dict[Any, list[float]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is written."""
        if _is_ours(record) and record.msg in _EACH:
            return True
        kind = (record.name, record.pathname, record.lineno, record.msg if _is_ours(record) else "")
        now = time.monotonic()
        with self._lock:
            if len(self._kinds) > _MOST_KINDS:
                self._kinds.clear()
            said = self._kinds.setdefault(kind, [now, 0, 0])
            if now - said[0] > _PER_SECONDS:
                said[0], said[1] = now, 0
            said[1] += 1
            if said[1] > _MOST_LINES:
                said[2] += 1
                return False
            record.unsaid, said[2] = int(said[2]), 0
        return True


def event(name: str, level: int = logging.INFO, **fields: Any) -> None:
    """Log an event. `fields` must not hold patient data."""
    LOGGER.log(level, name, extra={"fields": fields})


def write_json_lines(level: int, stream: TextIO | None = None) -> None:
    """Write all log records to `stream` (stderr) as lines of JSON."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter())
    handler.addFilter(Seldom())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(level, logging.WARNING))
    for name in list(logging.Logger.manager.loggerDict):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    logging.getLogger(_OURS).setLevel(level)


def write_uncaught_too() -> None:
    """Log uncaught exceptions of all threads the same way."""
    sys.excepthook = _uncaught
    threading.excepthook = lambda told: _uncaught(told.exc_type, told.exc_value, told.exc_traceback)
    sys.unraisablehook = lambda told: _uncaught(told.exc_type, told.exc_value, told.exc_traceback)


def _uncaught(
    kind: type[BaseException], error: BaseException | None, where: TracebackType | None
) -> None:
    LOGGER.error("defect", exc_info=(kind, error or kind(), where))


def _is_ours(record: logging.LogRecord) -> bool:
    return record.name == _OURS or record.name.startswith(f"{_OURS}.")


class Metrics:
    """The counters of one server.

    Args:
        validation: validation metrics of the bundle; drift is measured against its histogram of
            probabilities.
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
        self._images = Counter(
            "pneumoscope_films",
            "images, by prediction or reason",
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
        """Add a gauge whose value is computed on each scrape."""
        Gauge(name, words, registry=self._registry).set_function(value)

    def _drift(self, registry: CollectorRegistry) -> None:
        self.gauge(
            "pneumoscope_probability_shift",
            f"population stability index of the last {_RECENT} probabilities against validation's; "
            f"NaN below {_FEWEST_FOR_SHIFT} images since the start",
            self._shift,
        )
        self.gauge(
            "pneumoscope_input_score_mean",
            f"mean distance of the last {_RECENT} images from the training images (or NaN)",
            lambda: _mean(self._input_scores),
        )
        scores = Gauge(
            "pneumoscope_input_score", "quantiles of the same", ("quantile",), registry=registry
        )
        for share in _QUANTILES:
            scores.labels(str(share)).set_function(partial(_quantile, self._input_scores, share))

    def _shift(self) -> float:
        if len(self._recent) < _FEWEST_FOR_SHIFT:
            return math.nan
        return stability_index(self._reference, self._recent)

    def count_request(self, route: str, code: int, seconds: float) -> None:
        """Count one request with any outcome."""
        self._requests.labels(route, str(code)).inc()
        self._seconds.labels(route).observe(seconds)

    def count_image(self, prediction: Prediction) -> None:
        """Count one image that was scored or rejected."""
        reason = "" if prediction.reason is None else prediction.reason.value
        self._images.labels(prediction.status, reason, prediction.prediction or "").inc()
        if prediction.probability is not None:
            self._probability.observe(prediction.probability)
            self._recent.append(prediction.probability)
        if prediction.input_score is not None:
            self._input_scores.append(prediction.input_score)

    def text(self) -> bytes:
        """All metrics in the Prometheus text format."""
        return generate_latest(self._registry)


def stability_index(reference: Sequence[float], probabilities: Sequence[float]) -> float:
    """How far two distributions of probabilities are apart: 0 alike, above 0.25 very different.

    The population stability index Σ (p - q) ln(p / q) over equal bins of [0, 1] (Siddiqi, Credit
    Risk Scorecards, 2006), with half an image added to each bin so that empty bins count.

    Args:
        reference: images per bin, any number of bins.
        probabilities: of the images that are compared.

    Returns:
        NaN if one of the sides has no images.
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
    """Images per bin of probability on validation; empty if the bundle does not state it."""
    histogram = validation.get("curves", {}).get("histogram", {})
    normal, pneumonia = histogram.get("normal", []), histogram.get("pneumonia", [])
    return [float(a + b) for a, b in zip(normal, pneumonia, strict=False)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _quantile(values: Sequence[float], share: float) -> float:
    if not values:
        return math.nan
    return sorted(values)[min(int(share * len(values)), len(values) - 1)]
