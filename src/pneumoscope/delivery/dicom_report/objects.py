"""The DICOM objects of one result, and `predict --dicom-out DIR`: those of many results as files.

`Reporter` makes the `ReportObject`s of one result. `ReportFolder` writes `NAME-MARK-report.dcm`,
`NAME-MARK-capture.dcm` and, on request, `NAME-MARK-segmentation.dcm` for each DICOM input, and a
note for each other input.
"""

from __future__ import annotations

import hashlib
import io
import logging
from dataclasses import dataclass, replace
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pneumoscope.config import LimitsConfig, PreprocessConfig
from pneumoscope.delivery.dicom_report.secondary_capture import secondary_capture
from pneumoscope.delivery.dicom_report.segmentation import segmentation
from pneumoscope.delivery.dicom_report.source import Author, SourceImage, source_image
from pneumoscope.delivery.dicom_report.structured_report import structured_report
from pneumoscope.errors import ExtraMissingError, ImageRefusedError
from pneumoscope.images.budget import decoding
from pneumoscope.images.read import read_file
from pneumoscope.inference.bundle import BundleManifest
from pneumoscope.inference.overlay import heatmap_name, overlay_rgb
from pneumoscope.inference.results import Result
from pneumoscope.records import Prediction
from pneumoscope.storage import claim_folder, path_text, write_bytes

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_LOGGER = logging.getLogger(__name__)

Kind = Literal["report", "capture", "segmentation", "fhir"]

MOST_NOTES = 1000
"""Notes that the document holds at most; all are logged."""


@dataclass(frozen=True, slots=True)
class ReportObject:
    """A DICOM object, or a FHIR Bundle, of one result.

    Attributes:
        kind: `report` (SR), `capture` (SC), `segmentation` (SEG), or `fhir` (a FHIR Bundle).
        sop_class: SOP Class UID; `""` for a Bundle.
        sop_uid: SOP Instance UID, or the identifier of a Bundle: the same whenever the same model
            scores the same image.
        content: a Part 10 file, Explicit VR Little Endian; JSON for a Bundle.
    """

    kind: Kind
    sop_class: str
    sop_uid: str
    content: bytes


def check_installed() -> None:
    """Check that reports can be made, before any other work.

    Raises:
        ExtraMissingError: highdicom is not installed.
    """
    if util.find_spec("highdicom") is None:
        raise ExtraMissingError("Writing DICOM reports", "dicom")


class Reporter:
    """Makes the DICOM objects of one model's results.

    Args:
        manifest: of the model.
        limits: limits for reading one file.
        precision: numeric precision of inference.
        segmentation: whether the heatmap is also written as a Segmentation.
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
        self.limits = limits or LimitsConfig()

    def objects(
        self, content: bytes, result: Result, variant: str = ""
    ) -> tuple[ReportObject, ...]:
        """Make a report, and a capture if the result kept its image and one can be made.

        Raises:
            ImageRefusedError: `content` is not a DICOM file, or lacks elements that a report needs.
        """
        prediction = result.prediction
        author = replace(self.author, variant=variant)
        source = source_image(content, prediction.path, self.limits)
        try:
            made = [_report(source, author, prediction)]
        except ImageRefusedError:  # the report without optional elements
            source = source.bare()
            made = [_report(source, author, prediction)]
        for change in source.changes:
            _LOGGER.info("%s: DICOM report: %s", path_text(prediction.path), change)
        if result.image is not None and result.cam is not None:
            overlay = overlay_rgb(result.image.pixels, result.cam, self._preprocessing)
            try:
                with decoding(prediction.path, "patient and study, for a capture,"):
                    capture = secondary_capture(source, author, prediction, overlay)
                    made.append(_encoded("capture", capture))
                    if self._segmentation:
                        seg = segmentation(source, author, result.cam, self._preprocessing)
                        made.append(_encoded("segmentation", seg))
            except ImageRefusedError as refusal:
                _LOGGER.warning("%s: no capture: %s", path_text(prediction.path), refusal.detail)
        return tuple(made)


def _report(source: SourceImage, author: Author, prediction: Prediction) -> ReportObject:
    with decoding(prediction.path, "patient and study, for a report,"):
        return _encoded("report", structured_report(source, author, prediction))


def _encoded(kind: Kind, dataset: Dataset) -> ReportObject:
    stream = io.BytesIO()
    dataset.save_as(stream, enforce_file_format=True)
    return ReportObject(
        kind, str(dataset.SOPClassUID), str(dataset.SOPInstanceUID), stream.getvalue()
    )


class ReportFolder:
    """Writes the objects of results as they arrive.

    Args:
        folder: output folder; created if it does not exist.
        manifest: of the model.
        limits: limits for reading one file.
        precision: numeric precision of inference.
        segmentation: whether heatmaps are also written as Segmentations.

    Attributes:
        reports: number of reports written.
        captures: number of captures written.
        segmentations: number of segmentations written.
        skipped: number of inputs without a report.
        notes: path and reason of the first of these.

    Raises:
        ExtraMissingError: highdicom is not installed.
        UsageError: the path is a file.
    """

    def __init__(
        self,
        folder: Path,
        manifest: BundleManifest,
        limits: LimitsConfig | None = None,
        precision: str = "",
        *,
        segmentation: bool = False,
    ) -> None:
        check_installed()
        claim_folder(folder)
        self.reports = 0
        self.captures = 0
        self.segmentations = 0
        self.skipped = 0
        self.notes: list[tuple[str, str]] = []
        self.folder = folder
        self._limits = limits or LimitsConfig()
        self._reporter = Reporter(manifest, self._limits, precision, segmentation=segmentation)

    def add(self, result: Result) -> None:
        """Write the objects of one result; an input without objects gets a note.

        Raises:
            OSError: the folder can't be written.
        """
        path = result.prediction.path
        try:
            content = read_file(path, self._limits)
            if result.image is not None and _sha256(content) != result.image.sha256:
                self._note(path, "the file was changed while it was scored")
                return
            made = self._reporter.objects(content, result)
        except ImageRefusedError as refusal:
            self._note(path, refusal.detail)
            return
        stem = heatmap_name(path).removesuffix(".png")
        for item in made:
            write_bytes(self.folder / f"{stem}-{item.kind}.dcm", item.content)
        self.reports += 1
        self.captures += sum(item.kind == "capture" for item in made)
        self.segmentations += sum(item.kind == "segmentation" for item in made)

    def document(self) -> dict[str, Any]:
        """The counts and notes as JSON types."""
        return {
            "folder": str(self.folder),
            "reports": self.reports,
            "captures": self.captures,
            "segmentations": self.segmentations,
            "without": self.skipped,
            "notes": [{"path": path_text(path), "note": note} for path, note in self.notes],
        }

    def lines(self) -> list[str]:
        """The counts as text; inputs without a report were logged."""
        counts = f"{self.reports} reports, {self.captures} captures"
        if self.segmentations:
            counts += f", {self.segmentations} segmentations"
        without = f", {self.skipped} inputs without" if self.skipped else ""
        return [f"dicom     {self.folder} ({counts}{without})"]

    def _note(self, path: str, why: str) -> None:
        _LOGGER.warning("%s: no DICOM report: %s", path_text(path), why)
        self.skipped += 1
        if len(self.notes) < MOST_NOTES:
            self.notes.append((path, why))


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
