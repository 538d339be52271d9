"""Results, rejections and the model as JSON documents, with their HTTP status and OpenAPI schemas.

A row is that of `predictions.csv`. The schemas describe the documents for `/openapi.json` and
`/docs`; a test compares them with what is sent.
"""

from __future__ import annotations

import base64
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from pneumoscope.config import PreprocessConfig
from pneumoscope.delivery.rest.guard import Problem
from pneumoscope.delivery.rest.upload import FIELD, Upload
from pneumoscope.errors import Reason
from pneumoscope.inference.bundle import BundleManifest, manifest_digest
from pneumoscope.inference.overlay import image_png, map_png, overlay_png
from pneumoscope.inference.results import Result, as_row
from pneumoscope.records import Prediction

INTENDED_USE = "Research software. Not a medical device; not for decisions about patients."

_STATUS = {
    Reason.NOT_AN_IMAGE: 415,
    Reason.FILE_TOO_LARGE: 413,
    Reason.TOO_MANY_PIXELS: 413,
    Reason.INTERNAL_ERROR: 500,
}
"""All other reasons are 422: the request is valid, but the image can't be scored."""

REASONS = ", ".join(reason.value for reason in Reason)
PROBLEMS = ", ".join(problem.value for problem in Problem)
_WORDS = {
    400: "the request is not a form with a file, or a parameter is invalid",
    401: "the header X-API-Key is missing or wrong",
    408: "the body was not received in time",
    413: "the file has too many bytes or pixels",
    415: "the file is not an image, or the body not a form",
    422: "the image was rejected or can't be read",
    429: "too many requests from this client: wait for Retry-After",
    500: "internal error (bug)",
    503: "overloaded: wait for Retry-After",
}


@dataclass(frozen=True, slots=True)
class Wanted:
    """The images that a client requests beside the row.

    Attributes:
        heatmap: the image with its Grad-CAM map over it.
        preview: the image as it was read, and the map alone with transparency.
    """

    heatmap: bool = False
    preview: bool = False

    @property
    def pictures(self) -> bool:
        """Whether the image's pixels are needed."""
        return self.heatmap or self.preview


@dataclass(frozen=True, slots=True)
class Document:
    """The response for one image, with its prediction for log and metrics."""

    status: int
    body: dict[str, Any]
    prediction: Prediction


def too_large(upload: Upload, most_bytes: int) -> Result:
    """The refusal of a file of more than `most_bytes`."""
    detail = f"it has at least {upload.size:,} bytes; at most {most_bytes:,} are taken"
    reason = Reason.FILE_TOO_LARGE
    return Result(Prediction(upload.name, reason.status, reason, detail=detail))


def prediction_document(prediction: Prediction, model: str) -> dict[str, Any]:
    """The row of `predictions.csv` with the model's id."""
    return as_row(prediction) | {"model": model}


def http_status(prediction: Prediction) -> int:
    """The HTTP status: 200 for a score; 413, 415, 422 or 500 without one."""
    return 200 if prediction.reason is None else _STATUS.get(prediction.reason, 422)


def pictures(result: Result, wanted: Wanted, config: PreprocessConfig) -> dict[str, str | None]:
    """PNG as base64: `heatmap` if there is one; where asked for, `preview` and `map`, or `None`."""
    pixels = None if result.image is None else result.image.pixels
    cam = result.cam
    found: dict[str, str | None] = {}
    if wanted.heatmap and pixels is not None and cam is not None:
        found["heatmap"] = _base64(overlay_png(pixels, cam, config))
    if wanted.preview:
        found |= {"preview": None, "map": None}
        if pixels is not None:
            found["preview"] = _base64(image_png(pixels))
            if cam is not None:
                found["map"] = _base64(map_png(pixels.shape, cam, config))
    return found


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def model_id(manifest: BundleManifest) -> str:
    """The first digits of the model's fingerprint."""
    return manifest_digest(manifest)[:16]


def model_document(manifest: BundleManifest, precision: str) -> dict[str, Any]:
    """The document of `/v1/model`: model, precision, threshold and validation."""
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


class Row(BaseModel):
    """One result: the row of `predictions.csv`, and the model."""

    model_config = ConfigDict(extra="forbid")

    path: str = Field(description="the file's name from the client, sanitised")
    status: Literal["ok", "refused", "error"]
    reason: str | None = Field(description=f"null if there is a score, else one of: {REASONS}")
    probability: float | None = Field(description="calibrated probability of pneumonia, 0 to 1")
    prediction: Literal["NORMAL", "PNEUMONIA", "uncertain"] | None = Field(
        description="uncertain: the model abstains close to the threshold"
    )
    threshold: float | None = Field(description="PNEUMONIA at or above this probability")
    input_score: float | None = Field(description="distance from the training images, limit 1")
    warnings: str = Field(description="warnings about the file, separated by '; '; empty if none")
    detail: str = Field(description="explanation of the reason; empty if there is a score")
    model: str = Field(description="id of the model, as in /v1/model")
    heatmap: str | None = Field(default=None, description="with heatmap=true: PNG, base64")
    preview: str | None = Field(
        default=None, description="with preview=true: the image, PNG, base64"
    )
    map: str | None = Field(
        default=None, description="with preview=true: the map alone, transparent PNG, base64"
    )


class Line(Row):
    """One line of a batch: a row, the index of its file, and the progress."""

    index: int = Field(description="number of the file in the request, from 0")
    done: int
    total: int


class Failed(BaseModel):
    """A request that failed."""

    model_config = ConfigDict(extra="forbid")

    status: Literal["error"]
    reason: str = Field(description=f"one of: {PROBLEMS}, file_too_large")
    detail: str


class State(BaseModel):
    """The response of /healthz and /readyz."""

    status: Literal["ok", "stopping", "starting"]


def form(many: bool) -> dict[str, Any]:
    """The OpenAPI schema of a request body: the field `file`, once or several times."""
    one = {"type": "string", "format": "binary", "description": "JPEG, PNG, …, or DICOM"}
    field = {"type": "array", "items": one, "minItems": 1} if many else one
    schema = {"type": "object", "properties": {FIELD: field}, "required": [FIELD]}
    content = {"multipart/form-data": {"schema": schema}}
    return {"requestBody": {"required": True, "content": content}}


def responses(ok: dict[str, Any], *codes: int) -> dict[int | str, dict[str, Any]]:
    """The responses of a route for its OpenAPI entry: `ok` for 200, and problems."""
    refused = (413, 415, 422)
    found: dict[int | str, dict[str, Any]] = {200: ok}
    for code in codes:
        kind = Row if code == 422 else Row | Failed if code in refused else Failed
        found[code] = {"model": kind, "description": _WORDS[code]}
    return found
