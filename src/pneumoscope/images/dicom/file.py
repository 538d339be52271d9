"""Parse the bytes of a DICOM file to a pydicom data set with the elements that are needed.

Files may lack the preamble and the file meta information. The meaning of the elements plays no role
here, and no pixel is decoded.

pydicom's `dcmread` inflates deflated files without limit and does not report files that are cut
short. Therefore this module reads the file meta information itself and the data set with pydicom's
`read_dataset`.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO

import numpy as np
from pydicom.charset import convert_encodings
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_data_element
from pydicom.tag import BaseTag, Tag
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from pneumoscope.errors import ImageRefusedError, Reason
from pneumoscope.images.budget import (
    HEADER_BYTES,
    check_value_length,
    decoding,
    dicom_stream,
    spend,
)

_PREAMBLE_BYTES = 132
_TRANSFER_SYNTAX = 0x0010
_LONG_VRS = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT")
_UNDEFINED_LENGTH = 0xFFFFFFFF
_HEADER_BYTES = 8
_FIRST_TABLE = 0x00283000
"""The first of the look-up tables, which may be large; the pixels follow them."""

_TEXT_GROUPS = (0x0008, 0x0010, 0x0020)
_PIXEL_TAGS = (0x7FE00008, 0x7FE00009, 0x7FE00010)
OVERLAY_TAGS = tuple(
    group << 16 | element for group in range(0x6000, 0x6020, 2) for element in (0x0100, 0x0102)
)
"""Allocated bits and bit position of each overlay (PS3.3 C.9.2)."""

_WANTED_TAGS: tuple[int, ...] = (
    0x00080005, 0x00080016, 0x00080018,  # character set, SOP
    0x00080060, 0x00080068, 0x00080070,  # modality, presentation intent, maker
    0x00080020, 0x00080021, 0x00080022, 0x00080023, 0x00081030, 0x0008103E,  # dates, descriptions
    0x00100020, 0x00100030, 0x00100040, 0x00101010,  # patient's id, birth date, sex, age
    0x00180015, 0x00181164, 0x00185101,  # body part, imager spacing, view
    0x0020000D, 0x0020000E,  # study, series
    0x00280002, 0x00280004, 0x00280006, 0x00280008, 0x00280010, 0x00280011,  # image pixel
    0x00280030, 0x00280034, 0x00280100, 0x00280101, 0x00280102, 0x00280103,
    0x00280120, 0x00280121,  # padding
    0x00281050, 0x00281051, 0x00281052, 0x00281053, 0x00281055, 0x00281056,  # window, rescale
    0x00281101, 0x00281102, 0x00281103,  # palette
    0x00281201, 0x00281202, 0x00281203, 0x00281221, 0x00281222, 0x00281223,
    0x00283000, 0x00283010, 0x20500020,  # modality, VOI and presentation LUT
    0x00540220,  # view, coded
    *OVERLAY_TAGS,
    0x7FE00001, 0x7FE00002, 0x7FE00008, 0x7FE00009, 0x7FE00010,  # pixel data
)  # fmt: skip


_IDENTIFYING_TAGS: tuple[int, ...] = (
    *_WANTED_TAGS,
    0x00080030, 0x00080050, 0x00080090,  # study time, accession number, referring physician
    0x00100010, 0x00100021, 0x00200010, 0x00200013,  # name, issuer of the id, study id, number
)  # fmt: skip
"""What predictions and reports depend on."""

_WORD_BYTES = {"OW": 2, "OF": 4, "OD": 8}
"""Value representations whose bytes depend on the byte order (PS3.5 6.2), and their words."""

_NATIVE = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian)
"""Transfer syntaxes with uncompressed pixels."""


@dataclass(frozen=True, slots=True, eq=False)
class DicomFile:
    """A data set with the facts needed to interpret its pixels.

    Attributes:
        dataset: the requested elements.
        transfer_syntax: its UID, stated or inferred from the first element.
        stated: whether the file states it.
        cut: why the file seems cut short, `""` if it doesn't.
    """

    dataset: Dataset
    transfer_syntax: str
    stated: bool
    cut: str


def transfer_syntax_of(content: bytes) -> tuple[str, int]:
    """The stated transfer syntax UID (`""` if none) and where the data set starts (PS3.10, 7.1)."""
    start = _PREAMBLE_BYTES if content[128:132] == b"DICM" else 0
    position, syntax = start, ""
    while content[position : position + 2] == b"\x02\x00" and position + 8 <= len(content):
        spend(1, "elements of file meta information")
        element = int.from_bytes(content[position + 2 : position + 4], "little")
        vr = content[position + 4 : position + 6]
        if not vr.isalpha():  # some writers omit the VR here too
            header, length = 8, int.from_bytes(content[position + 4 : position + 8], "little")
        elif vr in _LONG_VRS:
            header, length = 12, int.from_bytes(content[position + 8 : position + 12], "little")
        else:
            header, length = 8, int.from_bytes(content[position + 6 : position + 8], "little")
        if element == _TRANSFER_SYNTAX:
            value = content[position + header : position + header + length]
            syntax = value.decode("ascii", "replace").strip("\x00 ")
        position += header + length
    return syntax, min(position, len(content))


def parse_dicom(
    content: bytes, source: str, most_bytes: int, tags: Collection[int] = _WANTED_TAGS
) -> DicomFile:
    """Read the requested elements.

    Args:
        content: the bytes of the file.
        source: its name, for errors.
        most_bytes: limit for the inflated size of a deflated data set.
        tags: of the requested elements.

    Raises:
        ImageRefusedError: `file_too_large` for a deflated bomb, `truncated` for a deflated stream
            that was cut short.
        Exception: any exception of pydicom; call this inside `budget.decoding`.
    """
    stated, syntax, stream = _opened(content, source, most_bytes)
    size = stream.getbuffer().nbytes
    ends: list[int] = []

    def note_end(tag: BaseTag, _vr: str | None, length: int) -> bool:
        if tag in tags and tag not in _PIXEL_TAGS and length != _UNDEFINED_LENGTH:
            check_value_length(tag, length, source)
        ends.append(stream.tell() + (0 if length == _UNDEFINED_LENGTH else length))
        return False

    dataset = read_elements(stream, syntax, note_end, tags)
    cut = ""
    if ends and ends[-1] > size:
        cut = f"its last element reaches to byte {ends[-1]} and the data end at byte {size}"
    elif ends and 0 < size - ends[-1] < _HEADER_BYTES:
        cut = f"the data end at byte {size}, inside the header of an element"
    return DicomFile(dataset, syntax, bool(stated), cut)


def parse_header(content: bytes, source: str, most_bytes: int) -> Dataset:
    """Read every element before the look-up tables and the pixels, for derived objects.

    These are patient, study, series and equipment, in groups up to 0028. Sequences are read
    unchanged, and nothing is checked.

    Raises:
        ImageRefusedError: as in `parse_dicom`.
        Exception: any exception of pydicom; call this inside `budget.decoding`.
    """
    _, syntax, stream = _opened(content, source, most_bytes)

    def stop(tag: BaseTag, vr: str | None, length: int) -> bool:
        if vr != "SQ" and tag.group in _TEXT_GROUPS and length != _UNDEFINED_LENGTH:
            check_value_length(tag, length, source)
        return int(tag) >= _FIRST_TABLE

    return read_elements(stream, syntax, stop)


def image_digest(content: bytes) -> str:
    """Hex SHA-256 that identifies the image of a file, whatever it was transported by.

    It is taken over the pixels and over the elements that predictions and reports depend on. File
    meta information, the transfer syntax of uncompressed pixels, and elements that a sender adds
    or leaves out do not change it. Of a deflated data set, and of one that can't be read so, it is
    that of all bytes after the file meta information.
    """
    try:
        with decoding("image", "the DICOM header"):
            # Inflated, a deflated data set may be large: its limit of 0 bytes refuses each.
            file = parse_dicom(content, "image", 0, _IDENTIFYING_TAGS)
            if not file.cut and "SOPInstanceUID" in file.dataset:
                return _digest(file)
    except ImageRefusedError:
        pass
    return sha256(content[transfer_syntax_of(content)[1] :]).hexdigest()


def _digest(file: DicomFile) -> str:
    dataset = file.dataset
    little = file.transfer_syntax != ExplicitVRBigEndian
    digest = sha256(b"" if file.transfer_syntax in _NATIVE else file.transfer_syntax.encode())
    for tag in _PIXEL_TAGS:
        if tag not in dataset:
            continue
        pixels, size = dataset[tag].value or b"", _WORD_BYTES.get(dataset[tag].VR, 1)
        if not little and len(pixels) % size == 0:
            pixels = np.frombuffer(pixels, f"u{size}").byteswap().tobytes()
        digest.update(pixels)
        del dataset[tag]
    stream = DicomBytesIO()
    stream.is_little_endian, stream.is_implicit_VR = True, True
    for element in _defined_lengths(dataset):
        write_data_element(stream, element, convert_encodings(dataset.get("SpecificCharacterSet")))
    digest.update(stream.getvalue())
    return digest.hexdigest()


def _defined_lengths(dataset: Dataset) -> list[DataElement]:
    """The elements, of which sequences and their items have a stated length."""
    elements = list(dataset)
    for element in elements:
        if element.VR == "SQ":
            element.is_undefined_length = False
            for item in element.value:
                item.is_undefined_length_sequence_item = False
                _defined_lengths(item)
    return elements


def header_texts(head: bytes, source: str, keywords: Collection[str]) -> dict[str, str]:
    """The values of elements of the first groups as text, `""` where there is none.

    Arguments and errors are those of `header_elements`.
    """
    header = header_elements(head, source, keywords)
    with decoding(source, "the DICOM header"):
        return {word: str(header.get(word) or "").strip(" \0") for word in keywords}


def header_elements(head: bytes, source: str, keywords: Collection[str]) -> Dataset:
    """Elements of the first groups; their values are converted by pydicom when they are read.

    Args:
        head: the first `HEADER_BYTES` of a file, or all of it; of a deflated data set, so many
            bytes are inflated.
        source: its name, for errors.
        keywords: of the elements; reading ends behind the last of them.

    Raises:
        ImageRefusedError: it is no file of PS3.10, is too complex, or is damaged.
    """
    if not has_preamble(head):
        raise ImageRefusedError(source, Reason.NOT_AN_IMAGE, "it is no DICOM file with a preamble")
    tags = [Tag(keyword) for keyword in keywords]
    last = max(tags)

    def stop(tag: BaseTag, _vr: str | None, length: int) -> bool:
        if tag in tags and length != _UNDEFINED_LENGTH:
            check_value_length(tag, length, source)
        return int(tag) > int(last)

    with decoding(source, "the DICOM header"):
        _, syntax, stream = _opened(head[:HEADER_BYTES], source, HEADER_BYTES, whole=False)
        return read_elements(stream, syntax, stop, tags)


def read_elements(
    stream: BytesIO,
    syntax: str,
    stop: Callable[[BaseTag, str | None, int], bool],
    tags: Collection[BaseTag | int] | None = None,
) -> Dataset:
    """The elements of a data set until `stop` returns true; `None` for `tags` keeps all of them.

    Raises:
        Exception: any exception of pydicom; call this inside `budget.decoding`.
    """
    return read_dataset(
        stream,
        is_implicit_VR=syntax == ImplicitVRLittleEndian,
        is_little_endian=syntax != ExplicitVRBigEndian,
        stop_when=stop,
        specific_tags=None if tags is None else list(tags),
    )


def has_preamble(head: bytes) -> bool:
    """Whether a file begins as PS3.10 section 7.1 says."""
    return head[_PREAMBLE_BYTES - 4 : _PREAMBLE_BYTES] == b"DICM"


def _opened(
    content: bytes, source: str, most_bytes: int, *, whole: bool = True
) -> tuple[str, str, BytesIO]:
    """The stated transfer syntax, the one to read with, and the data set, inflated."""
    stated, start = transfer_syntax_of(content)
    syntax = stated or _guess_syntax(content[start : start + 6])
    if syntax == DeflatedExplicitVRLittleEndian:
        return stated, syntax, dicom_stream(_inflated(content[start:], source, most_bytes, whole))
    stream = dicom_stream(content)
    stream.seek(start)
    return stated, syntax, stream


def _guess_syntax(start: bytes) -> str:
    """Infer the transfer syntax from the header of the first element, if the file states none."""
    vr = start[4:6]
    if not (vr.isalpha() and vr.isupper()):
        return str(ImplicitVRLittleEndian)
    (group,) = struct.unpack("<H", start[:2])
    # Groups start at 0008, which reads as 0800 in the wrong byte order.
    return str(ExplicitVRBigEndian if group >= 0x0400 else ExplicitVRLittleEndian)


def _inflated(deflated: bytes, source: str, most_bytes: int, whole: bool) -> bytes:
    """Inflate a data set (PS3.5 A.5), stopping at `most_bytes`; with `whole` there is no more."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    if not whole:
        return inflater.decompress(deflated, most_bytes)
    data = inflater.decompress(deflated, most_bytes + 1)
    if len(data) > most_bytes:
        raise ImageRefusedError(
            source,
            Reason.FILE_TOO_LARGE,
            f"its {len(deflated):,} deflated bytes inflate to more than {most_bytes:,}, the limit",
        )
    if not inflater.eof:
        raise ImageRefusedError(
            source, Reason.TRUNCATED, "its deflated data set is cut short. Fetch it again"
        )
    return data
