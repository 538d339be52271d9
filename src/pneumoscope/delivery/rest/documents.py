"""Answers, refusals and the model as JSON documents, with the HTTP status that goes with each.

Comes in: an `Result`, what was asked for, a manifest. Goes out: dicts of JSON types. The row is
the one of `predictions.csv`. Knows nothing of requests.

The bodies of answers, said for the OpenAPI document and /docs. Nothing is made from these.

Knows nothing of how an answer comes about; a test holds what is sent to what is said here.
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from pneumoscope.config import PreprocessConfig
from pneumoscope.delivery.rest.problems import Problem
from pneumoscope.delivery.rest.upload import FIELD, Upload
from pneumoscope.errors import Reason
from pneumoscope.inference.bundle import BundleManifest
from pneumoscope.inference.overlay import image_png, map_png, overlay_png
from pneumoscope.inference.results import Result
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


def too_large(upload: Upload, most_bytes: int) -> Result:
    """The refusal of a file of more than `most_bytes`."""
    detail = f"it has at least {upload.size:,} bytes; at most {most_bytes:,} are taken"
    reason = Reason.FILE_TOO_LARGE
    return Result(Prediction(upload.name, reason.status, reason, detail=detail))


def prediction_document(prediction: Prediction, model: str) -> dict[str, Any]:
    """The row of the contract with the model's id; `detail` too where there is no answer."""
    body = as_row(prediction) | {"model": model}
    if prediction.status != "ok":
        body["detail"] = prediction.detail
    return body


def http_status(prediction: Prediction) -> int:
    """200 for an answer; 413, 415, 422 or 500 for what has none."""
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


REASONS = ", ".join(reason.value for reason in Reason)
PROBLEMS = ", ".join(problem.value for problem in Problem)


class Row(BaseModel):
    """One answer: the row of `predictions.csv`, and the model that gave it."""

    model_config = ConfigDict(extra="forbid")

    path: str = Field(description="the file's name as the client gave it, made harmless")
    status: Literal["ok", "refused", "error"]
    reason: str | None = Field(description=f"null where there is an answer, else of: {REASONS}")
    probability: float | None = Field(description="calibrated probability of pneumonia, 0 to 1")
    prediction: Literal["NORMAL", "PNEUMONIA", "uncertain"] | None = Field(
        description="uncertain: the model withholds its class so near the threshold"
    )
    threshold: float | None = Field(description="from this probability up it is PNEUMONIA")
    input_score: float | None = Field(description="how unlike the training films it is")
    warnings: str = Field(
        description="what was odd about the file, sentences separated by '; '; empty: nothing"
    )
    model: str = Field(description="id of the model, as /v1/model has it")
    heatmap: str | None = Field(default=None, description="with heatmap=true: PNG, base64")
    preview: str | None = Field(
        default=None, description="with preview=true: the film, PNG, base64"
    )
    map: str | None = Field(
        default=None, description="with preview=true: the map alone, see-through PNG, base64"
    )


class Refused(Row):
    """A film that there is no answer for: the row, and why in words."""

    detail: str


class Line(Row):
    """One line of a batch: a row, which file it is of, and how many of them are done."""

    detail: str | None = None
    index: int = Field(description="number of the file in the request, from 0")
    done: int
    total: int


class Failed(BaseModel):
    """A request that could not be answered."""

    model_config = ConfigDict(extra="forbid")

    status: Literal["error"]
    reason: str = Field(description=f"one of: {PROBLEMS}, file_too_large")
    detail: str


class State(BaseModel):
    """What /healthz and /readyz say."""

    status: Literal["ok", "stopping", "starting"]


def form(many: bool) -> dict[str, Any]:
    """The body of a request, as OpenAPI says it: the field `file`, once or several times."""
    one = {"type": "string", "format": "binary", "description": "JPEG, PNG, …, or DICOM"}
    field = {"type": "array", "items": one, "minItems": 1} if many else one
    schema = {"type": "object", "properties": {FIELD: field}, "required": [FIELD]}
    content = {"multipart/form-data": {"schema": schema}}
    return {"requestBody": {"required": True, "content": content}}


_WORDS = {
    400: "the request is no form with a file, or a parameter has a bad value",
    401: "the header X-API-Key is missing or wrong",
    408: "the body did not come in in time",
    413: "the file has too many bytes or pixels",
    415: "the file is no image, or the body no form",
    422: "the film was refused or can't be read",
    429: "too many requests of this client: wait for Retry-After",
    500: "a defect of ours",
    503: "no room now: wait for Retry-After",
}


def responses(ok: dict[str, Any], *codes: int) -> dict[int | str, dict[str, Any]]:
    """What a route answers, for its OpenAPI entry: `ok` for 200, and problems."""
    refused = (413, 415, 422)
    found: dict[int | str, dict[str, Any]] = {200: ok}
    for code in codes:
        kind = Refused if code == 422 else Refused | Failed if code in refused else Failed
        found[code] = {"model": kind, "description": _WORDS[code]}
    return found
