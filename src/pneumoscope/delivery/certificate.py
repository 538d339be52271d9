"""How nearly an export answers as its bundle does, over every image of a data set.

Comes in: records, the bundle's `Predictor`, an `ExportedModel`. Goes out: a `Certificate`, with
the limits that it is held to. Knows nothing of how the export was made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.delivery.export import ExportedModel
from pneumoscope.errors import DataError, ImageRefusedError
from pneumoscope.evaluation.agreement import compare, correlation, differences, passed_limits
from pneumoscope.images.read import read_image
from pneumoscope.inference.predictor import Answer, Predictor
from pneumoscope.progress import SILENT, Progress
from pneumoscope.records import ImageRecord


@dataclass(frozen=True, slots=True)
class Limits:
    """What an export may differ by. Films of more than 8 bits are rounded to 8 for the graph."""

    probability: float = 1e-4
    rounded_probability: float = 0.02
    decisions_per_thousand: float = 2.0
    auc: float = 0.001
    heatmap_correlation: float = 0.99


@dataclass(frozen=True, slots=True)
class Certificate:
    """Differences between the bundle's answers and the export's.

    Attributes:
        images: how many were asked about; `refused`: how many could not be read.
        rounded: images that 8 bits hold only rounded; their differences are counted apart.
        largest_difference: of the probability, over the images that 8 bits hold.
        mean_difference: of the same.
        largest_rounded_difference: over the others; `None` if there are none.
        decisions_changed: answers on another side of the threshold.
        auc_before: the bundle's; `None` if one class is missing.
        auc_after: the export's.
        heatmap_correlation: the least over images (Pearson); `None` if all maps are flat.
        limits: what is allowed.
        failures: which limits are passed, in words; empty if none.
    """

    images: int
    refused: int
    rounded: int
    largest_difference: float
    mean_difference: float
    largest_rounded_difference: float | None
    decisions_changed: int
    auc_before: float | None
    auc_after: float | None
    heatmap_correlation: float | None
    limits: Limits = field(default_factory=Limits)
    failures: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """`certificate.json`."""
        return {"schema_version": 1, "passed": not self.failures, **asdict(self)}


@dataclass(frozen=True, slots=True)
class _Pair:
    """One image asked both ways."""

    label: int
    before: float
    after: float
    exact: bool
    correlation: float | None


def certify(
    records: Sequence[ImageRecord],
    predictor: Predictor,
    exported: ExportedModel,
    limits: Limits | None = None,
    progress: Progress = SILENT,
) -> Certificate:
    """Ask both about every image.

    Raises:
        DataError: not one image could be read.
    """
    pairs: list[_Pair] = []
    with progress.task("certificate", len(records), "images") as task:
        for record in records:
            try:
                grey = read_image(record.path).pixels
            except ImageRefusedError:
                task.advance()
                continue
            pixels = np.rint(grey * 255.0).astype(np.uint8)
            exact = np.array_equal(pixels.astype(np.float32) / np.float32(255.0), grey)
            pairs.append(_asked(record.label, predictor, exported, grey, pixels, exact))
            task.advance()
    if not pairs:
        raise DataError(
            f"none of {len(records)} images could be read; wanted some to compare answers on. "
            "Look at the data: pneumoscope data audit DATA"
        )
    return _judged(pairs, len(records), predictor.manifest.threshold.value, limits or Limits())


def _asked(
    label: int,
    predictor: Predictor,
    exported: ExportedModel,
    grey: NDArray[np.float32],
    pixels: NDArray[np.uint8],
    exact: bool,
) -> _Pair:
    answer: Answer = predictor.predict_image(grey)
    other = exported.answer(pixels)
    before = answer.prediction.probability
    same = None if answer.cam is None else correlation(answer.cam, other.heatmap)
    return _Pair(label, float("nan") if before is None else before, other.probability, exact, same)


def _judged(pairs: Sequence[_Pair], asked: int, threshold: float, limits: Limits) -> Certificate:
    labels = np.array([p.label for p in pairs])
    before, after = (np.array([getattr(p, n) for p in pairs]) for n in ("before", "after"))
    exact = np.array([p.exact for p in pairs])
    apart = differences(before, after)
    agreed = compare(labels, before, after, threshold, [p.correlation for p in pairs])
    found: dict[str, Any] = {
        "images": len(pairs),
        "refused": asked - len(pairs),
        "rounded": int((~exact).sum()),
        "largest_difference": float(apart[exact].max(initial=0.0)),
        "mean_difference": float(apart[exact].mean()) if exact.any() else 0.0,
        "largest_rounded_difference": None if exact.all() else float(apart[~exact].max()),
        "decisions_changed": agreed.decisions_changed,
        "auc_before": agreed.auc_before,
        "auc_after": agreed.auc_after,
        "heatmap_correlation": agreed.heatmap_correlation,
    }
    same = agreed.heatmap_correlation
    tests = (
        ("largest difference of probability", found["largest_difference"], limits.probability),
        (
            "largest difference of probability where films were rounded to 8 bits",
            found["largest_rounded_difference"],
            limits.rounded_probability,
        ),
        (
            "decisions changed in 1,000",
            agreed.decisions_per_thousand,
            limits.decisions_per_thousand,
        ),
        ("difference of AUC", agreed.auc_difference, limits.auc),
        (
            "heatmaps' distance from correlation 1",
            None if same is None else 1 - same,
            1 - limits.heatmap_correlation,
        ),
    )
    return Certificate(**found, limits=limits, failures=passed_limits(tests))
