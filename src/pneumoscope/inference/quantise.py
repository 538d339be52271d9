"""The ranges that int8 needs, measured by NNCF on a model's own images.

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
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.errors import ExtraMissingError
from pneumoscope.graph.network import NetworkArrays
from pneumoscope.graph.openvino import build_model, convolutions_of
from pneumoscope.graph.precision import Ranges

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
