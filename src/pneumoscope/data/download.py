"""Download a file from the web, or the Kermany set from Hugging Face or Kaggle.

`fetch` gets one file: resumable, checked, limited in size and time. The input is an http or https
address and a folder; the output is the path of the complete file. Until the file is complete, its
bytes are in `KEY.part`, and `KEY.json` beside it states which version of the file they belong to
(KEY is a hash of the address), so that a later call can resume.

`Hubs` wraps the public clients, which tests can replace. It returns the folder in which a client
stores the set, and raises our errors instead of theirs. The clients read their own caches,
`HF_ENDPOINT` and proxies, and both resume by themselves.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from pneumoscope.errors import DataError, ExtraMissingError, InputError, NetworkError, UsageError
from pneumoscope.progress import SILENT, Progress, SilentProgress, Task
from pneumoscope.reading import read_json
from pneumoscope.storage import sha256_of_file, write_json

if TYPE_CHECKING:
    import httpx

WAY_OUT = (
    "Without a network here: download the set on another computer "
    "(Mendeley Data, doi:10.17632/rscbjbr9sj.2, or Kaggle, "
    "paultimothymooney/chest-xray-pneumonia), bring the zip file here, then: "
    "pneumoscope data download --source FILE.zip --out DIR"
)
"""Advice after a failed download; the end of each NetworkError of this package."""

_MEGABYTE = 1_000_000
_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-(\d+)|\*)/(\d+)")

HUGGINGFACE_NAME = "hf-vision/chest-xray-pneumonia"
KAGGLE_NAME = "paultimothymooney/chest-xray-pneumonia"
_PARQUET_PATTERNS = ("**/*.parquet", "*.parquet")
# Errors that the clients pass on when the disk, not the network, is the cause.
_DISK_ERRORS = frozenset(
    (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)
)


@dataclass(frozen=True, slots=True)
class TransferLimits:
    """Limits of a download.

    Attributes:
        max_bytes: maximum size of the file in bytes.
        connect_seconds: maximum wait for a connection.
        silence_seconds: maximum wait for the next byte.
        least_rate: minimum bytes per second, measured over `silence_seconds`.
        attempts: consecutive attempts that may fail without gaining a byte.
        first_wait_seconds: pause after the first failure; it doubles with each further one.
    """

    max_bytes: int = 16 << 30
    connect_seconds: float = 10.0
    silence_seconds: float = 30.0
    least_rate: float = 1000.0
    attempts: int = 4
    first_wait_seconds: float = 1.0


@dataclass(frozen=True, slots=True)
class _Version:
    """The version of a file on a server: the validators of RFC 9110, section 8.8."""

    etag: str
    last_modified: str

    @classmethod
    def of(cls, response: httpx.Response) -> _Version:
        return cls(response.headers.get("ETag", ""), response.headers.get("Last-Modified", ""))

    @property
    def validator(self) -> str:
        """The value for If-Range: a strong ETag, else the date; `""` if resuming is not safe."""
        if self.etag and not self.etag.startswith("W/"):
            return self.etag
        return self.last_modified


@dataclass(frozen=True, slots=True)
class _Transfer:
    """The files of one download."""

    url: str
    part: Path
    note: Path
    complete: Path

    @classmethod
    def of(cls, url: str, folder: Path) -> _Transfer:
        key = hashlib.sha256(url.encode("utf-8")).hexdigest()[:32]
        return cls(url, folder / f"{key}.part", folder / f"{key}.json", folder / f"{key}.zip")

    def resume_point(self) -> tuple[int, _Version]:
        """The number of bytes present and their version; `(0, …)` if that is not known."""
        unknown = 0, _Version("", "")
        try:
            size = self.part.stat().st_size
            note = read_json(self.note)
            version = _Version(str(note["etag"]), str(note["last_modified"]))
        except (FileNotFoundError, InputError, KeyError, TypeError):
            return unknown
        return (size, version) if version.validator else unknown

    def discard(self) -> None:
        for path in (self.part, self.note, self.complete):
            path.unlink(missing_ok=True)


class _BrokenOffError(Exception):
    """The transfer failed in a way that another attempt may solve."""


class _DrippedError(_BrokenOffError):
    """The transfer was too slow; the bytes received do not count as progress."""


def shown_url(url: str) -> str:
    """`url` without user name, password, query and fragment, which may contain secrets.

    Raises:
        UsageError: it is not an http or https address.
    """
    import httpx

    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise UsageError(f"{url!r} is not an address: {error}") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise UsageError(f"{url!r} is not an address to download from. Give http://… or https://…")
    return str(parsed.copy_with(userinfo=b"", query=None, fragment=None))


def fetch(
    url: str,
    folder: Path,
    progress: Progress = SILENT,
    sha256: str | None = None,
    limits: TransferLimits | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Path:
    """Download `url` into `folder`, or resume an interrupted download.

    If-Range (RFC 9110, section 13.1.5) ensures that all bytes belong to one version: if the server
    has another version by now, or does not support ranges, the download starts again.

    Args:
        url: http or https; redirects are followed, but never from https to http.
        folder: where the file and its parts are stored.
        progress: reports megabytes.
        sha256: expected hex digest of the file.
        limits: size, time-outs and attempts; `None` takes the defaults.
        sleep: waits some seconds.

    Returns:
        The complete file, in `folder`. The caller removes it after use.

    Raises:
        UsageError: `url` is not an http or https address.
        NetworkError: the server can't be reached, refuses, or breaks off repeatedly.
        DataError: the file is larger than allowed, or has another digest (it is removed then).
    """
    limits = limits or TransferLimits()
    name = shown_url(url)
    transfer = _Transfer.of(url, folder)
    folder.mkdir(parents=True, exist_ok=True)
    if not transfer.complete.exists():
        _fetch_with_retries(transfer, name, progress, limits, sleep)
    if sha256 is not None:
        found = sha256_of_file(transfer.complete)
        if found != sha256.lower():
            transfer.discard()
            raise DataError(
                f"{name} has the SHA-256 {found}, wanted {sha256.lower()}; the file was removed. "
                "Check the address and the digest, then download again."
            )
    return transfer.complete


def _fetch_with_retries(
    transfer: _Transfer,
    name: str,
    progress: Progress,
    limits: TransferLimits,
    sleep: Callable[[float], None],
) -> None:
    import httpx

    timeout = httpx.Timeout(limits.silence_seconds, connect=limits.connect_seconds)
    failures = 0
    reached = transfer.resume_point()[0]
    with httpx.Client(timeout=timeout, follow_redirects=True, max_redirects=5) as client:
        while True:
            try:
                return _attempt(client, transfer, name, progress, limits)
            except (httpx.TooManyRedirects, httpx.UnsupportedProtocol) as error:
                raise NetworkError(
                    f"{name} redirects to no usable address: {error}. {WAY_OUT}"
                ) from error
            except (httpx.TransportError, _BrokenOffError) as error:
                cause: Exception = error
            here = transfer.resume_point()[0]
            # Only bytes that the next attempt can use count as progress.
            gained = here > reached and not isinstance(cause, _DrippedError)
            failures = 0 if gained else failures + 1
            reached = max(here, reached)
            if failures >= limits.attempts:
                raise NetworkError(
                    f"{name} could not be downloaded after {failures} tries: "
                    f"{str(cause) or type(cause).__name__}. The bytes received so far are kept; "
                    f"the same command resumes the download. {WAY_OUT}"
                ) from cause
            sleep(limits.first_wait_seconds * 2 ** max(failures - 1, 0))


def _attempt(
    client: httpx.Client,
    transfer: _Transfer,
    name: str,
    progress: Progress,
    limits: TransferLimits,
) -> None:
    """Request the missing bytes and append them, until the file is complete."""
    offset, version = transfer.resume_point()
    headers = {"Accept-Encoding": "identity"}
    if offset:
        headers |= {"Range": f"bytes={offset}-", "If-Range": version.validator}
    with client.stream("GET", transfer.url, headers=headers) as response:
        if transfer.url.startswith("https:") and response.url.scheme != "https":
            raise NetworkError(f"{name} redirects to an unencrypted address. {WAY_OUT}")
        if response.status_code == 416 and _range_of(response) == (None, offset):
            total: int | None = offset
        else:
            start, total = _place_of(response, transfer, offset, version, name)
            if total is not None and total > limits.max_bytes:
                _refuse_size(transfer, name, f"{total:,} bytes", limits)
            _write_body(response, transfer, start, total, name, progress, limits)
    size = transfer.part.stat().st_size
    if total is not None and size != total:
        raise _BrokenOffError(f"got {size:,} of {total:,} bytes")
    transfer.part.replace(transfer.complete)
    transfer.note.unlink(missing_ok=True)


def _range_of(response: httpx.Response) -> tuple[int | None, int] | None:
    """First byte and total of a Content-Range header (RFC 9110, section 14.4)."""
    match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", "").strip())
    if match is None:
        return None
    return (None if match[1] is None else int(match[1])), int(match[3])


def _place_of(
    response: httpx.Response, transfer: _Transfer, offset: int, version: _Version, name: str
) -> tuple[int, int | None]:
    """The position of the body of `response` in the file, and the file's length if known."""
    status = response.status_code
    if status == 200:
        length = response.headers.get("Content-Length", "")
        return 0, int(length) if length.isdigit() else None
    if status == 206:
        place = _range_of(response)
        sent = _Version.of(response)
        if place and place[0] == offset and (not sent.etag or sent.etag == version.etag):
            return offset, place[1]
        transfer.discard()
        raise _BrokenOffError("the server sent another part than was requested")
    if status == 416:
        transfer.discard()
        raise _BrokenOffError("the server's file is shorter than the part received so far")
    if status in (408, 429) or status >= 500:
        raise _BrokenOffError(f"the server answered {status} {response.reason_phrase}")
    raise NetworkError(f"{name}: the server answered {status} {response.reason_phrase}. {WAY_OUT}")


def _write_body(
    response: httpx.Response,
    transfer: _Transfer,
    start: int,
    total: int | None,
    name: str,
    progress: Progress,
    limits: TransferLimits,
) -> None:
    size = start
    megabytes = -(-total // _MEGABYTE) if total is not None else 0
    # Opening with "wb" empties the part before the note names a new version. If the process is
    # killed in between, no bytes of the old version remain under the name of the new one.
    with (
        transfer.part.open("ab" if start else "wb") as stream,
        progress.task(f"downloading {name}", megabytes, "MB") as task,
    ):
        if not start:
            sent = _Version.of(response)
            write_json(
                transfer.note,
                {"url": name, "etag": sent.etag, "last_modified": sent.last_modified},
            )
        shown = _advance(task, 0, size)
        began, at_first = time.monotonic(), size
        for chunk in response.iter_raw():
            size += len(chunk)
            if (passed := time.monotonic() - began) > limits.silence_seconds:
                if size - at_first < limits.least_rate * passed:
                    stream.flush()
                    raise _DrippedError(
                        f"only {size - at_first:,} bytes were received in {passed:.0f} seconds"
                    )
                began, at_first = time.monotonic(), size
            if size > limits.max_bytes:
                _refuse_size(transfer, name, "longer", limits)
            stream.write(chunk)
            shown = _advance(task, shown, size)
        stream.flush()
        os.fsync(stream.fileno())


def _advance(task: Task, shown: int, size: int) -> int:
    """Report to `task` the whole megabytes received since `shown`."""
    now = size // _MEGABYTE
    if now > shown:
        task.advance(now - shown)
    return now


def _refuse_size(transfer: _Transfer, name: str, found: str, limits: TransferLimits) -> NoReturn:
    transfer.discard()
    raise DataError(
        f"{name} is {found}; at most {limits.max_bytes:,} bytes are allowed, and nothing was kept. "
        "Check the address."
    )


@dataclass(frozen=True, slots=True)
class Hubs:
    """The two functions of the clients, replaceable for tests.

    Attributes:
        snapshot_download: as in huggingface_hub, which `None` selects.
        dataset_download: as in kagglehub, which `None` selects.
    """

    snapshot_download: Callable[..., str] | None = None
    dataset_download: Callable[..., str] | None = None

    def huggingface_folder(self, progress: Progress) -> Path:
        """Download the Parquet files of the Hugging Face copy that are not cached yet.

        Raises:
            ExtraMissingError: huggingface_hub is not installed.
            NetworkError: the hub can't be reached or refuses.
        """
        call = self.snapshot_download or _real_snapshot_download(progress)
        with _network_errors(f"Hugging Face's {HUGGINGFACE_NAME}"):
            return Path(
                call(HUGGINGFACE_NAME, repo_type="dataset", allow_patterns=list(_PARQUET_PATTERNS))
            )

    def kaggle_folder(self, progress: Progress) -> Path:
        """Download Kaggle's copy without an account, unless it is cached.

        Raises:
            ExtraMissingError: kagglehub is not installed.
            NetworkError: Kaggle can't be reached or refuses.
        """
        del progress  # kagglehub shows its own progress on stderr
        call = self.dataset_download or _real_dataset_download()
        with _network_errors(f"Kaggle's {KAGGLE_NAME}"):
            return Path(call(KAGGLE_NAME))


@contextlib.contextmanager
def _network_errors(what: str) -> Iterator[None]:
    """Turn the clients' errors (after translation: OSError) into NetworkError."""
    try:
        # Stdout is reserved for our own result; output of the clients goes to stderr.
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except OSError as error:
        if error.errno in _DISK_ERRORS:
            raise
        first_line = str(error).strip().partition("\n")[0].rstrip(".")
        cause = first_line or type(error).__name__
        raise NetworkError(f"{what} could not be downloaded: {cause}. {WAY_OUT}") from error


def _real_snapshot_download(progress: Progress) -> Callable[..., str]:
    try:
        client = import_module("huggingface_hub")
        errors = import_module("huggingface_hub.errors")
        utils = import_module("huggingface_hub.utils")
    except ImportError as error:
        raise ExtraMissingError("downloading from Hugging Face", "download") from error

    # The client has used requests, httpx and httpx2 in turn; its own HTTP error has always been
    # derived from the base error of the transport.
    # RuntimeError comes from the Xet transfer library.
    failures: tuple[type[Exception], ...] = (*errors.HfHubHTTPError.__bases__, RuntimeError)

    def call(name: str, *, repo_type: str, allow_patterns: list[str]) -> str:
        silence = isinstance(progress, SilentProgress) and not utils.are_progress_bars_disabled()
        if silence:
            utils.disable_progress_bars()
        try:
            return str(
                client.snapshot_download(name, repo_type=repo_type, allow_patterns=allow_patterns)
            )
        except OSError:
            raise
        except failures as error:
            raise ConnectionError(str(error) or type(error).__name__) from error
        finally:
            if silence:
                utils.enable_progress_bars()

    return call


def _real_dataset_download() -> Callable[..., str]:
    try:
        client = import_module("kagglehub")
        exceptions = import_module("kagglehub.exceptions")
    except ImportError as error:
        raise ExtraMissingError("downloading from Kaggle", "download") from error

    def call(name: str) -> str:
        try:
            return str(client.dataset_download(name))
        except (
            exceptions.BackendError,
            exceptions.CredentialError,
            exceptions.DataCorruptionError,
            exceptions.KaggleEnvironmentError,
            exceptions.NotFoundError,
            exceptions.UnauthenticatedError,
        ) as error:
            raise ConnectionError(str(error) or type(error).__name__) from error

    return call
