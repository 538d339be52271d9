"""What a spool holds, and what was set aside in it; and trying that again.

Works beside a running node as well as without one: the queue can be read and changed meanwhile, and
the node looks into it every second. No patient, study or UID is told: items are known by number.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pneumoscope.delivery.dicom_node.queue import QUEUE_FILE, Queue
from pneumoscope.errors import UsageError

_STATES = {
    "films": ("waiting", "answered", "set aside"),
    "reports": ("waiting", "sent", "set aside", "kept"),
    "fetches": ("waiting", "set aside"),
}
_FOLDERS = {"films": "incoming", "reports": "outgoing"}
_KINDS = {"films": "image", "reports": "report", "fetches": "fetch"}


@dataclass(frozen=True, slots=True)
class Aside:
    """An item that was set aside, or failed and waits for its next try.

    Attributes:
        kind: `image`, `report`, or `fetch` (an image that a server would not give).
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
    """How many items there are of each kind in each state: `films_waiting` and so on."""
    return {
        f"{table}_{state.replace(' ', '_')}": int(
            queue.rows(f"SELECT COUNT(*) FROM {table} WHERE state = ?", (state,))[0][0]  # noqa: S608
        )
        for table, states in _STATES.items()
        for state in states
    }


def aside(queue: Queue) -> list[Aside]:
    """What is set aside, and what failed and is tried again; by kind, then in order of arrival."""
    rows = queue.rows(
        "SELECT 'films', id, id, state, attempts, why FROM films WHERE state = 'set aside'"
        " UNION ALL SELECT 'reports', id, film, state, refusals, why FROM reports"
        " WHERE state = 'set aside' OR (state = 'waiting' AND why <> '')"
        " UNION ALL SELECT 'fetches', id, NULL, state, refusals, why FROM fetches"
    )
    return [Aside(_KINDS[table], *rest) for table, *rest in rows]


def try_again(queue: Queue, folder: Path) -> dict[str, int]:
    """Have all that was set aside tried again, as if for the first time.

    What has no file any more stays where it is: its sender has to send it again.

    Returns:
        How many of each kind: `films`, `reports`, `fetches`.
    """
    found = {}
    for table in _STATES:
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
