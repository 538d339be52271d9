"""`predict --fhir DIR`: the FHIR Bundle of each result as `NAME-MARK.fhir.json` in a folder."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

from pneumoscope.config import LimitsConfig
from pneumoscope.delivery.dicom_report.author import Author
from pneumoscope.delivery.dicom_report.source import source_film
from pneumoscope.delivery.fhir.bundle import Subject, check_installed, fhir_bundle
from pneumoscope.errors import ImageRefusedError
from pneumoscope.images.read import read_file
from pneumoscope.images.sniff import tell_format
from pneumoscope.inference.bundle import BundleManifest
from pneumoscope.inference.overlay import heatmap_name
from pneumoscope.inference.predictor import Answer
from pneumoscope.storage import claim_folder, path_text, write_text

_LOGGER = logging.getLogger(__name__)


class FhirFolder:
    """Writes the Bundles of results as they come.

    Args:
        folder: where to; made if it is not there.
        manifest: of the model that scored.
        limits: what a file may cost.
        precision: what the model computes in.

    Attributes:
        written: how many Bundles.
        skipped: inputs that can't be read at all, or that FHIR has no place for.

    Raises:
        ExtraMissingError: fhir.resources is not installed.
        UsageError: a file stands where the folder should be.
    """

    def __init__(
        self,
        folder: Path,
        manifest: BundleManifest,
        limits: LimitsConfig | None = None,
        precision: str = "",
    ) -> None:
        check_installed()
        claim_folder(folder)
        self.folder = folder
        self.written = 0
        self.skipped = 0
        self._limits = limits or LimitsConfig()
        self._author = Author.of(manifest, precision)

    def add(self, answer: Answer) -> None:
        """Write the Bundle of one result; what can have none is noted in the log.

        Raises:
            OSError: the folder can't be written.
        """
        path = answer.prediction.path
        try:
            content = read_file(path, self._limits)
            text = fhir_bundle(self._subject(content, path), self._author, answer.prediction)
        except (ImageRefusedError, ValueError) as error:
            _LOGGER.warning("%s: no FHIR resources: %s", path_text(path), error)
            self.skipped += 1
            return
        name = heatmap_name(path).removesuffix(".png")
        write_text(self.folder / f"{name}.fhir.json", text + "\n")
        self.written += 1

    def _subject(self, content: bytes, path: str) -> Subject:
        """What a DICOM file says of patient and study; of another file its digest alone."""
        if tell_format(content) == "dicom":
            return Subject.of(source_film(content, path, self._limits))
        return Subject(f"urn:sha256:{hashlib.sha256(content).hexdigest()}")

    def document(self) -> dict[str, Any]:
        """What was written and what was not, as JSON types."""
        return {"folder": str(self.folder), "bundles": self.written, "without": self.skipped}

    def lines(self) -> list[str]:
        """The same for people."""
        without = f", {self.skipped} inputs without" if self.skipped else ""
        return [f"fhir      {self.folder} ({self.written} bundles{without})"]
