"""The bodies of answers, said for the OpenAPI document and /docs. Nothing is made from these.

Knows nothing of how an answer comes about; a test holds what is sent to what is said here.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from pneumoscope.delivery.rest.problems import Problem
from pneumoscope.delivery.rest.upload import FIELD
from pneumoscope.errors import Reason

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


def answers(ok: dict[str, Any], *codes: int) -> dict[int | str, dict[str, Any]]:
    """What a route answers, for its OpenAPI entry: `ok` for 200, and problems."""
    refused = (413, 415, 422)
    found: dict[int | str, dict[str, Any]] = {200: ok}
    for code in codes:
        kind = Refused if code == 422 else Refused | Failed if code in refused else Failed
        found[code] = {"model": kind, "description": _WORDS[code]}
    return found
