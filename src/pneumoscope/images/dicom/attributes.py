"""Read age band, sex, view and manufacturer from a DICOM header, for subgroup analysis.

Nothing that identifies a patient is kept, and no pixel is decoded. Unreadable headers give no
attributes instead of an error.
"""

from __future__ import annotations

import re
from pathlib import Path

from pneumoscope.errors import ImageRefusedError

AGE_BANDS = ((1, "under 1"), (5, "1 to 4"), (18, "5 to 17"), (40, "18 to 39"), (65, "40 to 64"))
"""Upper limit of each band in years (exclusive), and its name; above is `65 or older`."""

_OLDEST = "65 or older"
_AGE = re.compile(r"(\d{3})([DWMY])")  # AS, DICOM PS3.5 section 6.2
_PER_YEAR = {"D": 365.25, "W": 52.18, "M": 12.0, "Y": 1.0}
_SEXES = {"F": "female", "M": "male", "O": "other"}  # PatientSex, PS3.3 C.7.1.1
_PREAMBLE = 132
_MAX_TEXT = 64
_MAX_INFLATED = 64 << 20
_MAX_HEADER = 1 << 20  # bytes; the elements that are read stand before that


def image_attributes(path: Path) -> dict[str, str]:
    """`age_band`, `sex`, `view` and `manufacturer` of a DICOM file, as far as it states them.

    Returns:
        Values by name; empty for files other than DICOM with a preamble (PS3.10 section 7.1).
    """
    from pneumoscope.images.budget import decoding
    from pneumoscope.images.dicom.file import parse_header

    try:
        with path.open("rb") as stream:
            head = stream.read(_PREAMBLE)
            if not head.endswith(b"DICM"):
                return {}
            head += stream.read(_MAX_HEADER)
    except OSError:
        return {}
    tags = ["PatientAge", "PatientSex", "ViewPosition", "Manufacturer"]
    try:
        with decoding(str(path), "the DICOM header"):
            header = parse_header(head, str(path), _MAX_INFLATED)
            stated = {tag: _text(header.get(tag)) for tag in tags}
    except ImageRefusedError:
        return {}
    found = {
        "age_band": age_band(stated["PatientAge"]),
        "sex": _SEXES.get(stated["PatientSex"].upper(), ""),
        "view": stated["ViewPosition"].upper(),
        "manufacturer": stated["Manufacturer"],
    }
    return {name: value for name, value in found.items() if value}


def age_band(age: str) -> str:
    """The band of a DICOM age (`004Y`, `018M`), `""` for an invalid age."""
    match = _AGE.fullmatch(age.strip().upper())
    if not match:
        return ""
    years = int(match[1]) / _PER_YEAR[match[2]]
    return next((name for below, name in AGE_BANDS if years < below), _OLDEST)


def _text(value: object) -> str:
    """A header's text on one line, without characters that break a page or a CSV."""
    printable = "".join(c if c.isprintable() else " " for c in str(value or ""))
    return " ".join(printable.split())[:_MAX_TEXT]
