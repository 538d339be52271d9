"""Errors of requests, as opposed to images, each with its HTTP status and a code."""

from __future__ import annotations

import math
from enum import StrEnum

from pneumoscope.errors import InputError


class Problem(StrEnum):
    """Codes of `reason` that concern the request, not the image."""

    BAD_REQUEST = "bad_request"
    NO_KEY = "no_key"
    WRONG_HOST = "wrong_host"
    WRONG_ORIGIN = "wrong_origin"
    NOT_FOUND = "no_such_page"
    TIMED_OUT = "timed_out"
    RATE_LIMITED = "rate_limited"
    OVERLOADED = "overloaded"
    DEFECT = "internal_error"


class RequestError(InputError):
    """A request failed: `status` is the HTTP status, `reason` a code, `detail` a sentence."""

    def __init__(
        self, status: int, reason: str, detail: str, retry_after: float | None = None
    ) -> None:
        super().__init__(f"{status} {reason}: {detail}")
        self.status = status
        self.reason = reason
        self.detail = detail
        self.headers = {} if retry_after is None else {"Retry-After": whole_seconds(retry_after)}


def whole_seconds(seconds: float) -> str:
    """Seconds as the header Retry-After has them: whole, at least one (RFC 9110, 10.2.3)."""
    return str(max(math.ceil(seconds), 1))


def overloaded(detail: str, retry_after: float) -> RequestError:
    """The error of a request for which there is no room now."""
    return RequestError(503, Problem.OVERLOADED, detail, retry_after)


class ClientGoneError(InputError):
    """The client disconnected before the response."""
