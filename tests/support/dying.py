"""What reading processes run in tests: decoders that end the process that they are in."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from pneumoscope.inference.preparing import Decoder, Prepared
from pneumoscope.records import Prediction


@dataclass(frozen=True)
class Dying:
    """Dies at every file whose name has `deadly`, and once at each whose name has `once`."""

    decode: Decoder
    marks: Path

    def __call__(self, path: Path | str) -> Prepared | Prediction:
        name = Path(path).name
        mark = self.marks / name
        if "deadly" in name or ("once" in name and not mark.exists()):
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return self.decode(path)


class NeverArrives:
    """Can be sent to a process, where it can't be received."""

    def __reduce__(self) -> tuple[object, tuple[()]]:
        return fail, ()


def fail() -> NoReturn:
    os._exit(1)


def spin(_: object = None) -> None:
    """What a library does that is not to be interrupted."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        pass


def allocate(count: int) -> int:
    return len(bytearray(count))


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail_without_result() -> None:
    raise ValueError("wrong")


def slept(path: Path, seconds: float) -> str:
    path.touch()
    time.sleep(seconds)
    return "slept"
