"""Reading a DICOM data set in a test, and the values that must come out.

Comes in: a data set. Goes out: the image read from it, or a failed comparison.
"""

from __future__ import annotations

import warnings
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from pneumoscope.images.read import GreyImage, read_bytes
from support.image_files import Array, dicom, smooth_grey, xray

GREY8 = smooth_grey().astype(np.uint8)
GREY12 = smooth_grey(top=4095).astype(np.uint16)
GREY16 = smooth_grey(top=65535).astype(np.uint16)
SIGNED = (smooth_grey(top=4095) - 1024).astype(np.int16)
TWELVE: dict[str, Any] = {"BitsStored": 12, "HighBit": 11}
WHOLE: dict[str, Any] = {"WindowCenter": 2048, "WindowWidth": 4096}
HEIGHT, WIDTH = GREY12.shape

NATIVE = [
    ImplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
]


def read(dataset: Dataset, syntax: str = ExplicitVRLittleEndian, **how: Any) -> GreyImage:
    content = dicom(dataset, syntax, **how)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return read_bytes(content, "image")


def twelve(samples: Array = GREY12, **elements: Any) -> Dataset:
    return xray(samples, **{**TWELVE, **elements})


def stretched(samples: Array) -> Array:
    values = samples.astype(np.float64)
    return np.asarray((values - values.min()) / (values.max() - values.min()))


def linear(samples: Array, centre: float, width: float) -> Array:
    """PS3.3 C.11.2.1.2.1, its three cases written out, for output 0 to 1."""
    result = np.empty(samples.shape)
    for position, x in np.ndenumerate(samples.astype(np.float64)):
        if x <= centre - 0.5 - (width - 1) / 2:
            result[position] = 0
        elif x > centre - 0.5 + (width - 1) / 2:
            result[position] = 1
        else:
            result[position] = (x - (centre - 0.5)) / (width - 1) + 0.5
    return result


def same(image: GreyImage, expected: Array) -> None:
    assert image.pixels.dtype == np.float32
    assert image.format == "dicom"
    np.testing.assert_allclose(image.pixels, expected, atol=2e-7)


def compressed(dataset: Dataset, syntax: str) -> bytes:
    whole = dcmread(BytesIO(dicom(dataset)))
    whole.compress(syntax, generate_instance_uid=False)
    stream = BytesIO()
    whole.save_as(stream)
    return stream.getvalue()


def colour() -> Array:
    planes = [smooth_grey(seed=seed) for seed in (1, 2, 3)]
    return np.stack([planes[0], 255 - planes[1], planes[2] // 2], axis=-1).astype(np.uint8)


def grey_of(rgb: Array) -> Array:
    return np.asarray(Image.fromarray(rgb).convert("L")) / 255
