"""What a stress test has answered so far, on disk: a line per image, for `--resume`.

Comes in: one `Stressed` record per image, in order. Goes out: the same records read back. The first
line says what the lines are of. A kill costs the image that was being worked on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pneumoscope.errors import UsageError

Said = float | str | None
"""Of one copy: the probability; the reason for which there is none; `None`: no copy was made."""


@dataclass(frozen=True, slots=True)
class Stressed:
    """One image: what the model said of each copy, and what else was measured of it.

    Attributes:
        said: one per condition, the image as it is first; empty where the file can't be read.
        reason: why it can't.
        lung_quality: of its lung fields; `None`: not looked for, or no mask given.
        lung_share: share of the film that is lung.
        energy: share of the heatmap inside the lungs; `None`: no heatmap, or nothing in it.
        peak: whether the heatmap is hottest inside one of the lungs; `None` as for `energy`.
        box: left, top, right, bottom of the lungs' bounding box, shares of the sides; empty
            without lungs.
        matched_box: the same, detected anew after the image was re-cut to `framing.USUAL_SHARE`.
        properties: width, height, aspect, bytes, mean, deviation of the file's pixels.
        thumbnail: 256 greys.
        outline: 256 shares of lung; empty without lungs.
        warnings: what was odd about the file.
    """

    said: tuple[Said, ...] = ()
    reason: str = ""
    lung_quality: float | None = None
    lung_share: float | None = None
    energy: float | None = None
    peak: bool | None = None
    properties: tuple[float, ...] = field(default=())
    thumbnail: tuple[float, ...] = field(default=())
    outline: tuple[float, ...] = field(default=())
    box: tuple[float, ...] = field(default=())
    matched_box: tuple[float, ...] = field(default=())
    warnings: tuple[str, ...] = field(default=())


class StressJournal:
    """Lines on disk as they come.

    Args:
        path: of the journal.
        origin: digest of the model, the images, the conditions.
        resume: go on with the lines that are there; else they are dropped.

    Attributes:
        done: what is there, in order.

    Raises:
        UsageError: `resume`, and the lines are of something else.
        OSError: the folder can't be written.
    """

    def __init__(self, path: Path, origin: str, *, resume: bool) -> None:
        self.done: list[Stressed] = []
        end = self._read(path, origin) if resume and path.exists() else 0
        self._stream = path.open("r+b" if end else "wb", buffering=0)
        self._stream.truncate(end)
        self._stream.seek(end)
        if not end:
            self._write({"origin": origin})

    def _read(self, path: Path, origin: str) -> int:
        """Read the whole lines; returns where the last of them ends."""
        end = 0
        with path.open("rb") as stream:
            for number, line in enumerate(stream):
                document = _parsed(line)
                if document is None:  # what the kill cut off
                    break
                if number == 0 and document.get("origin") != origin:
                    raise UsageError(
                        f"{path}: holds answers of another model, version, settings or list of "
                        "images; wanted those of this command. Leave out --resume to begin anew."
                    )
                if number:
                    self.done.append(_stressed(document))
                end += len(line)
        return end

    def add(self, stressed: Stressed) -> None:
        """One more image; it is on disk when this returns."""
        self._write(asdict(stressed))
        self.done.append(stressed)

    def close(self) -> None:
        """The lines stay."""
        self._stream.close()

    def _write(self, document: dict[str, Any]) -> None:
        content = memoryview(json.dumps(document).encode() + b"\n")
        while content:
            content = content[self._stream.write(content) :]
        os.fsync(self._stream.fileno())


def _parsed(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        document = json.loads(line)
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


def _stressed(document: dict[str, Any]) -> Stressed:
    lists: Sequence[str] = (
        *("said", "properties", "thumbnail", "outline"),
        *("box", "matched_box", "warnings"),
    )
    values: dict[str, Any] = {n: tuple(v) if n in lists else v for n, v in document.items()}
    return Stressed(**values)
