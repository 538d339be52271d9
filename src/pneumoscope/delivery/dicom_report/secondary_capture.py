"""The overlay of an answer as a Secondary Capture image (PS3.3 A.8.1), labelled as research.

Comes in: the film, who answers, the answer, the overlay's pixels. Goes out: a data set to be
written or sent. Knows nothing of networks or files. The label stands below the picture, so that
none of the film is hidden by it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pneumoscope.delivery.dicom_report.source import (
    MANUFACTURER,
    RESEARCH_ONLY,
    Author,
    SourceImage,
)
from pneumoscope.records import Prediction

if TYPE_CHECKING:
    from highdicom.sc import SCImage
    from pydicom.dataset import Dataset

SERIES_NUMBER = 9002

_LEAST_WIDTH = 512
"""Smaller pictures are enlarged, so that the label can be read."""

_FONT_SHARE = 32
"""The label's characters are this part of the picture's width, in pixels."""

_CARRIED = (
    "BurnedInAnnotation",  # PS3.3 C.7.6.1, about what identifies the patient: the film's is ours
    "LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod",
    "BodyPartExamined",
)  # fmt: skip
"""What holds of a picture drawn from the film as well. Once lossy is always lossy (C.7.6.1.1.5)."""

_STAND_IN_ORIENTATION = ("L", "F")
_LETTERS = frozenset("LRAPHF")


def secondary_capture(
    source: SourceImage, author: Author, prediction: Prediction, overlay: NDArray[np.uint8]
) -> SCImage:
    """The overlay, uint8 (h, w, 3), in the film's own study.

    Modality OT and conversion type WSD: drawn on a workstation, no film of its own (C.8.6.1). It
    names the film that it was made of (C.7.6.1, Source Image Sequence).

    Raises:
        Exception: as `structured_report` does.
    """
    from highdicom.sc import SCImage

    image = source.dataset
    stated = orientation(image)
    capture = SCImage(
        pixel_array=labelled(overlay, author, prediction),
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        study_instance_uid=image.StudyInstanceUID,
        series_instance_uid=author.uid("capture series", source.series_uid),
        series_number=SERIES_NUMBER,
        sop_instance_uid=author.uid("capture", source.sop_uid),
        instance_number=source.number,
        manufacturer=MANUFACTURER,
        patient_id=image.PatientID,
        patient_name=image.PatientName,
        patient_birth_date=image.PatientBirthDate,
        patient_sex=image.PatientSex,
        accession_number=image.AccessionNumber,
        study_id=image.StudyID,
        study_date=image.StudyDate or None,
        study_time=image.StudyTime or None,
        referring_physician_name=image.ReferringPhysicianName,
        patient_orientation=stated or _STAND_IN_ORIENTATION,
        series_description="Pneumonia: model's heatmap. RESEARCH USE ONLY",
        manufacturer_model_name=author.model_name,
        software_versions=author.version,
        device_serial_number=author.fingerprint,
        specific_character_set="ISO_IR 192",
    )
    capture.copy_patient_and_study_information(image)
    if not stated:  # C.7.6.1: type 2C, empty where nobody knows; the library wants a value
        capture.PatientOrientation = ""
    capture.ConversionType = "WSD"
    capture.ImageType = ["DERIVED", "SECONDARY"]
    for keyword in _CARRIED:
        if keyword in image:
            capture[keyword] = image[keyword]
    capture.DerivationDescription = f"Grad-CAM map over the film. {RESEARCH_ONLY}"
    capture.ImageComments = RESEARCH_ONLY
    capture.SourceImageSequence = [_reference(source)]
    return capture


def labelled(
    overlay: NDArray[np.uint8], author: Author, prediction: Prediction
) -> NDArray[np.uint8]:
    """The overlay, uint8 (h, w, 3), with what it is written below it."""
    from PIL import Image, ImageDraw, ImageFont

    picture = Image.fromarray(overlay)
    if picture.width < _LEAST_WIDTH:
        factor = -(-_LEAST_WIDTH // picture.width)
        picture = picture.resize((picture.width * factor, picture.height * factor))
    size = picture.width // _FONT_SHARE
    lines = _label(author, prediction)
    whole = Image.new("RGB", (picture.width, picture.height + (len(lines) + 1) * size * 3 // 2))
    whole.paste(picture, (0, 0))
    draw, font = ImageDraw.Draw(whole), ImageFont.load_default(size)
    for k, line in enumerate(lines):
        place = (size, picture.height + size // 2 + k * size * 3 // 2)
        draw.text(place, line, fill="white", font=font)
    return np.asarray(whole)


def _label(author: Author, prediction: Prediction) -> list[str]:
    probability, threshold = prediction.probability or 0.0, prediction.threshold or 0.0
    return [
        RESEARCH_ONLY.replace("–", "-"),  # which Pillow's own font lacks
        f"model's answer {prediction.prediction}: probability of pneumonia {probability:.3f}",
        f"threshold {threshold:.3f}",
        f"pneumoscope {author.version}, {author.model_name}",
    ]


def orientation(image: Dataset) -> tuple[str, str] | None:
    """The image's directions of rows and columns (C.7.6.1.1.1), if it states some that can be."""
    value = image.get("PatientOrientation")
    if value is None or isinstance(value, str) or len(value) != 2:
        return None
    row, column = str(value[0]), str(value[1])
    known = all(part and len(part) <= 3 and set(part) <= _LETTERS for part in (row, column))
    return (row, column) if known else None


def _reference(source: SourceImage) -> Dataset:
    """The film, as what this was processed from (CID 7202)."""
    from pydicom.dataset import Dataset

    purpose = Dataset()
    purpose.CodeValue = "121322"
    purpose.CodingSchemeDesignator = "DCM"
    purpose.CodeMeaning = "Source image for image processing operation"
    item = Dataset()
    item.ReferencedSOPClassUID = source.sop_class
    item.ReferencedSOPInstanceUID = source.sop_uid
    item.PurposeOfReferenceCodeSequence = [purpose]
    return item
