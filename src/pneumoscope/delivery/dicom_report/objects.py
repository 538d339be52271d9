"""One answer to the DICOM objects that are filed with its film.

Comes in: the bytes of a DICOM file and the answer for it. Goes out: `ReportObject`s, each the
bytes of a Part 10 file. Knows nothing of folders or of the network.

`predict --dicom-out DIR`: the DICOM objects of each answer, as files in a folder.

Comes in: answers, one by one. Goes out: `NAME-MARK-report.dcm` and `NAME-MARK-capture.dcm` for
each DICOM input, and a note for each other one. Knows nothing of models.
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


@dataclass(frozen=True, slots=True)
class ReportObject:
    """A DICOM object made of an answer.

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
        self.limits = limits or LimitsConfig()

    def objects(
        self, content: bytes, result: Result, variant: str = ""
    ) -> tuple[ReportObject, ...]:
        """A report, and with an answer that kept its image a capture as well, if one can be made.

        Raises:
            ImageRefusedError: `content` is no DICOM file, or lacks what a report needs.
        """
        prediction = result.prediction
        author = replace(self.author, variant=variant)
        source = source_image(content, prediction.path, self.limits)
        try:
            made = [_report(source, author, prediction)]
        except ImageRefusedError:  # what the library can't repeat is not worth the report
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


MOST_NOTES = 1000
"""Notes that are kept for the document; all are logged."""


class ReportFolder:
    """Writes the objects of answers as they come.

    Args:
        folder: where to; made if it is not there.
        manifest: of the model that answers.
        limits: what a file may cost.
        precision: what the model computes in.
        segmentation: whether heatmaps are written as Segmentations, too.

    Attributes:
        reports: how many were written.
        captures: how many were written.
        segmentations: how many were written.
        skipped: inputs without a report.
        notes: path and why, of the first of these.

    Raises:
        ExtraMissingError: highdicom is not installed.
        UsageError: a file stands where the folder should be.
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
        """Write the objects of one answer for a file; what has none gets a note.

        Raises:
            OSError: the folder can't be written.
        """
        path = result.prediction.path
        try:
            content = read_file(path, self._limits)
            if result.image is not None and _sha256(content) != result.image.sha256:
                self._note(path, "the file was changed while it was answered for")
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
        """What was written and what was not, as JSON types."""
        return {
            "folder": str(self.folder),
            "reports": self.reports,
            "captures": self.captures,
            "segmentations": self.segmentations,
            "without": self.skipped,
            "notes": [{"path": path_text(path), "note": note} for path, note in self.notes],
        }

    def lines(self) -> list[str]:
        """The same for people; each input without a report was logged when it was met."""
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
