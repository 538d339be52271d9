"""Train the network from its pixels: `scratch`, and `finetune` with everything unfrozen.

Comes in: squares of train and val on disk, labels, a network. Goes out: a curriculum of one lesson
per image size. Knows nothing of files, thresholds or bundles.

Images lie decoded on disk as uint8, larger than the network sees them, so that crops keep
their sharpness; each step changes them anew on the device (`distort.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pneumoscope.ahead import ahead
from pneumoscope.config import DistortConfig, PreprocessConfig, ScratchConfig, TrainConfig
from pneumoscope.errors import UsageError
from pneumoscope.graph.architecture import LEAST_SIZE
from pneumoscope.images.preprocess import (
    IMAGENET_DEVIATION,
    IMAGENET_MEAN,
    LEAST_DEVIATION,
    Preprocessor,
)
from pneumoscope.training.distort import build_distortion
from pneumoscope.training.features import FeatureTable
from pneumoscope.training.framing import Fields, draw_fields
from pneumoscope.training.kinds import UNKNOWN, build_kind_question, evenly_ordered
from pneumoscope.training.loop import Curriculum, Labels, Shares
from pneumoscope.training.mixing import draw_shares, mixed, mixed_labels
from pneumoscope.training.runtime import load_keras
from pneumoscope.training.surroundings import change_surroundings

_VAL_BATCH = 64
_CLASSES = np.eye(2, dtype=np.float32)
"""Share of either class in an image of one."""


@dataclass(frozen=True, slots=True)
class Squares:
    """Decoded images of one split on disk, uint8 (side, side); label and kind of each.

    `kinds` are codes of `kind_codes`; `lungs` are rows of `LungExtractor`, where they are wanted.
    """

    table: FeatureTable
    labels: Labels
    kinds: Labels
    lungs: FeatureTable | None = None

    def take(
        self, rows: NDArray[np.intp], side: int, fields: Fields | None = None
    ) -> NDArray[np.uint8]:
        """Images (n, side, side) or of each the part that `fields` say, with antialiasing."""
        return _taken(self.table, rows, side, fields, Image.Resampling.BILINEAR)

    def take_lungs(
        self, rows: NDArray[np.intp], side: int, fields: Fields | None = None
    ) -> NDArray[np.uint8]:
        """Where their lungs are, (n, side, side); nowhere, if that is not known."""
        if self.lungs is None:
            return np.zeros((len(rows), side, side), np.uint8)
        return _taken(self.lungs, rows, side, fields, Image.Resampling.NEAREST)


def asks_for_lungs(config: DistortConfig) -> bool:
    """Whether such changes need to know where the lungs of the training images are."""
    return max(config.surround, config.silence, config.reframe) > 0


def _taken(
    table: FeatureTable,
    rows: NDArray[np.intp],
    side: int,
    fields: Fields | None,
    resampling: Image.Resampling,
) -> NDArray[np.uint8]:
    squares = table.take(rows, np.zeros_like(rows))
    stored = squares.shape[1]
    if fields is None and stored == side:
        return squares
    boxes = np.tile([0.0, 0.0, 1.0, 1.0], (len(rows), 1)) if fields is None else fields
    small = [
        Image.fromarray(square).resize((side, side), resampling, tuple(box))
        for square, box in zip(squares, (boxes * stored).tolist(), strict=True)
    ]
    return np.stack([np.asarray(image) for image in small])


def stored_side(size: int, *, cut: bool = False) -> int:
    """Side of the stored images for a network input of `size` pixels, even: a third more.

    Twice as much where parts are cut out of them, or a cut would show by its blur.
    """
    return 2 * size if cut else 2 * round(size * 2 / 3)


def check_sizes(config: ScratchConfig) -> None:
    """See that the sizes and their shares can be trained at.

    Raises:
        UsageError: none, of different counts, no multiples of 16, or shares that don't add up.
    """
    sizes, shares = config.sizes, config.shares
    if not sizes or any(size < LEAST_SIZE or size % 16 for size in sizes):
        raise UsageError(
            f"scratch.sizes: found {list(sizes)}, wanted multiples of 16, {LEAST_SIZE} or more"
        )
    if len(shares) != len(sizes) or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
        raise UsageError(
            f"scratch.shares: found {list(shares)}, wanted {len(sizes)} positive numbers, one per "
            "size, that add up to 1"
        )


def build_curriculum(
    network: Any,
    parts: tuple[Squares, Squares],
    config: TrainConfig,
    sizes: ScratchConfig,
    factors: Mapping[str, float],
) -> Curriculum:
    """One lesson per size; `parts` are train and val, `network` takes squares of any size."""
    check_sizes(sizes)
    train, val = parts
    question = _kind_question(train, config)
    lessons = [_SizeLesson(network, size, train, val, config, question) for size in sizes.sizes]
    ends = np.cumsum(sizes.shares) * config.fit.epochs
    until = [round(end) for end in ends.tolist()]
    return Curriculum(network, lessons, until, factors)


def _kind_question(train: Squares, config: TrainConfig) -> Any:
    """The layer that asks for the kind of pneumonia, or `None` where there is nothing to ask."""
    kinds = int(train.kinds.max(initial=UNKNOWN)) + 1
    asked = config.kinds > 0 and kinds > 1
    return build_kind_question(kinds, config.kinds, config.seed) if asked else None


class _SizeLesson:
    """Every epoch at one size: all training images in a new order, distorted on the device."""

    def __init__(
        self,
        network: Any,
        size: int,
        train: Squares,
        val: Squares,
        config: TrainConfig,
        question: Any = None,
    ) -> None:
        self._network, self._train, self._val = network, train, val
        self._side, self._batch, self._seed = stored_side(size), config.fit.batch_size, config.seed
        self.steps = max(len(train.labels) // self._batch, 1)
        self._preprocessor = Preprocessor(_at(config.preprocess, size))
        self._even_kinds = config.even_kinds
        self._asks, self._distort = question is not None, config.distort
        self.model = _training_model(network, self._side, size, config, question)

    def batches(self, epoch: int) -> Iterator[tuple[Any, Shares]]:
        """Whole batches only, so that one compiled step does for all; shares of either class."""
        generator = np.random.default_rng([self._seed, epoch])
        if self._even_kinds:
            order = evenly_ordered(self._train.kinds, generator)
        else:
            order = generator.permutation(len(self._train.labels))
        rows = np.resize(order, (self.steps, self._batch))

        def make() -> Iterator[tuple[Any, Shares]]:
            for chosen in rows:
                squares, told, codes = self._shown(chosen, generator)
                inputs: list[NDArray[Any]] = [squares]
                if self._distort.mix:
                    shares = draw_shares(generator, self._batch, self._distort.mix)
                    inputs.append(shares[:, None])
                    told = mixed_labels(told, shares)
                if self._asks:
                    inputs.append(codes[:, None].astype(np.float32))
                yield inputs, told

        return ahead(make())

    def _shown(
        self, rows: NDArray[np.intp], generator: np.random.Generator
    ) -> tuple[NDArray[np.uint8], Shares, Labels]:
        """Squares, shares of either class (n, 2), codes of kinds.

        Of images that show no lungs any more the shares are those of all images, the kind unknown.
        """
        told, codes = _CLASSES[self._train.labels[rows]], self._train.kinds[rows]
        if not asks_for_lungs(self._distort):
            return self._train.take(rows, self._side), told, codes
        lungs, fields = self._train.take_lungs(rows, self._side), None
        if self._distort.reframe:
            fields = draw_fields(lungs, self._distort.reframe, generator)
            lungs = self._train.take_lungs(rows, self._side, fields)
        squares = self._train.take(rows, self._side, fields)
        changed = change_surroundings(squares, lungs, self._distort, generator)
        told = np.where(changed.silent[:, None], _CLASSES[self._train.labels].mean(0), told)
        return changed.squares, told, np.where(changed.silent, UNKNOWN, codes)

    def val_logits(self) -> NDArray[np.float32]:
        size = self._preprocessor.config.size
        count = len(self._val.labels)
        logits = np.empty(count, np.float32)
        for start in range(0, count, _VAL_BATCH):
            rows = np.arange(start, start + _VAL_BATCH) % count  # one shape: compiled once
            grey = self._val.take(rows, size).astype(np.float32) / np.float32(255)
            out = self._network.predict_on_batch(self._preprocessor.normalise(grey))
            logits[start : start + _VAL_BATCH] = np.asarray(out, np.float32)[: count - start, 0]
        return logits


def _at(config: PreprocessConfig, size: int) -> PreprocessConfig:
    return PreprocessConfig(config.version, size, config.fit, config.normalisation)


def _training_model(network: Any, side: int, size: int, config: TrainConfig, question: Any) -> Any:
    """Squares as stored, uint8 (n, side, side) → distorted, mixed, normalised → logits (n, 1).

    Takes a list: squares, then shares (n, 1) where images are mixed, then codes (n, 1) where the
    kind is asked; of a mixed image it is the kind of the larger share.
    """
    keras = load_keras()
    inputs = [keras.Input((side, side), dtype="uint8", name="squares")]
    grey = build_distortion(config.distort, size, config.seed)(inputs[0])
    if config.distort.mix:
        inputs.append(keras.Input((1,), name="shares"))
        grey = mixed(grey, inputs[-1])
    images = _normalised(grey, config.preprocess)
    if question is None:
        return keras.Model(inputs, network(images), name="lesson")
    inputs.append(keras.Input((1,), name="codes"))
    both = keras.Model(network.input, [network.output, network.get_layer("pool").output])
    return keras.Model(inputs, question([*both(images), inputs[-1]]), name="lesson")


def _normalised(grey: Any, config: PreprocessConfig) -> Any:
    """As `Preprocessor.normalise`, in Keras ops: (n, size, size) → (n, size, size, 3)."""
    ops = load_keras().ops
    if config.normalisation == "standardise":
        centred = grey - ops.mean(grey, axis=(1, 2), keepdims=True)
        deviation = ops.sqrt(ops.mean(centred * centred, axis=(1, 2), keepdims=True))
        scaled = centred / ops.maximum(deviation, LEAST_DEVIATION)
        return ops.repeat(ops.expand_dims(scaled, -1), 3, axis=-1)
    channels = [
        (grey - mean) / deviation
        for mean, deviation in zip(IMAGENET_MEAN, IMAGENET_DEVIATION, strict=True)
    ]
    return ops.stack(channels, axis=-1)
