"""Images that are no X-rays by their pixels: two grey values (masks, drawings), or nearly one.

They lie below class folders in many public data sets, are trained on without a word, and get a
probability like any other image. Here they are found and named; nothing is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pneumoscope.errors import ImageRefusedError
from pneumoscope.images.read import read_image
from pneumoscope.images.sniff import tell_format
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
    "two_valued": "have two grey values only, as masks and drawings have",
    "near_constant": "are nearly of one grey",
}


def flat_kind(grey: npt.NDArray[Any]) -> FlatKind:
    """Whether an image has two grey values only, or nearly one; `""` for any X-ray.

    Args:
        grey: (h, w), of any integer type or floats in [0, 1].

    Two-valued: 95 % of the pixels lie within 6 % of the range of its darkest or its brightest.
    Near-constant: the range of the middle 99 % is below 3 % of what could be. In X-rays both are
    far away: of 400 training images of the Kermany set the first share was 0.41 at most.
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
    """A sentence on the two-valued images of a data set, and one on the near-constant ones.

    JPEGs are decoded at an eighth of their size, which takes a few milliseconds each. What can't be
    read is passed over: its reader says why.
    """
    found: dict[FlatKind, list[Path]] = {kind: [] for kind in FLAT_WORDS}
    with (
        ThreadPoolExecutor(_THREADS) as pool,
        progress.task("Looking for masks", len(records), "images") as task,
    ):
        for record, kind in zip(records, pool.map(_kind_of, records), strict=True):
            if kind:
                found[kind].append(record.path)
            task.advance()
    return tuple(
        f"{len(paths)} of {len(records)} images {FLAT_WORDS[kind]}: they are no X-rays. The first: "
        f"{paths[0]}. Take them out."
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
        if tell_format(stream.read(_HEAD_BYTES)) != "jpeg":
            return read_image(path).pixels
        stream.seek(0)
        with Image.open(stream) as image:
            image.draft("L", (_SIDE, _SIDE))
            return np.asarray(image.convert("L"))
