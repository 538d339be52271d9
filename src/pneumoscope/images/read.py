"""Read one image file, or its bytes, to a grey array in [0, 1], or refuse it with a reason.

The input is a path or bytes, and limits. The output is a `GreyImage`; the only exception is
`ImageRefusedError`. The size that a network expects plays no role here.

The format is detected by the first bytes; file names play no role. DICOM files go to `dicom/`. The
raster formats JPEG, PNG, TIFF, BMP and WebP are decoded here. libtiff and libpng decode samples of
more than 8 bits, signed samples and floats, and `grey` scales them: Pillow wraps or saturates some
of these and does not support others. All other files go to Pillow's own classes instead of
`Image.open`. That is faster, and it bypasses Pillow's global pixel limit; `check_size` applies ours
as soon as the header is read.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Literal, cast

import numpy as np
import numpy.typing as npt
from PIL import ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from pneumoscope.arrays import Float32Array
from pneumoscope.config import LimitsConfig
from pneumoscope.errors import ImageRefusedError, Reason
from pneumoscope.images import structure
from pneumoscope.images.budget import HEADER_BYTES, CountedStream, decoding, spending
from pneumoscope.images.grey import (
    Decoded,
    DicomInfo,
    Graded,
    GreyImage,
    check_size,
    colour_of,
    composited,
    deep_grey,
    join_warnings,
    oriented,
    unit_range,
)
from pneumoscope.images.structure import check_scans, check_strips, decode_deep_tiff, deep_directory

__all__ = ["DicomInfo", "GreyImage", "read_bytes", "read_image"]

Format = Literal["jpeg", "png", "tiff", "bmp", "webp", "dicom"]

_PREFIXES: tuple[tuple[bytes, Format], ...] = (
    (b"\xff\xd8\xff", "jpeg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"II*\x00", "tiff"),
    (b"MM\x00*", "tiff"),
    (b"II+\x00", "tiff"),
    (b"MM\x00+", "tiff"),
)

_BMP_HEADER_SIZES = frozenset({12, 16, 40, 52, 56, 64, 108, 124})

_OTHERS: tuple[tuple[int, bytes, str], ...] = (
    (0, b"GIF8", "a GIF animation or picture"),
    (0, b"%PDF", "a PDF document"),
    (0, b"PK\x03\x04", "a ZIP archive (or an office document)"),
    (0, b"PK\x05\x06", "an empty ZIP archive"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"BZh", "a bzip2 archive"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (0, b"\xfd7zXZ\x00", "an xz archive"),
    (0, b"Rar!", "a RAR archive"),
    (257, b"ustar", "a tar archive"),
    (0, b"\x00\x00\x00\x0cjP  ", "a JPEG 2000 file"),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000 stream"),
    (0, b"\x00\x00\x00\x0cJXL ", "a JPEG XL file"),
    (0, b"\xff\x0a", "a JPEG XL stream"),
    (4, b"ftypavif", "an AVIF picture"),
    (4, b"ftyphei", "a HEIC picture"),
    (4, b"ftyp", "a video"),
    (0, b"8BPS", "a Photoshop document"),
    (0, b"%!PS", "a PostScript document"),
    (0, b"\x00\x00\x01\x00", "an icon"),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (0, b"\x93NUMPY", "a NumPy array"),
    (344, b"n+1\x00", "a NIfTI volume"),
    (0, b"NRRD", "an NRRD volume"),
    (0, b"\x7fELF", "a program"),
    (0, b"MZ", "a program"),
    (0, b"\xd0\xcf\x11\xe0", "an old office document"),
    (0, b"RIFF", "a RIFF sound or video"),
    (0, b"<svg", "an SVG drawing"),
    (0, b"<?xml", "an XML document"),
    (0, b"<!DOCTYPE", "a web page"),
    (0, b"<html", "a web page"),
)

_EXPLICIT_VRS = frozenset(
    b"AE AS AT CS DA DS DT FD FL IS LO LT OB OD OF OL OV OW PN SH SL SQ SS ST SV TM UC UI UL "
    b"UN UR US UT UV".split()
)
_FIRST_GROUPS = (0x0002, 0x0008)
_LONGEST_FIRST_VALUE = 0x1000
"""The first element of a data set is a group length, a character set or an image type."""

_OPENERS: dict[Format, Callable[[BytesIO], ImageFile.ImageFile]] = {
    "jpeg": JpegImageFile,
    "png": PngImageFile,
    "tiff": TiffImageFile,
    "bmp": BmpImageFile,
    "webp": WebPImageFile,
}
_SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N")
_ALPHA_MODES = ("LA", "RGBA", "PA", "La", "RGBa")
_BITS_PER_SAMPLE = 258
_DEEP_PNG = 16

READER_VERSION = 3
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


def detect_format(content: bytes) -> Format | None:
    """The format that the first bytes indicate, or `None`.

    A DICOM file may start like a TIFF, since the content of its preamble is free (PS3.10 7.1):
    some scanners write files that are both.
    """
    if content[128:132] == b"DICM":
        return "dicom"
    for prefix, name in _PREFIXES:
        if content.startswith(prefix):
            return name
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "webp"
    header_size = int.from_bytes(content[14:18], "little")
    if content[:2] == b"BM" and header_size in _BMP_HEADER_SIZES:
        return "bmp"
    return "dicom" if _begins_like_data_set(content) else None


def describe(content: bytes) -> str:
    """Describe in words the apparent type of a file that has none of our formats."""
    for offset, magic, words in _OTHERS:
        if content[offset : offset + len(magic)] == magic:
            return words
    start = content[:1024]
    if not start.strip(b"\x00"):
        return "nothing but zero bytes"
    try:
        text = start[: start.rfind(b"\n") + 1 or len(start)].decode("utf-8")
    except UnicodeDecodeError:
        return "binary data of an unknown kind"
    return "text" if all(c.isprintable() or c.isspace() for c in text) else "unknown binary data"


def _begins_like_data_set(content: bytes) -> bool:
    """Whether a DICOM data set without the 128-byte preamble may begin here (PS3.5 7.1)."""
    if len(content) < 16:
        return False
    for order in ("little", "big"):
        group = int.from_bytes(content[0:2], order)
        element = int.from_bytes(content[2:4], order)
        if group not in _FIRST_GROUPS or element > 0x0100:
            continue
        if content[4:6] in _EXPLICIT_VRS:
            return True
        length = int.from_bytes(content[4:8], "little")
        if order == "little" and length % 2 == 0 and length <= _LONGEST_FIRST_VALUE:
            # Implicit VR has no letters to check, so the next element must follow in order.
            following = content[8 + length : 12 + length]
            next_group = int.from_bytes(following[0:2], "little")
            next_element = int.from_bytes(following[2:4], "little")
            if next_group == group and next_element > element:
                return True
    return False


def decode_raster(content: bytes, kind: Format, source: str, limits: LimitsConfig) -> Decoded:
    """Decode one raster image to grey.

    8-bit colour is weighted as in ITU-R BT.601, exactly as Pillow's `convert("L")` does. Deeper
    samples are scaled by `samples.graded`. Alpha is composited on black. EXIF orientation is
    applied.

    Raises:
        ImageRefusedError: for every defect of the file; no other exception is raised.
    """
    _check_container(content, kind, source, limits)
    with decoding(source, f"the {kind.upper()}"):
        directory = deep_directory(content) if kind == "tiff" else None
        if directory is not None:
            return decode_deep_tiff(content, directory, source, limits)
        image = _opened(content, kind, source, limits)
        bits = _bits(image, content, kind)
        image.load()  # a PNG may state its orientation behind the pixels
        orientation = structure.exif_orientation(image.info.get("exif", b""))
        if kind == "png" and bits == _DEEP_PNG:
            pixels, warnings = _deep_png(content, image.info.get("transparency"), source)
        else:
            pixels, warnings = _to_grey(image, bits)
        colour = colour_of(image)
    if kind != "tiff":  # Pillow applies the orientation of TIFF itself
        pixels = oriented(pixels, orientation)
    return Decoded(np.ascontiguousarray(pixels), bits, warnings, colour=colour)


def _opened(content: bytes, kind: Format, source: str, limits: LimitsConfig) -> ImageFile.ImageFile:
    """A raster image whose header was checked; call this inside `decoding`."""
    # Pillow's decoder of compressed BMP reads single bytes: only the time counts for these.
    stream = CountedStream(content, f"{kind.upper()} parts", 0 if kind == "bmp" else 1)
    image = _OPENERS[kind](stream)
    check_size(source, image.width, image.height, limits)
    if kind == "jpeg":
        check_scans(content, source)
    if kind == "webp":
        structure.refuse_frames(source, cast("WebPImageFile", image).n_frames, "animated WebP")
    if isinstance(image, TiffImageFile):
        check_strips(image.tag_v2, content, source)
    return image


def _check_container(content: bytes, kind: Format, source: str, limits: LimitsConfig) -> None:
    if kind == "png":
        structure.check_png(content, source)
    elif kind == "tiff":
        structure.check_tiff_directory(content, source)
    elif kind == "webp":
        # Pillow allocates the whole canvas on opening, so the limits come before that.
        check_size(source, *structure.webp_size(content, source), limits)


def _deep_png(content: bytes, clear: object, source: str) -> Graded:
    """A PNG of 16 bits per sample: grey or colour, with or without alpha."""
    from imagecodecs import png_decode

    samples = np.asarray(png_decode(content))
    pixels, warnings = deep_grey(samples, source)
    if isinstance(clear, int) and samples.ndim == 2:
        pixels[samples == clear] = 0.0
    return pixels, warnings


def _bits(image: ImageFile.ImageFile, content: bytes, kind: Format) -> int:
    """Bits per sample."""
    if isinstance(image, TiffImageFile):
        return int(max(image.tag_v2.get(_BITS_PER_SAMPLE, (1,))))
    if kind == "png":
        return content[24]  # IHDR's bit depth, ISO 15948, 11.2.2
    return 1 if image.mode == "1" else 8


def _to_grey(image: ImageFile.ImageFile, bits: int) -> Graded:
    mode = image.mode
    if mode in _SIXTEEN_BIT_MODES:  # 12 bits, packed
        return np.divide(np.asarray(image), np.float32((1 << bits) - 1), dtype=np.float32), ()
    if mode == "LAB":
        return _lab_grey(image), ()
    if mode in _ALPHA_MODES or "transparency" in image.info:
        rgba = image if mode in ("LA", "RGBA") else image.convert("RGBA")
        grey = unit_range(np.asarray(rgba.convert("L")))
        return composited(grey, unit_range(np.asarray(rgba.getchannel("A"))))
    return unit_range(np.asarray(image if mode == "L" else image.convert("L"))), ()


def _lab_grey(image: ImageFile.ImageFile) -> Float32Array:
    """The grey with the CIE lightness L*: L* to luminance (CIE 15), then the sRGB curve."""
    lightness = np.arange(256) / 255 * 100
    cube = ((lightness + 16) / 116) ** 3
    luminance = np.where(lightness > 8, cube, lightness / 903.3)
    curve = np.where(
        luminance <= 0.0031308, 12.92 * luminance, 1.055 * luminance ** (1 / 2.4) - 0.055
    )
    table = curve.clip(0.0, 1.0).astype(np.float32)
    return cast("Float32Array", table[np.asarray(image.getchannel("L"))])


def read_image(path: Path | str, limits: LimitsConfig = _DEFAULT_LIMITS) -> GreyImage:
    """Read one image file.

    Args:
        path: a regular file; reading never blocks on a pipe, a socket or a device.
        limits: limits on the file's bytes, pixels and sides.

    Returns:
        Grey pixels, float32 (h, w) in [0, 1], with their source.

    Raises:
        ImageRefusedError: for every failure; `.reason` is the code, `.detail` the explanation.

    Examples:
        >>> float(read_image(image).pixels.max()) <= 1.0
        True
    """
    name = str(path)
    return read_bytes(read_file(name, limits), name, limits)


def read_bytes(content: bytes, name: str, limits: LimitsConfig = _DEFAULT_LIMITS) -> GreyImage:
    """Read one image from the bytes of its file; `name` appears only in messages.

    Raises:
        ImageRefusedError: for every failure, with the digest of the bytes.
    """
    try:
        return _read_bytes(content, name, limits)
    except ImageRefusedError as refusal:
        refusal.sha256 = hashlib.sha256(content).hexdigest()
        raise


def _read_bytes(content: bytes, name: str, limits: LimitsConfig) -> GreyImage:
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
    refuse_blank(decoded.pixels, name, decoded.warnings)
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


def refuse_blank(pixels: Float32Array, name: str, warnings: tuple[str, ...] = ()) -> None:
    """Reject an image (h, w) whose pixels are all equal.

    Raises:
        ImageRefusedError: `blank`.
    """
    if pixels.min() == pixels.max():
        raise ImageRefusedError(
            name,
            Reason.BLANK,
            f"all its pixels have one grey ({float(pixels.flat[0]):.3f}), so it shows "
            f"nothing{header_note(warnings)}",
            warnings,
        )


def read_small(
    path: Path, side: int, limits: LimitsConfig = _DEFAULT_LIMITS
) -> npt.NDArray[np.uint8] | Float32Array:
    """Read one image file for its main traits; a JPEG at reduced scale, which is fast.

    Args:
        path: a regular file.
        side: pixels that both sides of a reduced JPEG have at least.
        limits: limits on the file's bytes, pixels and sides.

    Returns:
        Grey, (h, w): uint8 of a JPEG, else float32 in [0, 1].

    Raises:
        ImageRefusedError: for every failure, as `read_image`.
    """
    name = str(path)
    content = read_file(name, limits)
    if detect_format(content) != "jpeg":
        return read_bytes(content, name, limits).pixels
    _check_bytes(name, len(content), limits)
    with decoding(name, "the JPEG"):
        image = _opened(content, "jpeg", name, limits)
        image.draft("L", (side, side))
        return np.asarray(image.convert("L"))


def header_note(warnings: tuple[str, ...]) -> str:
    """The clause added to a refusal for the image's content: its header may be the cause."""
    return f". Its header may be the cause: {join_warnings(warnings)}" if warnings else ""


def _decode(content: bytes, kind: Format, name: str, limits: LimitsConfig) -> Decoded:
    if kind == "dicom":
        # pydicom takes 0.2 s to import, and most data sets have no DICOM.
        from pneumoscope.images.dicom.decode import decode_dicom

        return decode_dicom(content, name, limits)
    return decode_raster(content, kind, name, limits)


def dicom_head(path: Path) -> bytes:
    """The first `HEADER_BYTES` of a DICOM file with a preamble (PS3.10 section 7.1).

    Empty for other and for unreadable files, which `read_image` reports.
    """
    try:
        head = read_file(str(path), _DEFAULT_LIMITS, HEADER_BYTES)
    except ImageRefusedError:
        return b""
    return head if head[128:132] == b"DICM" else b""


def read_file(name: str, limits: LimitsConfig, most: int | None = None) -> bytes:
    """Read the bytes of a regular file within the limits; never blocks on a pipe or a device.

    Args:
        name: its path.
        limits: limits on its bytes.
        most: read only so many bytes at its beginning.

    Raises:
        ImageRefusedError: the file is missing, not readable, not a regular file, or too large.
    """
    try:
        _check_status(name, os.stat(name), limits)  # noqa: PTH116 - Path drops trailing slashes
        # The file may be replaced between the two checks; a non-blocking open keeps that harmless.
        descriptor = os.open(name, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with os.fdopen(descriptor, "rb") as stream:
            _check_status(name, os.fstat(stream.fileno()), limits)
            content = stream.read(limits.max_bytes + 1 if most is None else most)
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
        target = Path(_link_target(name)).name  # its folders are not for tables
        why = "" if error.errno == errno.ENOENT else f" ({words})"
        detail = (
            f"it is a symbolic link to {target}, which does not exist"
            if target
            else f"no such file{why}. Check the path"
        )
        return ImageRefusedError(name, Reason.NOT_FOUND, detail)
    return ImageRefusedError(name, Reason.CORRUPT, f"the disk can't read it ({words})")


def _link_target(name: str) -> str:
    try:
        return os.readlink(name)  # noqa: PTH115 - as written, not resolved
    except OSError:
        return ""
