"""Extract the X-rays from an untrusted zip archive, without writing outside the target folder.

The output contains the images under the `NORMAL/` and `PNEUMONIA/` folders of the archive, in the
archive's own tree. Names are checked before the first byte is written, sizes are counted while
unpacking, and images are detected by their first bytes.
"""

from __future__ import annotations

import re
import stat
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pneumoscope.errors import DataError, UnsafeArchiveError
from pneumoscope.images.read import Format, detect_format
from pneumoscope.progress import SILENT, Progress
from pneumoscope.reading import ARCHIVE_ERRORS, PIECE_BYTES, member_pieces
from pneumoscope.records import CLASS_NAMES

HEAD_BYTES = 8192
"""Number of bytes of a file that `image_suffix` needs."""

_ENTRY, _END_RECORD = b"PK\x01\x02", b"PK\x05\x06"
_MAX_END_BYTES = 66_000
"""The end record with its longest comment, and the ZIP64 records before it."""

_IN_ZIP64 = 0xFFFFFFFF
_DRIVE = re.compile(r"[A-Za-z]:")
# Device names of Windows, with any extension (Microsoft, "Naming Files").
_DEVICE = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³])\s*(\..*)?", re.I)
_LONGEST_NAME_BYTES = 255
_DEEPEST = 32
_CLASSES = frozenset(name.casefold() for name in CLASS_NAMES)
_SUFFIXES: Mapping[Format, str] = {
    "jpeg": ".jpeg",
    "png": ".png",
    "tiff": ".tiff",
    "bmp": ".bmp",
    "webp": ".webp",
    "dicom": ".dcm",
}


@dataclass(frozen=True, slots=True)
class ArchiveLimits:
    """Limits on unpacking an archive.

    Attributes:
        max_members: maximum number of entries, including folders and skipped entries.
        max_member_bytes: maximum bytes of one unpacked image.
        max_total_bytes: maximum bytes of all unpacked images.
        max_ratio: maximum unpacked bytes per packed byte. X-rays are compressed already and stay
            near 1; bombs reach 1,000.
        free_bytes: unpacked size, of one image and of all, below which the ratio is not checked.
    """

    max_members: int = 200_000
    max_member_bytes: int = 256 << 20
    max_total_bytes: int = 32 << 30
    max_ratio: float = 100.0
    free_bytes: int = 4 << 20


@dataclass(frozen=True, slots=True)
class Unpacked:
    """The result of unpacking: images kept, files skipped, bytes of the images."""

    kept: int
    skipped: int
    bytes: int


def image_suffix(head: bytes) -> str | None:
    """The usual file name suffix for content that starts with `head`; `None` if not an image.

    Args:
        head: the first `HEAD_BYTES` bytes, or all of a shorter file.
    """
    found = detect_format(head)
    return None if found is None else _SUFFIXES[found]


def extract_zip(
    archive: Path,
    out: Path,
    limits: ArchiveLimits | None = None,
    progress: Progress = SILENT,
    name: str | None = None,
) -> Unpacked:
    """Unpack the X-rays of `archive` below `out`.

    Kept are images (by content) under a folder named after a class, in any letter case. Files of
    `__MACOSX`, hidden files and all others are skipped.

    Args:
        archive: a zip file.
        out: an empty folder; after an error it contains some of the images, and the caller removes
            it.
        limits: limits on the unpacked size; `None` takes the defaults.
        progress: reports files.
        name: name of the archive in messages; `None`: its path.

    Returns:
        Counts of kept and skipped files.

    Raises:
        UnsafeArchiveError: a member would leave `out`, is a link or a device, appears twice, or
            unpacks to more than `limits` allow.
        DataError: not a zip file, encrypted, damaged, or compressed by an unsupported method.
    """
    limits = limits or ArchiveLimits()
    name = name or str(archive)
    _check_directory(archive, name, limits)
    try:
        opened = zipfile.ZipFile(archive)
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise DataError(f"{name} is not a zip file that can be read: {error}") from error
    with opened:
        members = opened.infolist()
        if len(members) > limits.max_members:
            raise UnsafeArchiveError(
                f"{name} has {len(members):,} entries; at most {limits.max_members:,} are allowed"
            )
        places = [(member, _checked_place(name, member)) for member in members]
        files = [(member, place) for member, place in places if not member.is_dir()]
        wanted = [(member, place) for member, place in files if _is_wanted(place)]
        packed = archive.stat().st_size
        kept = total = 0
        with progress.task(f"unpacking {name}", len(wanted), "files") as task:
            for member, place in wanted:
                budget = _Budget(name, member, packed, total, limits)
                written = _extract_member(opened, member, out.joinpath(*place.parts), budget)
                if written is not None:
                    kept += 1
                    total += written
                task.advance()
    return Unpacked(kept, len(files) - kept, total)


def _check_directory(archive: Path, name: str, limits: ArchiveLimits) -> None:
    """Count the entries before zipfile creates an object for each (APPNOTE 4.3.12 and 4.3.16).

    The number stated in the end record may be false, so the entries themselves are counted.

    Raises:
        UnsafeArchiveError: there are more than allowed.
    """
    with archive.open("rb") as stream:
        length = stream.seek(0, 2)
        stream.seek(max(0, length - _MAX_END_BYTES))
        end = length - stream.tell()
        tail = stream.read()
        place = tail.rfind(_END_RECORD)
        if place < 0:
            return  # zipfile reports the error
        directory_end = length - end + place
        size = int.from_bytes(tail[place + 12 : place + 16], "little")
        if size == _IN_ZIP64:
            size = directory_end
        stream.seek(max(0, directory_end - size - _MAX_END_BYTES))
        left, found, before = directory_end - stream.tell(), 0, b""
        while left > 0 and (chunk := stream.read(min(left, PIECE_BYTES))):
            left -= len(chunk)
            found += (before + chunk).count(_ENTRY)
            before = chunk[1 - len(_ENTRY) :]
            if found > limits.max_members:
                raise UnsafeArchiveError(
                    f"{name} has more than {limits.max_members:,} entries; no more are allowed"
                )


def _is_wanted(place: PurePosixPath) -> bool:
    if "__MACOSX" in place.parts or place.name.startswith("."):
        return False
    return any(part.casefold() in _CLASSES for part in place.parts[:-1])


def _checked_place(archive: str, member: zipfile.ZipInfo) -> PurePosixPath:
    """The member's relative path, after checking that it lies inside the folder.

    `orig_filename` is the name as stored; `filename` was normalised by zipfile and may hide a
    backslash or the text after a NUL.
    """
    stored = member.orig_filename
    parts = stored.removesuffix("/").split("/")
    if fault := _fault_of_name(stored, parts) or _fault_of_kind(member):
        raise UnsafeArchiveError(
            f"{archive}: the entry {stored[:200]!r} {fault}. Nothing was unpacked. "
            "Get the archive from its publisher."
        )
    return PurePosixPath(*[part for part in parts if part not in ("", ".")])


def _fault_of_name(name: str, parts: list[str]) -> str:
    """Why a stored name is dangerous, on this or another system; `""` if it is not."""
    checks = (
        (name.startswith("/"), "is an absolute path"),
        ("\\" in name, "has a backslash in its name"),
        (any(ord(c) < 32 or ord(c) == 127 for c in name), "has a control character in its name"),
        (".." in parts, "climbs out of its folder by '..'"),
        (any(_DRIVE.match(part) for part in parts), "names a drive"),
        (any(_DEVICE.fullmatch(part) for part in parts), "has the name of a device"),
        (len(parts) > _DEEPEST, f"lies more than {_DEEPEST} folders deep"),
        (
            any(len(part.encode("utf-8", "replace")) > _LONGEST_NAME_BYTES for part in parts),
            f"has a name longer than {_LONGEST_NAME_BYTES} bytes",
        ),
    )
    return next((fault for is_so, fault in checks if is_so), "")


def _fault_of_kind(member: zipfile.ZipInfo) -> str:
    """Why an entry is not a plain file or folder, by its Unix mode; `""` if it is one."""
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind == stat.S_IFLNK:
        return "is a symbolic link"
    return "" if kind in (0, stat.S_IFREG, stat.S_IFDIR) else "is a device, a pipe or a socket"


@dataclass(frozen=True, slots=True)
class _Budget:
    """Checks the size of a member while it is being unpacked."""

    archive: str
    member: zipfile.ZipInfo
    packed_total: int
    unpacked_before: int
    limits: ArchiveLimits

    def check(self, size: int) -> None:
        limits, total = self.limits, self.unpacked_before + size
        # The packed size in the header may be false; the archive's own length is not.
        packed = max(1, min(self.member.compress_size, self.packed_total))
        if size > limits.max_member_bytes:
            fault = f"unpacks to more than {limits.max_member_bytes:,} bytes"
        elif total > limits.max_total_bytes:
            fault = f"brings the unpacked total over {limits.max_total_bytes:,} bytes"
        elif size > limits.free_bytes and size > limits.max_ratio * packed:
            fault = f"unpacks to more than {limits.max_ratio:g} times its packed size"
        elif total > limits.free_bytes and total > limits.max_ratio * self.packed_total:
            fault = f"brings the total over {limits.max_ratio:g} times the archive's size"
        else:
            return
        raise UnsafeArchiveError(
            f"{self.archive}: the entry {self.member.filename!r} {fault}. This looks like a "
            "decompression bomb; nothing of the archive was kept."
        )


def _extract_member(
    opened: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path, budget: _Budget
) -> int | None:
    """Write one image and return its size; `None` if its content is not an image."""
    chunks = _chunks_of(opened, member, budget)
    head = b""
    for chunk in chunks:
        head += chunk
        if len(head) >= HEAD_BYTES:
            break
    if image_suffix(head) is None:
        return None
    size = len(head)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as stream:
            stream.write(head)
            for chunk in chunks:
                stream.write(chunk)
                size += len(chunk)
    except (FileExistsError, NotADirectoryError) as error:
        raise UnsafeArchiveError(
            f"{budget.archive}: two entries would be written to {member.filename!r}"
        ) from error
    return size


def _chunks_of(
    opened: zipfile.ZipFile, member: zipfile.ZipInfo, budget: _Budget
) -> Iterator[bytes]:
    """The unpacked bytes, counted; zipfile checks the CRC after the last one."""
    if member.flag_bits & 0x1:
        raise DataError(
            f"{budget.archive}: the entry {member.filename!r} is encrypted. Unpack the archive "
            "yourself and give the folder as DATA."
        )
    size = 0
    try:
        for piece in member_pieces(opened, member):
            size += len(piece)
            budget.check(size)
            yield piece
    except ARCHIVE_ERRORS as error:
        raise DataError(
            f"{budget.archive}: the entry {member.filename!r} is damaged or packed in a way that "
            f"can't be read ({error}). Download the archive again, or unpack it yourself."
        ) from error
