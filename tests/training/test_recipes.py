"""Each recipe trains the layers it should and leaves the others unchanged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pneumoscope.config import (
    FinetuneConfig,
    FitConfig,
    PreprocessConfig,
    ScratchConfig,
    TrainConfig,
)
from pneumoscope.data.index import index
from pneumoscope.errors import Reason, UsageError
from pneumoscope.evaluation.metrics import auc
from pneumoscope.graph.archive import read_network
from pneumoscope.graph.bundle_files import Architecture
from pneumoscope.images.lungs import find_lungs
from pneumoscope.images.phantom.folder import write_phantoms
from pneumoscope.images.preprocess import Preprocessor
from pneumoscope.images.read import read_image
from pneumoscope.records import Dataset
from pneumoscope.storage import sha256_of_file
from pneumoscope.training import recipes
from pneumoscope.training.backbones import build_backbone
from pneumoscope.training.end_to_end import build_phase_schedule
from pneumoscope.training.network import (
    build_tail,
    initialise_randomly,
    step_factors,
    trainable_copy,
    with_head,
)
from pneumoscope.training.recipes import Job, Trained, architecture, train_network
from pneumoscope.training.weights import head_of
from support.heads import BOUNDARIES
from support.small_bundle import UNITS, small_bundle
from support.small_network import small_network

Weights = dict[str, list[np.ndarray]]

CONFIG = TrainConfig(
    views=2,
    preprocess=PreprocessConfig(size=32),
    fit=FitConfig(epochs=2, batch_size=8, learning_rate=3e-3, hidden_units=16),
    finetune=FinetuneConfig(head_epochs=3),
    scratch=ScratchConfig(sizes=(32, 48), shares=(0.5, 0.5)),
)
BLOCKS = ("conv1", "conv2", "conv3", "conv4", "conv5")


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    with small_network():
        yield


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recipes")


@pytest.fixture(scope="module")
def phantoms(shared: Path) -> Dataset:
    return index(write_phantoms(shared / "phantoms", 40, 1, size=64))


def backbone_for(config: TrainConfig) -> Any:
    backbone = build_backbone(config.preprocess.size)
    initialise_randomly(backbone, 0)
    return backbone


def job_for(phantoms: Dataset, folder: Path, config: TrainConfig) -> Job:
    train, val = phantoms.subset("train").records, phantoms.subset("val").records
    folder.mkdir(exist_ok=True)
    backbone = backbone_for(config)
    return Job(train, val, config, backbone, folder.parent / "cache", folder, auc)


def weights_of(model: Any) -> Weights:
    """Weights per layer of the backbone, by name."""
    return {
        layer.name: layer.get_weights()
        for layer in model.layers
        if layer.weights and not layer.name.startswith("head")
    }


@dataclass(frozen=True)
class Run:
    config: TrainConfig
    folder: Path
    before: Weights
    trained: Trained

    @property
    def after(self) -> Weights:
        return weights_of(self.trained.network)

    def changed(self) -> set[str]:
        """Names of the layers whose weights changed."""
        return {
            name
            for name, arrays in self.before.items()
            if any((a != b).any() for a, b in zip(arrays, self.after[name], strict=True))
        }


@pytest.fixture(scope="module")
def run_of(shared: Path, phantoms: Dataset, small: None) -> Callable[[str], Run]:
    """A recipe's run by name, trained once."""
    runs: dict[str, Run] = {}

    def get(name: str) -> Run:
        if name not in runs:
            recipe: Any = name if name in ("frozen", "scratch") else "finetune"
            config = replace(CONFIG, recipe=recipe)
            if recipe == "finetune":
                unfreeze: Any = name
                config = replace(config, finetune=replace(CONFIG.finetune, unfreeze=unfreeze))
            job = job_for(phantoms, shared / name, config)
            before = weights_of(job.backbone)
            runs[name] = Run(config, job.folder, before, train_network(job))
        return runs[name]

    return get


def batch_norms(names: set[str]) -> set[str]:
    return {name for name in names if name.endswith("bn")}


def test_frozen_trains_the_head_alone(run_of: Callable[[str], Run]) -> None:
    run = run_of("frozen")
    assert run.changed() == set()
    assert [(row.seed, row.stage, row.epoch) for row in run.trained.history] == [
        (0, "head", 0),
        (0, "head", 1),
    ]


@pytest.mark.parametrize(
    ("unfreeze", "trained", "transitions"),
    [
        ("conv5", BLOCKS[4:], ()),
        ("conv4", BLOCKS[3:], ("pool4",)),
        ("all", BLOCKS, ("pool2", "pool3", "pool4")),
    ],
)
def test_finetune_changes_the_kernels_from_its_block_on_and_nothing_else(
    run_of: Callable[[str], Run],
    unfreeze: str,
    trained: tuple[str, ...],
    transitions: tuple[str, ...],
) -> None:
    run = run_of(unfreeze)
    kernels = {name for name in run.before if name.endswith("conv")}
    wanted = {name for name in kernels if name.startswith((*trained, *transitions))}
    assert len(wanted) >= 2
    assert run.changed() == wanted
    # So neither scale nor moving statistics of any batch normalisation, frozen or not, changed.
    assert len(batch_norms(set(run.before))) > 10


def test_the_first_stage_of_finetune_has_the_batches_and_weights_of_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class StopError(Exception):
        pass

    given: list[FitConfig] = []

    def instead(job: Job, fit: FitConfig) -> Any:
        given.append(fit)
        raise StopError

    monkeypatch.setattr(recipes, "_trained_head", instead)
    fit = replace(CONFIG.fit, class_weights=False)
    job = Job((), (), replace(CONFIG, recipe="finetune", fit=fit), None, tmp_path, tmp_path, auc)
    with pytest.raises(StopError):
        train_network(job)
    (first,) = given
    assert (first.batch_size, first.class_weights, first.hidden_units) == (8, False, 16)
    assert (first.epochs, first.learning_rate) == (3, TrainConfig().fit.learning_rate)


@pytest.mark.parametrize("unfreeze", ["conv5", "conv4", "all"])
def test_finetune_has_two_stages_and_keeps_an_epoch_of_the_second(
    run_of: Callable[[str], Run], unfreeze: str
) -> None:
    trained = run_of(unfreeze).trained
    stages = [(row.stage, row.epoch) for row in trained.history]
    assert stages == [("head", 0), ("head", 1), ("head", 2), ("network", 0), ("network", 1)]
    assert trained.history[trained.best].stage == "network"


def test_scratch_trains_everything_statistics_too(run_of: Callable[[str], Run]) -> None:
    run = run_of("scratch")
    assert run.changed() == set(run.before)
    for name in batch_norms(set(run.before)):
        for before, after in zip(run.before[name], run.after[name], strict=True):
            assert (before != after).any(), name
    assert [(row.stage, row.epoch) for row in run.trained.history] == [
        ("network", 0),
        ("network", 1),
    ]


@pytest.mark.parametrize("name", ["conv5", "conv4", "all", "scratch"])
def test_the_network_for_inference_has_the_kept_weights(
    run_of: Callable[[str], Run], phantoms: Dataset, name: str
) -> None:
    """The assembled network gives the validation scores of the trained one."""
    run = run_of(name)
    kept = run.trained.history[run.trained.best]
    # `finetune` from a boundary uses the same images as inference, as float16 activations.
    # The other epoch's loss is 1.4 times as large.
    if name in BOUNDARIES:
        records = phantoms.subset("val").records
        preprocessor = Preprocessor(run.config.preprocess)
        images = np.stack([preprocessor(read_image(record.path).pixels) for record in records])
        found = np.asarray(run.trained.network.predict_on_batch(images))[:, 0]
        labels = np.array([record.label for record in records])
        counts = np.bincount(labels)
        weights = (len(run.trained.kept) / 2) / np.bincount(
            [phantoms.subset("train").records[k].label for k in run.trained.kept]
        )
        assert counts.all()
        losses = -np.log(np.where(labels == 1, found, 1 - found).astype(np.float64))
        assert float(np.mean(losses * weights[labels])) == pytest.approx(kept.val_loss, rel=1e-2)
    with np.load(run.folder / "checkpoint-network-0.npz") as saved:
        names = sorted((n for n in saved.files if n.startswith("best")), key=lambda n: int(n[4:]))
        best = [saved[n] for n in names]
    mine = run.trained.network.get_weights()
    for wanted, found in zip(best[::-1], mine[::-1], strict=False):  # a tail has fewer: from behind
        np.testing.assert_array_equal(found, wanted)


def test_deeper_blocks_take_smaller_steps() -> None:
    tuning = FinetuneConfig(unfreeze="all", backbone_rate=0.2, depth_decay=0.5)
    config = replace(CONFIG, recipe="finetune", finetune=tuning)
    backbone = backbone_for(config)
    body = trainable_copy(backbone, "densenet121", None, train_statistics=False)
    network = with_head(body, architecture(config), 0)
    factors = step_factors(network, backbone, 0.2, 0.5)
    kernels = {name.split("/")[0]: factor for name, factor in factors.items()}
    assert kernels == pytest.approx(
        {
            "conv5_block1_1_conv": 0.2,
            "conv5_block1_2_conv": 0.2,
            "pool4_conv": 0.1,
            "conv4_block1_1_conv": 0.1,
            "conv4_block1_2_conv": 0.1,
            "pool3_conv": 0.05,
            "conv3_block1_1_conv": 0.05,
            "conv3_block1_2_conv": 0.05,
            "pool2_conv": 0.025,
            "conv2_block1_1_conv": 0.025,
            "conv2_block1_2_conv": 0.025,
            "conv1_conv": 0.0125,
        }
    )
    # All except the head's four, which have no factor and take the full step.
    free = {v.path for v in network.trainable_variables} - set(factors)
    assert len(free) == len(network.get_layer("head").trainable_variables) == 4


def test_a_tail_knows_the_blocks_by_the_same_names() -> None:
    tuning = FinetuneConfig(unfreeze="conv4", backbone_rate=0.1, depth_decay=0.3)
    config = replace(CONFIG, recipe="finetune", finetune=tuning)
    backbone = backbone_for(config)
    body = trainable_copy(backbone, "densenet121", 32, train_statistics=False)
    network = with_head(build_tail(body, BOUNDARIES["conv4"]), architecture(config), 0)
    factors = step_factors(network, backbone, 0.1, 0.3)
    assert {name[:5]: factor for name, factor in factors.items()} == pytest.approx(
        {"conv5": 0.1, "pool4": 0.03, "conv4": 0.03}
    )


def test_a_backbone_that_takes_no_steps_stays(phantoms: Dataset, shared: Path) -> None:
    """In training too, factors apply to the backbone only."""
    tuning = FinetuneConfig(head_epochs=1, backbone_rate=0.0)
    config = replace(CONFIG, recipe="finetune", finetune=tuning)
    config = replace(config, fit=replace(CONFIG.fit, epochs=1))
    job = job_for(phantoms, shared / "still", config)
    before = weights_of(job.backbone)
    trained = train_network(job)
    for name, arrays in weights_of(trained.network).items():
        for found, wanted in zip(arrays, before[name], strict=True):
            np.testing.assert_array_equal(found, wanted)
    head, network = trained.history
    assert head.loss != network.loss


def test_scratch_can_go_on_from_the_head_of_a_bundle(phantoms: Dataset, shared: Path) -> None:
    bundle = small_bundle(shared / "bundle", size=32)
    sizes = replace(CONFIG.scratch, keep_head=True)
    fit = replace(CONFIG.fit, epochs=2, hidden_units=UNITS, learning_rate=1e-12)
    config = replace(CONFIG, recipe="scratch", scratch=sizes, fit=fit)
    config = replace(config, weights=str(bundle.folder))
    trained = train_network(job_for(phantoms, shared / "goes on", config))
    before, after = (
        np.concatenate([np.ravel(w) for n in ("head_hidden", "head_probability") for w in each(n)])
        for each in (
            read_network(bundle.weights[0], bundle.manifest.architecture).of,
            lambda name: trained.network.get_layer(name).get_weights(),
        )
    )
    np.testing.assert_allclose(after, before, atol=1e-6)
    assert np.ptp(before) > 0
    for nowhere in ("none", "imagenet"):
        with pytest.raises(UsageError, match="names no bundle, so it has no head"):
            head_of(nowhere, UNITS)
    with pytest.raises(UsageError, match=rf"has {UNITS} hidden units, wanted 16\."):
        head_of(str(bundle.folder), 16)


def test_scratch_can_train_the_last_layers_alone(phantoms: Dataset, shared: Path) -> None:
    sizes = replace(CONFIG.scratch, train_from="pool3_pool")
    fit = replace(CONFIG.fit, epochs=1)
    config = replace(CONFIG, recipe="scratch", scratch=sizes, fit=fit)
    job = job_for(phantoms, shared / "last layers", config)
    before = weights_of(job.backbone)
    after = weights_of(train_network(job).network)
    changed = {
        name
        for name, arrays in before.items()
        if any(not np.array_equal(a, b) for a, b in zip(arrays, after[name], strict=True))
    }
    behind = {name for name in before if name.startswith(("conv4", "pool4", "conv5", "bn"))}
    assert changed == behind
    assert before.keys() > behind
    wrong = replace(sizes, train_from="conv4_block1_1_conv")
    job = job_for(phantoms, shared / "wrong layer", replace(config, scratch=wrong))
    with pytest.raises(UsageError, match=r"found 'conv4_block1_1_conv'.*, pool4_pool, "):
        train_network(job)


def test_the_same_seed_gives_the_same_weights_and_another_one_others(
    run_of: Callable[[str], Run], phantoms: Dataset, shared: Path
) -> None:
    run = run_of("conv5")
    for seed in (0, 1):
        config = replace(run.config, seed=seed)
        again = train_network(job_for(phantoms, shared / f"seed-{seed}", config))
        pairs = zip(again.network.get_weights(), run.trained.network.get_weights(), strict=True)
        assert all(np.array_equal(a, b) for a, b in pairs) == (seed == 0)
        assert {row.seed for row in again.history} == {seed}


def test_a_finished_run_is_not_trained_again(
    run_of: Callable[[str], Run], phantoms: Dataset
) -> None:
    run = run_of("scratch")
    again = train_network(job_for(phantoms, run.folder, run.config))
    assert again.history == run.trained.history  # seconds too: no epoch ran


@pytest.mark.parametrize("recipe", ["finetune", "scratch"])
def test_images_that_cant_be_read_are_left_out_with_their_labels(
    phantoms: Dataset,
    shared: Path,
    tmp_path: Path,
    recipe: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown = []

    def seen(network: Any, parts: Any, *others: Any) -> Any:
        shown.append(parts[0])
        return build_phase_schedule(network, parts, *others)

    monkeypatch.setattr(recipes, "build_phase_schedule", seen)
    records = list(phantoms.subset("train").records)
    text = tmp_path / "text.png"
    text.write_bytes(b"no image")
    first = replace(records[0], path=text, sha256=sha256_of_file(text))
    config = replace(CONFIG, recipe=recipe, fit=replace(CONFIG.fit, epochs=1))
    config = replace(config, scratch=ScratchConfig(sizes=(32,), shares=(1.0,)))
    # Lungs are found on the same images.
    config = replace(config, distort=replace(config.distort, surround=0.5))
    job = job_for(phantoms, shared / f"unreadable-{recipe}", config)
    trained = train_network(replace(job, train=[first, *records[1:]]))
    assert trained.kept == tuple(range(1, len(records)))
    assert [error.reason for error in trained.refused["train"]] == [Reason.NOT_AN_IMAGE]
    assert trained.refused["val"] == ()
    for train in shown:  # of `scratch`: each image with its own lungs
        rows = np.arange(len(records) - 1)
        side = train.take(rows[:1], 64).shape[1]
        found = find_lungs(train.take(rows, side)[3].astype(np.float32) / np.float32(255))
        assert found.quality >= 0.5
        assert ((train.take_lungs(rows, side)[3] == 3) == found.mask).mean() > 0.95
    assert len(shown) == (recipe == "scratch")


def test_sizes_that_make_no_sense_are_reported_before_the_work(
    phantoms: Dataset, tmp_path: Path
) -> None:
    config = replace(CONFIG, recipe="scratch", scratch=ScratchConfig(sizes=(32, 48)))
    job = job_for(phantoms, tmp_path / "run", config)
    with pytest.raises(UsageError, match=r"scratch\.shares: found .*, wanted 2 positive numbers"):
        train_network(job)
    assert not list((tmp_path / "cache").rglob("*.npy"))


def test_the_architecture_is_the_settings() -> None:
    fit = replace(CONFIG.fit, dropout=0.3, hidden_units=77)
    found = architecture(replace(CONFIG, fit=fit, preprocess=PreprocessConfig(size=96)))
    assert found == Architecture("densenet121", 96, 0.3, 77)
