"""Write a DATA folder of phantoms: patients, splits, file names, PNG or DICOM files.

The folder is `train|val|test/NORMAL|PNEUMONIA/` with file names like those of the Kermany data set,
and `phantoms.json`, which lists the files. The same arguments write the same bytes.

`encode_dicom` writes a phantom as a DICOM Part 10 file: Digital X-Ray Image Storage – For
Presentation. Its bytes depend only on the phantom and the seed. The clauses are those of PS3.3.
"""

from __future__ import annotations

import io
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image

from pneumoscope.errors import InputError, UsageError
from pneumoscope.images.augment import random_stream
from pneumoscope.images.phantom.lesion import Subtype
from pneumoscope.images.phantom.radiograph import SMALLEST_SIZE, Phantom, draw
from pneumoscope.progress import SILENT, Progress
from pneumoscope.reading import read_json
from pneumoscope.records import CLASS_NAMES, SPLITS, Split
from pneumoscope.storage import write_json

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

BITS_STORED = 12
"""Of 16 bits allocated, as in most digital detectors."""

MONOCHROME1_SHARE = 0.25
"""Share of patients whose images are stored with 0 as white."""

_ROW_MM = 0.14 * 2048
_STUDY_DATE = "20000101"

MARKER = "phantoms.json"
"""Lists the files of a folder of phantoms; only a folder with this file may be replaced."""

SPLIT_SHARES = {"val": 0.15, "test": 0.15}
"""Shares of patients; the others are for training."""

_SUBTYPES: tuple[Subtype, ...] = ("bacteria", "virus", "bacteria", "virus", "bacteria")
_IMAGES_PER_PATIENT = (1, 2, 3)
_IMAGE_SHARES = (0.60, 0.28, 0.12)
_PNG_LEVEL = 3


def encode_dicom(phantom: Phantom, serial: int, seed: int) -> bytes:
    """The bytes of the DICOM file; the patient is `PHANTOM^NNNN` with `serial` as NNNN.

    MONOCHROME1 or MONOCHROME2 is drawn per patient, the limits of the window per image, both
    independent of the class. UIDs depend on the seed, the patient and the image (pydicom's
    `generate_uid`).
    """
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian

    dataset = Dataset()
    _patient_and_study(dataset, phantom, serial, seed)
    _dx_series(dataset)
    _pixels(dataset, phantom, seed)
    dataset.SOPClassUID = DigitalXRayImageStorageForPresentation
    dataset.SOPInstanceUID = _uid("image", seed, phantom.patient, phantom.number)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta = meta
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def _uid(*parts: object) -> str:
    from pydicom.uid import generate_uid

    return str(generate_uid(entropy_srcs=["pneumoscope phantom", *(str(part) for part in parts)]))


def _code(value: str, meaning: str) -> Dataset:
    from pydicom.dataset import Dataset

    item = Dataset()
    item.CodeValue = value
    item.CodingSchemeDesignator = "SCT"
    item.CodeMeaning = meaning
    return item


def _patient_and_study(dataset: Dataset, phantom: Phantom, serial: int, seed: int) -> None:
    """Modules Patient (C.7.1.1), General Study (C.7.2.1) and Patient Study (C.7.2.2)."""
    dataset.PatientName = f"PHANTOM^{serial:04d}"
    dataset.PatientID = f"PHANTOM-{serial:04d}"
    dataset.PatientBirthDate = ""
    dataset.PatientSex = "O"
    dataset.PatientAge = f"{phantom.age_years:03d}Y"
    dataset.PatientIdentityRemoved = "YES"
    dataset.DeidentificationMethod = "Drawn by a program; no person"
    dataset.StudyInstanceUID = _uid("study", seed, phantom.patient, phantom.number)
    dataset.StudyDate = _STUDY_DATE
    dataset.StudyTime = "120000"
    dataset.StudyID = f"{serial}"
    dataset.AccessionNumber = ""
    dataset.ReferringPhysicianName = ""
    dataset.StudyDescription = "Phantom chest"
    dataset.SeriesInstanceUID = _uid("series", seed, phantom.patient, phantom.number)
    dataset.SeriesNumber = 1
    dataset.InstanceNumber = phantom.number
    dataset.Manufacturer = "pneumoscope"
    dataset.ManufacturerModelName = "phantom"


def _dx_series(dataset: Dataset) -> None:
    """Modules DX Series (C.8.11.1), Anatomy Imaged, Positioning and Detector (C.8.11.2–5)."""
    dataset.Modality = "DX"
    dataset.PresentationIntentType = "FOR PRESENTATION"
    dataset.BodyPartExamined = "CHEST"
    dataset.ImageLaterality = "U"
    dataset.AnatomicRegionSequence = [_code("51185008", "Chest")]
    dataset.ViewPosition = "AP"
    view = _code("399348003", "antero-posterior")
    view.ViewModifierCodeSequence = []
    dataset.ViewCodeSequence = [view]
    dataset.PatientOrientation = ["L", "F"]
    dataset.PositionerType = "NONE"
    dataset.DetectorType = "DIRECT"
    dataset.DetectorID = ""
    dataset.AcquisitionContextSequence = []


def _pixels(dataset: Dataset, phantom: Phantom, seed: int) -> None:
    """Modules Image Pixel (C.7.6.3), DX Image (C.8.11.3) and VOI LUT (C.11.2).

    The greys fill a window inside the 12 bits, since detectors leave room at both ends. In the
    linear VOI function of C.11.2.1.2.1 the window [low, high] has width high - low + 1 and centre
    low + width / 2.
    """
    inverse = random_stream("monochrome", seed, phantom.patient).random() < MONOCHROME1_SHARE
    limits = random_stream("window", seed, phantom.patient, phantom.number)
    largest = (1 << BITS_STORED) - 1
    low, high = int(limits.integers(0, 400)), int(limits.integers(largest - 700, largest + 1))
    stored = np.rint(low + phantom.pixels.astype(np.float64) * (high - low)).astype("<u2")
    if inverse:
        stored, low, high = (largest - stored).astype("<u2"), largest - high, largest - low
    height, width = stored.shape
    dataset.ImageType = ["DERIVED", "PRIMARY"]
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME1" if inverse else "MONOCHROME2"
    dataset.PresentationLUTShape = "INVERSE" if inverse else "IDENTITY"
    dataset.Rows, dataset.Columns = height, width
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, BITS_STORED, BITS_STORED - 1
    dataset.PixelRepresentation = 0
    dataset.PixelIntensityRelationship = "LOG"
    # Higher stored values mean fewer X-rays (-1) unless the scale is inverted.
    dataset.PixelIntensityRelationshipSign = 1 if inverse else -1
    dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = 0, 1, "US"
    dataset.LossyImageCompression = "00"
    dataset.BurnedInAnnotation = "NO"
    dataset.DerivationDescription = "Synthetic phantom; shows no person"
    spacing = f"{_ROW_MM / height:.6f}"
    dataset.ImagerPixelSpacing = [spacing, spacing]
    dataset.WindowWidth = high - low + 1
    dataset.WindowCenter = low + (high - low + 1) / 2
    dataset.PixelData = stored.tobytes()


@dataclass(frozen=True, slots=True)
class _Patient:
    """One imaginary child: `serial` counts all, `number` those of one subtype, from 1."""

    serial: int
    number: int
    label: int
    subtype: Subtype
    images: int

    @property
    def name(self) -> str:
        """The patient id that the file names encode."""
        return f"{self.subtype}-{self.number}" if self.label else f"IM-{self.number:04d}"


def write_phantoms(
    out: Path | str,
    n: int = 200,
    seed: int = 0,
    format: Literal["png", "dicom"] = "png",
    size: int = 320,
    splits: bool = True,
    progress: Progress = SILENT,
) -> Path:
    """Write `n` X-rays of imaginary children as a DATA folder, completely or not at all.

    About half are PNEUMONIA, of both subtypes; a patient has 1 to 3 images, all in one split.

    Args:
        out: the folder; must be missing, empty, or an unchanged folder of phantoms.
        n: number of images, at least 2.
        seed: same seed, same bytes (with the same versions of NumPy, Pillow and pydicom).
        format: 8-bit PNG, or DICOM (DX, 12 bits, about a quarter MONOCHROME1).
        size: side in pixels.
        splits: make train, val and test (about 70, 15 and 15 % of patients), or one folder.
        progress: progress reporting.

    Returns:
        `out`.

    Raises:
        UsageError: `out` has other content or can't be written; `n`, `size` or `format` is invalid.

    Examples:
        >>> drawn = write_phantoms(folder / "drawn", 8, size=64)
        >>> len(load_dataset(drawn))
        8
    """
    out = Path(out)
    encode = {"png": _encode_png, "dicom": _encode_dicom}.get(format)
    if encode is None:
        raise UsageError(f"phantoms: format is {format!r}; expected 'png' or 'dicom'.")
    if n < 2 or size < SMALLEST_SIZE:
        raise UsageError(
            f"phantoms: found n {n} and size {size}; expected at least 2 images (one per class) "
            f"and {SMALLEST_SIZE} pixels."
        )
    _check_target(out)
    patients = _draw_patients(n, seed)
    placed = _assign_splits(patients, seed) if splits else {}
    running = {"": 0, "bacteria": 0, "virus": 0}
    names: list[str] = []
    with _replacing(out) as folder, progress.task("Phantoms", n, "images") as task:
        for patient in patients:
            home = Path(placed.get(patient.serial, ""), CLASS_NAMES[patient.label])
            (folder / home).mkdir(parents=True, exist_ok=True)
            for image in range(1, patient.images + 1):
                running[patient.subtype] += 1
                stem = _stem(patient, image, running[patient.subtype])
                phantom = draw(seed, patient.name, image, patient.label, size, patient.subtype)
                suffix, content = encode(phantom, patient.serial, seed)
                (folder / home / f"{stem}{suffix}").write_bytes(content)
                names.append((home / f"{stem}{suffix}").as_posix())
                task.advance()
        document = {"seed": seed, "n": n, "size": size, "format": format, "files": sorted(names)}
        write_json(folder / MARKER, document)
    return out


def _encode_png(phantom: Phantom, serial: int, seed: int) -> tuple[str, bytes]:
    stream = io.BytesIO()
    grey = np.rint(phantom.pixels * 255).astype(np.uint8)
    Image.fromarray(grey).save(stream, format="PNG", compress_level=_PNG_LEVEL)
    return ".png", stream.getvalue()


def _encode_dicom(phantom: Phantom, serial: int, seed: int) -> tuple[str, bytes]:
    return ".dcm", encode_dicom(phantom, serial, seed)


def _draw_patients(n: int, seed: int) -> list[_Patient]:
    """Draw patients until they have `n` images; the class with fewer images so far is next."""
    rng = random_stream("patients", seed)
    patients: list[_Patient] = []
    images_of = [0, 0]
    numbers: dict[Subtype, int] = {"": 0, "bacteria": 0, "virus": 0}
    positives = 0
    while (left := n - sum(images_of)) > 0:
        label = int(images_of[1] < images_of[0])
        wanted = int(rng.choice(_IMAGES_PER_PATIENT, p=_IMAGE_SHARES))
        # Leave at least one image for the other class.
        images = max(1, min(wanted, left - 1 if images_of[1 - label] == 0 else left))
        subtype: Subtype = _SUBTYPES[positives % len(_SUBTYPES)] if label else ""
        positives += label
        numbers[subtype] += 1
        patients.append(_Patient(len(patients) + 1, numbers[subtype], label, subtype, images))
        images_of[label] += images
    return patients


def _assign_splits(patients: list[_Patient], seed: int) -> dict[int, Split]:
    """The split of each patient's serial number, stratified by class and subtype."""
    rng = random_stream("splits", seed)
    placed: dict[int, Split] = {}
    for label in range(len(CLASS_NAMES)):
        members = [patient for patient in patients if patient.label == label]
        order = [members[k] for k in rng.permutation(len(members))]
        order.sort(key=lambda patient: patient.subtype)
        # Every k-th of a list sorted by subtype takes the same share of each subtype.
        positions = (np.arange(len(order)) + 0.5) * 0.618034 % 1
        ranked = [order[k] for k in np.argsort(positions, kind="stable")]
        begin = 0
        for split in SPLITS[1:]:
            count = round(SPLIT_SHARES[split] * len(ranked))
            if len(ranked) >= len(SPLITS):
                count = max(count, 1)
            for patient in ranked[begin : begin + count]:
                placed[patient.serial] = split
            begin += count
        for patient in ranked[begin:]:
            placed[patient.serial] = SPLITS[0]
    return placed


def _stem(patient: _Patient, image: int, running: int) -> str:
    if patient.label:
        return f"person{patient.number}_{patient.subtype}_{running}"
    return f"IM-{patient.number:04d}-{image:04d}"


def _check_target(out: Path) -> None:
    """Refuse to replace anything that this module did not write.

    Raises:
        UsageError: `out` is a file, or contains files that its `phantoms.json` does not list.
    """
    way_out = "Give a new or empty folder, or delete it yourself."
    if not out.exists():
        return
    if not out.is_dir():
        raise UsageError(f"{out}: is a file; expected a folder for phantoms. {way_out}")
    found = {path.relative_to(out).as_posix() for path in out.rglob("*") if not path.is_dir()}
    if not found:
        return
    if MARKER not in found:
        raise UsageError(
            f"{out}: contains {len(found)} files and no {MARKER}, so it is not a folder of "
            f"phantoms and won't be replaced. {way_out}"
        )
    strange = sorted(found - {MARKER} - _listed(out / MARKER))
    if strange:
        raise UsageError(
            f"{out}: contains {strange[0]!r}, which its {MARKER} does not list, so it won't be "
            f"replaced. {way_out}"
        )


def _listed(marker: Path) -> set[str]:
    try:
        document = read_json(marker)
    except InputError:
        return set()
    files = document.get("files", []) if isinstance(document, dict) else []
    return {str(name) for name in files} if isinstance(files, list) else set()


@contextmanager
def _replacing(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out` that replaces it on success.

    Raises:
        UsageError: the folder can't be written.
    """
    out = out.resolve()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.", suffix=".tmp"))
    except OSError as error:
        raise UsageError(
            f"{out}: can't be written ({error.strerror}). Give a folder where you may write."
        ) from error
    try:
        folder = temporary / "new"
        folder.mkdir()
        yield folder
        if out.exists():
            out.replace(temporary / "old")
        folder.replace(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
