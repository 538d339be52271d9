"""The contents of a spool: counts, items set aside, retrying them, and the table of results.

All functions work with or without a running node, because the queue can be read and changed beside
it; the node checks the queue every second. Items are identified by row number, without patient
data.

`SPOOL/results.jsonl` has a line per scored image, for `node results`. Unlike the audit log it names
patient, accession and study, because it is joined with the readings of radiologists: protect it
like the images. After a kill an image may have two lines; the last one counts.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pneumoscope.delivery.dicom_node.queue import QUEUE_FILE, Queue
from pneumoscope.delivery.dicom_report.objects import ReportObject
from pneumoscope.delivery.dicom_report.source import Author
from pneumoscope.errors import UsageError
from pneumoscope.images.dicom.patient import patient_age
from pneumoscope.images.grey import join_warnings
from pneumoscope.records import Prediction

_OUTGOING = ("waiting", "sent", "set aside", "kept")
_COUNTED = {
    "films": ("films", "1", ("waiting", "answered", "set aside")),
    "reports": ("reports", "kind <> 'fhir'", _OUTGOING),
    "fhir": ("reports", "kind = 'fhir'", _OUTGOING),
    "fetches": ("fetches", "1", ("waiting", "set aside")),
}
"""Names of the counts: their table, which rows of it, and the states that are counted."""

_FOLDERS = {"films": "incoming", "reports": "outgoing"}
"""Tables whose rows have a file, and the folder of the spool that it is in."""

RESULTS_FILE = "results.jsonl"
COLUMNS = (
    *("image", "study", "accession", "patient", "study_date", "received", "sex", "age"),
    *("status", "reason", "probability", "prediction", "threshold", "input_score"),
    *("model", "software", "warnings"),
)
"""Columns of `node results`, in order."""

_TAGS = [
    *("StudyInstanceUID", "AccessionNumber", "PatientID", "StudyDate", "PatientSex"),
    *("PatientAge", "PatientBirthDate", "CurrentRequestedProcedureEvidenceSequence"),
]


@dataclass(frozen=True, slots=True)
class Aside:
    """An item that was set aside, or that failed and waits for a retry.

    Attributes:
        kind: `image`, `report` (a DICOM object), `FHIR bundle`, or `fetch` (an image that a server
            did not give).
        number: its row number; for an image the number in the audit log.
        film: row number of its image; `None` for a fetch.
        state: `set aside` or `waiting`.
        failures: number of failures.
        why: the reason, without patient data.
    """

    kind: str
    number: int
    film: int | None
    state: str
    failures: int
    why: str


def opened(folder: Path) -> Queue:
    """Open the queue of an existing spool.

    Raises:
        UsageError: there is no queue, or it is damaged.
    """
    if not (folder / QUEUE_FILE).is_file():
        raise UsageError(
            f"--spool {folder}: found no {QUEUE_FILE} there, wanted the spool of a node. Give the "
            "folder that the node was started with."
        )
    return Queue(folder, alone=False)


def counted(queue: Queue) -> dict[str, int]:
    """Count the items of each kind in each state, as in `films_waiting` and `fhir_sent`."""
    return {
        f"{name}_{state.replace(' ', '_')}": int(
            queue.rows(f"SELECT COUNT(*) FROM {table} WHERE {which} AND state = ?", (state,))[0][0]  # noqa: S608
        )
        for name, (table, which, states) in _COUNTED.items()
        for state in states
    }


def oldest_waiting(queue: Queue) -> float | None:
    """Unix time at which the longest waiting image was received; `None` if none waits."""
    rows = queue.rows("SELECT MIN(received) FROM films WHERE state = 'waiting'")
    return None if rows[0][0] is None else float(rows[0][0])


def aside(queue: Queue) -> list[Aside]:
    """Items that were set aside or wait for a retry, by kind, then in order of arrival."""
    rows = queue.rows(
        "SELECT 'image', id, id, state, attempts, why FROM films WHERE state = 'set aside'"
        " UNION ALL SELECT CASE kind WHEN 'fhir' THEN 'FHIR bundle' ELSE 'report' END,"
        " id, film, state, refusals, why FROM reports"
        " WHERE state = 'set aside' OR (state = 'waiting' AND why <> '')"
        " UNION ALL SELECT 'fetch', id, NULL, state, refusals, why FROM fetches"
    )
    return [Aside(*row) for row in rows]


def try_again(queue: Queue, folder: Path) -> dict[str, int]:
    """Queue all items that were set aside again, with their failures reset.

    An item whose file is lost stays set aside: its sender has to send the image again.

    Returns:
        The number of items of each kind: `films` (images), `reports`, `fhir` and `fetches`.
    """
    return {
        name: _try_again(queue, folder, table, which)
        for name, (table, which, _) in _COUNTED.items()
    }


def _try_again(queue: Queue, folder: Path, table: str, which: str) -> int:
    """Queue the set-aside rows of a table for which `which` holds; returns their number."""
    counter = "attempts" if table == "films" else "refusals"
    due = "" if table == "films" else ", due = 0"
    rows = queue.rows(
        f"SELECT id, {'file' if table in _FOLDERS else 'NULL'} FROM {table}"  # noqa: S608
        f" WHERE {which} AND state = 'set aside'"
    )
    ready = [
        number
        for number, file in rows
        if file is None or (folder / _FOLDERS[table] / file).is_file()
    ]
    for number in ready:
        queue.update(
            f"UPDATE {table} SET state = 'waiting', {counter} = 0, why = ''{due}"  # noqa: S608
            " WHERE id = ? AND state = 'set aside'",
            (number,),
        )
    return len(ready)


def note_result(
    spool: Path, reports: Sequence[ReportObject], prediction: Prediction, author: Author
) -> None:
    """Append the result of one image; it is on disk when this returns.

    Patient and study are read from the report, which the node wrote, not from the image, which is
    not trusted. Without a report there is no identifier to join by, and no line is written.

    Raises:
        OSError: the file can't be written.
    """
    report = next((made for made in reports if made.kind == "report"), None)
    if report is None:
        return
    row = {
        **_study(report.content),
        "received": datetime.now(UTC).isoformat(timespec="seconds"),
        "status": prediction.status,
        "reason": prediction.reason.value if prediction.reason else "",
        "probability": prediction.probability,
        "prediction": prediction.prediction,
        "threshold": prediction.threshold,
        "input_score": prediction.input_score,
        "model": author.fingerprint[:16],
        "software": author.version,
        "warnings": join_warnings(prediction.warnings),
    }
    line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
    # Readable by its owner only: it names patients and is kept.
    way = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    with os.fdopen(os.open(spool / RESULTS_FILE, way, 0o600), "ab", buffering=0) as stream:
        stream.write(line)
        os.fsync(stream.fileno())


def read_results(spool: Path) -> list[dict[str, Any]]:
    """The results of a spool, one per image and model, in order of their first line.

    Raises:
        UsageError: the folder has no results.
    """
    path = spool / RESULTS_FILE
    if not path.is_file():
        raise UsageError(
            f"--spool {spool}: found no {RESULTS_FILE} there, wanted the spool of a node that has "
            "scored an image. Give the folder that the node was started with."
        )
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for row in _lines(path):
        found[row["image"], row["model"]] = {name: row.get(name) for name in COLUMNS}
    return list(found.values())


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as stream:
        for line in stream:
            try:
                row = json.loads(line)
            except ValueError:  # a line that a kill cut short
                continue
            if isinstance(row, dict) and {"image", "model"} <= row.keys():
                yield row


def _study(report: bytes) -> dict[str, str]:
    from pydicom import dcmread

    dataset = dcmread(io.BytesIO(report), specific_tags=_TAGS)
    evidence = dataset.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0]
    stated, born, date = (
        str(dataset.get(tag) or "") for tag in ("PatientAge", "PatientBirthDate", "StudyDate")
    )
    age, _ = patient_age(stated, born, date)
    return {
        "image": str(evidence.ReferencedSOPSequence[0].ReferencedSOPInstanceUID),
        "study": str(dataset.StudyInstanceUID),
        "accession": str(dataset.get("AccessionNumber") or ""),
        "patient": str(dataset.get("PatientID") or ""),
        "study_date": date,
        "sex": str(dataset.get("PatientSex") or ""),
        "age": "" if age is None else f"{age.low:.1f}",
    }
