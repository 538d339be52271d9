"""From images as callers have them to network inputs, or rows with the reason why there is none.

Callers have paths, folders, tables, arrays, pictures of Pillow and bytes (`named_images`). Every
one is decoded by the code that reads files, so that an image gives the same probability whichever
way it comes. Only float arrays in [0, 1] skip the decoding, as pixels of `read_image`.

`Decoder` turns one file into a `Prepared` input with the descriptors of the input check. `decoded`
applies it to many files in order, ahead of the engine, in threads or processes, and holds at most a
window of them.

Threads are the default: decoding releases Python's lock, so on two cores they are as fast as
processes, and they start at once (`benchmarks/RESULTS.md`). Processes pay off with so many cores
that Python's own share becomes the limit, and where a file that crashes a decoder must not end the
run (`processes.py`).
"""

from __future__ import annotations

import io
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pneumoscope.config import LimitsConfig
from pneumoscope.errors import ImageRefusedError, Reason, UsageError
from pneumoscope.images.budget import keep_freed_memory
from pneumoscope.images.dicom.patient import NO_AGE_LIMIT, AgeGate
from pneumoscope.images.preprocess import Preprocessor
from pneumoscope.images.read import (
    GreyImage,
    header_note,
    read_bytes,
    read_image,
    refuse_blank,
)
from pneumoscope.images.structure import refuse_frames
from pneumoscope.inference.input_check import MOST_COLOUR, ImageDescriptors, describe_image
from pneumoscope.inference.inputs import expand
from pneumoscope.records import ImageRecord, Prediction, is_frame, paths_of

Reader = Callable[[str, LimitsConfig], GreyImage]
"""Reads the image of a name; raises `ImageRefusedError` only."""

Keep = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""Reduces an image's pixels to those kept for pictures: `overlay.shrunk`, `overlay.thinned`."""

WINDOW = 32
"""Largest number of images that are read ahead of the engine."""

_WANTED = "a path, an array, a Pillow image, bytes, a DataFrame with a column 'path', or many"
_CHANNELS = (3, 4)
_INTEGERS = (np.uint8, np.uint16)
_LOADING = Lock()


@dataclass(frozen=True, slots=True)
class Prepared:
    """One image, ready for the network.

    Attributes:
        source: the name it was read from.
        image: the decoded image, if requested.
        tensor: the network's input, float32 (size, size, 3).
        look: descriptors for the input check; `None` without input check.
        warnings: findings about the file.
        photometric: PhotometricInterpretation of a DICOM header.
    """

    source: str
    image: GreyImage | None
    tensor: NDArray[np.float32]
    look: ImageDescriptors | None = None
    warnings: tuple[str, ...] = ()
    photometric: str = ""


@dataclass(frozen=True, slots=True)
class Decoder:
    """Reads and preprocesses a file; can be sent to another process.

    Attributes:
        limits: limits on a file.
        preprocess: from pixels to the network's input.
        keep: reduces the pixels that are kept; `None` keeps nothing.
        read: reads a file; `None` means `read_image`.
        looks: compute the descriptors for the input check.
        gate: checks the patient's age.
    """

    limits: LimitsConfig
    preprocess: Preprocessor
    keep: Keep | None = None
    read: Reader | None = None
    looks: bool = False
    gate: AgeGate = field(default_factory=AgeGate)

    def __call__(self, path: Path | str) -> Prepared | Prediction:
        """The network's input for one file, or the row with the reason why there is none."""
        name = str(path)
        read = self.read or read_image
        return self._kept(lambda: read(name, self.limits), name)

    def content(self, content: bytes, name: str) -> Prepared | Prediction:
        """The same for the content of a file named `name`."""
        return self._kept(lambda: read_bytes(content, name, self.limits), name)

    def _kept(self, read: Callable[[], GreyImage], name: str) -> Prepared | Prediction:
        item = prepared(read, name, self.preprocess, looks=self.looks, gate=self.gate)
        if isinstance(item, Prediction) or item.image is None:
            return item
        image = item.image
        small = None
        if self.keep is not None:
            small = replace(image, pixels=self.keep(image.pixels))
        return replace(item, image=small)


Decode = Callable[[Path | str], Prepared | Prediction]
"""A `Decoder`, or a function that runs one elsewhere; must be picklable for processes."""


def prepared(
    read: Callable[[], GreyImage],
    source: str,
    preprocess: Preprocessor,
    *,
    looks: bool = False,
    gate: AgeGate = NO_AGE_LIMIT,
) -> Prepared | Prediction:
    """Preprocess the image that `read` returns, or return the row with the reason of refusal.

    With `looks`, colour pictures are refused here, because later steps are grey only.
    """
    try:
        image = read()
        warnings = (*image.warnings, *gate.warnings(image))
    except ImageRefusedError as error:
        return _refused(source, error)
    if looks and image.colour > MOST_COLOUR:
        detail = (
            f"it is a picture in colour (mean chroma {image.colour:.2f}, limit {MOST_COLOUR}). "
            "Give the X-ray itself, in grey"
        )
        return Prediction(
            source,
            "refused",
            Reason.NOT_A_CHEST_XRAY,
            detail=detail + header_note(image.warnings),
            warnings=warnings,
            sha256=image.sha256,
        )
    made = seen(source, image.pixels, preprocess, looks=looks)
    photometric = "" if image.dicom is None else image.dicom.photometric
    return replace(made, image=image, warnings=warnings, photometric=photometric)


def _refused(source: str, error: ImageRefusedError) -> Prediction:
    """The row of an image that can't be read."""
    return Prediction(
        source,
        error.reason.status,
        error.reason,
        detail=error.detail,
        warnings=error.warnings,
        sha256=error.sha256,
    )


def seen(
    source: str, pixels: NDArray[np.float32], preprocess: Preprocessor, *, looks: bool
) -> Prepared:
    """Input of the network and, with `looks`, of the input check, from a decoded image."""
    square = preprocess.grey(pixels)
    look = describe_image(square) if looks else None
    return Prepared(source, None, preprocess.normalise(square), look)


def threads() -> int:
    """Number of reader threads: half the cores, because the engine needs cores too; 2 to 8."""
    return min(max(2, (os.cpu_count() or 1) // 2), 8)


def decoded(
    paths: Iterable[Path | str], decode: Decode, workers: int = 0
) -> Generator[Prepared | Prediction]:
    """Apply `decode` to every path, in order, ahead of the consumer.

    Args:
        paths: consumed a window ahead.
        decode: function to apply.
        workers: number of processes; 0 for threads of this process.

    Raises:
        MissingError: processes can't be started.
    """
    if workers:
        from pneumoscope.inference.processes import decoded_in_processes

        yield from decoded_in_processes(paths, decode, workers, WINDOW)
        return
    keep_freed_memory()
    pool = ThreadPoolExecutor(threads())
    try:
        remaining = iter(paths)
        flying: deque[Future[Prepared | Prediction]] = deque(
            pool.submit(decode, path) for path in islice(remaining, WINDOW)
        )
        while flying:
            done = flying.popleft().result()
            flying.extend(pool.submit(decode, path) for path in islice(remaining, 1))
            yield done
    finally:  # after Ctrl-C, or if the consumer stops early: cancel the files still waiting
        pool.shutdown(cancel_futures=True)


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
            return _of_floats(named.name, _unit(named.name, image), decode, preprocess)
        if image.dtype.type not in _INTEGERS or (image.ndim == 3 and image.dtype != np.uint8):
            raise UsageError(
                f"{named.name}: found an array of type {image.dtype} and shape {image.shape}, "
                "wanted uint8, uint16 of one channel, or floats in [0, 1] of one channel."
            )
        image = Image.fromarray(image)
    try:
        content = _png(named.name, image)
    except ImageRefusedError as error:
        return _refused(named.name, error)
    return decode.content(content, named.name)


def _of_floats(
    name: str, pixels: NDArray[np.float32], decode: Decoder, preprocess: Preprocessor
) -> Prepared | Prediction:
    try:
        refuse_blank(pixels, name)
    except ImageRefusedError as error:
        return _refused(name, error)
    return seen(name, pixels, preprocess, looks=decode.looks)


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
    """A picture as the file that is read: no value is changed.

    Raises:
        ImageRefusedError: it has several pages or frames, as a file of them is refused.
        UsageError: PNG does not have its mode.
    """
    refuse_frames(name, getattr(image, "n_frames", 1), "animated or multi-page picture")
    content = io.BytesIO()
    try:
        with _LOADING:  # one image may be in the list twice, and is read when it is first used
            image.load()
            exif = image.getexif()
        image.save(content, "png", compress_level=1, exif=exif)
    except OSError as error:
        raise UsageError(
            f"{name}: found a Pillow image of mode {image.mode!r} ({error}), wanted grey or "
            "colour of 8 or 16 bits. Give np.asarray(image) as uint8, as uint16, or as floats "
            "divided by the largest value that a pixel can have; convert('L') would clip it"
        ) from error
    return content.getvalue()
