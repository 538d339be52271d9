"""How nearly a model answers in bfloat16 or int8 as it does in float32, and what that allows.

Comes in: an `Agreement` of both over labelled images; or a bundle's certificates, what the
processor is fast in, and what was asked for. Goes out: a `PrecisionCertificate`; or the precision
to answer in. Loads no model. A certificate is kept whether it was passed or not.

The ranges that int8 needs, measured by NNCF on a model's own images.

Comes in: a bundle's networks and preprocessed images. Goes out: `Ranges`, a pair of numbers per
convolution. NNCF (extra `quantise`) decides where values are rounded and to what; of the model that
it makes only the ranges of the convolutions' inputs are kept, since weights are rounded by their
own magnitude when the graph is written (`graph/openvino.py`). So a bundle holds its weights once.
The first convolution, the head and the heatmap stay in float.

Method: quantisation after training (Jacob et al., CVPR 2018, arXiv:1712.05877), an end of a range
being the mean over images of each one's least or largest value; no bias correction, which would be
another set of weights.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import ExtraMissingError, UsageError
from pneumoscope.evaluation.agreement import Agreement, exceeded_limits
from pneumoscope.graph.network import NetworkArrays
from pneumoscope.graph.openvino import build_model, convolutions_of
from pneumoscope.graph.precision import PRECISIONS, Floats, Precision, Ranges

Choice = Literal["auto", "f32", "bf16", "int8"]
"""What can be asked for; `auto` is the fastest that is certified and that the processor has."""

CHOICES: tuple[Choice, ...] = get_args(Choice)

_WAY_OUT = "Take --precision auto, or certify it: pneumoscope certify DATA --model MODEL."


@dataclass(frozen=True, slots=True)
class PrecisionLimits:
    """What a precision may differ from float32 by, and on how many images that is shown."""

    least_images: int = 100
    decisions_per_thousand: float = 2.0
    auc: float = 0.001


@dataclass(frozen=True, slots=True)
class PrecisionCertificate:
    """The comparison of one precision with float32.

    Attributes:
        precision: what was compared.
        floats: what is between convolutions: float32 or bfloat16.
        images: how many were answered for both ways.
        largest_difference, mean_difference: of the probability.
        decisions_changed: answers on another side of the threshold.
        auc_before, auc_after: in float32 and in this precision.
        heatmap_correlation: the least over images; `None` if all maps are flat.
        data: which images, and SHA-256 over them.
        calibrated_on: training images that int8's ranges were measured on.
        processor: where it was measured.
        limits: what was allowed.
        failures: which limits were passed, in words; empty if none.
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
    """A certificate that says what was measured and where, with what came of it."""
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
        failures += ("AUC: found one class, or an answer that is no number, wanted both classes",)
    return replace(measured, **asdict(agreed), limits=limits, failures=failures)


def choose_precision(
    asked: Choice, certificates: Sequence[PrecisionCertificate], fast: Sequence[Precision]
) -> Precision:
    """What to answer in.

    Args:
        asked: by the user.
        certificates: of the bundle.
        fast: what this processor has instructions for, slowest first.

    Raises:
        UsageError: bfloat16 or int8 was asked for, and there is no certificate for it, or one that
            was not passed, or the processor has no instructions for it.
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
            "Take --precision auto."
        )
    if asked not in fast:
        raise UsageError(
            f"--precision {asked}: this processor has no instructions for it, found "
            f"{', '.join(fast)} of {', '.join(PRECISIONS)}. Take --precision auto."
        )
    return asked


def floats_for(
    precision: Precision, certificates: Sequence[PrecisionCertificate], fast: Sequence[Precision]
) -> Floats:
    """What is computed in where it is not in int8: bfloat16 if it was certified so, and is here."""
    if precision == "f32" or "bf16" not in fast:
        return "f32"
    return next((c.floats for c in certificates if c.precision == precision), "f32")


MOST_IMAGES = 300
"""NNCF's own default: ranges hardly move any more behind it."""

_REPORTS = "openvino_telemetry"


def measure_ranges(
    networks: Sequence[NetworkArrays], size: int, images: NDArray[np.float32], *, flip: bool
) -> Ranges:
    """Measure what the convolutions' inputs range over.

    Args:
        networks: the members of a bundle.
        size: side of the images, pixels.
        images: preprocessed, float32 (n, size, size, 3).
        flip: as in the bundle.

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
    """Both ends of a convolution's input; NaN where NNCF doesn't round it, or it has no width."""
    source = convolution.input_value(0).get_node()
    if source.get_type_name() != "FakeQuantize":
        return float("nan"), float("nan")
    low, high = (source.input_value(k).get_node().get_data() for k in (1, 2))
    ends = float(low.min()), float(high.max())
    return ends if ends[0] < ends[1] else (float("nan"), float("nan"))


def _load_nncf() -> Any:
    """NNCF, without the module by which it reports usage over the network."""
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
    """Keep NNCF's progress bars off stdout, which is for the command's own document."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):  # noqa: PTH123
        yield
