"""Builders of the bad inputs in `bad_images`: each makes bytes, or a file in a folder.

Comes in: nothing, or a folder. Goes out: bytes, or a path.
"""

from __future__ import annotations

import functools
import os
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, JPEGBaseline8Bit

from support.image_files import dicom, encapsulated, encoded, smooth_grey, tiff, xray

GREY8 = smooth_grey().astype(np.uint8)
GREY16 = smooth_grey(top=4095).astype(np.uint16)
PICTURE = Image.fromarray(GREY8)
OTHER_PICTURE = Image.fromarray(GREY8[::-1].copy())


def file(name: str, make: Callable[[], bytes]) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        path = folder / name
        path.write_bytes(make())
        return path

    return build


def cut(make: Callable[[], bytes], share: float) -> Callable[[], bytes]:
    def cut() -> bytes:
        whole = make()
        return whole[: int(len(whole) * share)]

    return cut


def jpeg() -> bytes:
    return encoded(PICTURE, "JPEG", quality=90)


def png() -> bytes:
    return encoded(PICTURE, "PNG")


def damaged_png() -> bytes:
    content = bytearray(png())
    content[len(content) // 2] ^= 0x55
    return bytes(content)


def jpeg_of_claimed_size(height: int, width: int) -> bytes:
    content = bytearray(jpeg())
    position = content.index(b"\xff\xc0") + 5
    content[position : position + 4] = struct.pack(">HH", height, width)
    return bytes(content)


def jpeg_of_many_scans() -> bytes:
    content = encoded(PICTURE, "JPEG", progressive=True)
    start = content.index(b"\xff\xda")
    return content[:start] + content[start:-2] * 60 + content[-2:]


def webp_of_claimed_size() -> bytes:
    # VP8X: flags, three reserved bytes, width - 1 and height - 1 in 24 bits each.
    chunk = struct.pack("<4sI", b"VP8X", 10) + b"\x00" * 4 + b"\xff\x3f\x00" * 2
    return struct.pack("<4sI4s", b"RIFF", 4 + len(chunk), b"WEBP") + chunk


def float_tiff(value: float) -> bytes:
    samples = (GREY8 / 255).astype(np.float32)
    samples[5, 7] = value
    return tiff(samples, sample_format=3)


def animation(kind: str) -> bytes:
    return encoded(PICTURE, kind, save_all=True, append_images=[OTHER_PICTURE])


@functools.cache  # takes a second to deflate
def bomb() -> bytes:
    dataset = xray(GREY16, PixelData=b"")
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


def jpeg_dicom(stream: bytes) -> bytes:
    return encapsulated(xray(GREY8), stream, JPEGBaseline8Bit)


def of_modality(modality: str) -> bytes:
    return dicom(xray(GREY16, Modality=modality))


def report() -> bytes:
    dataset = xray(GREY16, Modality="SR", SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11")
    for keyword in ("PixelData", "Rows", "Columns"):
        del dataset[keyword]
    return dicom(dataset)


def folder(folder: Path) -> Path:
    path = folder / "x.png"
    path.mkdir()
    return path


def pipe(folder: Path) -> Path:
    path = folder / "pipe.png"
    os.mkfifo(path)
    return path


def dangling(folder: Path) -> Path:
    path = folder / "link.png"
    path.symlink_to(folder / "gone.png")
    return path


def loop(folder: Path) -> Path:
    (folder / "there.png").symlink_to(folder / "back.png")
    (folder / "back.png").symlink_to(folder / "there.png")
    return folder / "there.png"


def huge(folder: Path) -> Path:
    path = folder / "huge.jpeg"
    path.write_bytes(jpeg())
    os.truncate(path, 300 << 20)  # sparse, so that it takes no room
    return path


def archive(folder: Path) -> Path:
    path = folder / "images.png"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.png", png())
    return path


def noise(count: int) -> bytes:
    return random.Random(0).randbytes(count)  # noqa: S311 - noise, no secret


def grey_of(height: int, width: int) -> bytes:
    return encoded(Image.fromarray(smooth_grey(height, width).astype(np.uint8)), "PNG")
