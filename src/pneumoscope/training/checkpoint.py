"""The state of a training after its last whole epoch, in one file, written whole or not at all.

Comes in: arrays, what every epoch scored, and an `origin`: a digest of all that decides how the
training goes. Goes out: the same, or nothing where the file is damaged or of another training.
No pickle. Knows nothing of models.
"""

from __future__ import annotations

import json
import logging
import lzma
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.storage import atomic_writer

_LOGGER = logging.getLogger(__name__)

_DAMAGE = (
    *(ValueError, KeyError, TypeError, OSError, EOFError),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError),
    RuntimeError,  # by `zipfile`, of flags that it does not know
)
"""What reading a file of any content can raise."""

Arrays = Mapping[str, Sequence[NDArray[Any]]]
"""Named lists of arrays: `state` (weights, optimiser, seeds), `best`, `average`."""


@dataclass(frozen=True, slots=True)
class Epoch:
    """A row of `history.csv`. `seconds` is wall time, the rest is the same in a resumed run."""

    epoch: int
    learning_rate: float
    loss: float
    val_loss: float
    val_auc: float
    seconds: float


def save(path: Path, origin: str, history: Sequence[Epoch], arrays: Arrays) -> None:
    """Write a checkpoint beside and rename it, so that the one before it is there until then.

    Raises:
        OSError: it can't be written (disk full); the last whole one is still there.
    """
    text = json.dumps({"origin": origin, "history": [asdict(epoch) for epoch in history]})
    flat = {f"{name}{k}": array for name, each in arrays.items() for k, array in enumerate(each)}
    with atomic_writer(path) as stream:
        np.savez(stream, allow_pickle=False, about=np.array(text), **flat)


def restore(
    path: Path, origin: str, shapes: Mapping[str, Sequence[tuple[int, ...]]]
) -> tuple[list[Epoch], dict[str, list[NDArray[Any]]]] | None:
    """Read a checkpoint, all of it, before any of it is used.

    A file that is damaged, or of other data or settings, is left aside with a warning: training
    then begins anew, to the same end.

    Args:
        path: where it was saved.
        origin: what it must be of.
        shapes: the wanted shapes of each named list of arrays.
    """
    try:
        history, arrays = _read(path, origin, shapes)
    except FileNotFoundError:
        return None
    except _DAMAGE as error:
        _LOGGER.warning("%s: left aside, training begins anew (%s)", path, error)
        return None
    _LOGGER.info("continuing after epoch %d of %s", len(history), path)
    return history, arrays


def _read(
    path: Path, origin: str, shapes: Mapping[str, Sequence[tuple[int, ...]]]
) -> tuple[list[Epoch], dict[str, list[NDArray[Any]]]]:
    arrays: dict[str, list[NDArray[Any]]] = {}
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as saved:
        about = json.loads(str(saved["about"]))
        if about["origin"] != origin:
            raise ValueError("it is of other data or settings")
        for name, wanted in shapes.items():
            arrays[name] = [saved[f"{name}{k}"] for k in range(len(wanted))]
            for k, (array, shape) in enumerate(zip(arrays[name], wanted, strict=True)):
                if array.shape != tuple(shape):
                    raise ValueError(f"{name}{k} has the shape {array.shape}")
    return [Epoch(**row) for row in about["history"]], arrays
