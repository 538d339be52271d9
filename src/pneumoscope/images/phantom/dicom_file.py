"""A phantom as a DICOM file: Digital X-Ray Image Storage – For Presentation.

Comes in: a `Phantom`. Goes out: the bytes of a Part 10 file, the same for the same phantom and
seed. Knows nothing of folders. Clauses are those of the DICOM standard, PS3.3.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

from pneumoscope.images.augment import random_stream
from pneumoscope.images.phantom.drawing import Phantom

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

BITS_STORED = 12
"""In 16 bits allocated, as most digital detectors give."""

MONOCHROME1_SHARE = 0.25
"""Share of patients whose films are stored with 0 as white."""

_ROW_MM = 0.14 * 2048
_STUDY_DATE = "20000101"


def encode_dicom(phantom: Phantom, serial: int, seed: int) -> bytes:
    """The file's bytes; patient `PHANTOM^NNNN` with `serial` as NNNN.

    MONOCHROME1 or not is drawn by patient, whatever the class; so are the limits of the window,
    by film. UIDs come from the seed, the patient and the film (pydicom's `generate_uid`).
    """
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian

    dataset = Dataset()
    _patient_and_study(dataset, phantom, serial, seed)
    _dx_series(dataset)
    _pixels(dataset, phantom, seed)
    dataset.SOPClassUID = DigitalXRayImageStorageForPresentation
    dataset.SOPInstanceUID = _uid("image", seed, phantom.patient, phantom.film)
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
    dataset.StudyInstanceUID = _uid("study", seed, phantom.patient, phantom.film)
    dataset.StudyDate = _STUDY_DATE
    dataset.StudyTime = "120000"
    dataset.StudyID = f"{serial}"
    dataset.AccessionNumber = ""
    dataset.ReferringPhysicianName = ""
    dataset.StudyDescription = "Phantom chest"
    dataset.SeriesInstanceUID = _uid("series", seed, phantom.patient, phantom.film)
    dataset.SeriesNumber = 1
    dataset.InstanceNumber = phantom.film
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

    The greys fill a window inside the 12 bits, as detectors leave room at both ends. In the
    linear VOI function of C.11.2.1.2.1 the window [low, high] has width high - low + 1 and centre
    low + width / 2.
    """
    inverse = random_stream("monochrome", seed, phantom.patient).random() < MONOCHROME1_SHARE
    limits = random_stream("window", seed, phantom.patient, phantom.film)
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
    # Higher stored values mean fewer X-rays (-1) unless the scale is turned round.
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
