"""Detect whether images are among those a model was trained on, from salted hashes.

Two hashes of 64 bits are kept per image: of its bytes (from their SHA-256), and of its content (the
perceptual hash by the discrete cosine transform, Zauner 2010), which copies in another format or
size share. Both pass through a keyed BLAKE2 with the bundle's salt. So images can't be
reconstructed from them, and tables of two models can't be matched. An image takes 16 bytes.

A copy that was saved again may differ in a few bits of the perceptual hash. Salted hashes can only
be equal or not, so the query image is tried with its least certain bits flipped. Of 150 training
images of the Kermany set all were detected as PNG, as JPEG of quality 40 and at half size, and 105
after a gamma of 0.8. Of 1,500 other images three were detected as training images, two of which are
byte-equal to one.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pneumoscope.data.index import fingerprint
from pneumoscope.errors import ImageRefusedError
from pneumoscope.images.read import read_image
from pneumoscope.progress import SILENT, Progress
from pneumoscope.records import ImageRecord

Part = Literal["train", "val"]
PARTS: tuple[Part, ...] = ("train", "val")

HashTable = Mapping[str, NDArray[Any]]

_THREADS = 2
_SIDE = 32
_HASH_SIDE = 8
_SALT_BYTES = 16
_UNCERTAIN = 14
"""Bits nearest to the median that are tried both ways, up to `_MAX_FLIPPED` at once."""

_MAX_FLIPPED = 3


UNKNOWN_IMAGES: HashTable = {"0_salt": np.empty(0, np.uint8)}
"""The table of a model that keeps no hashes: an empty salt stands for images that are not known."""


@dataclass(frozen=True, slots=True)
class TrainingOverlap:
    """How many of some images a model was trained on.

    Attributes:
        images: number of images checked.
        known: whether the model, and every model that it began with or was taught by, keeps hashes;
            if not, there may be more than the counts below.
        identical: images with the bytes of a training image.
        alike: further images with the content of a training image, in another file.
        chosen_on: further images that epoch, calibration and threshold were chosen on.
    """

    images: int
    known: bool
    identical: int = 0
    alike: int = 0
    chosen_on: int = 0

    @property
    def trained_on(self) -> int:
        """Images that the model was trained on, in this or another file."""
        return self.identical + self.alike

    @property
    def is_optimistic(self) -> bool:
        """Whether results on these images are better than on new ones."""
        return bool(self.trained_on or self.chosen_on)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self) | {"trained_on": self.trained_on}

    def in_words(self) -> str:
        """One sentence, for a terminal and a page."""
        found = []
        if self.trained_on:
            found.append(f"was trained on {self.trained_on:,} of these {self.images:,} images")
        if self.chosen_on:
            found.append(f"had its threshold chosen on {self.chosen_on:,} of them")
        if not found and not self.known:
            return (
                "It is not known whether the model was trained on some of these images: it, its "
                "initial weights or a teacher keeps no hashes of training images."
            )
        if not found:
            return f"None of these {self.images:,} images is among the model's training images."
        return (
            f"The model {' and '.join(found)}: the results are too optimistic. Evaluate on others."
        )


def total_overlap(parts: Sequence[TrainingOverlap]) -> TrainingOverlap:
    """The sum over several groups of images, each counted for its own model."""
    return TrainingOverlap(
        sum(part.images for part in parts),
        all(part.known for part in parts),
        sum(part.identical for part in parts),
        sum(part.alike for part in parts),
        sum(part.chosen_on for part in parts),
    )


def training_hashes(
    records: Mapping[Part, Sequence[ImageRecord]],
    progress: Progress = SILENT,
    before: HashTable | None = None,
) -> dict[str, NDArray[Any]]:
    """Compute the hashes of a model's images, for its bundle.

    Args:
        records: the images trained on, and those that epoch and threshold were chosen on; hashed by
            `index`.
        progress: reports images.
        before: the tables of the models whose weights were the initial ones or that were teachers;
            their images count too. `UNKNOWN_IMAGES` for one that keeps none.

    Returns:
        Per generation, from 0 for the model itself: `0_salt` (16,) uint8, and per part sorted
        uint64 `0_PART_bytes` and `0_PART_look`. The salt depends on the training images, so that
        the same run makes the same bundle.
    """
    digest = hashlib.sha256(f"seen by {fingerprint(records['train'])}".encode()).digest()
    salt = digest[:_SALT_BYTES]
    table: dict[str, NDArray[Any]] = {"0_salt": np.frombuffer(salt, np.uint8)}
    for part, of_part in records.items():
        hashes = _perceptual_hashes(
            [record.path for record in of_part], progress, "Hashing training images"
        )
        known = [record.sha256 for record in of_part if record.sha256]
        table[f"0_{part}_bytes"] = _column(_keyed(bytes.fromhex(each), salt) for each in known)
        table[f"0_{part}_look"] = _column(
            _keyed(np.packbits(one[0]).tobytes(), salt) for one in hashes if one is not None
        )
    older = [] if before is None else _generations(before)
    number = 1
    for generation in older:
        if generation["salt"].tobytes() != salt:  # a later stage on the same images adds nothing
            table |= {f"{number}_{name}": column for name, column in generation.items()}
            number += 1
    return table


def count_overlap(
    table: HashTable | None, records: Sequence[ImageRecord], progress: Progress = SILENT
) -> TrainingOverlap:
    """Count how many of `records` are among the images of a table.

    Args:
        table: result of `training_hashes`; `None` if the model keeps none.
        records: hashed by `index`. Images without known bytes are decoded.
        progress: reports the decoded images.
    """
    generations = _generations(UNKNOWN_IMAGES if table is None else table)
    models = [_Hashes(generation) for generation in generations if generation["salt"].size]
    known = len(models) == len(generations)
    if not models:
        return TrainingOverlap(len(records), known)
    rest = [r for r in records if not any(model.has_bytes(r, "train") for model in models)]
    identical = len(records) - len(rest)
    alike = chosen_on = 0
    hashes = _perceptual_hashes(
        [record.path for record in rest], progress, "Comparing with training images"
    )
    for record, own in zip(rest, hashes, strict=True):
        tried = [] if own is None else _variants(*own)
        if any(model.has_content(tried, "train") for model in models):
            alike += 1
        elif any(m.has_bytes(record, "val") or m.has_content(tried, "val") for m in models):
            chosen_on += 1
    return TrainingOverlap(len(records), known, identical, alike, chosen_on)


class _Hashes:
    """The hashes of one generation as sets."""

    def __init__(self, columns: HashTable) -> None:
        self._salt = columns["salt"].tobytes()
        self._sets = {name: set(column.tolist()) for name, column in columns.items()}

    def has_bytes(self, record: ImageRecord, part: Part) -> bool:
        """Whether a file of the same bytes is in a part."""
        found = self._sets.get(f"{part}_bytes", set())
        return bool(record.sha256) and _keyed(bytes.fromhex(record.sha256), self._salt) in found

    def has_content(self, tried: Sequence[bytes], part: Part) -> bool:
        """Whether one of the perceptual hashes is in a part."""
        found = self._sets.get(f"{part}_look", set())
        return bool(found) and any(_keyed(each, self._salt) in found for each in tried)


def _generations(table: HashTable) -> list[dict[str, NDArray[Any]]]:
    """The columns of each generation, without its number."""
    found: list[dict[str, NDArray[Any]]] = []
    while f"{len(found)}_salt" in table:
        start = f"{len(found)}_"
        own = {n.removeprefix(start): c for n, c in table.items() if n.startswith(start)}
        found.append(own)
    return found


def perceptual_bits(
    pixels: NDArray[np.float32],
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """The 64 bits of the perceptual hash, and how far each is from flipping.

    Args:
        pixels: (h, w) in [0, 1].

    Returns:
        Bits (64,), whether each of the lowest frequencies of the 32×32 thumbnail is above their
        median; and distances (64,) from it.
    """
    from PIL import Image
    from scipy.fft import dctn

    grey = np.clip(pixels * np.float32(255.0) + np.float32(0.5), 0, 255).astype(np.uint8)
    small = Image.fromarray(grey).resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    low = dctn(np.asarray(small, np.float64), type=2)[:_HASH_SIDE, :_HASH_SIDE].ravel()
    apart = low - np.median(low)
    return apart > 0, np.abs(apart)


def _variants(bits: NDArray[np.bool_], distances: NDArray[np.float64]) -> list[bytes]:
    """The hash itself, and with up to three of its least certain bits flipped, 8 bytes each."""
    uncertain = np.argsort(distances, kind="stable")[:_UNCERTAIN]
    turned = [
        list(chosen)
        for count in range(_MAX_FLIPPED + 1)
        for chosen in itertools.combinations(uncertain.tolist(), count)
    ]
    rows = np.tile(bits, (len(turned), 1))
    for row, places in zip(rows, turned, strict=True):
        row[places] ^= True
    packed = np.packbits(rows, axis=1)
    return [row.tobytes() for row in packed]


def _perceptual_hashes(
    paths: Sequence[Path], progress: Progress, title: str
) -> list[tuple[NDArray[np.bool_], NDArray[np.float64]] | None]:
    """`perceptual_bits` of every file, `None` where it can't be read."""
    if not paths:
        return []
    found = []
    with (
        ThreadPoolExecutor(_THREADS) as pool,
        progress.task(title, len(paths), "images") as task,
    ):
        for hashed in pool.map(_perceptual_hash, paths):
            found.append(hashed)
            task.advance()
    return found


def _perceptual_hash(path: Path) -> tuple[NDArray[np.bool_], NDArray[np.float64]] | None:
    try:
        return perceptual_bits(read_image(path).pixels)
    except (ImageRefusedError, OSError):
        return None


def _keyed(content: bytes, salt: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8, key=salt).digest(), "big")


def _column(values: Any) -> NDArray[np.uint64]:
    return np.unique(np.array(list(values), np.uint64))
