"""Fetch images from a PACS (C-FIND, then C-GET or C-MOVE; PS3.4 annex C) into a resumable folder.

    OUT/images/NAME.dcm    one file per image, named by a digest of its UID
    OUT/fetched.jsonl      the journal: a line per image that is complete on disk
    OUT/images.csv         path and identifiers of each image, for `predict` and for joining

Studies are searched day by day, so that limits of the server on responses are rarely met, then the
series of the wanted modalities, then images. Images on disk are not requested again.

A file is written under a temporary name and renamed before its journal line is written, so that a
line always means a complete file. UIDs and identifiers from files never become part of a path.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom import AE, _config, build_role, evt
from pynetdicom.sop_class import (
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
)

from pneumoscope.config import FetchConfig
from pneumoscope.delivery.dicom_node.peers import (
    LEAST_RATE,
    Connection,
    Deadline,
    Peer,
    check_aet,
)
from pneumoscope.delivery.dicom_node.server import IMAGE_CLASSES
from pneumoscope.delivery.pseudonyms import Mapping, pseudonyms_of
from pneumoscope.errors import ImageRefusedError, MissingError, NetworkError, UsageError
from pneumoscope.images.dicom.file import header_texts
from pneumoscope.images.dicom.pixels import SUPPORTED_SYNTAXES
from pneumoscope.reading import json_lines
from pneumoscope.storage import (
    LineFile,
    claim_folder,
    csv_text,
    remove_leftovers,
    write_bytes,
    write_text,
)

JOURNAL, TABLE, IMAGES = "fetched.jsonl", "images.csv", "images"
COLUMNS = ("path", "image", "study", "series", "accession", "patient", "study_date", "modality")
"""Columns of `images.csv`."""

_TAGS = {
    "image": "SOPInstanceUID",
    "study": "StudyInstanceUID",
    "series": "SeriesInstanceUID",
    "accession": "AccessionNumber",
    "patient": "PatientID",
    "study_date": "StudyDate",
    "modality": "Modality",
}

_LOGGER = logging.getLogger(__name__)
_SUCCESS = 0x0000
_PENDING = (0xFF00, 0xFF01)
_WARNING = 0xB000
_OUT_OF_RESOURCES = 0xA700
_CANNOT_UNDERSTAND = 0xC000
_MOST_ACCESSION = 16
_GOES_ON = "what was fetched is kept, and the same command goes on."


class FetchedFolder:
    """A folder of fetched images; safe for several threads of one process.

    Args:
        folder: created if it does not exist; images of earlier runs in it are recognised.
        max_bytes: larger images are rejected.
        min_free: free disk space below which fetching stops, bytes.
        pseudonyms: whether files are written under pseudonymous identifiers.
        mapping: table of own identifiers and pseudonyms that is added to; `None`: none is written.

    Attributes:
        new: number of images of this run.
        known: number of images of earlier runs.
        turned_away: number of images that were too large or not DICOM files.

    Raises:
        UsageError: a file stands where the folder should be; images in it bear identifiers of the
            other sort; the key is missing or another one; the mapping lies in the folder.
    """

    def __init__(
        self,
        folder: Path,
        max_bytes: int,
        min_free: int,
        *,
        pseudonyms: bool = False,
        mapping: Path | None = None,
    ) -> None:
        claim_folder(folder / IMAGES)
        remove_leftovers(folder / IMAGES)
        self.folder = folder
        self.new = 0
        self.turned_away = 0
        self._max_bytes, self._min_free = max_bytes, min_free
        self._lock = threading.Lock()
        self._rows = {row["image"]: row for row in _lines(folder / JOURNAL)}
        self.known = len(self._rows)
        self.pseudonyms = pseudonyms_of(folder, pseudonyms, used=bool(self._rows))
        self._mapping = Mapping(mapping, folder) if mapping else None

    def has(self, sop_uid: str) -> bool:
        """Whether the image with this SOP Instance UID, as the PACS has it, is whole on disk."""
        uid = self.pseudonyms.of("image", sop_uid) if self.pseudonyms else sop_uid
        with self._lock:
            row = self._rows.get(uid)
        return row is not None and (self.folder / row["path"]).is_file()

    def count(self, series_uid: str) -> int:
        """How many images of the series with this UID, as the PACS has it, are whole on disk."""
        uid = self.pseudonyms.of("series", series_uid) if self.pseudonyms else series_uid
        with self._lock:
            paths = [row["path"] for row in self._rows.values() if row["series"] == uid]
        return sum((self.folder / path).is_file() for path in paths)

    def check_room(self) -> None:
        """Check the free disk space.

        Raises:
            MissingError: it is below the limit.
        """
        free = shutil.disk_usage(self.folder).free
        if free < self._min_free:
            raise MissingError(
                f"{self.folder}: {free >> 20} MB are free, wanted {self._min_free >> 20} MB. Make "
                "room and run the same command again: it goes on where it was."
            )

    def add(self, content: bytes) -> bool:
        """Keep one image, a Part 10 file; returns whether it is in the folder now.

        Raises:
            OSError: the folder can't be written.
        """
        facts = None if len(content) > self._max_bytes else _facts(content)
        if facts is None:
            return self._turn_away()
        if self.has(facts["image"]):
            return True
        if self.pseudonyms:
            changed = self.pseudonyms.file(content, facts)
            if changed is None:
                return self._turn_away()
            own, facts, content = facts, self.pseudonyms.facts(facts), changed
            if self._mapping:
                with self._lock:
                    self._mapping.add(own, facts)
        name = hashlib.sha256(facts["image"].encode()).hexdigest()[:32]
        row = {"path": f"{IMAGES}/{name}.dcm", **facts}
        with self._lock:
            write_bytes(self.folder / row["path"], content)
            with LineFile(self.folder / JOURNAL) as file:
                file.append(json.dumps(row).encode() + b"\n", sync=True)
            self._rows[facts["image"]] = row
            self.new += 1
        return True

    def _turn_away(self) -> bool:
        with self._lock:
            self.turned_away += 1
        return False

    def write_table(self) -> Path:
        """Write `images.csv` with all images; returns its path."""
        rows = ([row[name] for name in COLUMNS] for row in self._rows.values())
        write_text(self.folder / TABLE, csv_text(COLUMNS, rows))
        return self.folder / TABLE


def _lines(path: Path) -> Iterator[dict[str, str]]:
    if not path.is_file():
        return
    for row, _ in json_lines(path):
        if row is not None and row.keys() == set(COLUMNS):
            yield row


def _facts(content: bytes) -> dict[str, str] | None:
    """Identifiers of a file; `None` if it is not a DICOM file with all UIDs."""
    try:
        texts = header_texts(content, "an image of the PACS", _TAGS.values())
    except ImageRefusedError:
        return None
    found = {name: texts[keyword] for name, keyword in _TAGS.items()}
    return found if all(found[name] for name in ("image", "study", "series")) else None


@dataclass(frozen=True, slots=True)
class Series:
    """A series on the PACS, as its search lists it.

    Attributes:
        study: Study Instance UID.
        series: Series Instance UID.
        images: SOP Instance UIDs of its images; empty where the PACS does not search for images.
        unnamed: number of further images, listed without their UID.
    """

    study: str
    series: str
    images: tuple[str, ...]
    unnamed: int = 0

    def missing_in(self, folder: FetchedFolder) -> int:
        """How many of its images are not in the folder; without any that is listed, one at least.

        Of images without a UID their number counts.
        """
        missing = sum(not folder.has(uid) for uid in self.images)
        if self.images and not self.unnamed:
            return missing
        others = folder.count(self.series) - (len(self.images) - missing)
        return missing + max((self.unnamed or 1) - others, 0)


class Pacs:
    """One PACS.

    Args:
        peer: its AE title and address.
        config: time-outs, C-MOVE settings.
        modalities: of the series to fetch.

    Attributes:
        unusable: number of studies and series that a search listed without their UID.
        refusals: why series were not transferred.
        not_found: accession numbers and study UIDs of which the PACS has no X-ray.

    Raises:
        UsageError: the own AE title is invalid.
    """

    def __init__(self, peer: Peer, config: FetchConfig, modalities: tuple[str, ...]) -> None:
        _config.LOG_HANDLER_LEVEL = "none"  # it logs whole messages with patient data
        self._peer, self._config, self._modalities = peer, config, modalities
        check_aet(config.aet, "--aet")
        # One association per purpose is kept, because making one costs more than most responses.
        self._open: dict[str, tuple[Connection, Any]] = {}
        self._searched: dict[str, list[Series]] = {}
        self.unusable = 0
        self.refusals: list[NetworkError] = []
        self.not_found: list[str] = []

    def close(self) -> None:
        """Release the associations."""
        for connection, association in self._open.values():
            self._release(connection, association)
        self._open.clear()

    def _release(self, connection: Connection, association: Any) -> None:
        if association.is_established:
            with Deadline(self._config.acse_timeout, connection.cut):
                association.release()

    def by_days(self, first: date, last: date) -> Iterator[str]:
        """Study UIDs of each day from `first` to `last`.

        Raises:
            NetworkError: the PACS can't be reached or refuses the request.
        """
        for back in range((last - first).days + 1):
            yield from self._studies(StudyDate=f"{first + timedelta(days=back):%Y%m%d}")

    def by_ids(self, ids: Iterable[str]) -> Iterator[str]:
        """Study UIDs of accession numbers; a UID that is too long for one (SH) is one itself.

        Those without a study, or without a series of the wanted modalities, are added to
        `not_found`.

        Raises:
            NetworkError: as `by_days` does.
        """
        for text in ids:
            uid = len(text) > _MOST_ACCESSION and UID(text).is_valid
            studies = [text] if uid else list(self._studies(AccessionNumber=text))
            self._searched |= {study: self._search(study) for study in studies}
            found = [study for study in studies if self._searched[study]]
            if not found:
                _LOGGER.warning("--ids: the PACS has no X-ray of %s", text)
                self.not_found.append(text)
            yield from found

    def series(self, study: str) -> list[Series]:
        """The series of the wanted modalities, with their images.

        Raises:
            NetworkError: as `by_days` does.
        """
        found = self._searched.pop(study, None)
        return self._search(study) if found is None else found

    def _search(self, study: str) -> list[Series]:
        found = []
        for row in self._find("SERIES", StudyInstanceUID=study, SeriesInstanceUID="", Modality=""):
            if str(row.get("Modality", "")) not in self._modalities:
                continue
            if not (uid := self._counted_uid(row, "SeriesInstanceUID")):
                continue
            keys = {"StudyInstanceUID": study, "SeriesInstanceUID": uid, "SOPInstanceUID": ""}
            rows = self._find("IMAGE", **keys)
            images = [image for one in rows if (image := _uid(one, "SOPInstanceUID"))]
            found.append(Series(study, uid, tuple(images), len(rows) - len(images)))
        return found

    def fetch(self, wanted: Series, into: FetchedFolder) -> int:
        """Fetch a series unless it is there; returns how many of its images are missing.

        A series of which the PACS lists no image is requested each time, since it may have any
        number. One that the PACS does not transfer is noted in `refusals`.

        Raises:
            NetworkError: the PACS can't be reached or refuses the association.
            MissingError: the free disk space is below the limit.
        """
        if (wanted.images or wanted.unnamed) and not wanted.missing_in(into):
            return 0
        into.check_room()
        keys = Dataset()
        keys.QueryRetrieveLevel = "SERIES"
        keys.StudyInstanceUID, keys.SeriesInstanceUID = wanted.study, wanted.series
        transfer = self._move if self._config.move_port else self._get
        if (refusal := transfer(keys, into)) is not None:
            _LOGGER.warning("a series was not transferred: %s", refusal)
            self.refusals.append(refusal)
        return wanted.missing_in(into)

    def _studies(self, **keys: str) -> Iterator[str]:
        asked = {"StudyInstanceUID": "", "StudyDate": "", "ModalitiesInStudy": "", **keys}
        accession = keys.get("AccessionNumber")
        for row in self._find("STUDY", **asked):
            if accession and str(row.get("AccessionNumber", "")).strip() != accession:
                _LOGGER.warning("a study with another accession number than %s is left", accession)
                continue
            stated = row.get("ModalitiesInStudy") or ()
            listed = {stated} if isinstance(stated, str) else set(stated)
            uid = self._counted_uid(row, "StudyInstanceUID")
            if uid and (not listed or listed & set(self._modalities)):
                yield uid

    def _counted_uid(self, row: Dataset, keyword: str) -> str:
        """A UID of a row; `""`, counted, if the row does not state it."""
        uid = _uid(row, keyword)
        self.unusable += not uid
        return uid

    def _find(self, level: str, **keys: str) -> list[Dataset]:
        query = Dataset()
        query.QueryRetrieveLevel = level
        for keyword, value in keys.items():
            setattr(query, keyword, value)
        model = StudyRootQueryRetrieveInformationModelFind
        connection, association = self._associated("C-FIND", model)
        found = []
        with Deadline(self._config.dimse_timeout, connection.cut) as deadline:
            for status, row in association.send_c_find(query, model):
                deadline.renew()
                if "Status" not in status or status.Status not in (*_PENDING, _SUCCESS):
                    raise self._refused("C-FIND", status)
                if row is not None:
                    found.append(row)
        return found

    def _get(self, keys: Dataset, into: FetchedFolder) -> NetworkError | None:
        model = StudyRootQueryRetrieveInformationModelGet
        roles = [build_role(storage, scp_role=True) for storage in IMAGE_CLASSES]
        handlers = [(evt.EVT_C_STORE, self._stored, [into])]
        connection, association = self._associated("C-GET", model, roles, handlers)
        with self._transfer(connection):
            return self._ended("C-GET", association.send_c_get(keys, model))

    def _move(self, keys: Dataset, into: FetchedFolder) -> NetworkError | None:
        model = StudyRootQueryRetrieveInformationModelMove
        listener = self._entity()
        for storage in IMAGE_CLASSES:
            listener.add_supported_context(storage, sorted(SUPPORTED_SYNTAXES))
        place = (self._config.move_host, self._config.move_port)
        handlers: list[Any] = [(evt.EVT_C_STORE, self._stored, [into])]
        try:
            server = listener.start_server(place, block=False, evt_handlers=handlers)
        except OSError as error:
            raise UsageError(
                f"--move-port {place[1]}: can't be listened on ({error.strerror or error}). Give "
                "another, as the PACS knows it."
            ) from error
        try:
            connection, association = self._associated("C-MOVE", model)
            with self._transfer(connection):
                return self._ended("C-MOVE", association.send_c_move(keys, self._config.aet, model))
        finally:
            server.shutdown()

    @contextmanager
    def _transfer(self, connection: Connection) -> Iterator[None]:
        """Cut the connection if no whole image and no response arrives for too long."""
        seconds = self._config.dimse_timeout + self._config.max_bytes / LEAST_RATE
        with Deadline(seconds, connection.cut) as self._deadline:
            yield

    def _ended(self, what: str, responses: Any) -> NetworkError | None:
        """Wait for the final response; failed images are found by counting."""
        for status, _ in responses:
            self._deadline.renew()
            if status.get("Status") not in (*_PENDING, _SUCCESS, _WARNING):
                return self._refused(what, status)
        return None

    def _stored(self, event: Any, into: FetchedFolder) -> int:
        """Keep one image; returns the status for its sender."""
        self._deadline.renew()
        try:
            content = event.encoded_dataset()
            return _SUCCESS if into.add(content) else _CANNOT_UNDERSTAND
        except OSError as error:
            _LOGGER.error("an image can't be kept: %s", error)
            return _OUT_OF_RESOURCES

    def _entity(self) -> Any:
        entity = AE(self._config.aet)
        entity.acse_timeout = self._config.acse_timeout
        entity.dimse_timeout = entity.network_timeout = self._config.dimse_timeout
        return entity

    def _associated(
        self,
        purpose: str,
        model: str,
        roles: list[Any] | None = None,
        handlers: list[Any] | None = None,
    ) -> tuple[Connection, Any]:
        """The open association for a purpose, or a new one."""
        there = self._open.get(purpose)
        if there is not None and there[1].is_established:
            return there
        entity = self._entity()
        entity.add_requested_context(model)
        for storage in IMAGE_CLASSES if roles else ():
            entity.add_requested_context(storage, sorted(SUPPORTED_SYNTAXES))
        connection = Connection(entity, self._peer)
        made = connection.associate(ext_neg=roles or [], evt_handlers=handlers or [])
        # Without any context the association is aborted; with those for images alone it is not.
        accepted = {context.abstract_syntax for context in made.accepted_contexts}
        if model not in accepted and (accepted or made.rejected_contexts):
            self._release(connection, made)
            raise self._failed(purpose, f"does not offer {purpose} to {self._config.aet}")
        if not made.is_established:
            why = "rejects the association" if made.is_rejected else "can't be reached"
            raise NetworkError(
                f"--pacs {self._peer}: {why}. Check title, address and port, and that it knows "
                f"{self._config.aet}; {_GOES_ON}"
            )
        self._open[purpose] = connection, made
        return connection, made

    def _refused(self, purpose: str, status: Dataset) -> NetworkError:
        code = status.get("Status")
        told = "no response" if code is None else f"status {code:04X}"
        return self._failed(purpose, f"{purpose} ended with {told}")

    def _failed(self, purpose: str, why: str) -> NetworkError:
        """The error of a service of the PACS, with the way out for this service."""
        aet, port = self._config.aet, self._config.move_port
        way = {
            "C-FIND": f"Its log may state why; it has to permit study root queries by {aet}",
            "C-GET": "Where C-GET is not supported give --move-port",
            "C-MOVE": f"It has to know {aet} by this machine's address and --move-port {port}",
        }[purpose]
        return NetworkError(f"--pacs {self._peer}: {why}. {way}; {_GOES_ON}")


def _uid(row: Dataset, keyword: str) -> str:
    """A UID of a row; `""`, with a warning, if the row does not state it."""
    found = row.get(keyword)
    if isinstance(found, UID) and found:
        return str(found)
    _LOGGER.warning("a row of the search states no %s", keyword)
    return ""
