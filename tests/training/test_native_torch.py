"""Native layers predict, learn and are stored as Keras' own, where it runs on Torch.

Keras takes one backend per process, so what needs Torch runs in a process of its own: this file
as a script, which prints what it found.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pneumoscope.training.network import initialise_randomly, with_native_layers
from pneumoscope.training.runtime import arithmetic, load_keras

pytestmark = pytest.mark.engines

SIZE = 64
NATIVE = {
    "Activation",
    "AveragePooling2D",
    "BatchNormalization",
    "Concatenate",
    "Conv2D",
    "MaxPooling2D",
    "ZeroPadding2D",
}

OTHERS = {"Add", "BatchNormalization", "Conv2D", "DepthwiseConv2D", "MaxPooling2D", "ReLU"}

on_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None,
    reason="torch is not installed: pip install torch",
)


@pytest.fixture(scope="module")
def told() -> dict[str, Any]:
    """The results of all parts, from a process in which Keras runs on Torch."""
    environment = os.environ | {
        "KERAS_BACKEND": "torch",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, sys.path)]),
    }
    done = subprocess.run(
        [sys.executable, __file__], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_on_other_backends_the_model_stays_as_it_is() -> None:
    keras = load_keras()
    if keras.backend.backend() == "torch":
        pytest.skip("Keras runs on Torch here")
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, keras.layers.Conv2D(2, 3)(inputs))
    assert with_native_layers(model) is model


@on_torch
@pytest.mark.parametrize(
    ("part", "layers"),
    [("inference", NATIVE), ("whole densenet", NATIVE), ("others", OTHERS)],
)
def test_predicts_as_keras_own_layers_do(told: dict[str, Any], part: str, layers: set[str]) -> None:
    found = told[part]
    assert found["replaced"] == sorted(layers)
    assert found["scale"] > 0.01
    assert found["difference"] <= 1e-5 * max(1.0, found["scale"])


@on_torch
def test_is_stored_as_keras_own_layers_are(told: dict[str, Any]) -> None:
    found = told["storage"]
    assert found["same paths"]
    assert found["same trainable"]
    assert found["copied"] == 0
    assert found["loaded"] == 0


@on_torch
@pytest.mark.parametrize(("precision", "most"), [("float32", 5e-4), ("float64", 1e-4)])
def test_learns_as_keras_own_layers_do(told: dict[str, Any], precision: str, most: float) -> None:
    """The remaining difference in double precision is a single-precision step of Keras."""
    found = told[f"gradients {precision}"]
    assert found["weights"] > 20
    assert found["smallest gradient"] > 0
    assert found["difference"] < most
    assert found["output"] < 1e-4
    assert found["moving mean"] < 1e-5
    # The only intended difference: the unbiased variance, n/(n - 1) times that of Keras.
    assert found["moving variance"] < 1e-4
    assert found["moved"] > 1e-3


@on_torch
def test_frozen_statistics_stay_frozen_while_the_rest_learns(told: dict[str, Any]) -> None:
    found = told["frozen statistics"]
    assert found["moved"] == 0
    assert found["difference"] < 1e-4
    assert found["without gradient"] == 0


@on_torch
def test_keeps_its_weights_in_float32_where_it_computes_in_bfloat16(told: dict[str, Any]) -> None:
    found = told["bfloat16"]
    assert found["variables"] == ["float32"]
    assert found["computes"] == "bfloat16"
    assert 0 < found["difference"] < 0.05 * found["scale"]


@on_torch
@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="needs Linux's list of instructions")
def test_auto_is_bfloat16_only_where_the_processor_gains_by_it(told: dict[str, Any]) -> None:
    about = Path("/proc/cpuinfo").read_text()
    gains = "amx_bf16" in about if "GenuineIntel" in about else "bf16" in about
    assert told["auto"] == ("mixed_bfloat16" if gains else "float32")


@on_torch
def test_gradients_do_not_add_up_beside_a_teacher_of_that_backbone(
    told: dict[str, Any],
) -> None:
    """With layers of the same names they do: Keras clears one of two weights of one name."""
    assert told["second step"] == pytest.approx(1.0, abs=1e-3)


# The parts, which run in that process.


def stand_in(statistics: bool = True) -> Any:
    """A small DenseNet with Keras' own layers, every weight of it random, statistics too."""
    from support.small_network import small_network

    with small_network():
        model = densenet(SIZE)
    randomise(model)
    for layer in model.layers:
        if type(layer).__name__ == "BatchNormalization":
            layer.trainable = statistics
    return model


def densenet(size: int | None) -> Any:
    return load_keras().applications.DenseNet121(
        include_top=False, weights=None, input_shape=(size, size, 3)
    )


def randomise(model: Any) -> None:
    initialise_randomly(model, 0)
    generator = np.random.default_rng(1)
    for layer in model.layers:
        weights = layer.get_weights()
        if len(weights) == 4:  # scale and mean about their usual, variance never near nothing
            near = [1.0, 0.0, 0.0, 1.0]
            noise = [0.2 * generator.uniform(-1, 1, w.shape).astype(np.float32) for w in weights]
            layer.set_weights([np.float32(n) + part for n, part in zip(near, noise, strict=True)])


def images(size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(2).standard_normal((6, size, size, 3)).astype(np.float32)


def as_array(tensor: Any) -> np.ndarray:
    return np.array(load_keras().ops.convert_to_numpy(tensor), np.float64)


def furthest(mine: Any, theirs: Any) -> float:
    """The largest difference between two lists of arrays."""
    return max(float(np.abs(a - b).max()) for a, b in zip(mine, theirs, strict=True))


def replaced(own: Any, native: Any) -> list[str]:
    """Keras' names of the layers that are another class in `native`."""
    pairs = zip(own.layers, native.layers, strict=True)
    return sorted({type(a).__name__ for a, b in pairs if type(a) is not type(b)})


def part_inference() -> dict[str, Any]:
    own = stand_in()
    native = with_native_layers(own)
    mine, theirs = (as_array(model(images())) for model in (native, own))
    return {
        "replaced": replaced(own, native),
        "scale": float(np.abs(theirs).mean()),
        "difference": furthest([mine], [theirs]),
    }


def part_whole_densenet() -> dict[str, Any]:
    own = densenet(None)
    initialise_randomly(own, 0)
    native = with_native_layers(own)
    mine, theirs = (as_array(model(images(32)[:2])) for model in (native, own))
    return {
        "replaced": replaced(own, native),
        "scale": float(np.abs(theirs).mean()),
        "difference": furthest([mine], [theirs]),
    }


def part_others() -> dict[str, Any]:
    """Edges that differ from side to side, groups, biases, strides, a clipped ReLU."""
    layers = load_keras().layers
    inputs = load_keras().Input((33, 30, 3))
    x = layers.Conv2D(8, 3, 2, padding="same", activation="relu")(inputs)
    x = layers.DepthwiseConv2D(5, 2, padding="same", depth_multiplier=2)(x)
    x = layers.ReLU(6.0)(layers.BatchNormalization(scale=False)(x))
    y = layers.Conv2D(16, 3, padding="same", groups=4, dilation_rate=2)(x)
    y = layers.DepthwiseConv2D(3, padding="valid")(layers.Add()([x, y * 0.5 + 3.0]))
    out = layers.MaxPooling2D(2, padding="same")(y)
    own = load_keras().Model(inputs, out)
    native = with_native_layers(own)
    batch = np.random.default_rng(2).standard_normal((4, 33, 30, 3)).astype(np.float32)
    mine, theirs = (as_array(model(batch)) for model in (native, own))
    return {
        "replaced": replaced(own, native),
        "scale": float(np.abs(theirs).mean()),
        "difference": furthest([mine], [theirs]),
    }


def part_storage() -> dict[str, Any]:
    """Weights by position and by file, from one to the other."""
    own = stand_in()
    native = with_native_layers(own)
    copied = furthest(native.get_weights(), own.get_weights())
    native.set_weights([array + 1 for array in native.get_weights()])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "w.weights.h5"
        native.save_weights(path)
        own.load_weights(path)
    return {
        "same paths": [v.path for v in own.weights] == [v.path for v in native.weights],
        "same trainable": [v.path for v in own.trainable_variables]
        == [v.path for v in native.trainable_variables],
        "copied": copied,
        "loaded": furthest(own.get_weights(), native.get_weights()),
    }


def learned(model: Any) -> tuple[np.ndarray, list[np.ndarray]]:
    """One pass in training and the gradients of a fixed random sum of its output."""
    out = model(images(), training=True)
    target = np.random.default_rng(3).standard_normal(tuple(out.shape))
    loss = (out * load_keras().ops.convert_to_tensor(target, out.dtype)).mean()
    loss.backward()
    return as_array(out.detach()), [as_array(v.value.grad) for v in model.trainable_variables]


def apart(mine: list[np.ndarray], theirs: list[np.ndarray]) -> float:
    """The largest difference between two lists of gradients, as a share of what is usual in each.

    Or of a tenth of what is usual in all: a gradient may be next to nothing (that of a scale which
    the next normalisation takes back), and what is left of it rounding.
    """
    sizes = [float(np.abs(b).max()) for b in theirs]
    least = 0.1 * float(np.median(sizes))
    pairs = zip(mine, theirs, sizes, strict=True)
    return max(float(np.abs(a - b).max()) / max(size, least) for a, b, size in pairs)


def statistics(model: Any) -> dict[str, np.ndarray]:
    names = ("moving_mean", "moving_variance")
    found = [v for v in model.non_trainable_variables if v.path.endswith(names)]
    return {v.path: as_array(v) for v in found}


def part_gradients(precision: str) -> dict[str, Any]:
    load_keras().config.set_floatx(precision)
    load_keras().config.set_dtype_policy(precision)
    own = stand_in()
    native = with_native_layers(own)
    before = statistics(own)
    (mine, my_slopes), (theirs, slopes) = learned(native), learned(own)
    after, wanted = statistics(native), statistics(own)
    difference = {"moving_mean": 0.0, "moving_variance": 0.0}
    for path, array in wanted.items():
        layer, kind = path.split("/")
        batch = array - before[path]
        if kind == "moving_variance":
            # What Keras mixed in was momentum × old + (1 - momentum) × variance of the batch.
            layer_ = own.get_layer(layer)
            height, width = layer_.output.shape[1:3]
            n = len(images()) * height * width
            mixed = array - layer_.momentum * before[path]
            array = layer_.momentum * before[path] + mixed * n / (n - 1)
        difference[kind] = max(difference[kind], furthest([after[path]], [array]))
        assert np.abs(batch).max() > 0
    return {
        "weights": len(slopes),
        "smallest gradient": min(float(np.abs(array).max()) for array in slopes),
        "difference": apart(my_slopes, slopes),
        "output": furthest([mine], [theirs]),
        "moving mean": difference["moving_mean"],
        "moving variance": difference["moving_variance"],
        "moved": furthest(after.values(), before.values()),
    }


def part_frozen_statistics() -> dict[str, Any]:
    own = stand_in(statistics=False)
    native = with_native_layers(own)
    for layer in native.layers:
        if type(layer).__name__ == "BatchNormalization":
            layer.trainable = False
    before = statistics(native)
    (_, my_slopes), (_, slopes) = learned(native), learned(own)
    return {
        "moved": furthest(statistics(native).values(), before.values()),
        "difference": apart(my_slopes, slopes),
        "without gradient": sum(not np.abs(array).max() for array in my_slopes),
    }


def part_bfloat16() -> dict[str, Any]:
    exact = stand_in()
    with arithmetic("bf16"):
        native = with_native_layers(stand_in())
    out = native(images(), training=False)
    mine, theirs = as_array(out.float()), as_array(exact(images(), training=False))
    return {
        "variables": sorted({str(v.dtype) for v in native.variables if v.dtype != "uint32"}),
        "computes": str(out.dtype).removeprefix("torch."),
        "difference": float(np.abs(mine - theirs).mean()),
        "scale": float(np.abs(theirs).mean()),
    }


def part_second_step(prefix: str = "teacher0_") -> float:
    """The gradient of a second step of size 0 on the same batch, as a multiple of the first's."""
    keras = load_keras()
    student, teacher = with_native_layers(stand_in()), with_native_layers(stand_in(), prefix)
    teacher = keras.Model(teacher.input, teacher.output, name="teacher", trainable=False)
    inputs = keras.Input((SIZE, SIZE, 3))
    taught, own = (keras.ops.mean(model(inputs), (1, 2)) for model in (teacher, student))
    # The student comes first among the layers where more follows on it, as in training.
    model = keras.Model(inputs, 0.5 * own - taught)
    model.compile(keras.optimizers.SGD(0.0), "mse")
    sizes = []
    for _ in range(2):
        model.train_on_batch(images(), np.zeros((6, own.shape[1]), np.float32))
        slopes = [as_array(v.value.grad) for v in student.trainable_variables]
        sizes.append(sum(float(np.abs(array).sum()) for array in slopes))
    return sizes[1] / sizes[0]


def part_auto() -> str:
    with arithmetic("auto"):
        return str(load_keras().config.dtype_policy().name)


if __name__ == "__main__":
    results = {
        "inference": part_inference(),
        "whole densenet": part_whole_densenet(),
        "others": part_others(),
        "storage": part_storage(),
        "frozen statistics": part_frozen_statistics(),
        "bfloat16": part_bfloat16(),
        "auto": part_auto(),
        "second step": part_second_step(),
        "gradients float32": part_gradients("float32"),
        "gradients float64": part_gradients("float64"),
    }
    sys.stdout.write(json.dumps(results))
