"""Files on any storage that fsspec reaches (`s3://`, `https://`, `file://`, …): which, and read.

Comes in: URLs and local paths, in whatever mixture. Goes out: names as `expand` gives them, and
images. Knows nothing of clusters or models. Needs the extra `ray`; for some storages a package
more, which the error names.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pneumoscope.config import LimitsConfig
from pneumoscope.errors import (
    ExtraMissingError,
    ImageRefusedError,
    ManifestError,
    MissingError,
    Reason,
)
from pneumoscope.images.read import GreyImage, read_bytes, read_image
from pneumoscope.inference.inputs import expand, is_url, listed

_WAITS = (0.5, 2.0, 8.0)
"""Seconds before a file that the storage did not give is asked for again."""


def expand_anywhere(paths: Iterable[Path | str]) -> Iterator[str]:
    """The names of the files that paths and URLs mean, in an order that stays.

    Of URLs: a folder's files, in sorted order, hidden ones left out (of HTTP, which knows no
    folders, a URL that ends in `/` and shows a list of links); what fits a pattern with `*`; the
    `path` column of a CSV, relative to it or URLs themselves; or a file itself.

    Raises:
        ManifestError: a CSV can't be read or understood.
        MissingError: the package for a storage is not installed, or it does not answer.
    """
    for path in paths:
        if is_url(str(path)):
            yield from _expand_url(str(path))
        else:
            yield from expand([Path(path)])


def read_anywhere(name: str, limits: LimitsConfig) -> GreyImage:
    """Read one image from a URL or a path; the bytes of a URL are fetched whole.

    Raises:
        ImageRefusedError: for every failure of the file and of the storage.
    """
    if not is_url(name):
        return read_image(name, limits)
    storage, place = _storage(name)
    if "file" in storage.protocol:  # pipes and devices are read by no storage of ours
        return read_image(place, limits)
    return read_bytes(_fetched(storage, place, name, limits), name, limits)


def _storage(url: str) -> tuple[Any, str]:
    try:
        import fsspec
    except ImportError as error:
        raise ExtraMissingError(f"reading {url}", "ray") from error
    try:
        storage, place = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:  # no package for it, or no such protocol
        raise MissingError(
            f"{url}: {error}. Give a URL that fsspec knows, and install what it needs."
        ) from error
    return storage, str(place)


def _failures() -> tuple[type[Exception], ...]:
    """What storages raise: mostly OSError; HTTP its own."""
    try:
        from aiohttp import ClientError
    except ImportError:
        return (OSError, ValueError)
    return (OSError, ValueError, ClientError)


def _fetched(storage: Any, place: str, name: str, limits: LimitsConfig) -> bytes:
    words = ""
    for wait in (*_WAITS, None):
        try:
            return bytes(storage.cat_file(place, end=limits.max_bytes + 1))
        except FileNotFoundError as error:
            raise ImageRefusedError(
                name, Reason.NOT_FOUND, "the storage has no such file"
            ) from error
        except IsADirectoryError as error:
            raise ImageRefusedError(
                name, Reason.NOT_A_FILE, "it is a folder; an image file is wanted"
            ) from error
        except PermissionError as error:
            raise ImageRefusedError(
                name, Reason.PERMISSION_DENIED, f"the storage does not give it to you ({error})"
            ) from error
        except _failures() as error:
            words = " ".join(str(error).split())[:300] or type(error).__name__
        if wait is not None:
            time.sleep(wait)
    raise ImageRefusedError(
        name, Reason.CORRUPT, f"the storage did not give it in {len(_WAITS) + 1} tries ({words})"
    )


def _expand_url(url: str) -> Iterator[str]:
    storage, place = _storage(url)
    try:
        if "*" in place:
            found = storage.glob(place, detail=True)
            names = sorted(n for n, about in found.items() if about["type"] != "directory")
        elif _is_folder(storage, place, url):
            names = sorted(n for n in storage.find(place) if not _hidden(n, place))
        elif place.lower().endswith(".csv"):
            yield from _listed_at(storage, place, url)
            return
        else:
            names = []
    except _failures() as error:
        raise MissingError(
            f"{url}: the storage does not answer ({error}). Give one that you may list."
        ) from error
    yield from [storage.unstrip_protocol(name) for name in names] or [url]


def _is_folder(storage: Any, place: str, url: str) -> bool:
    if url.startswith(("http://", "https://")):
        return url.endswith("/")
    return bool(storage.isdir(place))


def _hidden(name: str, top: str) -> bool:
    return any(part.startswith(".") for part in name.removeprefix(top).split("/"))


def _listed_at(storage: Any, place: str, url: str) -> Iterator[str]:
    try:
        content = storage.cat_file(place)
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ManifestError(f"{url}: is no CSV in UTF-8: {error}. Save it as such.") from error
    for name in listed(io.StringIO(text, newline=""), url):
        yield name if is_url(name) else f"{url.rsplit('/', 1)[0]}/{name}"
