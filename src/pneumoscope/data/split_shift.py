"""Classifier two-sample tests between splits: detect that splits were acquired differently.

If a classifier can determine from which split an image comes, the splits differ by more than
chance. The result is one `SplitTest` per class and pair of splits. Method: Lopez-Paz and Oquab
2017, "Revisiting classifier two-sample tests" (arXiv:1610.06545). Folds keep patients together.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import cast

import numpy as np
import numpy.typing as npt

from pneumoscope.data.audit_record import Driver, Property, SplitTest
from pneumoscope.data.duplicates import QUANTITIES, roc_area
from pneumoscope.data.thumbnails import (
    Floats,
    ThumbnailSet,
    area,
    cross_validated,
    interval_of_area,
    standardised,
)
from pneumoscope.progress import Task
from pneumoscope.records import CLASS_NAMES, SPLITS

_MIN_IMAGES = 20
_MAX_DRIVERS = 3
_SKEWED = ("width", "height", "file_bytes")
"""The classifier gets their logarithms, since ratios matter, not differences."""

PAIRS = (("train", "test"), ("train", "val"), ("val", "test"))
"""The comparisons, in this order; the names are those of SPLITS."""


def split_tests(images: ThumbnailSet, seed: int, task: Task) -> tuple[SplitTest, ...]:
    """Run one test per class and pair of splits that both have 20 images of five patients.

    Args:
        images: readable images.
        seed: of the assignment to folds and of the bootstrap.
        task: reports each comparison.
    """
    found = []
    for label, (first, second) in itertools.product(range(len(CLASS_NAMES)), PAIRS):
        of_class = images.labels == label
        places = np.flatnonzero(of_class & np.isin(images.splits, (first, second)))
        classes = (images.splits[places] == second).astype(np.int64)
        if min(classes.sum(), len(classes) - classes.sum()) >= _MIN_IMAGES:
            found.append(_test(images, places, classes, (label, first, second), seed))
        task.advance()
    return tuple(test for test in found if test is not None)


def comparisons() -> int:
    """The maximum number of comparisons of `split_tests`."""
    return len(CLASS_NAMES) * len(list(itertools.combinations(SPLITS, 2)))


def _test(
    images: ThumbnailSet,
    places: npt.NDArray[np.int64],
    classes: npt.NDArray[np.int64],
    named: tuple[int, str, str],
    seed: int,
) -> SplitTest | None:
    label, first, second = named
    patients = images.patients[places]
    properties = {name: values[places] for name, values in _properties(images).items()}
    columns = _columns(properties)
    small = images.small[places]
    whole = cross_validated(np.hstack([small, columns]), classes, patients, seed)
    shape = cross_validated(standardised(small), classes, patients, seed)
    alone = cross_validated(columns, classes, patients, seed) if columns.shape[1] else None
    if whole is None or shape is None:
        return None
    low, high = interval_of_area(whole, classes, patients, seed)
    drivers = sorted(_drivers(properties, classes), key=lambda driver: -driver.auc)
    return SplitTest(
        label=CLASS_NAMES[label],
        first=first,
        second=second,
        images=len(places),
        patients=len(np.unique(patients)),
        auc=round(area(whole, classes), 4),
        low=round(low, 4),
        high=round(high, 4),
        shape_auc=round(area(shape, classes), 4),
        property_auc=round(area(alone, classes), 4) if alone is not None else 0.5,
        drivers=tuple(drivers[:_MAX_DRIVERS]),
    )


def _properties(images: ThumbnailSet) -> Mapping[Property, npt.NDArray[np.float64]]:
    """Every property of every image, (n,) float64 each."""
    found: dict[Property, npt.NDArray[np.float64]] = {
        cast("Property", name): images.numbers[:, column] for column, name in enumerate(QUANTITIES)
    }
    found["border"] = images.border.astype(np.float64)
    found["centre"] = images.centre.astype(np.float64)
    return found


def _columns(properties: Mapping[Property, npt.NDArray[np.float64]]) -> Floats:
    """(n, k) float32: the properties that vary, skewed ones as logarithms."""
    varying = [
        np.log(np.maximum(values, 1.0)) if name in _SKEWED else values
        for name, values in properties.items()
        if np.ptp(values) > 0
    ]
    if not varying:
        return np.zeros((len(next(iter(properties.values()))), 0), np.float32)
    return np.stack(varying, axis=1).astype(np.float32)


def _drivers(
    properties: Mapping[Property, npt.NDArray[np.float64]], classes: npt.NDArray[np.int64]
) -> Iterator[Driver]:
    for name, values in properties.items():
        if np.ptp(values) > 0:
            one, other = values[classes == 0], values[classes == 1]
            alone = roc_area(one, other)
            yield Driver(
                name,
                round(max(alone, 1 - alone), 4),
                round(float(np.median(one)), 4),
                round(float(np.median(other)), 4),
            )
