"""Decode one DICOM file to grey as displayed, after checking that it is a frontal chest X-ray.

The order of checks is: modality, body part, pixel data, encoding, number of frames, size. Pixels
are decoded only after all checks.
"""

from __future__ import annotations

import struct

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut
from pydicom.uid import UID, ExplicitVRBigEndian

from pneumoscope.arrays import Float32Array
from pneumoscope.config import LimitsConfig
from pneumoscope.errors import ImageRefusedError, Reason
from pneumoscope.images.budget import decoding, spend
from pneumoscope.images.dicom.cells import read_cells
from pneumoscope.images.dicom.file import DicomFile, parse_dicom, transfer_syntax_of
from pneumoscope.images.dicom.grey import grey_table
from pneumoscope.images.dicom.header import (
    check_is_chest_radiograph,
    dicom_info,
    overlay_bits,
    padding_values,
    pixel_header,
    pixel_ratio,
    read_display,
)
from pneumoscope.images.dicom.pixels import (
    SUPPORTED_SYNTAXES,
    Frame,
    PixelHeader,
    Samples,
    decode_frame,
)
from pneumoscope.images.grey import (
    Decoded,
    check_size,
    mean_chroma,
    unit_range,
)

_FLOAT_KEYWORDS = ("FloatPixelData", "DoubleFloatPixelData")
_MIN_ANISOTROPY = 0.01
_MOST_ENTRIES = 65_536
_DISCRETE, _INDIRECT = 0, 2
"""Segments of a palette that list their entries, and those that repeat others."""
_NUMBERS_PER_ITEM = 1000
"""Numbers of a palette whose copy costs as much as an item of the budget."""


def decode_dicom(content: bytes, source: str, limits: LimitsConfig) -> Decoded:
    """Decode one DICOM file to grey as displayed.

    Applies the modality LUT or rescale (PS3.3 C.11.1), then the VOI LUT or the first window
    (C.11.2), or the whole range if there is neither. MONOCHROME1 is always inverted, whatever
    PresentationLUTShape states. Padding (C.7.5.1.1.2) becomes black. Pixels that are not square
    are resampled.

    Args:
        content: the bytes of the file.
        source: its name, for errors.
        limits: limits on bytes, pixels and sides.

    Raises:
        ImageRefusedError: for every defect of the file; no other exception is raised.
    """
    with decoding(source, "the DICOM file") as messages:
        # Data sets in an unsupported encoding may not even parse, so this is checked first.
        _check_syntax(transfer_syntax_of(content)[0], source)
        file = parse_dicom(content, source, limits.max_bytes)
        dataset = file.dataset
        warnings: list[str] = []
        if not file.stated:
            warnings.append("it states no transfer syntax; it was inferred from its first element")
        _check_is_dicom(file, messages, source)
        info = dicom_info(dataset, file.transfer_syntax)
        warnings += check_is_chest_radiograph(info, dataset, source)
        _check_pixel_data(file, messages, source)
        header = pixel_header(dataset, source, warnings)
        ratio = pixel_ratio(dataset, warnings)
        check_size(source, header.columns, header.rows, limits)
        width, height = _square_size(header, ratio)
        check_size(source, width, height, limits)
        frame = decode_frame(dataset, file.transfer_syntax, header, source, warnings)
        if header.samples == 1 and header.photometric.startswith("MONOCHROME"):
            pixels, colour = _displayed(frame, file, header, warnings), 0.0
        else:
            rgb = _coloured(frame.samples, dataset, header, source)
            bits = _sample_bits(rgb, frame, header)
            pixels, colour = _luma(rgb, bits), mean_chroma(rgb, (1 << bits) - 1)
    if (width, height) != (header.columns, header.rows):
        pixels = _resampled(pixels, width, height)
        warnings.append(f"its pixels are not square (height/width {ratio:.3f}) and were resampled")
    return Decoded(pixels, header.stored, tuple(warnings), info, colour)


def _check_syntax(syntax: str, source: str) -> None:
    if syntax and syntax not in SUPPORTED_SYNTAXES:
        name = UID(syntax).name
        known = f" ({name})" if name != syntax else ""
        raise ImageRefusedError(
            source,
            Reason.UNSUPPORTED_ENCODING,
            f"transfer syntax {syntax!r}{known} can't be decoded. Convert the file to Explicit VR "
            "Little Endian",
        )


def _check_is_dicom(file: DicomFile, messages: list[str], source: str) -> None:
    if any(word in file.dataset for word in ("SOPClassUID", "Modality", "Rows", "PixelData")):
        return
    cut = _cut(file, messages)
    # pydicom drops all elements if the data end inside one of undefined length, like pixel data.
    if cut and file.stated:
        raise ImageRefusedError(source, Reason.TRUNCATED, f"{cut}. Fetch it again")
    raise ImageRefusedError(
        source, Reason.CORRUPT, "it starts like DICOM but has no element of an image"
    )


def _check_pixel_data(file: DicomFile, messages: list[str], source: str) -> None:
    if "PixelData" in file.dataset and file.dataset.PixelData:
        return
    if cut := _cut(file, messages):
        raise ImageRefusedError(source, Reason.TRUNCATED, f"{cut}. Fetch it again")
    if any(word in file.dataset for word in _FLOAT_KEYWORDS):
        raise ImageRefusedError(
            source,
            Reason.UNSUPPORTED_ENCODING,
            "its pixel data are floats; expected integers of 8 to 16 bits",
        )
    raise ImageRefusedError(
        source, Reason.NO_PIXEL_DATA, "it is a DICOM object without pixel data, so not an image"
    )


def _cut(file: DicomFile, messages: list[str]) -> str:
    if file.cut:
        return file.cut
    ends = [message for message in messages if "end of file" in message.lower()]
    return "the data end inside an element" if ends else ""


def _displayed(
    frame: Frame, file: DicomFile, header: PixelHeader, warnings: list[str]
) -> Float32Array:
    """Convert cells, unsigned (h, w), to grey as displayed."""
    stored = read_cells(
        frame.samples,
        frame.field,
        frame.width,
        padding_values(file.dataset, header, warnings),
        warnings,
        overlays=overlay_bits(file.dataset),
        swappable=frame.swappable,
    )
    lowest, highest = int(stored.values.min()), int(stored.values.max())
    index = stored.values - np.int32(lowest)
    levels = np.arange(lowest, highest + 1, dtype=np.float64)
    shown = index if stored.outside is None else index[~stored.outside]
    counts = np.bincount(shown.ravel(), minlength=len(levels))
    display = read_display(
        file.dataset, header, file.transfer_syntax == ExplicitVRBigEndian, warnings
    )
    table, odd = grey_table(levels, counts, display)
    warnings.extend(odd)
    pixels = np.take(table.astype(np.float32), index)
    if stored.outside is not None:
        pixels[stored.outside] = 0.0
    return pixels


def _coloured(samples: Samples, dataset: Dataset, header: PixelHeader, source: str) -> Samples:
    """RGB, integer (h, w, 3), of a secondary capture; pydicom has already converted YBR."""
    if header.photometric == "PALETTE COLOR":
        _check_palette(dataset, source)
        return np.asarray(apply_color_lut(samples, dataset))
    if samples.ndim != 3:
        raise ValueError(f"unsupported photometric interpretation {header.photometric!r}")
    return samples


def _check_palette(dataset: Dataset, source: str) -> None:
    """Reject a segmented palette of more entries than 16 bits can name (PS3.3 C.7.9.2).

    pydicom makes a list of all entries, and six bytes of a segment may state 65,535 of them.

    Raises:
        ImageRefusedError: `corrupt`; `too_complex` for many segments that point into a long table.
    """
    _, _, bits = dataset.RedPaletteColorLookupTableDescriptor
    kind = ("<" if dataset.original_encoding[1] else ">") + ("B" if bits == 8 else "H")
    for colour in ("Red", "Green", "Blue", "Alpha"):
        data = dataset.get(f"Segmented{colour}PaletteColorLookupTableData") or b""
        numbers = np.frombuffer(data, kind, len(data) // np.dtype(kind).itemsize).tolist()
        if _entries(numbers, kind) > _MOST_ENTRIES:
            raise ImageRefusedError(
                source,
                Reason.CORRUPT,
                f"its segmented palette has more than {_MOST_ENTRIES:,} entries of "
                f"{colour.lower()}; pixels of 16 bits can name no more. Save it again as "
                "MONOCHROME2 or RGB",
            )


def _entries(numbers: list[int], kind: str, base: int = 0, most_segments: int = 0) -> int:
    """Entries of a segmented palette, as pydicom expands it; counting ends at too many.

    Args:
        numbers: the palette's data.
        kind: `B` or `H` after the order of bytes, as `struct` names them.
        base: position of the first segment, which indirect segments count from.
        most_segments: that are expanded; 0 for all.
    """
    found, segments, at = 0, 0, base
    while at + 1 < len(numbers) and found <= _MOST_ENTRIES:
        segment, length = numbers[at : at + 2]
        at += 2
        if segment == _INDIRECT:  # repeats `length` segments; pydicom copies the table for it
            spend(1 + len(numbers) // _NUMBERS_PER_ITEM, "segments of palettes")
            if kind[1] == "B":
                low, high = struct.unpack(f"{kind[0]}HH", bytes(numbers[at : at + 4]))
                at += 4
            else:
                low, high = numbers[at : at + 2]
                at += 2
            found += 1 + _entries(numbers, kind, base + (high << 16 | low), length)
        else:
            found += length
            at += length if segment == _DISCRETE else 1
        segments += 1
        if segments == most_segments:
            break
    return found


def _sample_bits(rgb: Samples, frame: Frame, header: PixelHeader) -> int:
    # The entries of a palette use their whole type, whatever the bits of the indices.
    return rgb.dtype.itemsize * 8 if header.photometric == "PALETTE COLOR" else frame.field.bits


def _luma(rgb: Samples, bits: int) -> Float32Array:
    """ITU-R BT.601 luma in [0, 1]; for 8-bit colour exactly as for JPEG and PNG."""
    if rgb.dtype == np.uint8 and bits == 8:
        return unit_range(np.asarray(Image.fromarray(rgb).convert("L")))
    luma = np.zeros(rgb.shape[:2], dtype=np.float32)
    for channel, weight in enumerate((0.299, 0.587, 0.114)):
        luma += rgb[..., channel] * np.float32(weight / ((1 << bits) - 1))
    return luma.clip(0.0, 1.0)


def _square_size(header: PixelHeader, ratio: float) -> tuple[int, int]:
    """Width and height after resampling to the finer of both pixel spacings."""
    if abs(ratio - 1.0) <= _MIN_ANISOTROPY:
        return header.columns, header.rows
    if ratio > 1.0:
        return header.columns, round(header.rows * ratio)
    return round(header.columns / ratio), header.rows


def _resampled(pixels: Float32Array, width: int, height: int) -> Float32Array:
    resized = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized, dtype=np.float32).clip(0.0, 1.0)
