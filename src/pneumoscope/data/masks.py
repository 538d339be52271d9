"""Detect images that are not X-rays: masks, drawings and blank images.

Images with two grey values (masks, drawings) or nearly one lie below class folders in many public
data sets. Without a warning they are trained on and get a probability like any other image. Here
they are detected and reported, but not removed.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pneumoscope.errors import ImageRefusedError
from pneumoscope.images.raster import detect_format
from pneumoscope.images.read import read_image
from pneumoscope.progress import SILENT, Progress
from pneumoscope.records import ImageRecord

FlatKind = Literal["", "two_valued", "near_constant"]

_THREADS = 2
_SIDE = 192
_CONSTANT = 0.03
_NEAR = 0.06
_TWO_VALUED = 0.95
_HEAD_BYTES = 132
FLAT_WORDS: dict[FlatKind, str] = {
    "two_valued": "have only two grey values, like masks and drawings",
    "near_constant": "have nearly a single grey value",
}


def flat_kind(grey: npt.NDArray[Any]) -> FlatKind:
    """Whether an image has only two grey values, or nearly one; `""` for X-rays.

    Two-valued: 95 % of the pixels lie within 6 % of the range from its darkest or its brightest
    value. Near-constant: the range of the central 99 % is below 3 % of the full range. X-rays are
    far from both: for 400 training images of the Kermany set the first share was at most 0.41.

    Args:
        grey: (h, w), of any integer type or floats in [0, 1].
    """
    step = max(1, min(grey.shape) // _SIDE)
    small = grey[::step, ::step].astype(np.float64)
    if np.issubdtype(grey.dtype, np.integer):
        small /= np.iinfo(grey.dtype).max
    low, high = np.quantile(small, [0.005, 0.995])
    if high - low < _CONSTANT:
        return "near_constant"
    near = _NEAR * (high - low)
    ends = np.count_nonzero(small <= low + near) + np.count_nonzero(small >= high - near)
    return "two_valued" if ends >= _TWO_VALUED * small.size else ""


def notes_on_flat_images(
    records: Sequence[ImageRecord], progress: Progress = SILENT
) -> tuple[str, ...]:
    """A sentence about the two-valued images of a data set, and one about near-constant images.

    JPEGs are decoded at an eighth of their size, which takes a few milliseconds each. Unreadable
    files are skipped here; the image reader reports them.
    """
    found: dict[FlatKind, list[Path]] = {kind: [] for kind in FLAT_WORDS}
    with (
        ThreadPoolExecutor(_THREADS) as pool,
        progress.task("Searching for masks", len(records), "images") as task,
    ):
        for record, kind in zip(records, pool.map(_kind_of, records), strict=True):
            if kind:
                found[kind].append(record.path)
            task.advance()
    return tuple(
        f"{len(paths)} of {len(records)} images {FLAT_WORDS[kind]}: they are not X-rays. The "
        f"first: {paths[0]}. Remove them."
        for kind, paths in found.items()
        if paths
    )


def _kind_of(record: ImageRecord) -> FlatKind:
    try:
        return flat_kind(_glance(record.path))
    except (ImageRefusedError, OSError, ValueError):
        return ""


def _glance(path: Path) -> npt.NDArray[Any]:
    """The image at a size that decodes quickly."""
    from PIL import Image

    with path.open("rb") as stream:
        if detect_format(stream.read(_HEAD_BYTES)) != "jpeg":
            return read_image(path).pixels
        stream.seek(0)
        with Image.open(stream) as image:
            image.draft("L", (_SIDE, _SIDE))
            return np.asarray(image.convert("L"))
