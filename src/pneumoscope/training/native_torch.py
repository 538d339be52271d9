"""Convolutional layers by native PyTorch kernels, where Keras runs on Torch.

`with_native_layers` rebuilds a model layer by layer, with the same names, weights and outputs. It
trains about twice as fast on a CPU with bfloat16 and up to a tenth faster on other CPUs
(`docs/experiments.md`, `benchmarks/RESULTS.md`). Keras' own layers copy every channels-last map to
channels-first and back around each convolution, and compute batch statistics in separate steps of
32-bit arithmetic.

Saved files are the same as those of the replaced layers. One difference: the moving variance uses
the unbiased batch variance, n/(n - 1) times that of Keras, where n is the number of pixels of a
batch's feature map.
"""

from __future__ import annotations

import functools
from typing import Any

from pneumoscope.images.budget import keep_freed_memory
from pneumoscope.training.plans import settle
from pneumoscope.training.runtime import load_keras


def with_native_layers(model: Any) -> Any:
    """The model with native layers if Keras runs on Torch, otherwise the model itself.

    The weights are copied.
    """
    keras = load_keras()
    if keras.backend.backend() != "torch":
        return model
    # Training allocates and frees the same buffers in every step. Each page returned to the system
    # is a page fault in the next step (10 to 15 % of a step on 2 cores).
    keep_freed_memory(largest=1 << 30, kept=(1 << 31) - 1)
    replacements = _layer_classes()

    def replaced(layer: Any) -> Any:
        kind = type(layer)
        if isinstance(layer, keras.layers.Layer):  # operations share names with layers: `Add`
            kind = replacements.get(kind.__name__, kind)
        return kind.from_config(layer.get_config())

    clone = keras.models.clone_model(model, clone_function=replaced)
    clone.set_weights(model.get_weights())
    settle(clone)
    return clone


class _Direct:
    """A layer that skips Keras' checks when it is built and its inputs have its compute dtype.

    Keras checks, casts and times every layer call, which for 427 layers takes a tenth of a training
    step.
    """

    built: bool
    call: Any
    compute_dtype: str
    _call_has_training_arg: bool

    def __call__(self, inputs: Any, *args: Any, **settings: Any) -> Any:
        listed = inputs if isinstance(inputs, list) else [inputs]
        wanted = f"torch.{self.compute_dtype}"
        if not (self.built and all(str(getattr(x, "dtype", "")) == wanted for x in listed)):
            return super().__call__(inputs, *args, **settings)  # type: ignore[misc]
        if self._call_has_training_arg:
            return self.call(inputs, training=settings.get("training"))
        return self.call(inputs)


def _first(x: Any) -> Any:
    return x.permute(0, 3, 1, 2)  # a view: channels-last memory is kept


def _last(x: Any) -> Any:
    return x.permute(0, 2, 3, 1)


def _padded(
    x: Any, reach: Any, strides: Any, padding: str, value: float = 0.0
) -> tuple[Any, list[int]]:
    """The map, padded where both sides differ, and the symmetric padding that remains."""
    from torch.nn import functional

    if padding == "valid":
        return x, [0, 0]
    total = [
        max((-(-s // step) - 1) * step + r - s, 0)
        for s, r, step in zip(x.shape[2:], reach, strides, strict=True)
    ]
    if not any(t % 2 for t in total):
        return x, [t // 2 for t in total]
    edges = [e for t in reversed(total) for e in (t // 2, t - t // 2)]
    return functional.pad(x, edges, value=value), [0, 0]


def _convolved(layer: Any, x: Any, weights: Any, groups: int) -> Any:
    """The convolution of a Keras layer on channels-last maps; the result is channels-last."""
    from torch.nn import functional

    reach = [(k - 1) * d + 1 for k, d in zip(layer.kernel_size, layer.dilation_rate, strict=True)]
    x, padding = _padded(x, reach, layer.strides, layer.padding)
    out = functional.conv2d(x, weights, None, layer.strides, padding, layer.dilation_rate, groups)
    return _last(out)


@functools.cache
def _layer_classes() -> dict[str, Any]:
    """Keras' class name → native class; made on first use because Keras is imported late."""
    classes = (*_convolutions(), *_pools(), *_elementwise())
    return {kind.__name__: kind for kind in classes}


def _convolutions() -> tuple[Any, ...]:
    keras = load_keras()
    import torch
    from torch.nn import functional

    class Conv2D(_Direct, keras.layers.Conv2D):  # type: ignore[misc,name-defined]
        def convolution_op(self, inputs: torch.Tensor, kernel: Any) -> torch.Tensor:
            weights = kernel.value.to(inputs.dtype).permute(3, 2, 0, 1)
            return _convolved(self, _first(inputs), weights, self.groups)

    class DepthwiseConv2D(_Direct, keras.layers.DepthwiseConv2D):  # type: ignore[misc,name-defined]
        def call(self, inputs: torch.Tensor) -> torch.Tensor:
            height, width, channels, times = self.kernel.shape
            kernel = self.kernel.value.to(inputs.dtype).permute(2, 3, 0, 1)
            weights = kernel.reshape(channels * times, 1, height, width)
            out = _convolved(self, _first(inputs), weights, channels)
            if self.use_bias:
                out = out + self.bias.value.to(out.dtype)
            return out if self.activation is None else self.activation(out)

    class BatchNormalization(_Direct, keras.layers.BatchNormalization):  # type: ignore[misc,name-defined]
        def add_weight(self, *args: Any, **settings: Any) -> Any:
            return super().add_weight(*args, **{**settings, "autocast": False})

        def call(self, inputs: torch.Tensor, training: Any = None, mask: Any = None) -> Any:
            out = functional.batch_norm(
                _first(inputs),
                self.moving_mean.value,
                self.moving_variance.value,
                self.gamma.value if self.scale else None,
                self.beta.value if self.center else None,
                bool(training and self.trainable),
                1.0 - self.momentum,
                self.epsilon,
            )
            return _last(out)

    return Conv2D, DepthwiseConv2D, BatchNormalization


def _pools() -> tuple[Any, ...]:
    keras = load_keras()
    import torch
    from torch.nn import functional

    class MaxPooling2D(_Direct, keras.layers.MaxPooling2D):  # type: ignore[misc,name-defined]
        def call(self, inputs: torch.Tensor) -> torch.Tensor:
            least = torch.finfo(inputs.dtype).min
            x, padding = _padded(_first(inputs), self.pool_size, self.strides, self.padding, least)
            return _last(functional.max_pool2d(x, self.pool_size, self.strides, padding))

    class AveragePooling2D(_Direct, keras.layers.AveragePooling2D):  # type: ignore[misc,name-defined]
        def call(self, inputs: torch.Tensor) -> Any:
            if self.padding != "valid":
                return super().call(inputs)
            return _last(functional.avg_pool2d(_first(inputs), self.pool_size, self.strides))

    return MaxPooling2D, AveragePooling2D


def _elementwise() -> tuple[Any, ...]:
    keras = load_keras()
    import torch
    from torch.nn import functional

    class Activation(_Direct, keras.layers.Activation):  # type: ignore[misc,name-defined]
        pass

    class Concatenate(_Direct, keras.layers.Concatenate):  # type: ignore[misc,name-defined]
        def call(self, inputs: Any) -> Any:
            return _last(torch.cat([_first(each) for each in inputs], 1))

    class ZeroPadding2D(_Direct, keras.layers.ZeroPadding2D):  # type: ignore[misc,name-defined]
        pass

    class ReLU(_Direct, keras.layers.ReLU):  # type: ignore[misc,name-defined]
        def call(self, inputs: torch.Tensor) -> torch.Tensor:
            if self.max_value == 6.0 and not (self.negative_slope or self.threshold):
                return functional.relu6(inputs)
            return super().call(inputs)

    class Add(_Direct, keras.layers.Add):  # type: ignore[misc,name-defined]
        def call(self, inputs: Any) -> Any:
            return sum(inputs[1:], inputs[0])

    return Activation, Add, Concatenate, ReLU, ZeroPadding2D
