"""What reading processes run in tests: decoders that end the process that they are in."""

from __future__ import annotations

import os
import signal
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
