"""End-to-end training from pixels: `scratch`, and `finetune` with the whole network unfrozen.

`build_phase_schedule` makes one training phase per image size. Images are stored on disk decoded,
as uint8, and larger than the network's input, so that crops stay sharp. Each step augments them
again on the device (`batch_augmentation.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pneumoscope.config import PreprocessConfig, ScratchConfig, TrainConfig
from pneumoscope.errors import UsageError
from pneumoscope.graph.bundle_files import LEAST_SIZE
from pneumoscope.images.preprocess import (
    IMAGENET_DEVIATION,
    IMAGENET_MEAN,
    LEAST_DEVIATION,
    Preprocessor,
)
from pneumoscope.prefetching import prefetched
from pneumoscope.training.background import (
    Crops,
    change_backgrounds,
    draw_crops,
    draw_shares,
    lung_masks,
    mix_images,
    mix_labels,
    mix_lungs,
)
from pneumoscope.training.batch_augmentation import JPEG_BLOCK, build_batch_augmentation
from pneumoscope.training.features import FeatureTable
from pneumoscope.training.guidance import (
    UNKNOWN,
    Teacher,
    balanced_order,
    build_subtype_head,
    guided,
    heatmap_of,
)
from pneumoscope.training.loop import Labels, PhaseSchedule, Shares
from pneumoscope.training.runtime import load_keras

_VAL_BATCH = 64
_CLASSES = np.eye(2, dtype=np.float32)
"""Class shares of an image with label 0 and with label 1."""


@dataclass(frozen=True, slots=True)
class Squares:
    """Decoded images of one split on disk, uint8 (side, side), with label and subtype of each.

    `subtypes` are codes of `subtype_codes`; `lungs` are rows of `LungExtractor`, or `None`.
    """

    table: FeatureTable
    labels: Labels
    subtypes: Labels
    lungs: FeatureTable | None = None

    def take(
        self, rows: NDArray[np.intp], side: int, crops: Crops | None = None
    ) -> NDArray[np.uint8]:
        """Images (n, side, side), or the part of each that `crops` gives; antialiased."""
        return _taken(self.table, rows, side, crops, Image.Resampling.BILINEAR)

    def take_lungs(
        self, rows: NDArray[np.intp], side: int, crops: Crops | None = None
    ) -> NDArray[np.uint8]:
        """Lung masks (n, side, side); all 0 where none were computed."""
        if self.lungs is None:
            return np.zeros((len(rows), side, side), np.uint8)
        return _taken(self.lungs, rows, side, crops, Image.Resampling.NEAREST)


def needs_lungs(config: TrainConfig) -> bool:
    """Whether training needs lung masks of the training images."""
    changes = config.distort
    return max(changes.surround, changes.silence, changes.reframe, config.guidance.lungs) > 0


def _taken(
    table: FeatureTable,
    rows: NDArray[np.intp],
    side: int,
    crops: Crops | None,
    resampling: Image.Resampling,
) -> NDArray[np.uint8]:
    squares = table.take(rows, np.zeros_like(rows))
    stored = squares.shape[1]
    if crops is None and stored == side:
        return squares
    boxes = np.tile([0.0, 0.0, 1.0, 1.0], (len(rows), 1)) if crops is None else crops
    small = [
        Image.fromarray(square).resize((side, side), resampling, tuple(box))
        for square, box in zip(squares, (boxes * stored).tolist(), strict=True)
    ]
    return np.stack([np.asarray(image) for image in small])


def stored_side(size: int, *, cut: bool = False) -> int:
    """Side of the stored images for a network input of `size` pixels: a third larger, and even.

    It is twice the input where parts are cropped out, because a crop would show by its blur.
    """
    return 2 * size if cut else 2 * round(size * 2 / 3)


def check_sizes(config: ScratchConfig) -> None:
    """Check that training at these sizes and shares is possible.

    Raises:
        UsageError: there are no sizes, sizes are not multiples of 16, sizes and shares differ in
            number, or the shares don't add up to 1.
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


def check_batches(config: TrainConfig) -> None:
    """Check that a batch has another image whose background can be taken.

    Raises:
        UsageError: it has not.
    """
    if config.distort.surround and config.fit.batch_size < 2:
        raise UsageError(
            f"fit.batch_size: found {config.fit.batch_size}, wanted 2 or more for background swap, "
            "which takes the background of another image of the batch. Or set distort.surround to 0"
        )


def build_phase_schedule(
    network: Any,
    parts: tuple[Squares, Squares],
    config: TrainConfig,
    sizes: ScratchConfig,
    factors: Mapping[str, float],
    teachers: Sequence[Teacher] = (),
) -> PhaseSchedule:
    """One phase per size; `parts` are train and val, `network` takes squares of any size.

    The last size, at which the model will predict, has at least the last epoch, and the weights
    that are kept are of an epoch at it.
    """
    check_sizes(sizes)
    train, val = parts
    head = _subtype_head(train, config)
    phases = [_SizePhase(network, size, train, val, config, head, teachers) for size in sizes.sizes]
    ends = np.cumsum(sizes.shares) * config.fit.epochs
    until = [min(round(end), config.fit.epochs - 1) for end in ends.tolist()[:-1]]
    keep_from = until[-1] if until else 0
    return PhaseSchedule(network, phases, until, factors, keep_from=keep_from)


def _subtype_head(train: Squares, config: TrainConfig) -> Any:
    """The auxiliary subtype head, or `None` where the data name fewer than two subtypes."""
    subtypes = int(train.subtypes.max(initial=UNKNOWN)) + 1
    wanted = config.kinds > 0 and subtypes > 1
    return build_subtype_head(subtypes, config.kinds, config.seed) if wanted else None


@dataclass(frozen=True, slots=True)
class _Batch:
    """A batch before augmentation.

    Attributes:
        squares: uint8 (n, side, side).
        targets: class shares (n, 2).
        codes: subtype codes (n,).
        lungs: rows of `LungExtractor` (n, side, side), 0 where lungs are hidden or not found.
        judged: which (n,) the teachers judge.
    """

    squares: NDArray[np.uint8]
    targets: Shares
    codes: Labels
    lungs: NDArray[np.uint8]
    judged: NDArray[np.bool_]


class _SizePhase:
    """Epochs at one size: all training images in a new order, augmented on the device."""

    def __init__(
        self,
        network: Any,
        size: int,
        train: Squares,
        val: Squares,
        config: TrainConfig,
        subtype_head: Any = None,
        teachers: Sequence[Teacher] = (),
    ) -> None:
        self._network, self._train, self._val = network, train, val
        self._config, self._batch = config, config.fit.batch_size
        largest = max([size, *(teacher.preprocess.size for teacher in teachers)])
        view = -(-largest // JPEG_BLOCK) * JPEG_BLOCK
        self._side = stored_side(view)
        self.steps = max(len(train.labels) // self._batch, 1)
        self._preprocessor = Preprocessor(_at(config.preprocess, size))
        self.model = _training_model(
            network, _Sizes(self._side, view, size), config, subtype_head, teachers
        )

    def batches(self, epoch: int) -> Iterator[tuple[Any, Shares]]:
        """Full batches only, so that one compiled step serves all; targets are class shares."""
        config = self._config
        generator = np.random.default_rng([config.seed, epoch])
        if config.even_kinds:
            order = balanced_order(self._train.subtypes, generator)
        else:
            order = generator.permutation(len(self._train.labels))
        rows = np.resize(order, (self.steps, self._batch))
        taken = {each.name for each in self.model.inputs}

        def make() -> Iterator[tuple[Any, Shares]]:
            for chosen in rows:
                batch = self._batch_of(chosen, generator)
                targets, judged = batch.targets, batch.judged
                inputs: dict[str, NDArray[Any]] = {"squares": batch.squares}
                if config.distort.mix:
                    shares = draw_shares(generator, self._batch, config.distort.mix)
                    inputs["shares"] = shares[:, None]
                    targets = mix_labels(targets, shares)
                    judged = judged & np.roll(judged, 1)
                inputs["judged"] = judged[:, None].astype(np.float32)
                inputs["codes"] = batch.codes[:, None].astype(np.float32)
                inputs["lungs"] = lung_masks(batch.lungs)
                inputs["pneumonia"] = targets[:, 1:].astype(np.float32)
                yield {name: each for name, each in inputs.items() if name in taken}, targets

        return prefetched(make())

    def _batch_of(self, rows: NDArray[np.intp], generator: np.random.Generator) -> _Batch:
        """Images with hidden lungs get the prevalence as target and an unknown subtype."""
        targets, codes = _CLASSES[self._train.labels[rows]], self._train.subtypes[rows]
        distort = self._config.distort
        if not needs_lungs(self._config):
            squares = self._train.take(rows, self._side)
            judged = np.ones(len(rows), np.bool_)
            return _Batch(squares, targets, codes, np.zeros_like(squares), judged)
        lungs, crops = self._train.take_lungs(rows, self._side), None
        if distort.reframe:
            crops = draw_crops(lungs, distort.reframe, generator)
            lungs = self._train.take_lungs(rows, self._side, crops)
        squares = self._train.take(rows, self._side, crops)
        changed = change_backgrounds(squares, lungs, distort, generator)
        hidden = changed.without_lungs[:, None]
        targets = np.where(hidden, _CLASSES[self._train.labels].mean(0), targets)
        lungs = np.where(hidden[:, None], np.uint8(0), lungs)
        codes = np.where(changed.without_lungs, UNKNOWN, codes)
        swapped_too = self._config.guidance.teach_swapped
        judged = ~changed.without_lungs if swapped_too else changed.own
        return _Batch(changed.squares, targets, codes, lungs, judged)

    def val_logits(self) -> NDArray[np.float32]:
        size = self._preprocessor.config.size
        count = len(self._val.labels)
        logits = np.empty(count, np.float32)
        for start in range(0, count, _VAL_BATCH):
            rows = np.arange(start, start + _VAL_BATCH) % count  # one batch shape: compiled once
            grey = self._val.take(rows, size).astype(np.float32) / np.float32(255)
            out = self._network.predict_on_batch(self._preprocessor.normalise(grey))
            logits[start : start + _VAL_BATCH] = np.asarray(out, np.float32)[: count - start, 0]
        return logits


def _at(config: PreprocessConfig, size: int) -> PreprocessConfig:
    return PreprocessConfig(config.version, size, config.fit, config.normalisation)


@dataclass(frozen=True, slots=True)
class _Sizes:
    """Sides, pixels: of the stored squares, the augmented view, and the network's input."""

    stored: int
    view: int
    network: int


def _training_model(
    network: Any, sizes: _Sizes, config: TrainConfig, subtype_head: Any, teachers: Sequence[Teacher]
) -> Any:
    """The training model: stored squares, uint8 (n, side, side) → logits (n, 1).

    It augments, mixes and normalises the images before the network. Its input is a dictionary:
    `squares`; `shares` (n, 1) for mixup; `pneumonia` (n, 1), the share of pneumonia, for lung
    guidance and distillation; `lungs` (n, side, side), made by `lung_masks`, for lung guidance;
    `judged` (n, 1), 1 where the teachers judge, for distillation; `codes` (n, 1) for the
    auxiliary subtype head (of a mixed image, the code of the larger share).
    """
    keras = load_keras()
    side = (sizes.stored, sizes.stored)
    inputs = {"squares": keras.Input(side, dtype="uint8", name="squares")}
    augmentation = build_batch_augmentation(config.distort, sizes.view, config.seed)
    lungs = None
    if config.guidance.lungs or teachers:
        inputs["pneumonia"] = keras.Input((1,), name="pneumonia")
    if teachers:
        inputs["judged"] = keras.Input((1,), name="judged")
    if config.guidance.lungs:
        inputs["lungs"] = keras.Input(side, dtype="uint8", name="lungs")
        view, lungs = augmentation([inputs["squares"], inputs["lungs"]])
    else:
        view = augmentation(inputs["squares"])
    if config.distort.mix:
        inputs["shares"] = keras.Input((1,), name="shares")
        view = mix_images(view, inputs["shares"])
        lungs = None if lungs is None else mix_lungs(lungs, inputs["shares"])
    images = _as_input(view, _at(config.preprocess, sizes.network))
    if subtype_head is None and lungs is None and not teachers:
        return keras.Model(inputs, network(images), name="training")
    pool = network.get_layer("pool")
    whole = keras.Model(network.input, [network.output, pool.input, pool.output])
    logits, features, pooled = whole(images)
    if subtype_head is not None:
        inputs["codes"] = keras.Input((1,), name="codes")
        logits = subtype_head([logits, pooled, inputs["codes"]])
    if lungs is not None or teachers:
        hidden, output = network.get_layer("head").layers[-2:]
        taught = [teacher.model(_as_input(view, teacher.preprocess)) for teacher in teachers]
        logits = guided(
            logits,
            heatmap_of(features, pooled, hidden, output),
            config.guidance,
            inputs["pneumonia"],
            lungs=lungs,
            taught=taught,
            judged=inputs.get("judged"),
        )
    return keras.Model(inputs, logits, name="training")


def _as_input(view: Any, config: PreprocessConfig) -> Any:
    """Views, float32 (n, side, side) in [0, 1], as network input (n, size, size, 3)."""
    ops = load_keras().ops
    if view.shape[1] != config.size:
        size = (config.size, config.size)
        view = ops.image.resize(
            ops.expand_dims(view, -1), size, antialias=True, data_format="channels_last"
        )[..., 0]
    return _normalised(view, config)


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
