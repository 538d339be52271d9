"""Record a training while it goes on: time, memory, `history.csv`, TensorBoard and MLflow.

TensorBoard's event files are written here, so TensorBoard is not needed to write them. An event
file is a sequence of TFRecords (a length, the record, a checksum of each), every one an `Event`
protocol buffer. Both formats are a few lines:
https://www.tensorflow.org/tutorials/load_data/tfrecord,
https://github.com/tensorflow/tensorflow/blob/master/tensorflow/core/util/event.proto
"""

from __future__ import annotations

import importlib
import os
import struct
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from pneumoscope.errors import ExtraMissingError, UsageError
from pneumoscope.storage import csv_text, write_text
from pneumoscope.training.loop import Epoch
from pneumoscope.training.recipes import StageEpoch

Callback = Callable[[StageEpoch], None]
"""Receives every epoch when it ends; its exceptions stop the training."""

HISTORY_COLUMNS = ("seed", "stage", *(each.name for each in fields(Epoch)))
"""The columns of `history.csv`, in order."""

_POLYNOMIAL = 0x82F63B78
"""CRC-32C (Castagnoli), reversed: RFC 3720, B.4."""

_VERSION = b"brain.Event:2"


def check_callbacks(callbacks: Sequence[Any]) -> None:
    """Check, before a long training, that callbacks can be called.

    Raises:
        UsageError: one can't, as those of Keras.
    """
    for callback in callbacks:
        if not callable(callback):
            raise UsageError(
                f"callbacks: found {callback!r}, wanted functions that take an epoch, such as "
                "`lambda epoch: print(epoch.val_auc)` or `TensorBoard(folder)`"
            )


class Stopwatch:
    """Wall time per stage."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, name: str) -> None:
        """Record the seconds since the previous lap under `name`."""
        now = time.monotonic()
        self.laps[name] = round(now - self._last, 2)
        self._last = now

    @property
    def total(self) -> float:
        """Seconds of all laps together."""
        return sum(self.laps.values())


def peak_memory_mb() -> int | None:
    """Peak memory of this process in MB; `None` if the system does not report it."""
    try:
        import resource
    except ImportError:  # Windows has no such module
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1 << 20) if sys.platform == "darwin" else peak / 1024)


class HistoryFile:
    """`history.csv`, written anew after every epoch, and the callbacks that receive it.

    It is a listener of `training.loop.fit`. Epochs that an interrupted run finished are written
    again; callbacks receive only those that follow.
    """

    def __init__(self, path: Path, callbacks: Sequence[Callback]) -> None:
        self._path, self._callbacks = path, callbacks
        self._stages: list[Sequence[StageEpoch]] = []

    def __call__(self, epochs: Sequence[StageEpoch], trained: bool) -> None:
        """Take all epochs of a stage so far, as `training.loop.EpochsListener`."""
        if trained:
            self._stages[-1] = epochs
        else:
            self._stages.append(epochs)
        rows = (asdict(row) for stage in self._stages for row in stage)
        cells = ([row[name] for name in HISTORY_COLUMNS] for row in rows)
        write_text(self._path, csv_text(HISTORY_COLUMNS, cells))
        if trained:
            for callback in self._callbacks:
                callback(epochs[-1])


class TensorBoard:
    """A callback of `train` that writes losses, AUC, accuracy and step size for TensorBoard.

    Each stage of each network has a folder of its own, and so a curve of its own colour.

    Args:
        folder: for `tensorboard --logdir FOLDER`; made when the first epoch ends.

    Raises:
        UsageError: `folder` is a file.

    Examples:
        >>> logger = TensorBoard(folder / "logs")
        >>> for epoch in run.history:  # as `train(…, callbacks=[logger])` does
        ...     logger(epoch)
        >>> sorted(path.name for path in (folder / "logs").iterdir())
        ['head-seed0']
    """

    def __init__(self, folder: Path | str) -> None:
        self._folder = Path(folder)
        self._files: dict[Path, Path] = {}
        if self._folder.exists() and not self._folder.is_dir():
            raise UsageError(f"{folder}: is a file, wanted a folder for TensorBoard's event files.")

    def __call__(self, epoch: StageEpoch) -> None:
        """Append the scalars of one epoch.

        Raises:
            OSError: the folder can't be written.
        """
        folder = self._folder / _stage(epoch)
        with self._file(folder).open("ab") as stream:
            stream.write(_record(_event(time.time(), epoch.epoch + 1, _scalars(epoch))))

    def _file(self, folder: Path) -> Path:
        """The event file of one stage, begun where there is none of this process."""
        if folder not in self._files:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"events.out.tfevents.{time.time_ns() // 1000}.{os.getpid()}"
            path.write_bytes(_record(_double(1, time.time()) + _bytes(3, _VERSION)))
            self._files[folder] = path
        return self._files[folder]


class MLflow:
    """A callback of `train` that logs losses, AUC, accuracy and step size to MLflow.

    They go to the active run, or to a new one that MLflow ends with the process, on the server that
    `MLFLOW_TRACKING_URI` names. Needs the extra `mlflow`, which is the small `mlflow-skinny`: to
    log into a local database instead of a server, install `mlflow` itself.

    Raises:
        ExtraMissingError: MLflow is not installed.

    Examples:
        >>> logger = MLflow()
        >>> for epoch in run.history:  # as `train(…, callbacks=[logger])` does
        ...     logger(epoch)
    """

    def __init__(self) -> None:
        try:
            self._mlflow = importlib.import_module("mlflow")
        except ImportError as error:
            raise ExtraMissingError("logging to MLflow", "mlflow") from error

    def __call__(self, epoch: StageEpoch) -> None:
        """Log the scalars of one epoch, under the name of its stage."""
        named = {f"{_stage(epoch)}/{name}": value for name, value in _scalars(epoch).items()}
        self._mlflow.log_metrics(named, step=epoch.epoch + 1)


def _stage(epoch: StageEpoch) -> str:
    return f"{epoch.stage}-seed{epoch.seed}"


def _scalars(epoch: StageEpoch) -> dict[str, float]:
    scalars = {
        "loss/train": epoch.loss,
        "loss/validation": epoch.val_loss,
        "auc/validation": epoch.val_auc,
        "learning_rate": epoch.learning_rate,
    }
    if epoch.val_accuracy is not None:
        scalars["accuracy/validation"] = epoch.val_accuracy
    return scalars


def _event(when: float, step: int, scalars: Mapping[str, float]) -> bytes:
    """An `Event` with a `Summary` of scalars."""
    values = (_bytes(1, tag.encode()) + _float(2, value) for tag, value in scalars.items())
    summary = b"".join(_bytes(1, value) for value in values)
    return _double(1, when) + _key(2, 0) + _varint(step) + _bytes(5, summary)


def _record(data: bytes) -> bytes:
    """One TFRecord."""
    length = struct.pack("<Q", len(data))
    return b"".join((length, _masked(length), data, _masked(data)))


def _masked(data: bytes) -> bytes:
    crc = crc32c(data)
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


def crc32c(data: bytes) -> int:
    """CRC-32C of a few bytes."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (_POLYNOMIAL if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def _key(field: int, wire: int) -> bytes:
    return bytes([field << 3 | wire])


def _varint(number: int) -> bytes:
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*parts, number])


def _bytes(field: int, content: bytes) -> bytes:
    return _key(field, 2) + _varint(len(content)) + content


def _double(field: int, number: float) -> bytes:
    return _key(field, 1) + struct.pack("<d", number)


def _float(field: int, number: float) -> bytes:
    return _key(field, 5) + struct.pack("<f", number)
