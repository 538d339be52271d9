"""What was fetched: files, a journal that survives a kill, and a table at the end.

    OUT/images/NAME.dcm    one file per image, named by a digest of its UID
    OUT/fetched.jsonl      a line per image that is whole on disk
    OUT/images.csv         path and identifiers of each, for `predict` and for joining

A file is written beside and renamed before its line is written, so that a line always means a whole
file. UIDs and identifiers of strangers never become part of a path.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pneumoscope.errors import MissingError
from pneumoscope.storage import claim_folder, remove_leftovers, safe_cell, write_bytes, write_text

JOURNAL, TABLE, IMAGES = "fetched.jsonl", "images.csv", "images"
COLUMNS = ("path", "image", "study", "series", "accession", "patient", "study_date", "modality")
"""Of `images.csv`."""

_TAGS = {
    "image": "SOPInstanceUID",
    "study": "StudyInstanceUID",
    "series": "SeriesInstanceUID",
    "accession": "AccessionNumber",
    "patient": "PatientID",
    "study_date": "StudyDate",
    "modality": "Modality",
}
_MOST_HEADER = 1 << 20


class FetchedFolder:
    """A folder that images are fetched into; safe for several threads of one process.

    Args:
        folder: made if it is not there; what a run before left in it is known again.
        max_bytes: larger images are turned away.
        min_free: free bytes below which nothing is taken.

    Attributes:
        new: images of this run.
        known: images that were there already.
        turned_away: images that were too large, or no DICOM files.

    Raises:
        UsageError: a file stands where the folder should be.
    """

    def __init__(self, folder: Path, max_bytes: int, min_free: int) -> None:
        claim_folder(folder / IMAGES)
        remove_leftovers(folder / IMAGES)
        self.folder = folder
        self.new = 0
        self.turned_away = 0
        self._max_bytes, self._min_free = max_bytes, min_free
        self._lock = threading.Lock()
        self._rows = {row["image"]: row for row in _lines(folder / JOURNAL)}
        self.known = len(self._rows)

    def has(self, sop_uid: str) -> bool:
        """Whether an image is whole on disk."""
        with self._lock:
            row = self._rows.get(sop_uid)
        return row is not None and (self.folder / row["path"]).is_file()

    def check_room(self) -> None:
        """See that there is room.

        Raises:
            MissingError: less is free than there must be.
        """
        free = shutil.disk_usage(self.folder).free
        if free < self._min_free:
            raise MissingError(
                f"{self.folder}: {free >> 20} MB are free, wanted {self._min_free >> 20} MB. Make "
                "room and run the same command again: it goes on where it was."
            )

    def add(self, content: bytes) -> bool:
        """Keep one image, a Part 10 file; whether it was kept, or was there already.

        Raises:
            OSError: the folder can't be written.
        """
        facts = None if len(content) > self._max_bytes else _facts(content)
        if facts is None:
            with self._lock:
                self.turned_away += 1
            return False
        if self.has(facts["image"]):
            return True
        name = hashlib.sha256(facts["image"].encode()).hexdigest()[:32]
        row = {"path": f"{IMAGES}/{name}.dcm", **facts}
        with self._lock:
            write_bytes(self.folder / row["path"], content)
            with (self.folder / JOURNAL).open("ab", buffering=0) as stream:
                stream.write(json.dumps(row).encode() + b"\n")
                os.fsync(stream.fileno())
            self._rows[facts["image"]] = row
            self.new += 1
        return True

    def write_table(self) -> Path:
        """Write `images.csv` of all that is there; returns where it is."""
        stream = io.StringIO(newline="")
        writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for row in self._rows.values():
            writer.writerow({name: safe_cell(value) for name, value in row.items()})
        write_text(self.folder / TABLE, stream.getvalue())
        return self.folder / TABLE


def _lines(path: Path) -> Iterator[dict[str, str]]:
    if not path.is_file():
        return
    with path.open("rb") as stream:
        for line in stream:
            try:
                row = json.loads(line)
            except ValueError:  # what a kill cut off
                continue
            if isinstance(row, dict) and row.keys() == set(COLUMNS):
                yield row


def _facts(content: bytes) -> dict[str, str] | None:
    """Identifiers of a file; `None` if it is no DICOM file that states its UIDs."""
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError

    try:
        dataset: Any = dcmread(
            io.BytesIO(content[:_MOST_HEADER]),
            stop_before_pixels=True,
            specific_tags=list(_TAGS.values()),
        )
        found = {name: str(dataset.get(tag) or "") for name, tag in _TAGS.items()}
    except (InvalidDicomError, OSError, ValueError, AttributeError, NotImplementedError, EOFError):
        return None
    return found if all(found[name] for name in ("image", "study", "series")) else None
