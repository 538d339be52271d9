"""Lung guidance and distillation: heatmaps in the graph, and each loss by its definition."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pneumoscope.config import (
    DistortConfig,
    FitConfig,
    GuidanceConfig,
    PreprocessConfig,
    ScratchConfig,
    TrainConfig,
)
from pneumoscope.graph.bundle_files import Architecture
from pneumoscope.training.backbones import build_backbone
from pneumoscope.training.background import lung_masks
from pneumoscope.training.batch_augmentation import build_batch_augmentation
from pneumoscope.training.end_to_end import Squares, build_phase_schedule, stored_side
from pneumoscope.training.features import KEY_BYTES, ArrayStore, FeatureTable
from pneumoscope.training.guidance import Teacher, guided, heatmap_of
from pneumoscope.training.loop import fit
from pneumoscope.training.network import initialise_randomly, with_head
from pneumoscope.training.runtime import load_keras
from support.small_network import small_network

STILL = DistortConfig(
    **dict.fromkeys(
        (
            "contrast",
            "gamma",
            "brightness",
            "shading",
            "blur",
            "jpeg",
            "noise",
            "frame",
            "marker",
            "erasing",
        ),
        0.0,
    )
)


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    with small_network():
        yield


def network_of(seed: int) -> Any:
    backbone = build_backbone(None)
    initialise_randomly(backbone, seed)
    backbone.trainable = True
    return with_head(backbone, Architecture(), seed)


def seen_by(network: Any) -> Any:
    """A model from images to logits, features, their mean and the heatmap."""
    keras = load_keras()
    pool = network.get_layer("pool")
    hidden, output = network.get_layer("head").layers[-2:]
    heatmap = heatmap_of(pool.input, pool.output, hidden, output)
    return keras.Model(network.input, [network.output, pool.input, pool.output, heatmap])


def test_the_heatmap_is_the_gradient_by_its_definition() -> None:
    network = network_of(1)
    images = np.random.default_rng(0).normal(size=(3, 64, 64, 3)).astype(np.float32)
    _, features, pooled, heatmap = (np.asarray(x) for x in seen_by(network).predict(images))
    hidden, output = network.get_layer("head").layers[-2:]
    kernel, bias = hidden.get_weights()
    last = output.get_weights()[0][:, 0]
    for k in range(3):
        gradient = np.zeros(pooled.shape[1])
        for unit in range(kernel.shape[1]):
            if pooled[k] @ kernel[:, unit] + bias[unit] > 0:
                gradient += kernel[:, unit] * last[unit]
        wanted = np.maximum((features[k] * gradient).sum(-1), 0)
        np.testing.assert_allclose(heatmap[k], wanted, rtol=1e-3, atol=1e-5)
    assert heatmap.max() > 0


def losses_of(config: GuidanceConfig, **inputs: np.ndarray) -> float:
    """The loss that `guided` adds to constant logits and heatmaps."""
    keras = load_keras()
    given = {name: keras.Input(each.shape[1:], name=name) for name, each in inputs.items()}
    taught = [(given["z"], given["m"])] if "z" in given else []
    out = guided(
        given["logits"],
        given["heatmap"],
        config,
        given.get("pneumonia"),
        lungs=given.get("lungs"),
        taught=taught,
        judged=given.get("judged"),
    )
    model = keras.Model(given, out)
    result = np.asarray(model(inputs, training=True))
    np.testing.assert_array_equal(result, inputs["logits"])
    total = float(sum(float(np.asarray(each)) for each in model.losses))
    model(inputs, training=False)
    assert not model.losses
    return total


def test_energy_outside_the_lungs_costs_its_share() -> None:
    heatmap = np.zeros((4, 2, 2), np.float32)
    heatmap[:, 0, 0], heatmap[:, 1, 1] = 30.0, 10.0
    lungs = np.zeros((4, 8, 8), np.float32)
    lungs[:3, :4, :4] = 1.0  # the first cell; the fourth image has no known lungs
    pneumonia = np.array([[1.0], [0.0], [0.5], [1.0]], np.float32)
    found = losses_of(
        GuidanceConfig(lungs=2.0),
        logits=np.ones((4, 1), np.float32),
        heatmap=heatmap,
        lungs=lungs,
        pneumonia=pneumonia,
    )
    wanted = 2.0 * (0.25 + 0.0 + 0.125 + 0.0) / 4
    assert found == pytest.approx(wanted, rel=1e-3)


def test_a_teacher_costs_what_it_is_apart_from() -> None:
    logits, z = np.array([[0.3], [-1.0]], np.float32), np.array([[2.0], [-0.5]], np.float32)
    heatmap, m = np.zeros((2, 2, 2), np.float32), np.zeros((2, 4, 4), np.float32)
    heatmap[:, 0, 0] = 5.0
    m[:, :2, :2], m[:, 2:, 2:] = 3.0, 1.0
    pneumonia, judged = np.array([[1.0], [0.25]], np.float32), np.ones((2, 1), np.float32)
    given = {"logits": logits, "heatmap": heatmap, "pneumonia": pneumonia, "z": z, "m": m}
    given["judged"] = judged
    target, student = 1 / (1 + np.exp(-z)), 1 / (1 + np.exp(-logits))
    config = GuidanceConfig(teacher=0.75, teacher_maps=0.0)

    def apart(wanted: np.ndarray) -> float:
        return float(-(wanted * np.log(student) + (1 - wanted) * np.log(1 - student)).mean())

    assert losses_of(config, **given) == pytest.approx(3.0 * apart(target), rel=1e-4)
    maps = losses_of(replace(config, teacher_maps=0.4), **given) - losses_of(config, **given)
    assert maps == pytest.approx(0.4 * (2 * 0.25 * target).mean(), rel=2e-3)
    given["judged"] = np.zeros((2, 1), np.float32)  # changed backgrounds: the label alone teaches
    assert losses_of(config, **given) == pytest.approx(3.0 * apart(pneumonia), rel=1e-4)
    assert losses_of(replace(config, teacher_maps=0.4), **given) == losses_of(config, **given)


def test_masks_move_as_images_do() -> None:
    generator = np.random.default_rng(3)
    squares = (255 * (generator.random((6, 40, 40)) > 0.5)).astype(np.uint8)
    layer = build_batch_augmentation(replace(STILL, crop_most=1.0), 32, 0)
    images, masks = (np.asarray(x) for x in layer([squares, squares], training=True))
    np.testing.assert_allclose(np.abs(images - masks).mean(), 0.0, atol=0.02)
    assert masks.shape == (6, 32, 32)
    assert 0.2 < masks.mean() < 0.8
    assert np.asarray(layer(squares, training=True)).shape == (6, 32, 32)
    assert lung_masks(np.array([0, 2, 3], np.uint8)).tolist() == [0, 128, 255]


def parts_of(folder: Path, side: int) -> tuple[Squares, Squares]:
    """Images of pneumonia are bright in the lung and, as a shortcut, in the corner."""
    found = []
    for split, count in (("train", 64), ("val", 32)):
        generator = np.random.default_rng(count)
        labels = np.arange(count) % 2
        pixels = generator.integers(60, 120, (count, side, side)).astype(np.uint8)
        lungs = np.zeros((count, side, side), np.uint8)
        lungs[:, side // 8 : side // 2, side // 8 : side // 2] = 3
        for k in np.flatnonzero(labels):
            pixels[k][lungs[k] > 0] += 100
            pixels[k, -side // 5 :, -side // 5 :] += 100
        tables = []
        for name, values in (("images", pixels), ("lungs", lungs)):
            store = ArrayStore(folder / split / name, "u1", (side, side))
            keys = [f"{name}-{k}".encode().ljust(KEY_BYTES) for k in range(count)]
            store.add(keys, values)
            rows = tuple((key,) for key in keys)
            tables.append(FeatureTable(store, rows, tuple(range(count)), ()))
        found.append(Squares(tables[0], labels, np.full(count, -1), tables[1]))
    return found[0], found[1]


@pytest.mark.parametrize(
    ("changes", "swapped_too", "share"),
    [
        ({"mix": 0.4}, False, 1),
        ({"surround": 1.0}, False, 0),
        ({"surround": 1.0}, True, 1),
        ({"silence": 1.0}, True, 0),
        ({"surround": 0.5, "mix": 0.4}, False, 0.25),
        ({"surround": 0.5, "silence": 0.5, "mix": 0.4}, True, 0.25),
    ],
)
def test_teachers_judge_views_of_unchanged_images_and_swapped_ones_if_configured(
    changes: dict[str, float], swapped_too: bool, share: float, tmp_path: Path
) -> None:
    """Of two mixed images, both must be judged. Views with hidden lungs never are."""
    keras = load_keras()
    config = TrainConfig(
        preprocess=PreprocessConfig(size=64),
        fit=FitConfig(epochs=1, batch_size=16),
        distort=replace(STILL, **changes),
        guidance=GuidanceConfig(teach_swapped=swapped_too),
    )
    images = keras.Input((64, 64, 3))
    flat = keras.layers.GlobalAveragePooling2D()(images)
    heatmap = keras.layers.Lambda(lambda x: x[..., 0])(images)
    teacher = Teacher(
        keras.Model(images, [keras.layers.Dense(1)(flat), heatmap]), config.preprocess
    )
    sizes = ScratchConfig(sizes=(64,), shares=(1.0,))
    parts = parts_of(tmp_path, stored_side(64))
    schedule = build_phase_schedule(network_of(0), parts, config, sizes, {}, (teacher,))
    phase = schedule.phase(0)
    judged = np.concatenate([inputs["judged"] for k in range(25) for inputs, _ in phase.batches(k)])
    assert judged.shape == (25 * 64, 1)
    assert judged.mean() == pytest.approx(share, abs=0.08 if 0 < share < 1 else 0)


def test_guided_training_points_at_the_lungs_and_a_student_follows_its_teacher(
    tmp_path: Path,
) -> None:
    side = stored_side(64)
    parts = parts_of(tmp_path, side)
    config = TrainConfig(
        preprocess=PreprocessConfig(size=64, normalisation="standardise"),
        fit=FitConfig(
            epochs=14, batch_size=16, learning_rate=3e-3, schedule="constant", keep="last"
        ),
        distort=replace(STILL, crop_least=0.9, crop_most=1.0, aspect=0.0, rotation=0.0, flip=0.0),
    )
    sizes = ScratchConfig(sizes=(64,), shares=(1.0,))
    images = np.repeat(
        parts[1].take(np.flatnonzero(parts[1].labels), 64)[..., None] / np.float32(255), 3, -1
    )
    images = (images - images.mean((1, 2), keepdims=True)) / images.std((1, 2), keepdims=True)

    def trained(name: str, config: TrainConfig, teachers: tuple[Teacher, ...] = ()) -> Any:
        network = network_of(0)
        plan = build_phase_schedule(network, parts, config, sizes, {}, teachers)
        labels = parts[0].labels, parts[1].labels
        done = fit(plan, *labels, config.fit, lambda *_: 0.5, tmp_path / name, "o")
        network.set_weights(done.weights)
        return network

    def inside(network: Any) -> float:
        heatmap = np.asarray(seen_by(network).predict(images)[3])
        return float((heatmap[:, 0, 0] / (heatmap.sum((1, 2)) + 1e-6)).mean())

    plain = trained("plain", config)
    guidance = GuidanceConfig(lungs=3.0)
    guided_network = trained("guided", replace(config, guidance=guidance))
    assert inside(guided_network) > max(inside(plain), 0.5) + 0.15

    keras = load_keras()
    whole = seen_by(guided_network)
    model = keras.Model(whole.input, [whole.outputs[0], whole.outputs[3]])
    model.trainable = False
    before = [w.copy() for w in model.get_weights()]
    teaching = replace(config, guidance=GuidanceConfig(teacher=0.9, teacher_maps=3.0))
    student = trained("student", teaching, (Teacher(model, config.preprocess),))
    assert inside(student) > inside(plain) + 0.1
    for one, two in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)
