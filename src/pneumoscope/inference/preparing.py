"""One file to a network input, or to the row that says why there is none.

Comes in: a path, or whatever else gives an image. Goes out: the network's input and what the input
check sees of it. Knows nothing of models, and nothing of how many files there are (`decoding.py`).

Many files to network inputs, read ahead of the engine: in threads, or in processes.

Comes in: paths, and a `Decoder`. Goes out: for every path, in order, what the network wants or why
there is nothing. No more than a window of them is held at once. Knows nothing of models.

Threads are the default: decoding releases Python's lock, so on two cores they take no more time
than processes, and start at once (`benchmarks/RESULTS.md`). Processes pay where there are so many
cores that Python's own share becomes the limit, and where a file that crashes a decoder must not
end the run (`processes.py`).
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
from pneumoscope.images.framing import ImageDescriptors, describe_image
from pneumoscope.images.preprocess import Preprocessor
from pneumoscope.images.read import GreyImage, header_note, read_bytes, read_image
from pneumoscope.inference.age_gate import OPEN, AgeGate
from pneumoscope.inference.input_check import MOST_COLOUR
from pneumoscope.records import Prediction

Reader = Callable[[str, LimitsConfig], GreyImage]
"""From a name to its image, or `ImageRefusedError` and nothing else."""

Keep = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""From a film's pixels to those of pictures of it: `overlay.shrunk`, `overlay.thinned`."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """One image, ready for the network.

    Attributes:
        source: the name it was read from.
        image: the decoded image, where it was asked for.
        tensor: the network's input, float32 (size, size, 3).
        look: what the input check sees of it; `None` where nothing is checked.
        warnings: what was odd about the file.
        photometric: which end of the values is white, by a DICOM header.
    """

    source: str
    image: GreyImage | None
    tensor: NDArray[np.float32]
    look: ImageDescriptors | None = None
    warnings: tuple[str, ...] = ()
    photometric: str = ""


@dataclass(frozen=True, slots=True)
class Decoder:
    """What is done with each file; can be sent to another process.

    Attributes:
        limits: what a file may cost.
        preprocess: from its pixels to the network's input.
        keep: from the pixels to what is kept of them; `None` keeps nothing.
        read: how a file is read, `read_image` where nothing is said.
        looks: take note of what the input check wants to see.
        gate: which patients may be scored.
    """

    limits: LimitsConfig
    preprocess: Preprocessor
    keep: Keep | None = None
    read: Reader | None = None
    looks: bool = False
    gate: AgeGate = field(default_factory=AgeGate)

    def __call__(self, path: Path | str) -> Prepared | Prediction:
        """The network's input for one file, or the row that says why there is none."""
        name = str(path)
        read = self.read or read_image
        return self._kept(lambda: read(name, self.limits), name)

    def content(self, content: bytes, name: str) -> Prepared | Prediction:
        """The same for the content of a file that is called `name`."""
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
"""A `Decoder`, or what has one work elsewhere; what is sent to processes must be picklable."""


def prepared(
    read: Callable[[], GreyImage],
    source: str,
    preprocess: Preprocessor,
    *,
    looks: bool = False,
    gate: AgeGate = OPEN,
) -> Prepared | Prediction:
    """What `read` gives, preprocessed; or the row that says why it was refused.

    With `looks` a picture in colour is refused here, before its colours are forgotten.
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
            f"it is a picture in colour (mean chroma {image.colour:.2f}, at most {MOST_COLOUR} is "
            "taken for a film). Give the X-ray itself, in grey"
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
    """What the network, and with `looks` the input check, see of a decoded image."""
    square = preprocess.grey(pixels)
    look = describe_image(square) if looks else None
    return Prepared(source, None, preprocess.normalise(square), look)


WINDOW = 32
"""Images that are read or being read ahead of the engine, at most."""


def threads() -> int:
    """Threads that read: half the cores, since the engine wants them too; 2 to 8."""
    return min(max(2, (os.cpu_count() or 1) // 2), 8)


def decoded(
    paths: Iterable[Path | str], decode: Decode, workers: int = 0
) -> Generator[Prepared | Prediction]:
    """Apply `decode` to every path, in order, ahead of who asks for the next.

    Args:
        paths: taken as they are wanted, a window ahead.
        decode: what to do with each.
        workers: processes that do it; 0 for threads of this one.

    Raises:
        MissingError: processes can't be started here.
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
    finally:  # after Ctrl-C, or when nobody wants the rest, what waits is not read any more
        pool.shutdown(cancel_futures=True)
