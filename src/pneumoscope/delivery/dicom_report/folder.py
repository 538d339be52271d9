"""`predict --dicom-out DIR`: the DICOM objects of each answer, as files in a folder.

Comes in: answers, one by one. Goes out: `NAME-MARK-report.dcm` and `NAME-MARK-capture.dcm` for
each DICOM input, and a note for each other one. Knows nothing of models.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

from pneumoscope.config import LimitsConfig
from pneumoscope.delivery.dicom_report.objects import Reporter, check_installed
from pneumoscope.errors import ImageRefusedError
from pneumoscope.images.read import read_file
from pneumoscope.inference.bundle import BundleManifest
from pneumoscope.inference.overlay import heatmap_name
from pneumoscope.inference.predictor import Answer
from pneumoscope.storage import claim_folder, path_text, write_bytes

_LOGGER = logging.getLogger(__name__)

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

    def add(self, answer: Answer) -> None:
        """Write the objects of one answer for a file; what has none gets a note.

        Raises:
            OSError: the folder can't be written.
        """
        path = answer.prediction.path
        try:
            content = read_file(path, self._limits)
            if answer.image is not None and _sha256(content) != answer.image.sha256:
                self._note(path, "the file was changed while it was answered for")
                return
            made = self._reporter.objects(content, answer)
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
