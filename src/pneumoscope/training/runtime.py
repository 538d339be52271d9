"""The Keras runtime for training: backend, arithmetic and devices.

Any Keras backend works (`KERAS_BACKEND`). TensorFlow is the default, installed by the `train`
extra. `load_keras` imports Keras.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pneumoscope.errors import UsageError
from pneumoscope.graph.writer import bfloat16_gains, processor_flags
from pneumoscope.keras_loading import load_keras

__all__ = [
    "arithmetic",
    "choose_backend",
    "describe_runtime",
    "distribute",
    "has_gpu",
    "keep_to_one_thread",
    "load_keras",
]


def choose_backend(name: str, *, trains_convolutions: bool) -> None:
    """Choose the Keras backend before Keras is loaded.

    `auto` keeps `KERAS_BACKEND`, or the backend that is already loaded. Otherwise it takes Torch,
    if installed, for training convolutions, and TensorFlow for everything else.

    Raises:
        UsageError: Keras already runs on another backend in this process.
    """
    loaded = sys.modules.get("keras")
    if loaded is not None:
        running = loaded.backend.backend()
        if name not in ("auto", running):
            raise UsageError(
                f"backend: found Keras running on {running} in this process, wanted {name}. "
                f"Start a new process, or set KERAS_BACKEND={name} before Keras is imported."
            )
    elif name != "auto":
        os.environ["KERAS_BACKEND"] = name
    elif "KERAS_BACKEND" not in os.environ:
        installed = [n for n in ("tensorflow", "torch", "jax") if importlib.util.find_spec(n)]
        if trains_convolutions and "torch" in installed:
            installed.insert(0, "torch")
        os.environ["KERAS_BACKEND"] = installed[0] if installed else "tensorflow"


def keep_to_one_thread() -> None:
    """Let TensorFlow compute in one thread in this process, unless the environment says otherwise.

    For a process that only trains a head on features: its matrix products are so small that
    distributing them over threads costs more than it gains. Call it before Keras is loaded.
    """
    for name in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
        os.environ.setdefault(name, "1")


@contextmanager
def arithmetic(precision: str) -> Iterator[None]:
    """Context in which new layers compute in `f32`, in `bf16` (float32 weights) or in `auto`.

    `auto` is bfloat16 where that is faster: on Torch with a GPU that supports it, or a processor
    that gains from it. TensorFlow and JAX are slower in bfloat16 than in float32 on a processor.
    """
    keras = load_keras()
    before = keras.config.dtype_policy()
    mixed = precision == "bf16" or (precision == "auto" and _has_fast_bfloat16())
    keras.config.set_dtype_policy("mixed_bfloat16" if mixed else "float32")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def _has_fast_bfloat16() -> bool:
    backend = load_keras().backend.backend()
    if backend == "torch":
        import torch

        if torch.cuda.is_available():
            return bool(torch.cuda.is_bf16_supported())
        # Torch computes bfloat16 on any processor with AVX-512, but without bfloat16 instructions
        # it takes twice the time of float32.
        found = torch.cpu.get_capabilities()
        has = any(bool(has) for name, has in found.items() if name.endswith("bf16"))
        return has and bfloat16_gains(processor_flags())
    return has_gpu()


def has_gpu() -> bool:
    """Whether Keras detects a GPU."""
    return bool(_gpus())


def _gpus() -> list[str]:
    if load_keras().backend.backend() == "torch":  # Keras can't list devices on Torch
        import torch

        return [f"gpu:{k}" for k in range(torch.cuda.device_count())]
    return [d for d in load_keras().distribution.list_devices() if d.startswith("gpu")]


def distribute(batch_size: int) -> int:
    """Spread every batch over all devices, if there are several; returns the number of devices.

    Uses `keras.distribution.DataParallel`, which in Keras 3.15 works on JAX only: TensorFlow's
    trainer ignores it and Torch has no implementation, so they use one device. Call it before any
    model is built, because JAX can't compile a step over variables of which some lie on one device
    and some on all.

    Batches of `batch_size` are split evenly. Batches of any other size (a last batch, validation)
    go to every device completely, so they need not be divisible.

    Raises:
        UsageError: the batch size is not a multiple of the number of devices.
    """
    keras = load_keras()
    if keras.backend.backend() != "jax":
        return 1
    devices = keras.distribution.list_devices()
    count = len(devices)
    if count < 2:
        return 1
    if batch_size % count:
        near = max(batch_size // count, 1) * count
        raise UsageError(
            f"fit.batch_size: found {batch_size}, wanted a multiple of {count}, the number of "
            f"devices that Keras detects. Give {near}, or hide some of them (CUDA_VISIBLE_DEVICES)."
        )

    class EvenDataParallel(keras.distribution.DataParallel):  # type: ignore[misc,name-defined]
        def get_data_layout(self, data_shape: tuple[int, ...]) -> Any:
            if data_shape[0] == batch_size:
                return super().get_data_layout(data_shape)
            whole = [None] * len(data_shape)
            return keras.distribution.TensorLayout(whole, self.device_mesh)

    keras.distribution.set_distribution(EvenDataParallel(devices=devices))
    return count


def describe_runtime() -> str:
    """Keras, its backend and their versions, as text for reports and cache keys."""
    keras = load_keras()
    backend = keras.backend.backend()
    version = importlib.import_module(backend).__version__
    return f"keras {keras.__version__} on {backend} {version}"
