"""Image files made byte by byte or by a library, for the tests of reading.

Comes in: arrays. Goes out: the bytes of a file. No real X-ray is in any of them.
"""

from __future__ import annotations

import struct
import warnings
import zlib
from io import BytesIO
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.filewriter import dcmwrite
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

Array = npt.NDArray[Any]
ByteOrder = Literal["<", ">"]

DX_CLASS = "1.2.840.10008.5.1.4.1.1.1.1"


def smooth_grey(height: int = 60, width: int = 48, top: int = 255, seed: int = 0) -> Array:
    """A smooth picture with a little noise, int64 (height, width) in 0..top, both ends used."""
    rows, columns = np.mgrid[:height, :width]
    noise = np.random.default_rng(seed).random((height, width))
    picture = np.sin(rows / 9.0) + np.cos(columns / 7.0) + 0.2 * noise
    picture = (picture - picture.min()) / (picture.max() - picture.min())
    return np.asarray(np.rint(picture * top), np.int64)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """A Pillow image as the bytes of a file."""
    stream = BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """One PNG chunk with its length and checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header_only(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + png_chunk(b"IDAT", zlib.compress(b"\x00" * 100))
        + png_chunk(b"IEND", b"")
    )


def tiff(
    samples: Array,
    *,
    photometric: int = 1,
    sample_format: int = 1,
    order: ByteOrder = "<",
    deflate: bool = False,
    bits: int | None = None,
    orientation: int = 1,
) -> bytes:
    """A one-strip grey TIFF, its directory before its pixels (TIFF 6.0, section 2)."""
    height, width = samples.shape
    data = samples.astype(samples.dtype.newbyteorder(order)).tobytes()
    if deflate:
        data = zlib.compress(data)
    tags = [
        (256, 4, width),
        (257, 4, height),
        (258, 3, bits or samples.dtype.itemsize * 8),
        (259, 3, 8 if deflate else 1),
        (262, 3, photometric),
        (273, 4, 0),
        (274, 3, orientation),
        (277, 3, 1),
        (278, 4, height),
        (279, 4, len(data)),
        (339, 3, sample_format),
    ]
    start = 8 + 2 + 12 * len(tags) + 4
    directory = b""
    for tag, kind, value in tags:
        value = start if tag == 273 else value
        packed = (
            struct.pack(f"{order}HH", value, 0) if kind == 3 else struct.pack(f"{order}I", value)
        )
        directory += struct.pack(f"{order}HHI", tag, kind, 1) + packed
    magic = b"II" if order == "<" else b"MM"
    return (
        magic
        + struct.pack(f"{order}HI", 42, 8)
        + struct.pack(f"{order}H", len(tags))
        + directory
        + struct.pack(f"{order}I", 0)
        + data
    )


def xray(samples: Array, **elements: Any) -> Dataset:
    """A DX data set around unsigned or signed grey samples, or RGB; elements override."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom warns of the odd values that tests write
        return _xray(samples, elements)


def _xray(samples: Array, elements: dict[str, Any]) -> Dataset:
    dataset = Dataset()
    dataset.SOPClassUID = DX_CLASS
    dataset.SOPInstanceUID = generate_uid(entropy_srcs=["sop"])
    dataset.StudyInstanceUID = generate_uid(entropy_srcs=["study"])
    dataset.SeriesInstanceUID = generate_uid(entropy_srcs=["series"])
    dataset.Modality = "DX"
    dataset.PatientID = "phantom-7"
    dataset.BodyPartExamined = "CHEST"
    dataset.ViewPosition = "AP"
    colour = samples.ndim == 3
    dataset.SamplesPerPixel = 3 if colour else 1
    dataset.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        dataset.PlanarConfiguration = 0
    dataset.Rows, dataset.Columns = samples.shape[:2]
    bits = samples.dtype.itemsize * 8
    dataset.BitsAllocated = dataset.BitsStored = bits
    dataset.HighBit = bits - 1
    dataset.PixelRepresentation = int(samples.dtype.kind == "i")
    for keyword, value in elements.items():
        if value is None:
            del dataset[keyword]
        else:
            setattr(dataset, keyword, value)
    if "PixelData" not in elements:
        dataset.PixelData = samples.tobytes()
        dataset["PixelData"].VR = "OW" if bits == 16 else "OB"
    return dataset


def dicom(
    dataset: Dataset, syntax: str = ExplicitVRLittleEndian, *, preamble: bool = True
) -> bytes:
    """A data set as the bytes of a DICOM file, or of a bare data set without preamble."""
    uid = UID(syntax)
    stream = BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom warns of the odd values that tests write
        if preamble:
            dataset.file_meta = FileMetaDataset()
            dataset.file_meta.TransferSyntaxUID = uid
            dataset.file_meta.MediaStorageSOPClassUID = dataset.get("SOPClassUID", DX_CLASS)
            dataset.file_meta.MediaStorageSOPInstanceUID = dataset.get("SOPInstanceUID", "1.2.3")
            private = uid.is_private
            dcmwrite(
                stream,
                dataset,
                enforce_file_format=True,
                **({"implicit_vr": False, "little_endian": True} if private else {}),
            )
        else:
            dcmwrite(
                stream,
                dataset,
                implicit_vr=uid.is_implicit_VR,
                little_endian=uid.is_little_endian,
            )
    return stream.getvalue()


def encapsulated(dataset: Dataset, stream: bytes | bytearray, syntax: str) -> bytes:
    """A DICOM file whose one frame is the compressed `stream`."""
    dataset.PixelData = encapsulate([bytes(stream)])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    return dicom(dataset, syntax)
