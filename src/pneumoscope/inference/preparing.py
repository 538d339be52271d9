"""Reading and preprocessing of files: network inputs, or rows with the reason why there is none.

`Decoder` turns one file into a `Prepared` input with the descriptors of the input check. `decoded`
applies it to many files in order, ahead of the engine, in threads or processes, and holds at most a
window of them.

Threads are the default: decoding releases Python's lock, so on two cores they are as fast as
processes, and they start at once (`benchmarks/RESULTS.md`). Processes pay off with so many cores
that Python's own share becomes the limit, and where a file that crashes a decoder must not end the
run (`processes.py`).
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pneumoscope.config import LimitsConfig
from pneumoscope.errors import ImageRefusedError, Reason
from pneumoscope.images.budget import keep_freed_memory
from pneumoscope.images.preprocess import Preprocessor
from pneumoscope.images.read import GreyImage, header_note, read_bytes, read_image
from pneumoscope.inference.age_gate import NO_AGE_LIMIT, AgeGate
from pneumoscope.inference.input_check import MOST_COLOUR, ImageDescriptors, describe_image
from pneumoscope.records import Prediction

Reader = Callable[[str, LimitsConfig], GreyImage]
"""Reads the image of a name; raises `ImageRefusedError` only."""

Keep = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""Reduces an image's pixels to those kept for pictures: `overlay.shrunk`, `overlay.thinned`."""

WINDOW = 32
"""Largest number of images that are read ahead of the engine."""


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
        return Prediction(
            source,
            error.reason.status,
            error.reason,
            detail=error.detail,
            warnings=error.warnings,
        )
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
        )
    made = seen(source, image.pixels, preprocess, looks=looks)
    photometric = "" if image.dicom is None else image.dicom.photometric
    return replace(made, image=image, warnings=warnings, photometric=photometric)


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
