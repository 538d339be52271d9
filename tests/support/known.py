"""Values that must be there: where one is `None`, the test fails at once."""

from __future__ import annotations

from typing import TypeVar

from pneumoscope.records import Estimate

Value = TypeVar("Value")


def known(value: Value | None) -> Value:
    assert value is not None
    return value


def limits(estimate: Estimate) -> tuple[float, float]:
    """Both ends of the interval."""
    return known(estimate.low), known(estimate.high)


def width(estimate: Estimate) -> float:
    low, high = limits(estimate)
    return high - low


def holds(estimate: Estimate, truth: float) -> bool:
    """Whether the interval holds the value."""
    low, high = limits(estimate)
    return low <= truth <= high
