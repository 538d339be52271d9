"""A stand-in for DenseNet121 that trains in milliseconds, and how to train with it in a process.

It has DenseNet121's parts under DenseNet121's names (a stem, four blocks of one unit, three
transitions, `bn`), 1,024 channels at its end, and a fiftieth of its layers' work: what depends on
names, boundaries, batch normalisation and shapes is tested by it, the real network elsewhere.

`train_in_child` runs in a process of its own, which is killed, or kills itself, at a given moment.
"""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pneumoscope.config import TrainConfig
from pneumoscope.progress import SILENT
from pneumoscope.training.network import BACKBONE_WIDTH


@contextmanager
def small_network() -> Iterator[None]:
    """Within, every network that is built has the stand-in for its backbone."""
    from pneumoscope.training.runtime import load_keras

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load_keras().applications, "DenseNet121", _small_densenet)
        yield


def _small_densenet(
    *, include_top: bool, weights: None, input_shape: tuple[int | None, int | None, int]
) -> Any:
    from pneumoscope.training.runtime import load_keras

    layers = load_keras().layers
    assert not include_top

    def normalised(x: Any, name: str) -> Any:
        x = layers.BatchNormalization(epsilon=1.001e-5, name=f"{name}bn")(x)
        return layers.Activation("relu", name=f"{name}relu")(x)

    def unit(x: Any, name: str, width: int) -> Any:
        new = normalised(x, f"{name}_0_")
        new = layers.Conv2D(8, 1, use_bias=False, name=f"{name}_1_conv")(new)
        new = normalised(new, f"{name}_1_")
        new = layers.Conv2D(
            width - x.shape[-1], 3, padding="same", use_bias=False, name=f"{name}_2_conv"
        )(new)
        return layers.Concatenate(name=f"{name}_concat")([x, new])

    def transition(x: Any, name: str) -> Any:
        x = normalised(x, f"{name}_")
        x = layers.Conv2D(x.shape[-1] // 2, 1, use_bias=False, name=f"{name}_conv")(x)
        return layers.AveragePooling2D(2, strides=2, name=f"{name}_pool")(x)

    image = layers.Input(input_shape)
    x = layers.ZeroPadding2D(3)(image)
    x = layers.Conv2D(8, 7, strides=2, use_bias=False, name="conv1_conv")(x)
    x = normalised(x, "conv1_")
    x = layers.MaxPooling2D(3, strides=2, name="pool1")(layers.ZeroPadding2D(1)(x))
    for block in (2, 3, 4):
        x = transition(unit(x, f"conv{block}_block1", 12), f"pool{block}")
    x = normalised(unit(x, "conv5_block1", BACKBONE_WIDTH), "")
    return load_keras().Model(image, x, name="densenet121")


@dataclass(frozen=True, slots=True)
class Death:
    """When a process kills itself with SIGKILL.

    Attributes:
        steps: how many steps of progress (an epoch, a batch of images) it makes before.
        later: seconds from then to the end, while it works on.
        during: instead, in the midst of writing `checkpoint` or `bundle`, half of it written.
    """

    steps: int = 0
    later: float = 0.0
    during: str = ""


def train_in_child(
    data: Path, out: Path, config: TrainConfig | None, cache: Path, death: Death | None
) -> None:
    """Train with the stand-in; `config` begins the run, without one it is gone on with."""
    log = (out.parent / "log").open("a", encoding="utf-8")
    os.dup2(log.fileno(), sys.stdout.fileno())
    os.dup2(log.fileno(), sys.stderr.fileno())
    logging.basicConfig(level=logging.INFO, stream=log, force=True)
    os.environ["PNEUMOSCOPE_CACHE"] = str(cache)
    from pneumoscope.workflows.train import train

    with small_network():
        progress: Any = _Dying(death) if death else SILENT
        if death and death.during:
            {"checkpoint": _die_writing_a_checkpoint, "bundle": _die_writing_a_bundle}[
                death.during
            ]()
        train(data, out, config, resume=config is None, progress=progress)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class _Dying:
    """Progress that counts its steps, and after the last one dies."""

    def __init__(self, death: Death) -> None:
        self._left, self._later = death.steps, death.later

    @contextmanager
    def task(self, title: str, total: int, unit: str) -> Iterator[_Dying]:
        yield self

    def advance(self, count: int = 1, note: str = "") -> None:
        self._left -= 1
        if self._left == 0:
            threading.Timer(self._later, _die).start()


def _die_writing_a_checkpoint() -> None:
    real = np.savez

    def savez(stream: Any, **arrays: Any) -> None:
        whole = io.BytesIO()
        real(whole, **arrays)
        stream.write(whole.getvalue()[: whole.tell() // 2])
        stream.flush()
        _die()

    np.savez = savez  # type: ignore[assignment]


def _die_writing_a_bundle() -> None:
    from pneumoscope.inference import bundle

    bundle.write_text = _dying_write  # type: ignore[assignment]


def _dying_write(path: Path, text: str) -> None:
    path.write_text(text[: len(text) // 2], encoding="utf-8")
    _die()


Trainer = Callable[..., int]
