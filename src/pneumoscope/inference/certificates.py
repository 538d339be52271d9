"""Precision certificates: how closely bfloat16 or int8 reproduces the predictions in float32.

`judged` makes a `PrecisionCertificate` from the agreement on labelled images, whether it passes or
fails. `choose_precision` picks the precision of inference from the certificates of a bundle, the
processor's instructions and the user's request.

`measure_ranges` measures the activation ranges for int8 with NNCF (extra `quantise`) on the model's
own images. NNCF decides what is rounded and over which range. Only the ranges of the convolutions'
inputs are kept, because weights are rounded by their own magnitude when the graph is written
(`graph/openvino.py`); so a bundle holds its weights once. The first convolution, the head and the
heatmap stay in floating point.

Method: post-training quantisation (Jacob et al., CVPR 2018, arXiv:1712.05877). An end of a range is
the mean over images of each image's minimum or maximum. Bias correction is not used, because it
would need a second set of weights.

`compare` measures the agreement of two inference paths on the same labelled images, such as an
export and its bundle: probabilities, predicted classes, AUC and heatmaps, and exceeded limits.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pneumoscope.arrays import Float64Array, Int64Array
from pneumoscope.errors import ExtraMissingError, UsageError
from pneumoscope.evaluation.metrics import auc
from pneumoscope.graph.network import NetworkArrays
from pneumoscope.graph.openvino import build_model, convolutions_of
from pneumoscope.graph.writer import PRECISIONS, Floats, Precision, Ranges

Test = tuple[str, float | None, float | None]
"""Name, measured value and upper limit; not tested if value or limit is `None`."""

_WAY_OUT = "Use --precision auto, or certify it: pneumoscope certify DATA --model MODEL."
MOST_IMAGES = 300
"""NNCF's default; more images hardly change the ranges."""

_REPORTS = "openvino_telemetry"


@dataclass(frozen=True, slots=True)
class Agreement:
    """Differences between two inference paths.

    Attributes:
        images: number of images with a result from both.
        largest_difference: largest absolute difference of the probability, in [0, 1].
        mean_difference: mean absolute difference of the probability, in [0, 1].
        decisions_changed: number of images whose predicted class differs.
        auc_before: AUC of the first path; `None` if a class is missing.
        auc_after: AUC of the second path, likewise.
        heatmap_correlation: lowest Pearson correlation over images; `None` if all maps are flat.
    """

    images: int
    largest_difference: float
    mean_difference: float
    decisions_changed: int
    auc_before: float | None
    auc_after: float | None
    heatmap_correlation: float | None

    @property
    def decisions_per_thousand(self) -> float:
        """Changed predictions per 1,000 images."""
        return 1000.0 * self.decisions_changed / self.images

    @property
    def auc_difference(self) -> float | None:
        """Absolute difference of the AUCs."""
        if self.auc_before is None or self.auc_after is None:
            return None
        return abs(self.auc_before - self.auc_after)


def compare(
    labels: Int64Array,
    before: Float64Array,
    after: Float64Array,
    threshold: float,
    correlations: Iterable[float | None],
) -> Agreement:
    """Compare the probabilities of two inference paths.

    Args:
        labels: int64, (n,), 0 or 1; n is at least 1.
        before: float64, (n,), probabilities of the first path; NaN where it gave no number.
        after: float64, (n,), probabilities of the second path, likewise.
        threshold: PNEUMONIA is predicted if the probability is at least this.
        correlations: of the heatmaps, from `correlation`.
    """
    distance = differences(before, after)
    both = len(np.unique(labels)) == 2 and not np.isnan(before + after).any()
    seen = [each for each in correlations if each is not None]
    return Agreement(
        images=len(labels),
        largest_difference=float(distance.max()),
        mean_difference=float(distance.mean()),
        decisions_changed=int(((before >= threshold) != (after >= threshold)).sum()),
        auc_before=auc(labels, before) if both else None,
        auc_after=auc(labels, after) if both else None,
        heatmap_correlation=min(seen, default=None),
    )


def differences(before: Float64Array, after: Float64Array) -> Float64Array:
    """Absolute differences of probabilities, float64 (n,); 1, the maximum, where one is NaN."""
    distance = np.abs(before - after)
    return np.where(np.isnan(distance), 1.0, distance)


def correlation(one: NDArray[np.float32], other: NDArray[np.float32]) -> float | None:
    """Pearson correlation of two heatmaps, float32 (h, w); `None` if both are flat, 0 if one is."""
    flat = [float(np.ptp(each)) == 0.0 for each in (one, other)]
    if any(flat):
        return None if all(flat) else 0.0
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


def exceeded_limits(tests: Sequence[Test]) -> tuple[str, ...]:
    """A message for each exceeded limit, with the measured value and the limit."""
    return tuple(
        f"{name}: found {value:.3g}, wanted at most {limit:.3g}"
        for name, value, limit in tests
        if value is not None and limit is not None and value > limit
    )


Choice = Literal["auto", "f32", "bf16", "int8"]
"""Requested precision; `auto` is the fastest certified one that the processor supports."""

CHOICES: tuple[Choice, ...] = get_args(Choice)


@dataclass(frozen=True, slots=True)
class PrecisionLimits:
    """Largest accepted differences from float32, and the number of images needed to show them."""

    least_images: int = 100
    decisions_per_thousand: float = 2.0
    auc: float = 0.001


@dataclass(frozen=True, slots=True)
class PrecisionCertificate:
    """Comparison of one precision with float32.

    Attributes:
        precision: the compared precision.
        floats: type between convolutions: float32 or bfloat16.
        images: number of images predicted in both precisions.
        largest_difference, mean_difference: of the probability.
        decisions_changed: predictions on the other side of the threshold.
        auc_before, auc_after: in float32 and in this precision.
        heatmap_correlation: minimum over images; `None` if all maps are constant.
        data: which images, and SHA-256 over them.
        calibrated_on: number of training images used to measure the ranges of int8.
        processor: where it was measured.
        limits: the accepted differences.
        failures: exceeded limits, in words; empty if none.
    """

    precision: Literal["bf16", "int8"] = "bf16"
    floats: Floats = "bf16"
    images: int = 0
    largest_difference: float = 0.0
    mean_difference: float = 0.0
    decisions_changed: int = 0
    auc_before: float | None = None
    auc_after: float | None = None
    heatmap_correlation: float | None = None
    data: str = ""
    calibrated_on: int = 0
    processor: str = ""
    limits: PrecisionLimits = field(default_factory=PrecisionLimits)
    failures: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether it allows this precision."""
        return not self.failures


def judged(
    measured: PrecisionCertificate, agreed: Agreement, limits: PrecisionLimits | None = None
) -> PrecisionCertificate:
    """Complete a measured certificate with the agreement and the limits that were exceeded."""
    limits = limits or PrecisionLimits()
    per_thousand, most = agreed.decisions_per_thousand, limits.decisions_per_thousand
    failures = exceeded_limits(
        (
            ("decisions changed in 1,000", per_thousand, most),
            ("difference of AUC", agreed.auc_difference, limits.auc),
        )
    )
    if agreed.images < limits.least_images:
        failures += (f"images: found {agreed.images}, wanted at least {limits.least_images}",)
    if agreed.auc_difference is None:
        failures += ("AUC: found one class, or a non-finite prediction, wanted both classes",)
    return replace(measured, **asdict(agreed), limits=limits, failures=failures)


def choose_precision(
    asked: Choice, certificates: Sequence[PrecisionCertificate], fast: Sequence[Precision]
) -> Precision:
    """Choose the precision of inference.

    Args:
        asked: the user's request.
        certificates: of the bundle.
        fast: precisions that this processor has instructions for, slowest first.

    Raises:
        UsageError: bfloat16 or int8 was requested, but its certificate is missing or failed, or
            the processor has no instructions for it.
    """
    if asked not in CHOICES:
        raise UsageError(f"--precision: found {asked!r}, wanted one of {', '.join(CHOICES)}.")
    certified = {c.precision: c for c in certificates}
    if asked == "auto":
        allowed = [p for p in fast if p == "f32" or (p in certified and certified[p].passed)]
        return allowed[-1] if allowed else "f32"
    if asked == "f32":
        return asked
    found = certified.get(asked)
    if found is None:
        raise UsageError(f"--precision {asked}: the model has no certificate for it. {_WAY_OUT}")
    if not found.passed:
        raise UsageError(
            f"--precision {asked}: its certificate failed ({'; '.join(found.failures)}). "
            "Use --precision auto."
        )
    if asked not in fast:
        raise UsageError(
            f"--precision {asked}: this processor has no instructions for it, found "
            f"{', '.join(fast)} of {', '.join(PRECISIONS)}. Use --precision auto."
        )
    return asked


def floats_for(
    precision: Precision, certificates: Sequence[PrecisionCertificate], fast: Sequence[Precision]
) -> Floats:
    """Floating-point type beside int8: bfloat16 if certified with it and supported here."""
    if precision == "f32" or "bf16" not in fast:
        return "f32"
    return next((c.floats for c in certificates if c.precision == precision), "f32")


def measure_ranges(
    networks: Sequence[NetworkArrays], size: int, images: NDArray[np.float32], *, flip: bool
) -> Ranges:
    """Measure the ranges of the convolutions' inputs.

    Args:
        networks: the members of a bundle.
        size: side of the images, pixels.
        images: preprocessed, float32 (n, size, size, 3).
        flip: also run mirror images, as the bundle states.

    Raises:
        ExtraMissingError: NNCF is not installed.
        BundleError: a layer is missing from the arrays.
    """
    nncf = _load_nncf()
    model = build_model(networks, size, 1, flip=flip)
    with _quietly():
        quantised = nncf.quantize(
            model,
            nncf.Dataset([image[None] for image in images]),
            preset=nncf.QuantizationPreset.MIXED,
            target_device=nncf.TargetDevice.CPU,
            subset_size=len(images),
            advanced_parameters=nncf.AdvancedQuantizationParameters(disable_bias_correction=True),
        )
    found = np.array([_range_of(node) for node in convolutions_of(quantised)], np.float32)
    return Ranges(found[:, 0].copy(), found[:, 1].copy())


def _range_of(convolution: Any) -> tuple[float, float]:
    """Both ends of a convolution's input range; NaN if NNCF does not round it or its width is 0."""
    source = convolution.input_value(0).get_node()
    if source.get_type_name() != "FakeQuantize":
        return float("nan"), float("nan")
    low, high = (source.input_value(k).get_node().get_data() for k in (1, 2))
    ends = float(low.min()), float(high.max())
    return ends if ends[0] < ends[1] else (float("nan"), float("nan"))


def _load_nncf() -> Any:
    """Import NNCF without the module that reports usage over the network."""
    blocked = _REPORTS not in sys.modules
    if blocked:
        sys.modules[_REPORTS] = None  # type: ignore[assignment]
    try:
        with _quietly():
            nncf = importlib.import_module("nncf")
    except ImportError as error:
        raise ExtraMissingError("int8", "quantise") from error
    finally:
        if blocked:
            del sys.modules[_REPORTS]
    logging.getLogger("nncf").setLevel(logging.ERROR)
    return nncf


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Hide NNCF's progress bars, because stdout is reserved for the command's output."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):  # noqa: PTH123
        yield
