"""`fetch --pseudonyms`: DICOM files under pseudonymous identifiers, with few elements kept.

An identifier becomes the HMAC-SHA-256 (RFC 2104) of its value under a secret key. The same value
always becomes the same pseudonym, so that images of one patient or study stay together. Nobody can
compute a pseudonym from a name or number without the key. The key lies beside the folder, not in
it, so that the folder can be handed on without it.

A list names the elements that are kept: those that reading and predicting need. All others are
removed, with private elements, overlays (also those in unused bits of the pixels), dates and free
texts; elements that a file has to have are then empty. PS3.15 annex E describes the
purpose; this is not its Basic Profile. Text that is burned into the pixels stays.
"""

from __future__ import annotations

import csv
import hashlib
import hmac
import io
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydicom.tag import Tag
from pydicom.uid import UID, ExplicitVRBigEndian

from pneumoscope.errors import ImageRefusedError, Reason, UsageError
from pneumoscope.images.budget import decoding
from pneumoscope.images.dicom.file import OVERLAY_TAGS, parse_dicom
from pneumoscope.images.dicom.header import (
    DATES,
    coded_region,
    coded_view,
    dicom_info,
    fixed_terms,
    overlay_bits,
)
from pneumoscope.images.dicom.patient import age_string, patient_age
from pneumoscope.storage import LineFile, safe_cell, temporary_beside, write_json

if TYPE_CHECKING:
    from pydicom.dataset import Dataset
    from pydicom.sr.coding import Code

    from pneumoscope.images.grey import DicomInfo

MARKER = "pseudonyms.json"
"""In the folder: which key its pseudonyms were made with, by a digest of the key."""

KEY_SUFFIX = ".key"
MAPPING_COLUMNS = (
    *("image", "study", "series", "accession", "patient", "study_date"),
    *("image_pseudonym", "study_pseudonym", "series_pseudonym"),
    *("accession_pseudonym", "patient_pseudonym"),
)
"""Of the table of `--mapping`."""

_KEY_BYTES = 32
_TEXT_DIGITS = 16
"""Hexadecimal digits of a pseudonym that is no UID: what an accession number may have (SH)."""

_IDENTIFIERS = ("image", "study", "series", "accession", "patient")
_UIDS = ("image", "study", "series")
_KEPT = (
    "SOPClassUID", "ImageType", "Modality", "PresentationIntentType", "ConversionType",
    "PatientSex", "BodyPartExamined", "ViewPosition", "PatientOrientation", "Laterality",
    "ImageLaterality", "ImagerPixelSpacing", "InstanceNumber",
    "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames",
    "Rows", "Columns", "PixelSpacing", "PixelAspectRatio", "BitsAllocated", "BitsStored",
    "HighBit", "PixelRepresentation", "SmallestImagePixelValue", "LargestImagePixelValue",
    "PixelPaddingValue", "PixelPaddingRangeLimit", "BurnedInAnnotation",
    "WindowCenter", "WindowWidth", "VOILUTFunction", "RescaleIntercept", "RescaleSlope",
    "RescaleType", "PixelIntensityRelationship", "PixelIntensityRelationshipSign",
    "RedPaletteColorLookupTableDescriptor", "GreenPaletteColorLookupTableDescriptor",
    "BluePaletteColorLookupTableDescriptor", "RedPaletteColorLookupTableData",
    "GreenPaletteColorLookupTableData", "BluePaletteColorLookupTableData",
    "SegmentedRedPaletteColorLookupTableData", "SegmentedGreenPaletteColorLookupTableData",
    "SegmentedBluePaletteColorLookupTableData",
    "PresentationLUTShape", "LossyImageCompression",
    "ExtendedOffsetTable", "ExtendedOffsetTableLengths", "PixelData",
)  # fmt: skip
_SEQUENCES = {
    "ModalityLUTSequence": ("LUTDescriptor", "ModalityLUTType", "LUTData"),
    "VOILUTSequence": ("LUTDescriptor", "LUTData"),
}
"""Sequences that are kept, each with the elements that are kept of its items."""

_READ_ONLY = (
    *("PatientAge", "PatientBirthDate", *DATES),
    *("ViewCodeSequence", "AnatomicRegionSequence", "StudyDescription", "SeriesDescription"),
)
"""Read for age, view and body part, which are written in fixed terms."""

_EMPTY = ("SeriesNumber", "Manufacturer")
"""Elements of type 2 (PS3.3 C.7.3.1, C.7.5.1): empty, but never missing."""

_EMPTY_BY_CLASS = {
    "1.2.840.10008.5.1.4.1.1.1": ("BodyPartExamined", "ViewPosition"),  # CR: C.8.1.1
    **dict.fromkeys(
        ("1.2.840.10008.5.1.4.1.1.1.1", "1.2.840.10008.5.1.4.1.1.1.1.1"),  # DX: C.8.11
        ("DetectorType", "PositionerType", "AcquisitionContextSequence", "AnatomicRegionSequence"),
    ),
}
"""The same by SOP class, where they are not kept."""

_MOST_INFLATED = 512 << 20
_METHOD = "pneumoscope fetch --pseudonyms: keyed hash of identifiers"


class Pseudonyms:
    """Makes pseudonyms, and files that bear them.

    Args:
        key: secret bytes; the same key makes the same pseudonyms.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    @property
    def fingerprint(self) -> str:
        """A digest that names the key and does not reveal it."""
        return self._digest("fingerprint", "").hex()[:_TEXT_DIGITS]

    def of(self, kind: str, value: str) -> str:
        """The pseudonym of a value.

        Args:
            kind: `image`, `study`, `series` (UIDs), `accession` or `patient`.
            value: the identifier; `""` has none.

        Returns:
            A UID under 2.25 (PS3.5 B.2) or 16 hexadecimal digits; `""` for `""`.
        """
        if not value:
            return ""
        digest = self._digest("uid" if kind in _UIDS else kind, value)
        if kind in _UIDS:
            return f"2.25.{int.from_bytes(digest[:16], 'big')}"
        return digest.hex()[:_TEXT_DIGITS]

    def facts(self, facts: dict[str, str]) -> dict[str, str]:
        """A row of `images.csv` with pseudonyms and without its date."""
        replaced = {name: self.of(name, facts[name]) for name in _IDENTIFIERS}
        return {**facts, **replaced, "study_date": ""}

    def file(self, content: bytes, facts: dict[str, str]) -> bytes | None:
        """The file under its pseudonyms; `None` if it can't be read.

        Args:
            content: a Part 10 file.
            facts: its identifiers, as they are.
        """
        try:
            with decoding("image", "the DICOM file"):
                return self._made(content, self.facts(facts))
        except ImageRefusedError:
            return None

    def _digest(self, kind: str, value: str) -> bytes:
        return hmac.new(self._key, f"{kind}\0{value}".encode(), hashlib.sha256).digest()

    def _made(self, content: bytes, named: dict[str, str]) -> bytes:
        from pydicom.dataset import Dataset, FileMetaDataset

        wanted = [Tag(keyword) for keyword in (*_KEPT, *_SEQUENCES, *_READ_ONLY)]
        wanted += map(Tag, OVERLAY_TAGS)
        file = parse_dicom(content, "image", _MOST_INFLATED, wanted)
        source = file.dataset
        made = Dataset()
        _copy(source, made, _KEPT)
        for keyword, inner in _SEQUENCES.items():
            if keyword in source:
                setattr(made, keyword, [_item(item, inner) for item in source[keyword].value])
        for keyword, term in fixed_terms(source).items():
            setattr(made, keyword, term)
        if view := coded_view(source):
            made.ViewCodeSequence = [_coded(view)]
        if region := coded_region(source):
            made.AnatomicRegionSequence = [_coded(region)]
        for keyword in (*_EMPTY, *_EMPTY_BY_CLASS.get(made.SOPClassUID, ())):
            if keyword not in made:
                setattr(made, keyword, [] if keyword.endswith("Sequence") else None)
        _clear_overlays(source, made, UID(file.transfer_syntax))
        if age := _age(dicom_info(source, file.transfer_syntax)):
            made.PatientAge = age
        made.SOPInstanceUID, made.StudyInstanceUID = named["image"], named["study"]
        made.SeriesInstanceUID = named["series"]
        made.AccessionNumber, made.PatientID = named["accession"], named["patient"]
        made.PatientName = named["patient"]
        for keyword in ("PatientBirthDate", "StudyDate", "StudyTime", "ReferringPhysicianName"):
            setattr(made, keyword, "")
        made.StudyID = ""
        # PS3.3 C.7.1.1: what was done, in elements for it.
        made.PatientIdentityRemoved = "YES"
        made.DeidentificationMethod = _METHOD
        made.LongitudinalTemporalInformationModified = "REMOVED"
        made.file_meta = FileMetaDataset()
        made.file_meta.TransferSyntaxUID = UID(file.transfer_syntax)
        made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID
        made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
        stream = io.BytesIO()
        made.save_as(stream, enforce_file_format=True)
        return stream.getvalue()


def _copy(source: Dataset, made: Dataset, keywords: tuple[str, ...]) -> None:
    for keyword in keywords:
        if keyword in source:
            made[keyword] = source[keyword]


def _clear_overlays(source: Dataset, made: Dataset, syntax: UID) -> None:
    """Clear bits of the cells beside the stored ones that hold overlays (PS3.5 8.1.2).

    Raises:
        ImageRefusedError: the pixels are compressed.
    """
    mask = overlay_bits(source)
    if mask:
        stored = (1 << source.BitsStored) - 1
        mask &= ~(stored << max(source.HighBit - source.BitsStored + 1, 0))
    if not mask:
        return
    if syntax.is_encapsulated or source.BitsAllocated not in (8, 16):
        raise ImageRefusedError(
            "image",
            Reason.UNSUPPORTED_ENCODING,
            f"overlays in its cells of {source.BitsAllocated} bits can't be removed; expected 8 or "
            "16 bits, not compressed",
        )
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    cells = np.frombuffer(source.PixelData, f"{order}u{source.BitsAllocated // 8}")
    kept = cells & cells.dtype.type(~mask & (1 << source.BitsAllocated) - 1)
    made.PixelData = kept.astype(cells.dtype).tobytes()  # numpy computes in native byte order


def _item(source: Dataset, keywords: tuple[str, ...]) -> Dataset:
    from pydicom.dataset import Dataset

    made = Dataset()
    _copy(source, made, keywords)
    return made


def _coded(code: Code) -> Dataset:
    """A code as an item, its meaning by the standard (PS3.3 table 8.8-1)."""
    from pydicom.dataset import Dataset

    made = Dataset()
    made.CodeValue, made.CodingSchemeDesignator = code.value, code.scheme_designator
    made.CodeMeaning = code.meaning
    return made


def _age(info: DicomInfo) -> str:
    """PatientAge if it is valid, else the age by the dates as the reader takes them; or `""`."""
    if patient_age(info.patient_age, "", "")[0]:
        return info.patient_age
    return age_string(info.patient_birth_date, info.study_date)


def key_file(folder: Path) -> Path:
    """Where the key of a folder lies: beside it, `FOLDER.key`."""
    folder = folder.absolute()
    return folder.with_name(folder.name + KEY_SUFFIX)


def pseudonyms_of(folder: Path, wanted: bool, *, used: bool) -> Pseudonyms | None:
    """The pseudonyms that a folder's images bear; `None` if they bear their own identifiers.

    A new folder gets a new key, or the key that lies beside it already, which makes pseudonyms
    that agree with those of another folder of the same key.

    Args:
        folder: that images are fetched into; it exists.
        wanted: whether `--pseudonyms` was given.
        used: whether images were fetched into it before.

    Raises:
        UsageError: the folder's images are of the other sort, or its key is missing or another one.
    """
    marker, path = folder / MARKER, key_file(folder)
    if marker.exists() and not wanted:
        raise UsageError(
            f"--out {folder}: its images bear pseudonyms. Give --pseudonyms, or another folder."
        )
    if not wanted:
        return None
    if used and not marker.exists():
        raise UsageError(
            f"--pseudonyms: the images in {folder} bear their own identifiers. Give another folder "
            "with --out."
        )
    if not path.exists() and marker.exists():
        raise UsageError(
            f"--pseudonyms: {path} is missing, the key of the pseudonyms in {folder}. Put it back, "
            "or give another folder with --out."
        )
    if not path.exists():
        _make_key(path)
    made = Pseudonyms(_read_key(path))
    if marker.exists():
        if made.fingerprint not in marker.read_text(encoding="utf-8"):
            raise UsageError(
                f"--pseudonyms: {path} is not the key that the pseudonyms in {folder} were made "
                "with. Put that one back, or give another folder with --out."
            )
    else:
        write_json(marker, {"schema_version": 1, "key_fingerprint": made.fingerprint})
    return made


def _make_key(path: Path) -> None:
    """Write a new key that its owner alone can read, whole or not at all."""
    temporary = temporary_beside(path)
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as stream:
            stream.write(secrets.token_hex(_KEY_BYTES) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _read_key(path: Path) -> bytes:
    try:
        key = bytes.fromhex(path.read_text(encoding="ascii").strip())
    except (OSError, ValueError) as error:
        raise UsageError(
            f"--pseudonyms: {path} can't be read as a key ({error}); expected "
            f"{2 * _KEY_BYTES} hexadecimal digits. Put the right file back."
        ) from error
    if len(key) != _KEY_BYTES:
        raise UsageError(
            f"--pseudonyms: {path} has a key of {len(key)} bytes, expected {_KEY_BYTES}. Put the "
            "right file back."
        )
    return key


class Mapping:
    """The table of `--mapping`: own identifiers and pseudonyms of each image, a row per image.

    A row is on disk before its image counts as fetched. Rows of earlier runs stay.

    Args:
        path: the CSV file; made if it does not exist.
        folder: of the images; the table may not lie in it.

    Raises:
        UsageError: it lies in the folder, or is another table.
        OSError: it can't be written.
    """

    def __init__(self, path: Path, folder: Path) -> None:
        if folder.resolve() in path.resolve().parents:
            raise UsageError(
                f"--mapping {path}: lies in --out {folder}, which would be handed on with it. Give "
                "a file elsewhere."
            )
        self._path = path
        self._known: set[str] = set()
        if path.exists() and path.stat().st_size:
            with path.open(newline="", encoding="utf-8") as stream:
                reader = csv.DictReader(stream)
                if tuple(reader.fieldnames or ()) != MAPPING_COLUMNS:
                    raise UsageError(
                        f"--mapping {path}: found a table with other columns, expected "
                        f"{', '.join(MAPPING_COLUMNS)}. Give another file."
                    )
                self._known = {row["image"] for row in reader if _is_whole(row)}
        else:
            self._append([*MAPPING_COLUMNS])

    def add(self, facts: dict[str, str], named: dict[str, str]) -> None:
        """Add the row of one image, unless it has one."""
        if facts["image"] in self._known:
            return
        own = {name: facts[name] for name in (*_IDENTIFIERS, "study_date")}
        row = {**own, **{f"{name}_pseudonym": named[name] for name in _IDENTIFIERS}}
        self._append([safe_cell(row[name]) for name in MAPPING_COLUMNS])
        self._known.add(facts["image"])

    def _append(self, cells: list[str]) -> None:
        text = io.StringIO(newline="")
        csv.writer(text, lineterminator="\n").writerow(cells)
        with LineFile(self._path, 0o600) as file:
            file.append(text.getvalue().encode(), sync=True)


def _is_whole(row: dict[str, str | None]) -> bool:
    """Whether no interruption cut the row short: the last cell is there, with all its digits."""
    last = row[MAPPING_COLUMNS[-1]]
    return last is not None and len(last) == (_TEXT_DIGITS if row["patient"] else 0)
