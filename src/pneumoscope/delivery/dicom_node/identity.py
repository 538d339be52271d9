"""Which image a DICOM file says that it is, read from its first elements alone."""

from __future__ import annotations

import zlib

from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
)

from pneumoscope.errors import ImageRefusedError
from pneumoscope.images.budget import CountedStream
from pneumoscope.images.dicom.file import transfer_syntax_of
from pneumoscope.images.guard import decoding

_SOP_INSTANCE = 0x00080018
_MOST_BYTES = 64 << 10
"""Before the SOP Instance UID stand a character set, an image type, dates and the class."""


def stated_sop_uid(content: bytes) -> str:
    """The SOP Instance UID in the data set of a Part 10 file; "" if it can't be found."""
    try:
        with decoding("image", "the DICOM header"):
            syntax, start = transfer_syntax_of(content)
            head = content[start : start + _MOST_BYTES]
            if syntax == DeflatedExplicitVRLittleEndian:
                head = zlib.decompressobj(-zlib.MAX_WBITS).decompress(head, _MOST_BYTES)
            dataset = read_dataset(
                CountedStream(head, "DICOM elements"),
                is_implicit_VR=syntax == ImplicitVRLittleEndian,
                is_little_endian=syntax != ExplicitVRBigEndian,
                stop_when=_after_sop_instance,
                specific_tags=[_SOP_INSTANCE],
            )
            return str(dataset.get("SOPInstanceUID") or "")
    except ImageRefusedError:
        return ""


def _after_sop_instance(tag: BaseTag, _vr: str | None, _length: int) -> bool:
    return int(tag) > _SOP_INSTANCE
