"""`fetch`: fetch images from a PACS or a DICOMweb server into a folder; resumable."""

from __future__ import annotations

import logging
import re
from contextlib import closing
from dataclasses import dataclass
from datetime import date
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pneumoscope.config import FetchConfig, NodeConfig, check_ranges
from pneumoscope.errors import ExtraMissingError, NetworkError, UsageError
from pneumoscope.progress import SILENT, Progress
from pneumoscope.storage import alone_in

if TYPE_CHECKING:
    from pneumoscope.delivery.dicom_node.dicomweb import DicomWeb, Found
    from pneumoscope.delivery.pacs import FetchedFolder, Pacs

_LOGGER = logging.getLogger(__name__)
_WILDCARDS = frozenset("*?\\")
"""Of C-FIND (PS3.4 C.2.2.2): wild cards, and what separates the values of a list."""

_MODALITY = re.compile(r"[A-Z0-9_]{1,16}")
_OF_PACS = ("aet", "move_port", "move_host")


@dataclass(frozen=True, slots=True)
class FetchRequest:
    """What to fetch, and from where.

    Attributes:
        out: output folder.
        pacs: `AET@HOST:PORT`, or `""`.
        dicomweb: URL of a DICOMweb service, or `""`.
        first: first day of studies, `YYYY-MM-DD` or `YYYYMMDD`; `""` with `ids`.
        last: last day, likewise; `""`: the first day.
        ids: file with one accession number or Study Instance UID per line.
        token_file: file with the access token of `dicomweb`.
    """

    out: Path
    pacs: str = ""
    dicomweb: str = ""
    first: str = ""
    last: str = ""
    ids: Path | None = None
    token_file: str = ""


@dataclass(frozen=True, slots=True)
class _Wanted:
    """Series of which modalities, and of which days, first and last, or of which ids."""

    modalities: tuple[str, ...]
    days: tuple[date, date] | None
    ids: list[str]


def run_fetch(
    request: FetchRequest, config: FetchConfig, progress: Progress = SILENT
) -> tuple[dict[str, Any], str, int]:
    """Fetch images and write their table; the exit code is 3 if an image or an id is missing.

    Raises:
        ExtraMissingError: the extra `dicom` is not installed.
        UsageError: options that exclude each other, an invalid date, a file of ids that can't be
            used, or another process fetches into the folder.
        NetworkError: the server can't be reached or refuses; fetched images are kept.
        MissingError: the free disk space is below the limit.
    """
    if any(util.find_spec(name) is None for name in ("pynetdicom", "pydicom")):
        raise ExtraMissingError("fetch", "dicom")
    check_ranges(config)
    _check_options(request, config)
    ids = _ids(request.ids) if request.ids else []
    wanted = _Wanted(_modalities(config.modality), _days(request), ids)
    with closing(_source(request, config, wanted)) as source, alone_in(request.out):
        return _fetched(request, config, wanted, source, progress)


def _check_options(request: FetchRequest, config: FetchConfig) -> None:
    """Check that the options belong together.

    Raises:
        UsageError: some exclude each other, or would be ignored.
    """
    if bool(request.pacs) == bool(request.dicomweb):
        raise UsageError("fetch: wanted one of --pacs AET@HOST:PORT and --dicomweb URL")
    if bool(request.first) == bool(request.ids):
        raise UsageError("fetch: wanted one of --from DATE (and --to DATE) and --ids FILE")
    if request.last and request.ids:
        raise UsageError("--to: belongs to --from; --ids lists what is fetched. Leave it out.")
    if request.dicomweb and request.ids:
        raise UsageError("--ids: is for --pacs; by DICOMweb give --from and --to")
    if request.pacs and request.token_file:
        raise UsageError("--token-file: is for --dicomweb; a PACS takes no token. Leave it out.")
    default = FetchConfig()
    for name in _OF_PACS:
        if request.dicomweb and getattr(config, name) != getattr(default, name):
            option = f"--{name.replace('_', '-')}"
            raise UsageError(f"{option}: is for --pacs; DICOMweb does not use it. Leave it out.")
    if config.move_host != default.move_host and not config.move_port:
        raise UsageError(
            f"--move-host {config.move_host}: is the address that --move-port listens on, and no "
            "port was given. Give both, or neither."
        )
    if config.mapping and not config.pseudonyms:
        raise UsageError("--mapping: belongs to --pseudonyms. Give both, or neither.")


def _modalities(text: str) -> tuple[str, ...]:
    found = tuple(dict.fromkeys(m.strip().upper() for m in text.split(",") if m.strip()))
    if not found or not all(map(_MODALITY.fullmatch, found)):
        raise UsageError(f"--modality: found {text!r}, wanted some, as in CR,DX")
    return found


def _source(request: FetchRequest, config: FetchConfig, wanted: _Wanted) -> Pacs | DicomWeb:
    """The server that images come from, with its options checked and nothing sent to it yet."""
    if request.pacs:
        from pneumoscope.delivery.dicom_node.peers import parse_peer
        from pneumoscope.delivery.pacs import Pacs

        return Pacs(parse_peer(request.pacs, "--pacs"), config, wanted.modalities)
    from pneumoscope.delivery.dicom_node.dicomweb import DicomWeb

    settings = NodeConfig(
        dicomweb=request.dicomweb,
        dicomweb_token_file=request.token_file,
        acse_timeout=config.acse_timeout,
        dimse_timeout=config.dimse_timeout,
    )
    return DicomWeb(settings, "--token-file")


def _fetched(
    request: FetchRequest,
    config: FetchConfig,
    wanted: _Wanted,
    source: Pacs | DicomWeb,
    progress: Progress,
) -> tuple[dict[str, Any], str, int]:
    from pneumoscope.delivery.pacs import FetchedFolder, Pacs
    from pneumoscope.delivery.pseudonyms import key_file

    folder = FetchedFolder(
        request.out,
        config.max_bytes,
        config.min_free,
        pseudonyms=config.pseudonyms,
        mapping=Path(config.mapping) if config.mapping else None,
    )
    try:
        if isinstance(source, Pacs):
            missing, not_found = _from_pacs(source, wanted, folder, progress)
        else:
            missing, not_found = _from_web(source, wanted, folder, config.max_bytes, progress), []
    finally:
        table = folder.write_table()
    document: dict[str, Any] = {
        "out": str(request.out),
        "table": str(table),
        "new": folder.new,
        "known_before": folder.known,
        "turned_away": folder.turned_away,
        "missing": missing,
        "not_found": not_found,
        "pseudonyms": config.pseudonyms,
    }
    lines = [f"{folder.new} images fetched, {folder.known} were there, {missing} missing"]
    if not_found:
        lines.append(f"no X-ray found of {len(not_found)} of --ids: {', '.join(not_found)}")
    if config.pseudonyms:
        key = key_file(request.out)
        document |= {"key": str(key), "mapping": config.mapping or None}
        lines.append(f"table  {table} (pseudonyms)")
        lines.append(f"key    {key} (whoever has it can recognise patients: keep it apart)")
        if config.mapping:
            lines.append(f"mapping  {config.mapping} (names patients: keep it apart)")
    else:
        lines.append(f"table  {table} (names patients: keep it as carefully as the images)")
    text = "\n".join(lines)
    return document, text, 3 if missing or not_found else 0


def _days(request: FetchRequest) -> tuple[date, date] | None:
    if not request.first:
        return None
    first = _date(request.first, "--from")
    last = _date(request.last, "--to") if request.last else first
    if last < first:
        raise UsageError(f"--from {first} --to {last}: found the last day before the first")
    return first, last


def _date(text: str, option: str) -> date:
    plain = text.replace("-", "")
    try:
        if len(plain) != len("YYYYMMDD"):
            raise ValueError(text)
        return date(int(plain[:4]), int(plain[4:6]), int(plain[6:]))
    except ValueError:
        raise UsageError(f"{option}: found {text!r}, wanted a date such as 2026-09-01") from None


def _from_pacs(
    pacs: Pacs, wanted: _Wanted, folder: FetchedFolder, progress: Progress
) -> tuple[int, list[str]]:
    missing = 0
    found = pacs.by_days(*wanted.days) if wanted.days else pacs.by_ids(wanted.ids)
    studies = list(dict.fromkeys(found))
    with progress.task("fetching", len(studies), "studies") as task:
        for study in studies:
            for series in pacs.series(study):
                missing += pacs.fetch(series, folder)
            task.advance()
    if pacs.refusals and not folder.new:
        raise pacs.refusals[0]
    return missing + pacs.unusable, pacs.not_found


def _ids(path: Path) -> list[str]:
    if not path.is_file():
        raise UsageError(f"--ids {path}: is not a file, wanted an accession or study UID per line")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"--ids {path}: can't be read ({error}); wanted a text in UTF-8 with one accession "
            "number or study UID per line. Save it as such."
        ) from error
    for number, line in enumerate(lines, 1):
        if set(line) & _WILDCARDS:
            raise UsageError(
                f"--ids {path}: found {line.strip()!r} in line {number}, wanted one accession "
                "number or study UID. `*`, `?` and `\\` stand for several; list each id."
            )
    ids = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not ids:
        raise UsageError(
            f"--ids {path}: found no id, wanted one accession number or study UID per line. Add "
            "them, or give --from and --to."
        )
    return ids


def _from_web(
    web: DicomWeb, wanted: _Wanted, folder: FetchedFolder, max_bytes: int, progress: Progress
) -> int:
    from pneumoscope.delivery.dicom_node.http_client import ServerError

    dates = "-".join(f"{day:%Y%m%d}" for day in wanted.days or ())
    missing = 0
    try:
        for modality in wanted.modalities:
            for images, unusable in web.search(modality, dates):
                if unusable:
                    _LOGGER.warning("%d rows of the search state no usable UIDs", unusable)
                    missing += unusable
                with progress.task(f"fetching {modality}", len(images), "images") as task:
                    for image in images:
                        if not folder.has(image.sop):
                            _retrieve(web, image, folder, max_bytes)
                            missing += not folder.has(image.sop)
                        task.advance()
    except ServerError as error:
        raise NetworkError(
            f"--dicomweb {web.url}: {error}. Fetched images are kept; run the same "
            "command again to continue."
        ) from error
    return missing


def _retrieve(web: DicomWeb, image: Found, folder: FetchedFolder, max_bytes: int) -> None:
    """Fetch one image into the folder, if the server gives it.

    Raises:
        ServerError: no connection was made.
        MissingError: the free disk space is below the limit.
    """
    from pneumoscope.delivery.dicom_node.dicomweb import NotAvailableError
    from pneumoscope.delivery.dicom_node.http_client import ServerError

    folder.check_room()
    try:
        folder.add(web.retrieve(image, max_bytes))
    except NotAvailableError as error:
        _LOGGER.warning("an image is not available: %s", error)
    except ServerError as error:
        if error.everywhere:
            raise
        _LOGGER.warning("an image was not retrieved: %s", error)
