"""Checks and limits around each request: host, origin, key, rate, memory, headers, log, metrics.

The response headers keep browsers from running or loading anything but the page's own files.

A browser sends requests for a page of any site and names the site in `Origin`. By DNS rebinding a
site can also give its own name the address of this server; then `Host` names the site. Requests for
other host names than this server's are therefore rejected, and so are writes from pages of other
sites. CORS, configured by an option only, decides what pages of other sites may read.

Errors of requests, as opposed to images, are `RequestError`s with a code (`Problem`) and an HTTP
status.
"""

from __future__ import annotations

import hmac
import logging
import math
import secrets
import time
from collections import OrderedDict
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from enum import StrEnum

from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pneumoscope.config import ServeConfig
from pneumoscope.delivery.rest.logs import Metrics, event
from pneumoscope.errors import InputError

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
ANY = "*"
_READS = frozenset({"GET", "HEAD", "OPTIONS"})
_DEFAULT_PORTS = {"http": "80", "https": "443"}
HELD = "pneumoscope.held"
"""Key of the ASGI scope: an `ExitStack` that closes when the request ends in any way."""

_HEAD = "pneumoscope.head"
"""Key of the ASGI scope: whether the client requests the head of a response only."""

_QUIET = frozenset({"/healthz", "/readyz", "/metrics"})
_NEEDS_KEY = ("/v1/", "/metrics")
_MOST_ADDRESSES = 10_000
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Cache-Control": "no-store",
}


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


Headers = Mapping[bytes, bytes]


class Origins:
    """The host names of a server, and the sites whose pages may use it.

    Args:
        hosts: host names, without a port, accepted in `Host`; `*`: any; `None`: not checked here.
        origins: sites, as in `https://viewer.example`, whose pages may use it; `*`: any.
    """

    def __init__(self, hosts: Collection[str] | None, origins: Collection[str]) -> None:
        self._hosts = None if hosts is None else {host.lower() for host in hosts}
        self._origins = {origin.lower().rstrip("/") for origin in origins}

    def check(self, scope: Scope, headers: Headers) -> None:
        """Check that a request is allowed.

        Raises:
            RequestError: 421 for a name that is not this server's, 403 for another site's page.
        """
        host = headers.get(b"host", b"").decode("latin-1").strip().lower()
        if not self._is_ours(host, scope):
            raise RequestError(
                421,
                Problem.WRONG_HOST,
                "this server does not serve the requested host name. Its operator can add "
                "the name: --allowed-host NAME",
            )
        if scope["method"] not in _READS and not self._may_write(host, headers):
            raise RequestError(
                403,
                Problem.WRONG_ORIGIN,
                "the request comes from a page of another site. To allow it, start the server with "
                "--allowed-origin https://SITE",
            )

    def cors(self, headers: Headers) -> list[tuple[bytes, bytes]]:
        """Headers that let a page of an allowed site read the response; none for others."""
        origin = headers.get(b"origin", b"")
        if not self._origins or not self._is_allowed(origin.decode("latin-1").lower()):
            return []
        return [
            (b"access-control-allow-origin", origin),
            (b"access-control-expose-headers", b"Retry-After, X-Request-ID"),
            (b"vary", b"Origin"),
        ]

    @staticmethod
    def preflight() -> list[tuple[bytes, bytes]]:
        """The response to the preflight request of a browser."""
        return [
            (b"access-control-allow-methods", b"GET, POST"),
            (b"access-control-allow-headers", b"Content-Type, X-API-Key"),
            (b"access-control-max-age", b"600"),
        ]

    def _is_ours(self, host: str, scope: Scope) -> bool:
        # Browsers always send a name. HTTP/1.0, which some health checks speak, knows none.
        if self._hosts is None or ANY in self._hosts or not host:
            return True
        name = _without_port(host)
        # An address is nobody else's name: what came to it may ask by it.
        server = str((scope.get("server") or ("", 0))[0])
        return name in self._hosts or name in (server, f"[{server}]")

    def _may_write(self, host: str, headers: Headers) -> bool:
        origin = headers.get(b"origin")
        if origin is None:
            # No browser, or an old one; new ones say at least where the page is from.
            return headers.get(b"sec-fetch-site", b"none") in (b"none", b"same-origin")
        text = origin.decode("latin-1").strip().lower()
        return _authority(text) == _with_port(host, text) or self._is_allowed(text)

    def _is_allowed(self, origin: str) -> bool:
        return bool(origin) and (ANY in self._origins or origin in self._origins)


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0].rstrip(".")


def _authority(origin: str) -> str:
    """Host and port of an origin such as `https://x:8443`; "" for `null` or invalid ones."""
    scheme, found, host = origin.partition("://")
    return _with_port(host, origin) if found and scheme in _DEFAULT_PORTS else ""


def _with_port(host: str, origin: str) -> str:
    """A host with its port, by default that of the origin's scheme."""
    name = _without_port(host)
    port = host[len(name) :].lstrip(".").lstrip(":")
    return f"{name}:{port or _DEFAULT_PORTS.get(origin.partition('://')[0], '')}"


class RateLimit:
    """Token buckets per client address, filled at `rate` per second up to `burst`.

    The addresses that were idle longest are dropped first.
    """

    def __init__(self, rate: float, burst: int) -> None:
        self._rate, self._burst = rate, burst
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait(self, address: str, now: float) -> float:
        """Seconds until this client may send a request; 0 admits and counts one."""
        if not self._rate:
            return 0.0
        left, since = self._buckets.pop(address, (float(self._burst), now))
        left = min(left + (now - since) * self._rate, float(self._burst))
        allowed = left >= 1
        self._buckets[address] = (left - 1 if allowed else left, now)
        if len(self._buckets) > _MOST_ADDRESSES:
            self._buckets.popitem(last=False)
        return 0.0 if allowed else (1 - left) / self._rate


class Guard:
    """The outermost part of the application.

    Args:
        app: the routes.
        config: the rate.
        keys: API keys, one of which must be in X-API-Key; empty: no key is required.
        metrics: counts every request.
        routes: paths that are counted under their own name.
        hosts: accepted values of `Host`; `None`: any.
    """

    def __init__(
        self,
        app: ASGIApp,
        config: ServeConfig,
        keys: Collection[str],
        metrics: Metrics,
        routes: Collection[str],
        hosts: Collection[str] | None = None,
    ) -> None:
        self._app = app
        self._rate = RateLimit(config.rate, config.burst)
        self._keys = [key.encode() for key in keys]
        self._metrics = metrics
        self._routes = frozenset(routes)
        self._origins = Origins(hosts, config.allowed_origin)
        self._root = config.root_path.rstrip("/")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request, or the start and stop of the server."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope = self._routed(scope)
        head = scope.pop(_HEAD, False)
        request = secrets.token_hex(8)
        began = time.perf_counter()
        code = 500

        async def send_guarded(message: Message) -> None:
            nonlocal code
            if message["type"] == "http.response.start":
                code = message["status"]
                cors = self._origins.cors(dict(scope["headers"]))
                message["headers"] = [*message["headers"], *_headers(message, request), *cors]
            elif head:
                message = {**message, "body": b""}
            await send(message)

        try:
            with ExitStack() as held:
                scope[HELD] = held
                refusal = self._refusal(scope)
                await (refusal or self._app)(scope, receive, send_guarded)
        finally:
            self._tell(scope, request, code, time.perf_counter() - began)

    def _routed(self, scope: Scope) -> Scope:
        """The request for the routes: without the path prefix, and HEAD as GET without a body.

        A proxy may keep or remove the prefix.
        """
        path, method = scope["path"], scope["method"]
        if self._root and f"{path}/".startswith(f"{self._root}/"):
            path = path[len(self._root) :]
        head = method == "HEAD"
        return {**scope, "path": path, "method": "GET" if head else method, _HEAD: head}

    def _refusal(self, scope: Scope) -> Response | None:
        path = scope["path"]
        headers = dict(scope["headers"])
        try:
            self._origins.check(scope, headers)
        except RequestError as error:
            return error_response(error)
        if not path:
            return Response(status_code=308, headers={"Location": f"{self._root}/"})
        if scope["method"] == "OPTIONS" and b"access-control-request-method" in headers:
            if not self._origins.cors(headers):
                words = "pages of that site may not ask here"
                return error_response(RequestError(403, Problem.WRONG_ORIGIN, words))
            pairs = [(name.decode(), value.decode()) for name, value in self._origins.preflight()]
            return Response(status_code=204, headers=dict(pairs))
        if self._keys and path.startswith(_NEEDS_KEY):
            given = headers.get(b"x-api-key", b"")
            # Every key is compared, in time that does not tell how much of one was right.
            if not sum(hmac.compare_digest(given, key) for key in self._keys):
                words = "the header X-API-Key is missing or wrong. Ask who runs this server"
                return error_response(RequestError(401, Problem.NO_KEY, words))
        if scope["method"] == "POST":
            address = (scope.get("client") or ("", 0))[0]
            if wait := self._rate.wait(address, time.monotonic()):
                words = "this client asks more often than it may"
                return error_response(RequestError(429, Problem.RATE_LIMITED, words, wait))
        return None

    def _tell(self, scope: Scope, request: str, code: int, seconds: float) -> None:
        path = scope["path"]
        route = path if path in self._routes else "other"
        self._metrics.count_request(route, code, seconds)
        level = logging.DEBUG if route in _QUIET else logging.INFO
        event(
            "request",
            level,
            request=request,
            method=scope["method"] if route != "other" else "",
            route=route,
            code=code,
            seconds=round(seconds, 4),
        )


def error_response(error: RequestError) -> JSONResponse:
    """The response to a request that failed."""
    body = {"status": "error", "reason": str(error.reason), "detail": error.detail}
    return JSONResponse(body, error.status, error.headers)


def _headers(message: Message, request: str) -> list[tuple[bytes, bytes]]:
    there = {name.lower() for name, _ in message["headers"]}
    found = HEADERS | {"X-Request-ID": request}
    pairs = [(name.lower().encode(), value.encode()) for name, value in found.items()]
    return [pair for pair in pairs if pair[0] not in there]
