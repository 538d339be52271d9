"""Read one image file, or its bytes, to a grey array in [0, 1], or refuse it with a reason.

The input is a path or bytes, and limits. The output is a `GreyImage`; the only exception is
`ImageRefusedError`. The size that a network expects plays no role here.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from pathlib import Path

from pneumoscope.config import LimitsConfig
from pneumoscope.errors import ImageRefusedError, Reason
from pneumoscope.images.budget import spending
from pneumoscope.images.grey import Decoded, DicomInfo, GreyImage
from pneumoscope.images.raster import Format, describe, detect_format
from pneumoscope.images.warning_summary import join_warnings

__all__ = ["DicomInfo", "GreyImage", "read_bytes", "read_image"]

READER_VERSION = 2
"""Raise it whenever the same bytes would give other pixels: cached results are then recomputed."""

_DEFAULT_LIMITS = LimitsConfig()
_DENIED = (errno.EACCES, errno.EPERM)
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)
_SPECIAL_FILES = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def read_image(path: Path | str, limits: LimitsConfig = _DEFAULT_LIMITS) -> GreyImage:
    """Read one image file.

    Args:
        path: a regular file; reading never blocks on a pipe, a socket or a device.
        limits: limits on the file's bytes, pixels and sides.

    Returns:
        Grey pixels, float32 (h, w) in [0, 1], with their source.

    Raises:
        ImageRefusedError: for every failure; `.reason` is the code, `.detail` the explanation.

    Example:
        >>> float(read_image(image).pixels.max()) <= 1.0
        True
    """
    name = str(path)
    return read_bytes(read_file(name, limits), name, limits)


def read_bytes(content: bytes, name: str, limits: LimitsConfig = _DEFAULT_LIMITS) -> GreyImage:
    """Read one image from the bytes of its file; `name` appears only in messages.

    Raises:
        ImageRefusedError: for every failure.
    """
    if not content:
        raise ImageRefusedError(name, Reason.EMPTY_FILE, "the file has no bytes. Fetch it again")
    _check_bytes(name, len(content), limits)
    kind = detect_format(content)
    if kind is None:
        raise ImageRefusedError(
            name,
            Reason.NOT_AN_IMAGE,
            f"it seems to be {describe(content)}; JPEG, PNG, TIFF, BMP, WebP or DICOM is wanted",
        )
    with spending(name):
        decoded = _decode(content, kind, name, limits)
    if decoded.pixels.min() == decoded.pixels.max():
        raise ImageRefusedError(
            name,
            Reason.BLANK,
            f"all its pixels have one grey ({float(decoded.pixels.flat[0]):.3f}), so it shows "
            f"nothing{header_note(decoded.warnings)}",
            decoded.warnings,
        )
    return GreyImage(
        pixels=decoded.pixels,
        source=name,
        format=kind,
        bit_depth=decoded.bit_depth,
        sha256=hashlib.sha256(content).hexdigest(),
        dicom=decoded.dicom,
        warnings=decoded.warnings,
        colour=decoded.colour,
    )


def header_note(warnings: tuple[str, ...]) -> str:
    """The clause added to a refusal for the image's content: its header may be the cause."""
    return f". Its header may be the cause: {join_warnings(warnings)}" if warnings else ""


def _decode(content: bytes, kind: Format, name: str, limits: LimitsConfig) -> Decoded:
    if kind == "dicom":
        # pydicom takes 0.2 s to import, and most data sets have no DICOM.
        from pneumoscope.images.dicom import decode_dicom

        return decode_dicom(content, name, limits)
    from pneumoscope.images.raster import decode_raster

    return decode_raster(content, kind, name, limits)


def read_file(name: str, limits: LimitsConfig) -> bytes:
    """Read the bytes of a regular file within the limits; never blocks on a pipe or a device.

    Raises:
        ImageRefusedError: the file is missing, not readable, not a regular file, or too large.
    """
    try:
        _check_status(name, os.stat(name), limits)  # noqa: PTH116 - Path drops trailing slashes
        # The file may be replaced between the two checks; a non-blocking open keeps that harmless.
        descriptor = os.open(name, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with os.fdopen(descriptor, "rb") as stream:
            _check_status(name, os.fstat(stream.fileno()), limits)
            content = stream.read(limits.max_bytes + 1)
    except OSError as error:
        raise _file_error(name, error) from error
    except ValueError as error:  # a null character, or text that no file system encodes
        raise ImageRefusedError(
            name, Reason.NOT_FOUND, f"no file can have this name ({error})"
        ) from error
    return content


def _check_status(name: str, status: os.stat_result, limits: LimitsConfig) -> None:
    for is_kind, words in _SPECIAL_FILES:
        if is_kind(status.st_mode):
            raise ImageRefusedError(
                name, Reason.NOT_A_FILE, f"it is {words}; the path of an image file is wanted"
            )
    _check_bytes(name, status.st_size, limits)


def _check_bytes(name: str, count: int, limits: LimitsConfig) -> None:
    if count > limits.max_bytes:
        raise ImageRefusedError(
            name,
            Reason.FILE_TOO_LARGE,
            f"it has at least {count:,} bytes; at most {limits.max_bytes:,} are read",
        )


def _file_error(name: str, error: OSError) -> ImageRefusedError:
    words = error.strerror or type(error).__name__
    if error.errno in _DENIED:
        return ImageRefusedError(
            name, Reason.PERMISSION_DENIED, f"this user may not read it ({words})"
        )
    if error.errno == errno.ELOOP:
        return ImageRefusedError(name, Reason.NOT_FOUND, "its symbolic links form a loop")
    if error.errno in _ABSENT:
        target = _link_target(name)
        detail = (
            f"it is a symbolic link to {target}, which does not exist"
            if target
            else f"no such file ({words})"
        )
        return ImageRefusedError(name, Reason.NOT_FOUND, detail)
    return ImageRefusedError(name, Reason.CORRUPT, f"the disk can't read it ({words})")


def _link_target(name: str) -> str:
    try:
        return os.readlink(name)  # noqa: PTH115 - as written, not resolved
    except OSError:
        return ""
