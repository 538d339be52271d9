"""The heatmap of an image as DICOM: over the image, and as a segmentation.

A Secondary Capture (PS3.3 A.8.1) shows the heatmap over the image, labelled as research. The label
is below the image, so that it hides no part of it.

A fractional Segmentation (PS3.3 A.51) lies on the pixels of its image. A viewer can lay it over the
image at any opacity. Values are those of the Grad-CAM map, 1 at its peak: they show where the
evidence for pneumonia is, not how likely a pixel is diseased. The standard has two types of
fractions (C.8.20.2); PROBABILITY is the closer one, and the description of the segment states what
it is.
"""

from __future__ import annotations

import re
from textwrap import wrap
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pneumoscope.delivery.dicom_report.source import (
    HEATMAP_TYPE,
    MANUFACTURER,
    RESEARCH_ONLY,
    SPACINGS,
    Author,
    SourceImage,
)
from pneumoscope.inference.overlay import fit_map
from pneumoscope.records import Prediction

if TYPE_CHECKING:
    from highdicom.sc import SCImage
    from highdicom.seg import Segmentation, SegmentDescription
    from pydicom.dataset import Dataset

    from pneumoscope.config import PreprocessConfig

CAPTURE_SERIES = 9002

_LEAST_WIDTH = 512
"""Smaller images are enlarged so that the label is legible."""

_FONT_SHARE = 32
"""The font size of the label is the width of the image over this number, pixels."""

_CAPTURE_CARRIED = (
    "BurnedInAnnotation",  # PS3.3 C.7.6.1: text that identifies the patient; the label does not
    "LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod",
    "BodyPartExamined",
)  # fmt: skip
"""Elements copied to the derived image. Once lossy is always lossy (C.7.6.1.1.5)."""

_UNPAIRED = "CHEST"
_SIDES = ("L", "R")
"""Laterality (PS3.3 C.7.3.1): type 2C, empty if the body part may be paired and no side is stated.
The chest is not paired."""

_STAND_IN_ORIENTATION = ("L", "F")
_LETTERS = frozenset("LRAPHF")

_LETTERS_WIDE = 48
"""Letters of a line of the label that fit the width of the image at this size of the font."""

_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")
_MOST_COMMENT = 10_240

SEGMENTATION_SERIES = 9003
_LEVELS = 255
_LABEL = "Evidence for pneumonia (Grad-CAM)"
_SEGMENTATION_CARRIED = (
    *("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"),
    "BodyPartExamined",
)


def secondary_capture(
    source: SourceImage, author: Author, prediction: Prediction, overlay: NDArray[np.uint8]
) -> SCImage:
    """Make the capture in the study of its source image.

    Its modality is OT and its conversion type WSD, drawn on a workstation (C.8.6.1). Source Image
    Sequence refers to the image that it was made from (C.7.6.1).

    Args:
        source: the image.
        author: program and model.
        prediction: the prediction, for the label.
        overlay: uint8 (h, w, 3).

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
        series_number=CAPTURE_SERIES,
        sop_instance_uid=author.uid("capture", source.identity),
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
    capture.ImageType = HEATMAP_TYPE
    for keyword in _CAPTURE_CARRIED:
        if image.get(keyword):
            capture[keyword] = image[keyword]
    if image.get("BodyPartExamined") != _UNPAIRED:
        side = image.get("Laterality")
        capture.Laterality = side if side in _SIDES else ""
    capture.DerivationDescription = f"Grad-CAM map over the image. {RESEARCH_ONLY}"
    capture.ImageComments = _comments(author, prediction)
    capture.SourceImageSequence = [_reference(source)]
    return capture


def labelled(
    overlay: NDArray[np.uint8], author: Author, prediction: Prediction
) -> NDArray[np.uint8]:
    """The overlay, uint8 (h, w, 3), with the label below it."""
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
    # Values of the header may name the patient: they are in the comments, and in no pixel.
    words = [_QUOTED.sub("...", warning) for warning in prediction.warnings]
    first, *others = author.cautions()
    cautions = [*others, *(f"Caution: {text}" for text in words)]
    lines = [
        first,
        f"prediction {prediction.prediction}: probability of pneumonia {probability:.3f}",
        f"threshold {threshold:.3f}",
        f"pneumoscope {author.version}, {author.model_name}",
        *(line for text in cautions for line in wrap(text, _LETTERS_WIDE)),
    ]
    return [line.replace("–", "-") for line in lines]  # Pillow's own font lacks the dash


def _comments(author: Author, prediction: Prediction) -> str:
    """ImageComments (LT, PS3.5 6.2): the author's cautions, and each warning of the input."""
    warnings = (f"Caution: {warning}" for warning in prediction.warnings)
    return ". ".join((*author.cautions(), *warnings))[:_MOST_COMMENT]


def orientation(image: Dataset) -> tuple[str, str] | None:
    """The stated directions of rows and columns (C.7.6.1.1.1); `None` if missing or invalid."""
    value = image.get("PatientOrientation")
    if value is None or isinstance(value, str) or len(value) != 2:
        return None
    row, column = str(value[0]), str(value[1])
    known = all(part and len(part) <= 3 and set(part) <= _LETTERS for part in (row, column))
    return (row, column) if known else None


def _reference(source: SourceImage) -> Dataset:
    """The image as the source of this one (CID 7202)."""
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


def segmentation(
    source: SourceImage,
    author: Author,
    prediction: Prediction,
    cam: NDArray[np.float32],
    config: PreprocessConfig,
    read: tuple[int, int],
) -> Segmentation:
    """Make the segmentation in the study of its source image.

    It has the rows and columns of the image, because a projection has no frame of reference in
    which a coarser grid could be placed. Source Image and Referenced Series Sequence refer to the
    image.

    Args:
        source: the image.
        author: program and model.
        prediction: the prediction, for its warnings.
        cam: Grad-CAM map, float32 (h, w), on the network's grid.
        config: the preprocessing that placed the image in the grid.
        read: height and width of the image as it was read, with square pixels.

    Raises:
        Exception: as `structured_report` does.
    """
    from highdicom.seg import Segmentation

    image = source.dataset
    heat = fit_map(cam, (int(image.Rows), int(image.Columns)), config, read)
    made = Segmentation(
        source_images=[_projection(image)],
        pixel_array=heat[None, :, :, None].astype(np.float32),
        segmentation_type="FRACTIONAL",
        fractional_type="PROBABILITY",
        max_fractional_value=_LEVELS,
        segment_descriptions=[_segment(author)],
        series_instance_uid=author.uid("segmentation series", source.series_uid),
        series_number=SEGMENTATION_SERIES,
        sop_instance_uid=author.uid("segmentation", source.identity),
        instance_number=source.number,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=author.model_name,
        software_versions=author.version,
        device_serial_number=author.fingerprint,
        omit_empty_frames=False,
        content_label="HEATMAP",
        content_description=f"Grad-CAM map. {RESEARCH_ONLY.replace('–', '-')}",
        series_description="Pneumonia: model's heatmap. RESEARCH USE ONLY",
    )
    for keyword in _SEGMENTATION_CARRIED:
        if image.get(keyword) and keyword not in made:
            made[keyword] = image[keyword]
    made.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence = [_pixel_measures(image)]
    # C.7.6.1: type 2C, empty if unknown.
    made.PatientOrientation = orientation(image) or ""
    made.SpecificCharacterSet = "ISO_IR 192"
    made.ImageComments = _comments(author, prediction)
    return made


def _projection(image: Dataset) -> Dataset:
    """The image as highdicom can read it: one frame, without a frame of reference.

    A projection has no place in a frame of reference. With one, the spacing of pixels would need a
    slice thickness (PS3.3 C.7.6.16.2.1). Of multi-frame classes highdicom reads elements that a
    file with one frame may lack.
    """
    from pydicom.dataset import Dataset

    single = Dataset()
    single.update(image)
    for keyword in ("FrameOfReferenceUID", "PositionReferenceIndicator"):
        single.pop(keyword, None)
    single.NumberOfFrames = 1
    shared = Dataset()
    shared.PixelMeasuresSequence = [_pixel_measures(image)]
    single.SharedFunctionalGroupsSequence = [shared]
    return single


def _pixel_measures(image: Dataset) -> Dataset:
    """The pixels' spacing, mm (PS3.3 C.7.6.16.2.1), by the header of the image.

    The detector's spacing stands for an uncalibrated one (10.7.1.3). Without a valid one the item
    is empty. It is there in any case, because the OHIF viewer stops at a segmentation without it.
    """
    from pydicom.dataset import Dataset

    measures = Dataset()
    spacing = next(filter(None, map(image.get, SPACINGS)), None)
    if spacing is not None:
        measures.PixelSpacing = list(spacing)
    return measures


def _segment(author: Author) -> SegmentDescription:
    from highdicom.content import AlgorithmIdentificationSequence
    from highdicom.seg import SegmentDescription
    from highdicom.sr import CodedConcept
    from pydicom.sr.codedict import codes

    algorithm = AlgorithmIdentificationSequence(
        name=MANUFACTURER,
        family=codes.DCM.ArtificialIntelligence,  # CID 7162
        version=author.version,
        source=MANUFACTURER,
        parameters={"model": author.fingerprint, "method": "Grad-CAM, peak scaled to 1"},
    )
    return SegmentDescription(
        segment_number=1,
        segment_label=_LABEL,
        segmented_property_category=CodedConcept(
            "49755003", "SCT", "Morphologically Abnormal Structure"
        ),
        segmented_property_type=CodedConcept("233604007", "SCT", "Pneumonia"),
        algorithm_type="AUTOMATIC",
        algorithm_identification=algorithm,
    )
