"""A table of image inputs for which there is no answer, each with the reason that it must get.

Comes in: an empty folder. Goes out: the path of one bad input in it.
Used by the tests of reading and by those of batches.
"""

from __future__ import annotations

import functools
import os
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
)

from pneumoscope.errors import Reason
from support.image_files import (
    dicom,
    encapsulated,
    encoded,
    film,
    png_header_only,
    smooth_grey,
    tiff,
)

_GREY8 = smooth_grey().astype(np.uint8)
_GREY16 = smooth_grey(top=4095).astype(np.uint16)
_PICTURE = Image.fromarray(_GREY8)
_OTHER_PICTURE = Image.fromarray(_GREY8[::-1].copy())


@dataclass(frozen=True, slots=True)
class BadImage:
    """One bad input: how to make it, and what must be said of it.

    Attributes:
        name: of the case.
        build: makes the input in a folder and returns its path.
        reason: the code that it must get.
        fragment: must stand in the message.
    """

    name: str
    build: Callable[[Path], Path]
    reason: Reason
    fragment: str


def _file(name: str, make: Callable[[], bytes]) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        path = folder / name
        path.write_bytes(make())
        return path

    return build


def _cut(make: Callable[[], bytes], share: float) -> Callable[[], bytes]:
    def cut() -> bytes:
        whole = make()
        return whole[: int(len(whole) * share)]

    return cut


def _jpeg() -> bytes:
    return encoded(_PICTURE, "JPEG", quality=90)


def _png() -> bytes:
    return encoded(_PICTURE, "PNG")


def _damaged_png() -> bytes:
    content = bytearray(_png())
    content[len(content) // 2] ^= 0x55
    return bytes(content)


def _jpeg_of_claimed_size(height: int, width: int) -> bytes:
    content = bytearray(_jpeg())
    position = content.index(b"\xff\xc0") + 5
    content[position : position + 4] = struct.pack(">HH", height, width)
    return bytes(content)


def _jpeg_of_many_scans() -> bytes:
    content = encoded(_PICTURE, "JPEG", progressive=True)
    start = content.index(b"\xff\xda")
    return content[:start] + content[start:-2] * 60 + content[-2:]


def _webp_of_claimed_size() -> bytes:
    # VP8X: flags, three reserved bytes, width - 1 and height - 1 in 24 bits each.
    chunk = struct.pack("<4sI", b"VP8X", 10) + b"\x00" * 4 + b"\xff\x3f\x00" * 2
    return struct.pack("<4sI4s", b"RIFF", 4 + len(chunk), b"WEBP") + chunk


def _float_tiff(value: float) -> bytes:
    samples = (_GREY8 / 255).astype(np.float32)
    samples[5, 7] = value
    return tiff(samples, sample_format=3)


def _animation(kind: str) -> bytes:
    return encoded(_PICTURE, kind, save_all=True, append_images=[_OTHER_PICTURE])


@functools.cache  # takes a second to deflate
def _bomb() -> bytes:
    dataset = film(_GREY16, PixelData=b"")
    whole = dicom(dataset, ExplicitVRLittleEndian)
    deflated = dicom(dataset, DeflatedExplicitVRLittleEndian)
    # Keep the deflated file's meta information; in place of its data set put one whose pixel
    # data are 300 MB of zeros, deflated piece by piece.
    meta = deflated[: 132 + 12 + struct.unpack_from("<I", deflated, 140)[0]]
    body = whole[132 + 12 + struct.unpack_from("<I", whole, 140)[0] :]
    body = body[: body.index(b"\xe0\x7f\x10\x00")]
    squeezer = zlib.compressobj(wbits=-15)
    size = 300 << 20
    pieces = [squeezer.compress(body + struct.pack("<HH2sHI", 0x7FE0, 0x10, b"OW", 0, size))]
    zeros = bytes(1 << 20)
    pieces += [squeezer.compress(zeros) for _ in range(size >> 20)]
    return meta + b"".join([*pieces, squeezer.flush()])


def _jpeg_dicom(stream: bytes) -> bytes:
    return encapsulated(film(_GREY8), stream, JPEGBaseline8Bit)


def _of_modality(modality: str) -> bytes:
    return dicom(film(_GREY16, Modality=modality))


def _report() -> bytes:
    dataset = film(_GREY16, Modality="SR", SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11")
    for keyword in ("PixelData", "Rows", "Columns"):
        del dataset[keyword]
    return dicom(dataset)


def _folder(folder: Path) -> Path:
    path = folder / "x.png"
    path.mkdir()
    return path


def _pipe(folder: Path) -> Path:
    path = folder / "pipe.png"
    os.mkfifo(path)
    return path


def _dangling(folder: Path) -> Path:
    path = folder / "link.png"
    path.symlink_to(folder / "gone.png")
    return path


def _loop(folder: Path) -> Path:
    (folder / "there.png").symlink_to(folder / "back.png")
    (folder / "back.png").symlink_to(folder / "there.png")
    return folder / "there.png"


def _huge(folder: Path) -> Path:
    path = folder / "huge.jpeg"
    path.write_bytes(_jpeg())
    os.truncate(path, 300 << 20)  # sparse, so that it takes no room
    return path


def _archive(folder: Path) -> Path:
    path = folder / "films.png"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.png", _png())
    return path


def _noise(count: int) -> bytes:
    return random.Random(0).randbytes(count)  # noqa: S311 - noise, no secret


def _grey_of(height: int, width: int) -> bytes:
    return encoded(Image.fromarray(smooth_grey(height, width).astype(np.uint8)), "PNG")


BAD_IMAGES: tuple[BadImage, ...] = (
    # No file, or none that can be read.
    BadImage("missing", lambda f: f / "no.png", Reason.NOT_FOUND, "no such file"),
    BadImage("dangling_link", _dangling, Reason.NOT_FOUND, "gone.png, which isn't there"),
    BadImage("link_loop", _loop, Reason.NOT_FOUND, "circle"),
    BadImage("null_in_name", lambda f: f / "a\0b.png", Reason.NOT_FOUND, "null"),
    BadImage("name_too_long", lambda f: f / ("x" * 300), Reason.NOT_FOUND, "too long"),
    BadImage("file_as_folder", lambda f: _huge(f) / "x.png", Reason.NOT_FOUND, "no such file"),
    BadImage("folder_named_png", _folder, Reason.NOT_A_FILE, "a folder"),
    BadImage("pipe", _pipe, Reason.NOT_A_FILE, "named pipe"),
    BadImage("device", lambda _: Path("/dev/zero"), Reason.NOT_A_FILE, "a device"),
    BadImage("empty", _file("empty.png", bytes), Reason.EMPTY_FILE, "no bytes"),
    BadImage("huge_file", _huge, Reason.FILE_TOO_LARGE, "at most 268,435,456"),
    # No image.
    BadImage(
        "text_named_jpeg",
        _file("notes.jpeg", lambda: b"The lungs are clear.\n" * 9),
        Reason.NOT_AN_IMAGE,
        "text",
    ),
    BadImage("web_page", _file("x.jpg", lambda: b"<!DOCTYPE html>"), Reason.NOT_AN_IMAGE, "web"),
    BadImage("gif", _file("x.gif", lambda: encoded(_PICTURE, "GIF")), Reason.NOT_AN_IMAGE, "GIF"),
    BadImage("pdf", _file("x.png", lambda: b"%PDF-1.7\n%\xe2\xe3"), Reason.NOT_AN_IMAGE, "PDF"),
    BadImage("zip", _archive, Reason.NOT_AN_IMAGE, "ZIP"),
    BadImage("noise", _file("x.png", lambda: _noise(999)), Reason.NOT_AN_IMAGE, "binary"),
    BadImage("zeros", _file("x.dcm", lambda: bytes(999)), Reason.NOT_AN_IMAGE, "zero bytes"),
    # Cut short.
    BadImage("half_jpeg", _file("x.jpg", _cut(_jpeg, 0.5)), Reason.TRUNCATED, "JPEG"),
    BadImage("nearly_whole_jpeg", _file("x.jpg", _cut(_jpeg, 0.99)), Reason.TRUNCATED, "JPEG"),
    BadImage("half_png", _file("x.png", _cut(_png, 0.5)), Reason.TRUNCATED, "end chunk"),
    BadImage("png_without_end", _file("x.png", lambda: _png()[:-12]), Reason.TRUNCATED, "end"),
    BadImage(
        "half_tiff", _file("x.tif", _cut(lambda: tiff(_GREY16), 0.5)), Reason.TRUNCATED, "reach"
    ),
    BadImage(
        "half_deflated_tiff",
        _file("x.tif", _cut(lambda: tiff(_GREY16, deflate=True), 0.8)),
        Reason.TRUNCATED,
        "reach",
    ),
    BadImage(
        "tiff_cut_before_its_directory",
        _file("x.tif", _cut(lambda: encoded(_PICTURE, "TIFF", compression="tiff_lzw"), 0.5)),
        Reason.TRUNCATED,
        "directory",
    ),
    BadImage(
        "half_bmp",
        _file("x.bmp", _cut(lambda: encoded(_PICTURE, "BMP"), 0.6)),
        Reason.TRUNCATED,
        "BMP",
    ),
    BadImage(
        "half_webp",
        _file("x.webp", _cut(lambda: encoded(_PICTURE, "WEBP"), 0.5)),
        Reason.TRUNCATED,
        "WebP states",
    ),
    BadImage(
        "half_dicom",
        _file("x.dcm", _cut(lambda: dicom(film(_GREY16)), 0.6)),
        Reason.TRUNCATED,
        "pixel data have",
    ),
    BadImage(
        "half_jpeg_dicom",
        _file("x.dcm", _cut(lambda: _jpeg_dicom(_jpeg()), 0.7)),
        Reason.TRUNCATED,
        "data end",
    ),
    BadImage(
        "dicom_cut_in_header",
        _file("x.dcm", lambda: (c := dicom(film(_GREY16)))[: c.index(b"phantom-7") + 4]),
        Reason.TRUNCATED,
        "data end",
    ),
    BadImage(
        "half_deflated_dicom",
        _file("x.dcm", _cut(lambda: dicom(film(_GREY16), DeflatedExplicitVRLittleEndian), 0.6)),
        Reason.TRUNCATED,
        "deflated",
    ),
    BadImage(
        "dicom_pixels_too_short",
        _file("x.dcm", lambda: dicom(film(_GREY16, PixelData=b"\x01\x00" * 99))),
        Reason.TRUNCATED,
        "198 bytes",
    ),
    BadImage(
        "jpeg_dicom_without_end",
        _file("x.dcm", lambda: _jpeg_dicom(_jpeg()[:-400])),
        Reason.TRUNCATED,
        "end marker",
    ),
    # Damaged, or encoded as nothing here reads.
    BadImage("damaged_png", _file("x.png", _damaged_png), Reason.CORRUPT, "checksum"),
    BadImage(
        "noise_after_jpeg_magic",
        _file("x.jpg", lambda: b"\xff\xd8\xff\xe0" + _noise(99_999)),
        Reason.CORRUPT,
        "JPEG",
    ),
    BadImage(
        "jpeg_of_many_scans", _file("x.jpg", _jpeg_of_many_scans), Reason.CORRUPT, "at most 200"
    ),
    BadImage(
        "noise_after_preamble",
        _file("x.dcm", lambda: bytes(128) + b"DICM" + _noise(999)),
        Reason.CORRUPT,
        "DICOM",
    ),
    BadImage(
        "jpeg_dicom_of_other_size",
        _file("x.dcm", lambda: _jpeg_dicom(_jpeg_of_claimed_size(60000, 60000))),
        Reason.CORRUPT,
        "60000 × 60000",
    ),
    BadImage(
        "jpeg_said_to_be_jpeg_2000",
        _file("x.dcm", lambda: encapsulated(film(_GREY8), _jpeg(), JPEG2000Lossless)),
        Reason.CORRUPT,
        "JPEG 2000",
    ),
    BadImage(
        "unknown_transfer_syntax",
        _file("x.dcm", lambda: dicom(film(_GREY16), "1.2.826.0.1.3680043.2.1143.9.9")),
        Reason.UNSUPPORTED_ENCODING,
        "transfer syntax '1.2.826",
    ),
    BadImage(
        "mpeg_dicom",
        _file("x.dcm", lambda: encapsulated(film(_GREY8), b"\0\0", "1.2.840.10008.1.2.4.100")),
        Reason.UNSUPPORTED_ENCODING,
        "MPEG2",
    ),
    BadImage(
        "double_tiff",
        _file("x.tif", lambda: tiff(_GREY8 / 255.0, sample_format=3)),
        Reason.UNSUPPORTED_ENCODING,
        "unknown pixel mode",
    ),
    # Too much, too little, too long.
    BadImage(
        "png_bomb",
        _file("x.png", lambda: png_header_only(60000, 60000)),
        Reason.TOO_MANY_PIXELS,
        "60000 × 60000",
    ),
    BadImage(
        "400_megapixels",
        _file("x.png", lambda: png_header_only(20000, 20000)),
        Reason.TOO_MANY_PIXELS,
        "at most 50,000,000",
    ),
    BadImage(
        "long_side",
        _file("x.png", lambda: png_header_only(20000, 2500)),
        Reason.TOO_MANY_PIXELS,
        "16,384 a side",
    ),
    BadImage(
        "jpeg_bomb",
        _file("x.jpg", lambda: _jpeg_of_claimed_size(65000, 65000)),
        Reason.TOO_MANY_PIXELS,
        "65000 × 65000",
    ),
    BadImage(
        "webp_bomb", _file("x.webp", _webp_of_claimed_size), Reason.TOO_MANY_PIXELS, "16384 × 16384"
    ),
    BadImage(
        "dicom_bomb",
        _file("x.dcm", lambda: dicom(film(_GREY16, Rows=60000, Columns=60000))),
        Reason.TOO_MANY_PIXELS,
        "60000 × 60000",
    ),
    BadImage("deflated_bomb", _file("x.dcm", _bomb), Reason.FILE_TOO_LARGE, "inflate to more"),
    BadImage(
        "one_pixel",
        _file("x.png", lambda: encoded(Image.new("L", (1, 1), 9), "PNG")),
        Reason.TOO_SMALL,
        "1 × 1",
    ),
    BadImage("thumbnail", _file("x.png", lambda: _grey_of(31, 40)), Reason.TOO_SMALL, "40 × 31"),
    BadImage("strip", _file("x.png", lambda: _grey_of(40, 400)), Reason.EXTREME_ASPECT, "8 times"),
    # More than one picture.
    BadImage("animated_png", _file("x.png", lambda: _animation("PNG")), Reason.MULTI_FRAME, "PNG"),
    BadImage(
        "animated_webp", _file("x.webp", lambda: _animation("WEBP")), Reason.MULTI_FRAME, "WebP"
    ),
    BadImage("tiff_pages", _file("x.tif", lambda: _animation("TIFF")), Reason.MULTI_FRAME, "TIFF"),
    BadImage(
        "dicom_frames",
        _file(
            "x.dcm",
            lambda: dicom(film(_GREY16, NumberOfFrames=2, PixelData=_GREY16.tobytes() * 2)),
        ),
        Reason.MULTI_FRAME,
        "2 pictures",
    ),
    # Pixels that show nothing.
    BadImage("nan", _file("x.tif", lambda: _float_tiff(np.nan)), Reason.NON_FINITE_PIXELS, "1 of"),
    BadImage("inf", _file("x.tif", lambda: _float_tiff(np.inf)), Reason.NON_FINITE_PIXELS, "1 of"),
    BadImage(
        "blank",
        _file("x.png", lambda: encoded(Image.new("L", (64, 64), 128), "PNG")),
        Reason.BLANK,
        "0.502",
    ),
    BadImage(
        "blank_dicom",
        _file("x.dcm", lambda: dicom(film(np.full((64, 64), 7, np.uint16)))),
        Reason.BLANK,
        "one grey",
    ),
    # DICOM that is no chest film.
    BadImage("ct", _file("x.dcm", lambda: _of_modality("CT")), Reason.WRONG_MODALITY, "'CT'"),
    BadImage("mr", _file("x.dcm", lambda: _of_modality("MR")), Reason.WRONG_MODALITY, "'MR'"),
    BadImage("report", _file("x.dcm", _report), Reason.WRONG_MODALITY, "'SR'"),
    BadImage(
        "ct_class_without_modality",
        _file(
            "x.dcm",
            lambda: dicom(
                film(_GREY16, Modality=None, SOPClassUID="1.2.840.10008.5.1.4.1.1.2")
            ),
        ),
        Reason.WRONG_MODALITY,
        "CT Image Storage",
    ),
    BadImage(
        "hand",
        _file("x.dcm", lambda: dicom(film(_GREY16, BodyPartExamined="HAND"))),
        Reason.WRONG_BODY_PART,
        "'HAND'",
    ),
    BadImage(
        "dicom_without_pixels",
        _file("x.dcm", lambda: dicom(film(_GREY16, PixelData=b""))),
        Reason.NO_PIXEL_DATA,
        "without pixel data",
    ),
)  # fmt: skip
"""The inputs that need no special user: each is refused wherever the tests run."""
