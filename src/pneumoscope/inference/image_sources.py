"""Images as callers have them: paths, folders, tables, arrays, pictures of Pillow, bytes.

Every one is decoded by the code that reads files, so that an image gives the same probability
whichever way it comes. Only float arrays in [0, 1] skip the decoding, as pixels of `read_image`.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pneumoscope.errors import ImageRefusedError, Reason, UsageError
from pneumoscope.frames import is_frame, paths_of
from pneumoscope.images.preprocess import Preprocessor
from pneumoscope.inference.inputs import expand
from pneumoscope.inference.preparing import Decoder, Prepared, seen
from pneumoscope.records import ImageRecord, Prediction

_WANTED = "a path, an array, a Pillow image, bytes, a DataFrame with a column 'path', or many"
_CHANNELS = (3, 4)
_INTEGERS = (np.uint8, np.uint16)


@dataclass(frozen=True, slots=True)
class NamedImage:
    """One image of any form, under the name of its row."""

    name: str
    image: Any


def named_images(images: Any) -> Iterator[NamedImage]:
    """One entry for every image that `images` stands for, in order.

    Args:
        images: a path (a file, a folder, a CSV or a pattern, as of `pneumoscope predict`), an
            array, a Pillow image, the bytes of a file, a DataFrame with a column `path`, a
            `Dataset`, or an iterable of any of these. An array is one image, (h, w) or (h, w, 3),
            or a batch of them, (n, h, w) or (n, h, w, 3).

    Raises:
        UsageError: something else.
    """
    for number, (name, image) in enumerate(_flat(images)):
        yield NamedImage(name or f"image-{number}", image)


def _flat(images: Any) -> Iterator[tuple[str, Any]]:
    single = _single(images)
    if single is not None:
        yield single
    elif isinstance(images, str | Path):
        yield from ((name, name) for name in expand([Path(images)]))
    elif is_frame(images):
        yield from ((name, name) for name in paths_of(images))
    elif hasattr(images, "__array__") and _has_numbers(array := np.asarray(images)):
        yield from (("", image) for image in _split(array))
    elif isinstance(images, Iterable):  # a `Dataset` among them, of records
        for each in images:
            yield from _flat(each)
    else:
        raise UsageError(f"images: found {type(images).__name__}, wanted {_WANTED}.")


def _single(image: Any) -> tuple[str, Any] | None:
    """What can only be one image, with its name."""
    if isinstance(image, ImageRecord):
        return str(image.path), str(image.path)
    if isinstance(image, bytes | bytearray | memoryview):
        return "", bytes(image)
    if isinstance(image, Image.Image):
        return str(getattr(image, "filename", "")), image
    return None


def _has_numbers(array: NDArray[Any]) -> bool:
    """Whether an array holds pixels, not the paths of a column."""
    return array.dtype.kind in "biufc"


def _split(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """The images of an array: one, or a batch along the first axis."""
    coloured = array.ndim > 2 and array.shape[-1] in _CHANNELS
    single = array[..., 0] if array.ndim > 2 and array.shape[-1] == 1 else array
    axes = single.ndim - coloured
    if axes not in (2, 3):
        raise UsageError(
            f"images: found an array of shape {array.shape}, wanted (height, width), "
            "(height, width, 3), or a batch of these along a first axis."
        )
    yield from [single] if axes == 2 else single


def decode_any(
    named: NamedImage, decode: Decoder, preprocess: Preprocessor
) -> Prepared | Prediction:
    """The network's input for an image of any form, or the row that says why there is none.

    Raises:
        UsageError: an array or a picture whose values can't be understood.
    """
    image = named.image
    if isinstance(image, str):
        return decode(image)
    if isinstance(image, bytes):
        return decode.content(image, named.name)
    if isinstance(image, np.ndarray):
        if image.dtype.kind == "f":
            return seen(named.name, _unit(named.name, image), preprocess, looks=decode.looks)
        if image.dtype.type not in _INTEGERS or (image.ndim == 3 and image.dtype != np.uint8):
            raise UsageError(
                f"{named.name}: found an array of type {image.dtype} and shape {image.shape}, "
                "wanted uint8, uint16 of one channel, or floats in [0, 1] of one channel."
            )
        image = Image.fromarray(image)
    return decode.content(_png(named.name, image), named.name)


def network_inputs(images: Any, decode: Decoder, preprocess: Preprocessor) -> NDArray[np.float32]:
    """The network's input for images, as of `named_images`: float32 (n, size, size, 3).

    Raises:
        UsageError: there is no image, or something is none.
        ImageRefusedError: an image can't be read.
    """
    tensors = []
    for named in named_images(images):
        item = decode_any(named, decode, preprocess)
        if isinstance(item, Prediction):
            reason = item.reason or Reason.INTERNAL_ERROR
            raise ImageRefusedError(item.path, reason, item.detail, item.warnings)
        tensors.append(item.tensor)
    if not tensors:
        raise UsageError("preprocess: found no image, wanted at least one.")
    return np.stack(tensors)


def count_of(images: Any) -> int:
    """How many images a list or a table stands for; 0 where that takes looking at folders."""
    countable = hasattr(images, "__len__") and not isinstance(images, str | bytes | np.ndarray)
    return len(images) if countable else 0


def _unit(name: str, image: NDArray[Any]) -> NDArray[np.float32]:
    pixels = image.astype(np.float32)
    if image.ndim != 2 or not np.array_equal(pixels, pixels.clip(0, 1)):
        raise UsageError(
            f"{name}: found an array of shape {image.shape} and type {image.dtype}, wanted grey, "
            "floats (height, width) in [0, 1], as `read_image` gives them. Divide by the largest "
            "value that a pixel can have, or give uint8."
        )
    return pixels


def _png(name: str, image: Image.Image) -> bytes:
    """A picture as the file that is read: no value is changed."""
    content = io.BytesIO()
    try:
        image.save(content, "png", compress_level=1, exif=image.getexif())
    except OSError as error:
        raise UsageError(
            f"{name}: found a Pillow image of mode {image.mode!r} ({error}), wanted grey or "
            "colour. Convert it: image.convert('L')"
        ) from error
    return content.getvalue()
