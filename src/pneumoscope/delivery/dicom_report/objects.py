"""One answer to the DICOM objects that are filed with its film.

Comes in: the bytes of a DICOM file and the answer for it. Goes out: `ReportObject`s, each the
bytes of a Part 10 file. Knows nothing of folders or of the network.
"""

from __future__ import annotations

import io
import logging
from dataclasses import dataclass, replace
from importlib import util
from typing import TYPE_CHECKING, Literal

from pneumoscope.config import LimitsConfig, PreprocessConfig
from pneumoscope.delivery.dicom_report.author import Author
from pneumoscope.delivery.dicom_report.secondary_capture import secondary_capture
from pneumoscope.delivery.dicom_report.segmentation import segmentation
from pneumoscope.delivery.dicom_report.source import SourceFilm, source_film
from pneumoscope.delivery.dicom_report.structured_report import structured_report
from pneumoscope.errors import ExtraMissingError, ImageRefusedError
from pneumoscope.images.guard import decoding
from pneumoscope.inference.bundle import BundleManifest
from pneumoscope.inference.overlay import overlay_rgb
from pneumoscope.inference.predictor import Answer
from pneumoscope.records import Prediction
from pneumoscope.storage import path_text

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_LOGGER = logging.getLogger(__name__)

Kind = Literal["report", "capture", "segmentation"]


@dataclass(frozen=True, slots=True)
class ReportObject:
    """A DICOM object made of an answer.

    Attributes:
        kind: `report` (SR), `capture` (SC) or `segmentation` (SEG).
        sop_class: SOP Class UID.
        sop_uid: SOP Instance UID, the same whenever the same model answers for the same film.
        content: a Part 10 file, Explicit VR Little Endian.
    """

    kind: Kind
    sop_class: str
    sop_uid: str
    content: bytes


def check_installed() -> None:
    """See that reports can be made, before any work is done.

    Raises:
        ExtraMissingError: highdicom is not there.
    """
    if util.find_spec("highdicom") is None:
        raise ExtraMissingError("Writing DICOM reports", "dicom")


class Reporter:
    """Makes the objects of one model's answers.

    Args:
        manifest: of the model that answers.
        limits: what a file may cost.
        precision: what the model computes in.
        segmentation: whether the heatmap is written as a Segmentation, too.
    """

    def __init__(
        self,
        manifest: BundleManifest,
        limits: LimitsConfig | None = None,
        precision: str = "",
        *,
        segmentation: bool = False,
    ) -> None:
        self._segmentation = segmentation
        self.author = Author.of(manifest, precision)
        self._preprocessing: PreprocessConfig = manifest.preprocessing
        self._limits = limits or LimitsConfig()

    def objects(
        self, content: bytes, answer: Answer, variant: str = ""
    ) -> tuple[ReportObject, ...]:
        """A report, and with an answer that kept its image a capture as well, if one can be made.

        Raises:
            ImageRefusedError: `content` is no DICOM file, or lacks what a report needs.
        """
        prediction = answer.prediction
        author = replace(self.author, variant=variant)
        source = source_film(content, prediction.path, self._limits)
        try:
            made = [_report(source, author, prediction)]
        except ImageRefusedError:  # what the library can't repeat is not worth the report
            source = source.bare()
            made = [_report(source, author, prediction)]
        for change in source.changes:
            _LOGGER.info("%s: DICOM report: %s", path_text(prediction.path), change)
        if answer.image is not None and answer.cam is not None:
            overlay = overlay_rgb(answer.image.pixels, answer.cam, self._preprocessing)
            try:
                with decoding(prediction.path, "patient and study, for a capture,"):
                    capture = secondary_capture(source, author, prediction, overlay)
                    made.append(_encoded("capture", capture))
                    if self._segmentation:
                        seg = segmentation(source, author, answer.cam, self._preprocessing)
                        made.append(_encoded("segmentation", seg))
            except ImageRefusedError as refusal:
                _LOGGER.warning("%s: no capture: %s", path_text(prediction.path), refusal.detail)
        return tuple(made)


def _report(source: SourceFilm, author: Author, prediction: Prediction) -> ReportObject:
    with decoding(prediction.path, "patient and study, for a report,"):
        return _encoded("report", structured_report(source, author, prediction))


def _encoded(kind: Kind, dataset: Dataset) -> ReportObject:
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return ReportObject(
        kind, str(dataset.SOPClassUID), str(dataset.SOPInstanceUID), stream.getvalue()
    )
