"""DenseNet's layers by PyTorch's own kernels, where Keras runs on Torch.

Comes in: a Keras model. Goes out: the same model, layer by layer, name by name, with the same
weights and outputs, trained about twice as fast on a CPU that has bfloat16, and up to a tenth
faster on others (`docs/experiments.md`, `benchmarks/RESULTS.md`): Keras' own layers copy every
channels-last map to channels-first and back around each convolution, and work out batch
statistics in single steps of 32-bit arithmetic. Knows nothing of images or training.

Saved files are the same as of the layers replaced. One difference: the moving variance takes the
unbiased batch variance, n/(n - 1) of Keras', where n is the pixels of a batch's feature map.
"""

from __future__ import annotations

import functools
from typing import Any

from pneumoscope.images.memory import keep_freed_memory
from pneumoscope.training.runtime import load_keras


def with_native_layers(model: Any) -> Any:
    """The model with native layers if Keras runs on Torch, the model itself if not.

    The weights are copied.
    """
    keras = load_keras()
    if keras.backend.backend() != "torch":
        return model
    # Training takes and frees the same buffers in every step; each page given back is a page fault
    # in the next one (10 to 15 % of a step on 2 cores).
    keep_freed_memory(largest=1 << 30, kept=(1 << 31) - 1)
    replacements = _layer_classes()

    def replaced(layer: Any) -> Any:
        kind = replacements.get(type(layer).__name__, type(layer))
        return kind.from_config(layer.get_config())

    clone = keras.models.clone_model(model, clone_function=replaced)
    clone.set_weights(model.get_weights())
    return clone


class _Direct:
    """Called with what it computes in, a layer that is built does its work and nothing else.

    Keras checks, casts and times every call of a layer, which for 427 layers takes a tenth of a
    training step.
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


@functools.cache
def _layer_classes() -> dict[str, Any]:
    """Keras' class name → our class. Made on first use, since Keras is imported late."""
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

    class Conv2D(_Direct, keras.layers.Conv2D):  # type: ignore[misc,name-defined]
        def convolution_op(self, inputs: torch.Tensor, kernel: Any) -> torch.Tensor:
            same = self.padding == "same"
            padding = [(k - 1) // 2 if same else 0 for k in self.kernel_size]
            weights = kernel.value.to(inputs.dtype).permute(3, 2, 0, 1)
            return _last(functional.conv2d(_first(inputs), weights, None, self.strides, padding))

    class BatchNormalization(_Direct, keras.layers.BatchNormalization):  # type: ignore[misc,name-defined]
        def add_weight(self, *args: Any, **settings: Any) -> Any:
            return super().add_weight(*args, **{**settings, "autocast": False})

        def call(self, inputs: torch.Tensor, training: Any = None, mask: Any = None) -> Any:
            out = functional.batch_norm(
                _first(inputs),
                self.moving_mean.value,
                self.moving_variance.value,
                self.gamma.value,
                self.beta.value,
                bool(training and self.trainable),
                1.0 - self.momentum,
                self.epsilon,
            )
            return _last(out)

    class MaxPooling2D(_Direct, keras.layers.MaxPooling2D):  # type: ignore[misc,name-defined]
        def call(self, inputs: torch.Tensor) -> torch.Tensor:
            return _last(functional.max_pool2d(_first(inputs), self.pool_size, self.strides))

    class AveragePooling2D(_Direct, keras.layers.AveragePooling2D):  # type: ignore[misc,name-defined]
        def call(self, inputs: torch.Tensor) -> torch.Tensor:
            return _last(functional.avg_pool2d(_first(inputs), self.pool_size, self.strides))

    classes = (
        Activation,
        AveragePooling2D,
        BatchNormalization,
        Concatenate,
        Conv2D,
        MaxPooling2D,
        ZeroPadding2D,
    )
    return {kind.__name__: kind for kind in classes}
