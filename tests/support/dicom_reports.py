"""Images with patients, results for them, and outside programs that judge what is made of them.

Comes in: nothing, or elements to override. Goes out: bytes of DICOM files, results of a model that
is none. No real X-ray is in any of them.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from pneumoscope.config import PreprocessConfig
from pneumoscope.errors import Reason
from pneumoscope.evaluation.calibration import Calibration
from pneumoscope.images.read import read_bytes
from pneumoscope.inference.bundle import BundleManifest, OperatingPoint
from pneumoscope.inference.engine import Outputs
from pneumoscope.inference.predictor import Predictor
from pneumoscope.inference.results import Result
from pneumoscope.records import Prediction
from support.image_files import Array, dicom, smooth_grey, xray

VALIDATION = {
    "metrics": {
        "sensitivity": {"value": 0.9, "low": 0.85, "high": 0.94},
        "specificity": {"value": 0.96, "low": None, "high": None},
    }
}
MANIFEST = BundleManifest(
    preprocessing=PreprocessConfig(size=32),
    threshold=OperatingPoint(0.6, "for the test", ""),
    calibration=Calibration("platt", 2.0, -0.5),
    validation=VALIDATION,
)
REJECTED = Prediction(
    "image.dcm", "refused", Reason.WRONG_MODALITY, detail="its modality is 'MG'; a chest is wanted"
)


class BrightnessBackend:
    """Logit: the mean of the input's first channel; the map is strong at the upper left."""

    def run(self, batch: np.ndarray) -> Outputs:
        means = batch[..., 0].mean((1, 2)).astype(np.float32)
        cams = np.zeros((len(batch), 4, 4), np.float32)
        cams[:, 0, 0] = 1.0
        return Outputs(means, cams, np.zeros((len(batch), 4), np.float32))


def predictor(ages: tuple[int, ...] = ()) -> Predictor:
    """Predicts at once, without a network; `ages` are those that the model is for."""
    return Predictor(replace(MANIFEST, ages=ages), BrightnessBackend())


def patient_xray(number: int = 1, samples: Array | None = None, **elements: Any) -> Dataset:
    """Image `number` of a study of its own, the same for the same number; `None` leaves one out."""
    values = smooth_grey(64, 56, 4095, seed=number) if samples is None else samples
    given = {
        "BitsStored": 12,
        "HighBit": 11,
        "SOPInstanceUID": generate_uid(entropy_srcs=["sop", str(number)]),
        "SeriesInstanceUID": generate_uid(entropy_srcs=["series", str(number)]),
        "StudyInstanceUID": generate_uid(entropy_srcs=["study", str(number)]),
        "PatientName": f"XRAY^{number:04}",
        "PatientID": f"P-{number:04}",
        "PatientBirthDate": "19600704",
        "PatientSex": "F",
        "PatientAge": "064Y",
        "AccessionNumber": f"A{number}",
        "StudyID": f"S{number}",
        "StudyDate": "20240229",
        "StudyTime": "081500",
        "StudyDescription": "Chest",
        "ReferringPhysicianName": "DOCTOR^SOME",
        "InstanceNumber": 3,
        "PatientOrientation": ["L", "F"],
        "Manufacturer": "Detectors",
    }
    wanted = {**given, **elements}
    made = xray(values.astype(np.uint16), **{k: v for k, v in wanted.items() if v is not None})
    for keyword, value in elements.items():
        if value is None and keyword in made:
            del made[keyword]
    return made


def xray_bytes(number: int = 1, **elements: Any) -> bytes:
    """The same as a file."""
    return dicom(patient_xray(number, **elements))


def predicted(content: bytes, probability: float = 0.75) -> Result:
    """A result at the manifest's threshold, with image and map."""
    image = read_bytes(content, "image.dcm")
    decided = "PNEUMONIA" if probability >= MANIFEST.threshold.value else "NORMAL"
    cam = np.zeros((4, 4), np.float32)
    cam[0, 0] = 1.0
    prediction = Prediction("image.dcm", "ok", None, probability, decided, 0.6)
    return Result(prediction, logit=1.0, cam=cam, image=image)


def needs(*programs: str) -> pytest.MarkDecorator:
    """Skip a test where one of the programs is not installed, saying which."""
    absent = [name for name in programs if not _found(name)]
    return pytest.mark.skipif(bool(absent), reason=f"not installed: {', '.join(absent)}")


def _found(program: str) -> str | None:
    return shutil.which(program) or shutil.which(program, path="/usr/sbin:/sbin")


def judged_by_dciodvfy(content: bytes, folder: Path) -> list[str]:
    """What dciodvfy (dicom3tools) finds wrong with a DICOM object."""
    path = folder / "judged.dcm"
    path.write_bytes(content)
    done = subprocess.run(["dciodvfy", "-new", str(path)], capture_output=True, text=True)
    return [line for line in done.stderr.splitlines() if line.startswith(("Error", "Warning"))]
