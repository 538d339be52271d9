"""The heatmap as a fractional Segmentation (PS3.3 A.51) on the pixels of its image.

A viewer can lay it over the image at any opacity. Values are those of the Grad-CAM map, 1 at its
peak: they show where the evidence for pneumonia is, not how likely a pixel is diseased. The
standard has two types of fractions (C.8.20.2); PROBABILITY is the closer one, and the description
of the segment states what it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pneumoscope.delivery.dicom_report.secondary_capture import orientation
from pneumoscope.delivery.dicom_report.source import (
    MANUFACTURER,
    RESEARCH_ONLY,
    SPACINGS,
    Author,
    SourceImage,
)
from pneumoscope.inference.overlay import fit_map

if TYPE_CHECKING:
    from highdicom.seg import Segmentation, SegmentDescription
    from numpy.typing import NDArray
    from pydicom.dataset import Dataset

    from pneumoscope.config import PreprocessConfig

SERIES_NUMBER = 9003

_LEVELS = 255
_LABEL = "Evidence for pneumonia (Grad-CAM)"
_CARRIED = (
    *("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod"),
    "BodyPartExamined",
)


def segmentation(
    source: SourceImage, author: Author, cam: NDArray[np.float32], config: PreprocessConfig
) -> Segmentation:
    """Make the segmentation in the study of its source image.

    It has the rows and columns of the image, because a projection has no frame of reference in
    which a coarser grid could be placed. Source Image and Referenced Series Sequence refer to the
    image.

    Args:
        source: the image.
        author: program and model.
        cam: Grad-CAM map, float32 (h, w), on the network's grid.
        config: the preprocessing that placed the image in the grid.

    Raises:
        Exception: as `structured_report` does.
    """
    from highdicom.seg import Segmentation

    image = source.dataset
    heat = fit_map(cam, (int(image.Rows), int(image.Columns)), config)
    made = Segmentation(
        source_images=[image],
        pixel_array=heat[None, :, :, None].astype(np.float32),
        segmentation_type="FRACTIONAL",
        fractional_type="PROBABILITY",
        max_fractional_value=_LEVELS,
        segment_descriptions=[_segment(author)],
        series_instance_uid=author.uid("segmentation series", source.series_uid),
        series_number=SERIES_NUMBER,
        sop_instance_uid=author.uid("segmentation", source.sop_uid),
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
    for keyword in _CARRIED:
        if keyword in image and keyword not in made:
            made[keyword] = image[keyword]
    made.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence = [_pixel_measures(image)]
    # C.7.6.1: type 2C, empty if unknown.
    made.PatientOrientation = orientation(image) or ""
    made.SpecificCharacterSet = "ISO_IR 192"
    return made


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

    algorithm = AlgorithmIdentificationSequence(
        name=MANUFACTURER,
        family=CodedConcept("123109", "DCM", "Artificial Intelligence"),
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
