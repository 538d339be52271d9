"""What a spool holds, and what was set aside in it; and trying that again.

Works beside a running node as well as without one: the queue can be read and changed meanwhile, and
the node looks into it every second. No patient, study or UID is told: items are known by number.

What the node answered, for those who compare it with readings: a line per image.

    SPOOL/results.jsonl

Unlike the audit it names patient, accession and study, since it is made to be joined with the
readings of radiologists: it is to be kept as carefully as the images. It can be read beside a
running node. A kill may leave an image's line twice; the last one counts.
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
from pneumoscope.records import Prediction

_OUTGOING = ("waiting", "sent", "set aside", "kept")
_COUNTED = {
    "films": ("films", "1", ("waiting", "answered", "set aside")),
    "reports": ("reports", "kind <> 'fhir'", _OUTGOING),
    "fhir": ("reports", "kind = 'fhir'", _OUTGOING),
    "fetches": ("fetches", "1", ("waiting", "set aside")),
}
"""Names of the counts: their table, which rows of it, and the states that are counted."""

_TABLES = ("films", "reports", "fetches")
_FOLDERS = {"films": "incoming", "reports": "outgoing"}


@dataclass(frozen=True, slots=True)
class Aside:
    """An item that was set aside, or failed and waits for its next try.

    Attributes:
        kind: `image`, `report` (a DICOM object), `FHIR bundle`, or `fetch` (an image that a server
            did not give).
        number: of its row; of an image as in the audit.
        film: the image that it is about, by the audit's number; `None` for a fetch.
        state: `set aside` or `waiting`.
        failures: how often it failed.
        why: in words, without anything of a patient.
    """

    kind: str
    number: int
    film: int | None
    state: str
    failures: int
    why: str


def opened(folder: Path) -> Queue:
    """The queue of a spool that is there.

    Raises:
        UsageError: there is none, or it is damaged.
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
    """When the image was received that waits longest for its result, Unix time; `None`: none."""
    rows = queue.rows("SELECT MIN(received) FROM films WHERE state = 'waiting'")
    return None if rows[0][0] is None else float(rows[0][0])


def aside(queue: Queue) -> list[Aside]:
    """What is set aside, and what failed and is tried again; by kind, then in order of arrival."""
    rows = queue.rows(
        "SELECT 'image', id, id, state, attempts, why FROM films WHERE state = 'set aside'"
        " UNION ALL SELECT CASE kind WHEN 'fhir' THEN 'FHIR bundle' ELSE 'report' END,"
        " id, film, state, refusals, why FROM reports"
        " WHERE state = 'set aside' OR (state = 'waiting' AND why <> '')"
        " UNION ALL SELECT 'fetch', id, NULL, state, refusals, why FROM fetches"
    )
    return [Aside(*row) for row in rows]


def try_again(queue: Queue, folder: Path) -> dict[str, int]:
    """Have all that was set aside tried again, as if for the first time.

    What has no file any more stays where it is: its sender has to send it again.

    Returns:
        How many of each kind: `films`, `reports`, `fetches`.
    """
    found = {}
    for table in _TABLES:
        counter = "attempts" if table == "films" else "refusals"
        due = "" if table == "films" else ", due = 0"
        rows = queue.rows(
            f"SELECT id, {'file' if table in _FOLDERS else 'NULL'} FROM {table}"  # noqa: S608
            " WHERE state = 'set aside'"
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
        found[table] = len(ready)
    return found


RESULTS_FILE = "results.jsonl"

COLUMNS = (
    *("image", "study", "accession", "patient", "study_date", "received", "sex", "age"),
    *("status", "reason", "probability", "prediction", "threshold", "input_score"),
    *("model", "software"),
)
"""Of `node results`, in order."""

_TAGS = [
    *("StudyInstanceUID", "AccessionNumber", "PatientID", "StudyDate", "PatientSex"),
    *("PatientBirthDate", "CurrentRequestedProcedureEvidenceSequence"),
]
_DAYS_A_YEAR = 365.25


def note_result(
    spool: Path, reports: Sequence[ReportObject], prediction: Prediction, author: Author
) -> None:
    """Append the result of one image; it is on disk when this returns.

    Patient and study are read from the report, which is the node's own file, and not from the
    image, which is a stranger's. Without a report there is nothing to join by, and no line.

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
    }
    line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
    # For its owner's eyes, unlike other files of the spool it stays when all is done.
    way = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    with os.fdopen(os.open(spool / RESULTS_FILE, way, 0o600), "ab", buffering=0) as stream:
        stream.write(line)
        os.fsync(stream.fileno())


def read_results(spool: Path) -> list[dict[str, Any]]:
    """The results of a spool, one per image and model, in the order in which they were first made.

    Raises:
        UsageError: the folder holds none.
    """
    path = spool / RESULTS_FILE
    if not path.is_file():
        raise UsageError(
            f"--spool {spool}: found no {RESULTS_FILE} there, wanted the spool of a node that has "
            "answered for an image. Give the folder that the node was started with."
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
            except ValueError:  # what a kill cut off
                continue
            if isinstance(row, dict) and {"image", "model"} <= row.keys():
                yield row


def _study(report: bytes) -> dict[str, str]:
    from pydicom import dcmread

    dataset = dcmread(io.BytesIO(report), specific_tags=_TAGS)
    evidence = dataset.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence[0]
    date, born = (str(dataset.get(tag) or "") for tag in ("StudyDate", "PatientBirthDate"))
    return {
        "image": str(evidence.ReferencedSOPSequence[0].ReferencedSOPInstanceUID),
        "study": str(dataset.StudyInstanceUID),
        "accession": str(dataset.get("AccessionNumber") or ""),
        "patient": str(dataset.get("PatientID") or ""),
        "study_date": date,
        "sex": str(dataset.get("PatientSex") or ""),
        "age": _age(born, date),
    }


def _age(born: str, date: str) -> str:
    """Years from birth to study, with one digit; `""` where a date is missing."""
    try:
        days = (datetime.strptime(date, "%Y%m%d") - datetime.strptime(born, "%Y%m%d")).days
    except ValueError:
        return ""
    return f"{days / _DAYS_A_YEAR:.1f}" if days >= 0 else ""
