"""Each type of layer computes without Keras what it computes in Keras, in both engines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pneumoscope.errors import BundleError
from pneumoscope.graph.layers import unknown_layers, write_plan
from pneumoscope.graph.onnx import OnnxWriter
from pneumoscope.graph.openvino import build_frozen_part, compile_model
from pneumoscope.graph.plan import read_plan
from pneumoscope.keras_loading import load_keras
from pneumoscope.training.backbones import arrays_of, leaves, plan_of, settle

HEIGHT = 21


def layers() -> Any:
    return load_keras().layers


def activation(name: str) -> Callable[[Any], Any]:
    return lambda x: layers().Activation(name)(x)


def conv(width: int, **settings: Any) -> Any:
    return layers().Conv2D(width, settings.pop("kernel_size", 3), **settings)


def gate(x: Any) -> Any:
    """Squeeze and excitation: a number per channel from the whole map."""
    y = layers().GlobalAveragePooling2D()(x)
    y = layers().Reshape((1, 1, x.shape[-1]))(y)
    y = layers().Conv2D(x.shape[-1], 1, activation="sigmoid")(y)
    return layers().Multiply()([x, y])


def gate_of_the_largest(x: Any) -> Any:
    y = layers().Dense(x.shape[-1], "hard_sigmoid")(layers().GlobalMaxPooling2D()(x))
    return layers().Multiply()([layers().Reshape((1, 1, x.shape[-1]))(y), x])


def padded_pool(x: Any) -> Any:
    """Zero padding matters for negative values; for others the engine can add it."""
    negative = layers().MaxPooling2D(3, 2)(layers().ZeroPadding2D(1)(x))
    positive = layers().MaxPooling2D(3, 2)(layers().ZeroPadding2D(1)(layers().ReLU()(x)))
    return layers().Concatenate()([negative, positive])


def arithmetic(x: Any) -> Any:
    return (x + 3.0) * 0.5 + layers().Maximum()([x, layers().Subtract()([x * 2.0, x])])


def norm_of_two(x: Any) -> Any:
    """A convolution with a second reader besides its normalisation."""
    y = conv(5)(x)
    return layers().Add()([y, layers().BatchNormalization()(y)])


def mean_behind(x: Any) -> Any:
    """The mean behind a 1×1 convolution, which may go before it, and behind a larger one."""
    first = layers().AveragePooling2D(2)(conv(4, kernel_size=1)(x))
    second = layers().AveragePooling2D(2)(conv(4, padding="same")(x))
    return layers().Add()([first, second])


def nested(x: Any) -> Any:
    inner = load_keras().Sequential(
        [load_keras().Input(x.shape[1:]), conv(6), layers().BatchNormalization()]
    )
    return layers().ReLU()(inner(x))


PARTS: dict[str, Callable[[Any], Any]] = {
    "same": lambda x: conv(5, padding="same", strides=2)(x),
    "same, even side": lambda x: conv(5, padding="same", strides=2, kernel_size=4)(x),
    "dilated": lambda x: conv(5, padding="same", dilation_rate=2, activation="tanh")(x),
    "groups": lambda x: conv(6, groups=3)(conv(6)(x)),
    "oblong": lambda x: conv(5, kernel_size=(1, 7), padding="same", use_bias=False)(x),
    "norm": lambda x: layers().BatchNormalization(scale=False)(conv(5)(x)),
    "norm of two readers": lambda x: layers().Add()(
        [y := conv(5)(x), layers().BatchNormalization()(y)]
    ),
    "depthwise": lambda x: layers().DepthwiseConv2D(3, 2, padding="same", depth_multiplier=2)(x),
    "separable": lambda x: layers().BatchNormalization()(
        layers().SeparableConv2D(7, 3, padding="same", use_bias=False)(x)
    ),
    "dense of a map": lambda x: layers().Dense(4, "gelu")(x),
    "layer norm": lambda x: layers().LayerNormalization(epsilon=1e-6)(x),
    "normalization": lambda x: layers().Normalization(mean=[1, 2, 3], variance=[4, 5, 6])(x),
    "measured normalization": lambda x: layers().Normalization()(x),
    "rescaling": lambda x: layers().Rescaling([1.0, 2.0, 3.0], [0.5, 0.0, -1.0])(x),
    "clipped": lambda x: layers().ReLU(6.0)(layers().Rescaling(9.0)(x)),
    "max pool": lambda x: layers().MaxPooling2D(3, 2, padding="same")(x),
    "mean pool": lambda x: layers().AveragePooling2D(3, 1, padding="same")(x),
    "padding": lambda x: layers().BatchNormalization()(layers().ZeroPadding2D(((0, 1), (2, 0)))(x)),
    "dropped": lambda x: layers().Dropout(0.5)(x) * 2.0,
    "padded pool": padded_pool,
    "gate": gate,
    "gate of the largest": gate_of_the_largest,
    "arithmetic": arithmetic,
    "mean behind": mean_behind,
    "nested": nested,
    **{
        f"activation {name}": activation(name)
        for name in ("relu", "silu", "hard_silu", "hard_sigmoid", "gelu", "softplus", "linear")
    },
}


def model_of(part: Callable[[Any], Any]) -> Any:
    inputs = load_keras().Input((HEIGHT, HEIGHT, 3))
    model = load_keras().Model(inputs, part(inputs))
    generator = np.random.default_rng(5)
    for layer in leaves(model):
        arrays = layer.get_weights()
        moved = [(a + generator.uniform(0.1, 0.6, a.shape)).astype(a.dtype) for a in arrays]
        layer.set_weights(moved)
    settle(model)
    return model


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    generator = np.random.default_rng(6)
    return generator.standard_normal((2, HEIGHT, HEIGHT, 3)).astype(np.float32)


@pytest.mark.parametrize("name", PARTS)
def test_openvino_computes_what_keras_does(name: str, images: np.ndarray) -> None:
    model = model_of(PARTS[name])
    wanted = np.asarray(model(images))
    network = arrays_of(model)
    built = build_frozen_part(network, HEIGHT, len(images), network.plan.output)
    request = compile_model(built, "f32").create_infer_request()
    request.infer([images])
    found = request.get_tensor("rows").data
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, atol=2e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("name", PARTS)
def test_onnx_computes_what_keras_does(name: str, images: np.ndarray) -> None:
    runtime = pytest.importorskip("onnxruntime")
    model = model_of(PARTS[name])
    network = arrays_of(model)
    to = OnnxWriter()
    # A writer's input is grey pixels: three channels are made of them.
    pixels = (np.abs(images[..., 0]) * 60).astype(np.uint8)
    given = to.reshape(to.as_float("pixels"), (0, 1, HEIGHT, HEIGHT))
    channels = to.concatenate([given, to.mirror(given), to.apply("sqrt", given)], 1)
    value = write_plan(to, network.plan, network.layers, channels, HEIGHT)
    shape: list[int | str] = ["n", value.channels, value.height, value.width]
    session = runtime.InferenceSession(
        to.model("pixels", {"out": (value.node, shape)}, {}).SerializeToString(),
        providers=["CPUExecutionProvider"],
    )
    (found,) = session.run(["out"], {"pixels": pixels})
    grey = pixels.astype(np.float32)
    wanted = np.asarray(model(np.stack([grey, grey[:, :, ::-1], np.sqrt(grey)], -1)))
    found = found.transpose(0, 2, 3, 1)
    np.testing.assert_allclose(found, wanted, atol=2e-5 * np.abs(wanted).max())


def test_layers_that_can_not_be_run_are_named() -> None:
    inputs = load_keras().Input((HEIGHT, HEIGHT, 3))
    model = load_keras().Model(inputs, layers().UpSampling2D()(inputs))
    plan = plan_of(model)
    assert unknown_layers(plan) == ("UpSampling2D",)
    network = replace(arrays_of(model), plan=plan)
    with pytest.raises(BundleError, match="is a UpSampling2D"):
        build_frozen_part(network, HEIGHT, 1, plan.output)


@pytest.mark.parametrize(
    "layer",
    [
        lambda: layers().ReLU(max_value=2.0),
        lambda: layers().Activation("elu"),
        lambda: layers().Reshape((HEIGHT * HEIGHT, 3)),
        lambda: layers().Concatenate(axis=1),
    ],
)
def test_settings_that_can_not_be_run_are_rejected(layer: Callable[[], Any]) -> None:
    inputs = load_keras().Input((HEIGHT, HEIGHT, 3))
    made = layer()
    joined = [inputs, inputs * 1.0] if type(made).__name__ == "Concatenate" else inputs
    network = arrays_of(load_keras().Model(inputs, made(joined)))
    with pytest.raises(BundleError, match=r"does not fit its input.*found"):
        build_frozen_part(network, HEIGHT, 1, network.plan.output)


def test_a_layer_that_is_used_twice_is_rejected() -> None:
    inputs = load_keras().Input((HEIGHT, HEIGHT, 3))
    twice = layers().Conv2D(3, 1)
    model = load_keras().Model(inputs, twice(twice(inputs)))
    with pytest.raises(BundleError, match=r"used 2 times|used more than once"):
        plan_of(model)


@pytest.mark.parametrize("document", [None, {}, [], {"class_name": "Functional", "config": {}}])
def test_what_describes_no_model_is_rejected(document: Any) -> None:
    with pytest.raises(BundleError, match="description can't be read"):
        read_plan(document)
