"""Answers, refusals and the model as JSON documents, with the HTTP status that goes with each.

Comes in: an `Answer`, what was asked for, a manifest. Goes out: dicts of JSON types. The row is
the one of `predictions.csv`. Knows nothing of requests.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from pneumoscope.config import PreprocessConfig
from pneumoscope.delivery.rest.upload import Upload
from pneumoscope.errors import Reason
from pneumoscope.inference.bundle import BundleManifest
from pneumoscope.inference.overlay import film_png, map_png, overlay_png
from pneumoscope.inference.predictor import Answer
from pneumoscope.inference.table import as_row
from pneumoscope.records import Prediction

INTENDED_USE = "Research software. Not a medical device; not for decisions about patients."

_STATUS = {
    Reason.NOT_AN_IMAGE: 415,
    Reason.FILE_TOO_LARGE: 413,
    Reason.TOO_MANY_PIXELS: 413,
    Reason.INTERNAL_ERROR: 500,
}
"""All other reasons are 422: the body was understood, and is nothing to answer for."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a client asks for beside the row.

    Attributes:
        heatmap: the film under its Grad-CAM map.
        preview: the film as it was read, and the map alone, see-through, to lay over it.
    """

    heatmap: bool = False
    preview: bool = False

    @property
    def pictures(self) -> bool:
        """Whether the film's pixels are needed."""
        return self.heatmap or self.preview


@dataclass(frozen=True, slots=True)
class Document:
    """One film's answer as it goes out, and the prediction in it, for log and metrics."""

    status: int
    body: dict[str, Any]
    prediction: Prediction


def too_large(upload: Upload, most_bytes: int) -> Answer:
    """The refusal of a file of more than `most_bytes`."""
    detail = f"it has at least {upload.size:,} bytes; at most {most_bytes:,} are taken"
    reason = Reason.FILE_TOO_LARGE
    return Answer(Prediction(upload.name, reason.status, reason, detail=detail))


def prediction_document(prediction: Prediction, model: str) -> dict[str, Any]:
    """The row of the contract with the model's id; `detail` too where there is no answer."""
    body = as_row(prediction) | {"model": model}
    if prediction.status != "ok":
        body["detail"] = prediction.detail
    return body


def http_status(prediction: Prediction) -> int:
    """200 for an answer; 413, 415, 422 or 500 for what has none."""
    return 200 if prediction.reason is None else _STATUS.get(prediction.reason, 422)


def pictures(answer: Answer, wanted: Wanted, config: PreprocessConfig) -> dict[str, str | None]:
    """PNG as base64: `heatmap` if there is one; where asked for, `preview` and `map`, or `None`."""
    pixels = None if answer.image is None else answer.image.pixels
    cam = answer.cam
    found: dict[str, str | None] = {}
    if wanted.heatmap and pixels is not None and cam is not None:
        found["heatmap"] = _base64(overlay_png(pixels, cam, config))
    if wanted.preview:
        found |= {"preview": None, "map": None}
        if pixels is not None:
            found["preview"] = _base64(film_png(pixels))
            if cam is not None:
                found["map"] = _base64(map_png(pixels.shape, cam, config))
    return found


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def model_id(manifest: BundleManifest) -> str:
    """Sixteen hex digits that no two models share: of everything in the manifest."""
    text = json.dumps(asdict(manifest), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def model_document(manifest: BundleManifest, precision: str) -> dict[str, Any]:
    """`/v1/model`: what answers, in which precision, how its threshold was chosen, validation."""
    return {
        "id": model_id(manifest),
        "pneumoscope_version": manifest.pneumoscope_version,
        "created": manifest.created,
        "labels": list(manifest.labels),
        "architecture": asdict(manifest.architecture),
        "networks": manifest.members,
        "flip": manifest.flip,
        "precision": precision,
        "preprocessing": asdict(manifest.preprocessing),
        "threshold": asdict(manifest.threshold),
        "abstention": asdict(manifest.abstention),
        "calibration": manifest.calibration.method,
        "ages": list(manifest.ages),
        "input_check": asdict(manifest.input_check),
        "training_data": asdict(manifest.training_data),
        "initial_weights": asdict(manifest.initial_weights),
        "validation": manifest.validation,
        "intended_use": INTENDED_USE,
    }
