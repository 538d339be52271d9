"""A stand-in for DenseNet121 that trains in milliseconds, and data and processes to train it with.

It has DenseNet121's parts under DenseNet121's names (a stem, four blocks of one unit each, three
transitions, `bn`) and 1,024 channels at its end, but few layers and narrow ones: what depends on
names, boundaries, shapes or batch normalisation is tested with it, the real network elsewhere.

`train_in_child` is run in a process of its own, which is to die at a given moment.
"""

from __future__ import annotations

import faulthandler
import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pneumoscope.config import TrainConfig
from pneumoscope.progress import SILENT
from pneumoscope.training.runtime import load_keras
from support.heads import BACKBONE_WIDTH

_savez = np.savez


@contextmanager
def small_network() -> Iterator[None]:
    """Within, every network that is built has the stand-in for its backbone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load_keras().applications, "DenseNet121", _small_densenet)
        yield


def _small_densenet(
    *, include_top: bool, weights: None, input_shape: tuple[int | None, int | None, int]
) -> Any:
    assert not include_top
    assert weights is None
    layers = load_keras().layers

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
    """When a process gets SIGKILL.

    Attributes:
        steps: after so many steps of progress in `unit`,
        unit: `epochs` or `images`,
        later: and so many seconds more, while it works on;
        writing: or else in the midst of writing the next `checkpoint` or `bundle`.
    """

    steps: int = 0
    unit: str = "epochs"
    later: float = 0.0
    writing: str = ""


def train_in_child(
    data: Path,
    out: Path,
    config: TrainConfig | None,
    cache: Path,
    death: Death | None,
    longest_seconds: float,
) -> None:
    """Train the stand-in; `config` begins the run, without one it is gone on with.

    A process that works on after `longest_seconds` writes into the log where it is, and ends.
    """
    with (out.parent / "log").open("ab") as log:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())
    faulthandler.dump_traceback_later(longest_seconds, exit=True)
    logging.basicConfig(level=logging.INFO, force=True)
    os.environ["PNEUMOSCOPE_CACHE"] = str(cache)
    from pneumoscope.workflows.train import train

    if death is not None and death.writing == "checkpoint":
        vars(np)["savez"] = _write_half_and_die
    elif death is not None and death.writing == "bundle":
        from pneumoscope.inference import bundle

        vars(bundle)["write_text"] = _kill_this_process
    progress = SILENT if death is None else _Dying(death)
    with small_network():
        train(data, out, config, resume=config is None, progress=progress)


def _kill_this_process(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _write_half_and_die(stream: Any, allow_pickle: bool, **arrays: Any) -> None:
    whole = io.BytesIO()
    _savez(whole, allow_pickle=allow_pickle, **arrays)
    stream.write(whole.getvalue()[: whole.tell() // 2])
    stream.flush()
    _kill_this_process()


class _Dying:
    """Progress that counts its steps down."""

    def __init__(self, death: Death) -> None:
        self._death, self._left = death, death.steps

    @contextmanager
    def task(self, title: str, total: int, unit: str) -> Iterator[Any]:
        if unit == self._death.unit:
            yield self
        else:
            with SILENT.task(title, total, unit) as task:
                yield task

    def advance(self, count: int = 1, note: str = "") -> None:
        self._left -= 1
        if self._left == 0:
            threading.Timer(self._death.later, _kill_this_process).start()
