"""Records that decoding an image yields, the size limits of all formats, and the colour measure.

`mean_chroma` measures how colourful an image is before it becomes grey; X-rays are grey, even if
they are stored as RGB. Chroma is the largest of red, green and blue minus the smallest, as a share
of the range. Large images are sampled at a few thousand pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray
from PIL import Image

from pneumoscope.config import LimitsConfig
from pneumoscope.errors import ImageRefusedError, Reason

FloatArray = npt.NDArray[np.float32]

_SIDE = 64
_GREY_MODES = ("1", "L", "LA", "La", "I", "F")
_LAB_RANGE = 128


@dataclass(frozen=True, slots=True)
class DicomInfo:
    """DICOM header elements of an X-ray; `""` where an element is missing."""

    modality: str = ""
    body_part: str = ""
    view_position: str = ""
    patient_id: str = ""
    photometric: str = ""
    study_uid: str = ""
    study_date: str = ""
    study_description: str = ""
    series_description: str = ""
    series_uid: str = ""
    sop_uid: str = ""
    patient_age: str = ""
    patient_birth_date: str = ""
    patient_sex: str = ""
    manufacturer: str = ""
    transfer_syntax: str = ""


@dataclass(frozen=True, slots=True)
class Decoded:
    """The result of one decoder, passed to `read`.

    Attributes:
        pixels: float32 (h, w) in [0, 1], 0 is black.
        bit_depth: bits per sample in the file.
        warnings: anomalies of the file, one sentence each.
        dicom: the header; only for DICOM.
        colour: mean chroma from 0 (grey) to 1, before the conversion to grey.
    """

    pixels: FloatArray
    bit_depth: int
    warnings: tuple[str, ...] = ()
    dicom: DicomInfo | None = None
    colour: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class GreyImage:
    """One image as every later stage receives it.

    Attributes:
        pixels: float32 (h, w) in [0, 1]; 0 is black, like air on a displayed X-ray.
        source: the name it was read from.
        format: `jpeg`, `png`, `tiff`, `bmp`, `webp` or `dicom`, detected by content.
        bit_depth: bits per sample in the file.
        sha256: hex digest of the file's bytes.
        dicom: the DICOM header; `None` for other formats.
        warnings: anomalies of the file, one sentence each.
        colour: mean chroma of the file's pixels from 0 (grey, also if stored as RGB) to 1.

    Example:
        >>> found = read_image(image)
        >>> found.pixels.shape, found.pixels.dtype.name, found.format
        ((64, 64), 'float32', 'png')
    """

    pixels: FloatArray
    source: str
    format: str
    bit_depth: int
    sha256: str
    dicom: DicomInfo | None = None
    warnings: tuple[str, ...] = ()
    colour: float = 0.0


def unit_range(grey: npt.NDArray[np.uint8]) -> FloatArray:
    """Convert 8-bit grey, uint8 (h, w), to float32 in [0, 1]: divided by 255, rounded once."""
    return np.divide(grey, np.float32(255), dtype=np.float32)


def oriented(pixels: FloatArray, orientation: int) -> FloatArray:
    """Rotate and mirror (h, w) pixels according to EXIF orientation 1 to 8."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.T
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


def check_size(source: str, width: int, height: int, limits: LimitsConfig) -> None:
    """Refuse an image whose header states a size outside the limits.

    Raises:
        ImageRefusedError: `corrupt` for an empty image, else `too_many_pixels`, `too_small` or
            `extreme_aspect`.
    """
    if width < 1 or height < 1:
        raise ImageRefusedError(
            source, Reason.CORRUPT, f"its header states a size of {width} × {height} pixels"
        )
    if width * height > limits.max_pixels or max(width, height) > limits.max_side:
        raise ImageRefusedError(
            source,
            Reason.TOO_MANY_PIXELS,
            f"its header states {width} × {height} pixels; at most {limits.max_pixels:,} pixels "
            f"and {limits.max_side:,} a side are read. Scale it down",
        )
    if min(width, height) < limits.min_side:
        raise ImageRefusedError(
            source,
            Reason.TOO_SMALL,
            f"it has {width} × {height} pixels; the shortest side must have at least "
            f"{limits.min_side}. Give the original, not a thumbnail",
        )
    if max(width, height) > limits.max_aspect * min(width, height):
        raise ImageRefusedError(
            source,
            Reason.EXTREME_ASPECT,
            f"it has {width} × {height} pixels; the longest side may be at most "
            f"{limits.max_aspect:g} times the shortest, so this is not a complete X-ray",
        )


def colour_of(image: Image.Image) -> float:
    """Mean chroma of an image, 0 to 1; transparent areas count as black."""
    if image.mode in _GREY_MODES or image.mode.startswith("I;16"):
        return 0.0
    small = image.resize((_SIDE, _SIDE), Image.Resampling.NEAREST)
    if image.mode == "LAB":  # Pillow does not convert it to RGB; a and b are signed
        hues = np.asarray(small)[..., 1:].astype(np.int8).astype(np.float64)
        return float(np.hypot(hues[..., 0], hues[..., 1]).mean()) / _LAB_RANGE
    seen = image.mode in ("RGBA", "PA", "RGBa") or "transparency" in image.info
    if not seen:
        return mean_chroma(np.asarray(small.convert("RGB")))
    small.info = dict(image.info)
    rgba = np.asarray(small.convert("RGBA")).astype(np.float64)
    return mean_chroma(rgba[..., :3] * rgba[..., 3:] / 255)


def mean_chroma(rgb: NDArray[Any], white: float = 255) -> float:
    """Mean chroma of samples (h, w, 3) from 0 to `white`."""
    step = max(1, min(rgb.shape[:2]) // _SIDE)
    red, green, blue = np.moveaxis(rgb[::step, ::step], 2, 0)
    # Per plane: NumPy takes many times as long along an axis of three.
    highest = np.maximum(np.maximum(red, green), blue)
    lowest = np.minimum(np.minimum(red, green), blue)
    return float((highest - lowest).mean(dtype=np.float64)) / white
