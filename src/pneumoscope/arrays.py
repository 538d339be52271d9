"""Array types by element type. Shapes and ranges are stated where an array is used."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Float32Array: TypeAlias = NDArray[np.float32]
"""Pixels in [0, 1], weights, activations."""

Float64Array: TypeAlias = NDArray[np.float64]
"""Probabilities, logits, metrics."""

Int64Array: TypeAlias = NDArray[np.int64]
"""Labels, counts, positions."""
