"""The three training recipes: frozen, finetune and scratch.

A `Job` holds the image records of train and val, a backbone with its initial weights and the
`TrainConfig`. `train_network` returns the trained network for inference and the history of all
epochs.

    frozen     features once → head
    finetune   frozen, then the last blocks and the head from cached activations at the boundary
               (or everything, from pixels); batch normalisation in inference mode
    scratch    everything from pixels, at growing image sizes
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from pneumoscope.config import RECIPES, FitConfig, PreprocessConfig, ScratchConfig, TrainConfig
from pneumoscope.errors import ImageRefusedError
from pneumoscope.graph import bundle_files
from pneumoscope.graph.bundle_files import Architecture
from pneumoscope.progress import SILENT, Progress
from pneumoscope.records import ImageRecord
from pneumoscope.training.backbones import find_boundary
from pneumoscope.training.background import LungExtractor
from pneumoscope.training.end_to_end import (
    Squares,
    build_phase_schedule,
    check_sizes,
    needs_lungs,
    stored_side,
)
from pneumoscope.training.extractor import SquareExtractor, frozen_extractor, training_ranges
from pneumoscope.training.features import Extractor, FeatureTable, Views, compute_features
from pneumoscope.training.guidance import load_teachers, subtype_codes, teacher_folder
from pneumoscope.training.head_training import (
    LabelledFeatures,
    TrainedHead,
    build_finetuning_schedule,
    train_head,
)
from pneumoscope.training.loop import Epoch, EpochsListener, Fitted, Score, fit, ignore_epochs
from pneumoscope.training.network import (
    HeadWeights,
    build_network,
    build_tail,
    freeze_before,
    step_factors,
    trainable_copy,
    weights_digest,
    with_head,
)
from pneumoscope.training.runtime import arithmetic
from pneumoscope.training.weights import head_of


def architecture(config: TrainConfig) -> Architecture:
    """The architecture that a configuration trains."""
    fit = config.fit
    return Architecture(config.backbone, config.preprocess.size, fit.dropout, fit.hidden_units)


@dataclass(frozen=True, slots=True)
class Job:
    """Everything that one network is trained from.

    Attributes:
        train, val: image records with labels.
        config: configuration of the run.
        backbone: made by `build_backbone` at the network's size, with initial weights.
        cache: cache folder.
        folder: run folder, for checkpoints.
        score: ROC AUC.
        progress: receives every stage.
        on_epochs: an `EpochsListener` for the rows of each stage.
    """

    train: Sequence[ImageRecord]
    val: Sequence[ImageRecord]
    config: TrainConfig
    backbone: Any
    cache: Path
    folder: Path
    score: Score
    progress: Progress = SILENT
    on_epochs: Callable[[Sequence[StageEpoch], bool], None] = ignore_epochs

    def listener(self, stage: str) -> EpochsListener:
        """What the loop reports the epochs of one stage to."""
        return lambda epochs, trained: self.on_epochs(_history(self, stage, epochs), trained)

    def checkpoint(self, stage: str) -> Path:
        """The checkpoint file of one stage; the seed separates the networks of a run."""
        return self.folder / f"checkpoint-{stage}-{self.config.seed}.npz"


@dataclass(frozen=True, slots=True, kw_only=True)
class StageEpoch(Epoch):
    """A row of `history.csv`: an epoch of one stage (`head`, `network`) of one seed's network.

    Examples:
        >>> epoch = run.history[0]
        >>> epoch.stage, epoch.epoch, 0 <= epoch.val_accuracy <= 1
        ('head', 0, True)
    """

    seed: int
    stage: str


@dataclass(frozen=True, slots=True)
class Pooled:
    """Pooled features of a frozen backbone: the rows of `Trained.kept`, and their extractor."""

    table: FeatureTable
    extractor: Extractor


@dataclass(frozen=True, slots=True)
class Trained:
    """One trained network.

    Attributes:
        network: for inference, with its sigmoid, float32.
        kept: positions in `Job.train` of the images used for training.
        refused: errors of the images of train and of val that were not used.
        warned: number of images of train and of val per kind of warning.
        history: epochs of all stages, in order.
        best: index in `history` of the epoch whose weights were kept.
        pooled: features of the training images, where the backbone was not trained.
    """

    network: Any
    kept: tuple[int, ...]
    refused: Mapping[str, tuple[ImageRefusedError, ...]]
    history: tuple[StageEpoch, ...]
    best: int
    pooled: Pooled | None = None
    warned: Mapping[str, Counter[str]] = field(default_factory=dict)

    @property
    def last_stage_epochs(self) -> int:
        """Number of epochs of the last stage, which `[fit]` describes."""
        return sum(epoch.stage == self.history[-1].stage for epoch in self.history)


def train_network(job: Job) -> Trained:
    """Train one network by the recipe `job.config.recipe`.

    Raises:
        DataError: a class is missing from train or val.
        UsageError: settings contradict each other, or the step size is too large.
        OSError: the cache or a checkpoint can't be written.
    """
    return _RECIPES[job.config.recipe](job)


def _frozen(job: Job) -> Trained:
    extractor, tables, head = _trained_head(job, job.config.fit)
    network = build_network(job.backbone, architecture(job.config), head.weights)
    history = _history(job, "head", head.history)
    pooled = Pooled(tables["train"], extractor)
    kept = tables["train"].kept
    return Trained(
        network, kept, _refused(tables), history, head.best, pooled, warned=_warned(tables)
    )


def _finetune(job: Job) -> Trained:
    """Train the head alone by the frozen recipe, then the head and the unfrozen blocks."""
    config = job.config
    own = ("batch_size", "class_weights", "dropout", "hidden_units")
    first = replace(
        RECIPES["frozen"].fit,
        epochs=config.finetune.head_epochs,
        **{name: getattr(config.fit, name) for name in own},
    )
    _, tables, head = _trained_head(job, first)
    history = _history(job, "head", head.history)
    if config.finetune.unfreeze == "all":
        sizes = ScratchConfig(sizes=(config.preprocess.size,), shares=(1.0,))
        tables, fitted = _train_end_to_end(job, sizes, head.weights, tuned=True)
    else:
        boundary = find_boundary(job.backbone, config.finetune.unfreeze)
        tables, fitted = _train_last_blocks(job, boundary, head.weights)
    network = _for_inference(job, fitted)
    best = len(history) + fitted.best
    history += _history(job, "network", fitted.history)
    kept = tables["train"].kept
    return Trained(network, kept, _refused(tables), history, best, warned=_warned(tables))


def _scratch(job: Job) -> Trained:
    config = job.config
    head = head_of(config.weights, config.fit.hidden_units) if config.scratch.keep_head else None
    tables, fitted = _train_end_to_end(job, config.scratch, head, tuned=False)
    network = _for_inference(job, fitted)
    history = _history(job, "network", fitted.history)
    kept = tables["train"].kept
    return Trained(network, kept, _refused(tables), history, fitted.best, warned=_warned(tables))


def _for_inference(job: Job, fitted: Fitted) -> Any:
    """The inference network: the job's trained backbone with the fitted head."""
    head = HeadWeights(*fitted.weights[-4:])
    return build_network(job.backbone, architecture(job.config), head)


_RECIPES: Mapping[str, Callable[[Job], Trained]] = MappingProxyType(
    {"frozen": _frozen, "finetune": _finetune, "scratch": _scratch}
)


def _trained_head(
    job: Job, config: FitConfig
) -> tuple[Extractor, dict[str, FeatureTable], TrainedHead]:
    ranges = partial(training_ranges, job.train, job.config.preprocess, job.cache)
    extractor = frozen_extractor(job.backbone, None, job.config.features, ranges)
    tables = _tables(job, job.config.views, extractor, job.config.preprocess)
    parts = [LabelledFeatures(tables[s], _labels(job, s, tables[s])) for s in ("train", "val")]
    head = train_head(
        parts[0],
        parts[1],
        architecture(job.config),
        config,
        job.config.seed,
        job.score,
        job.checkpoint("head"),
        job.progress,
        job.listener("head"),
    )
    return extractor, tables, head


def _train_last_blocks(
    job: Job, boundary: str, head: HeadWeights
) -> tuple[dict[str, FeatureTable], Fitted]:
    """Train the layers behind `boundary`; the job's backbone receives their weights."""
    config = job.config
    extractor = frozen_extractor(job.backbone, boundary, config.features)
    tables = _tables(job, config.views, extractor, config.preprocess)
    with arithmetic(config.fit.precision):
        body = trainable_copy(
            job.backbone, config.backbone, config.preprocess.size, train_statistics=False
        )
        network = with_head(build_tail(body, boundary), architecture(job.config), config.seed)
    _set_head(network, head)
    parts = [LabelledFeatures(tables[s], _labels(job, s, tables[s])) for s in ("train", "val")]
    tuning = config.finetune
    factors = step_factors(network, job.backbone, tuning.backbone_rate, tuning.depth_decay)
    schedule = build_finetuning_schedule(network, parts[0], parts[1], config, factors)
    fitted = _fitted(job, schedule, tables)
    network.set_weights(fitted.weights)
    job.backbone.set_weights(body.get_weights())
    return tables, fitted


def _train_end_to_end(
    job: Job, sizes: ScratchConfig, head: HeadWeights | None, *, tuned: bool
) -> tuple[dict[str, FeatureTable], Fitted]:
    """Train every layer from pixels.

    Args:
        job: the run.
        sizes: image sizes.
        head: the head to start from; `None` for a new one.
        tuned: as `finetune` does it: batch statistics stay, and earlier layers take smaller steps.
    """
    check_sizes(sizes)
    config = job.config
    side = stored_side(max(sizes.sizes), cut=config.distort.reframe > 0)
    stored = replace(config.preprocess, size=side)
    tables = _tables(job, 1, SquareExtractor(side), stored)
    with arithmetic(config.fit.precision):
        body = trainable_copy(job.backbone, config.backbone, None, train_statistics=not tuned)
        if sizes.train_from:
            freeze_before(body, sizes.train_from)
        network = with_head(body, architecture(job.config), config.seed)
    if head is not None:
        _set_head(network, head)
    tuning = config.finetune
    rates = tuning.backbone_rate, tuning.depth_decay
    factors = step_factors(network, job.backbone, *rates) if tuned else {}
    lungs = _lungs(job, stored)
    train, val = (
        Squares(tables[s], _labels(job, s, tables[s]), _subtypes(job, s, tables[s]), lungs.get(s))
        for s in ("train", "val")
    )
    with arithmetic(config.fit.precision):
        teachers = load_teachers(config.teachers)
    schedule = build_phase_schedule(network, (train, val), config, sizes, factors, teachers)
    fitted = _fitted(job, schedule, tables)
    job.backbone.set_weights(fitted.weights[:-4])
    return tables, fitted


def _set_head(network: Any, head: HeadWeights) -> None:
    """Set the head of a model made by `with_head`."""
    arrays = [head.hidden_kernel, head.hidden_bias, head.output_kernel, head.output_bias]
    network.get_layer("head").set_weights(arrays)


def _fitted(job: Job, schedule: Any, tables: Mapping[str, FeatureTable]) -> Fitted:
    labels = {split: _labels(job, split, tables[split]) for split in ("train", "val")}
    return fit(
        schedule,
        labels["train"],
        labels["val"],
        job.config.fit,
        job.score,
        job.checkpoint("network"),
        _origin(job, schedule.network, tables, labels),
        job.progress,
        job.listener("network"),
    )


def _origin(
    job: Job, network: Any, tables: Mapping[str, FeatureTable], labels: Mapping[str, Any]
) -> str:
    """SHA-256 over all that affects training: data, settings, initial weights."""
    settings = asdict(job.config)
    for unused in ("provenance", "threshold", "interval", "seeds"):
        del settings[unused]
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    digest.update(weights_digest(network).encode())
    for folder in map(teacher_folder, job.config.teachers):
        digest.update(bundle_files.manifest_digest(folder).encode())
    for split, table in tables.items():
        digest.update(table.fingerprint().encode())
        digest.update(labels[split].astype("<i8").tobytes())
    return digest.hexdigest()


def _tables(
    job: Job, views: int, extractor: Extractor, preprocess: PreprocessConfig
) -> dict[str, FeatureTable]:
    """Rows of val (un-augmented) and of train (`views` views), computed by `extractor`."""
    return {
        split: compute_features(
            records,
            Views(count, job.config.augment, job.config.seed),
            preprocess,
            extractor,
            job.cache,
            job.progress,
        )
        for split, records, count in (("val", job.val, 1), ("train", job.train, views))
    }


def _lungs(job: Job, stored: PreprocessConfig) -> dict[str, FeatureTable]:
    """Lung masks of the training images, if the configuration needs them."""
    if not needs_lungs(job.config):
        return {}
    views = Views(1, job.config.augment, job.config.seed)
    extractor = LungExtractor(stored.size)
    table = compute_features(job.train, views, stored, extractor, job.cache, job.progress)
    return {"train": table}


def _labels(job: Job, split: str, table: FeatureTable) -> Any:
    records = job.train if split == "train" else job.val
    return np.array([records[k].label for k in table.kept], np.int64)


def _subtypes(job: Job, split: str, table: FeatureTable) -> Any:
    codes = subtype_codes(job.train if split == "train" else job.val)
    return codes[list(table.kept)]


def _refused(tables: Mapping[str, FeatureTable]) -> dict[str, tuple[ImageRefusedError, ...]]:
    return {split: table.refused for split, table in tables.items()}


def _warned(tables: Mapping[str, FeatureTable]) -> dict[str, Counter[str]]:
    return {split: table.warned for split, table in tables.items()}


def _history(job: Job, stage: str, epochs: Sequence[Epoch]) -> tuple[StageEpoch, ...]:
    seed = job.config.seed
    return tuple(StageEpoch(**asdict(epoch), seed=seed, stage=stage) for epoch in epochs)
