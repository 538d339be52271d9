"""Who may ask: by which name this server is called, and pages of which sites may ask it.

A browser asks whatever a page of any site tells it to, and names the site in `Origin`. By DNS
rebinding a site can even give its own name the address of this server: the name in `Host` is then
the site's. So requests by other names than this server's are refused, and so are writes that a page
of another site asks for. What pages of other sites may read is said by CORS, by option alone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from starlette.types import Scope

from pneumoscope.delivery.rest.problems import Problem, RequestError

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")
ANY = "*"
_READS = frozenset({"GET", "HEAD", "OPTIONS"})
_DEFAULT_PORTS = {"http": "80", "https": "443"}

Headers = Mapping[bytes, bytes]


class Origins:
    """The names of a server, and the sites that may ask it.

    Args:
        hosts: names, without a port, that requests may have in `Host`; `*` is any; `None` leaves
            that to who runs the application.
        origins: sites, as in `https://viewer.example`, whose pages may ask; `*` is any.
    """

    def __init__(self, hosts: Collection[str] | None, origins: Collection[str]) -> None:
        self._hosts = None if hosts is None else {host.lower() for host in hosts}
        self._origins = {origin.lower().rstrip("/") for origin in origins}

    def check(self, scope: Scope, headers: Headers) -> None:
        """See that a request may be answered.

        Raises:
            RequestError: 421 for a name that is not this server's, 403 for another site's page.
        """
        host = headers.get(b"host", b"").decode("latin-1").strip().lower()
        if not self._is_ours(host, scope):
            raise RequestError(
                421,
                Problem.WRONG_HOST,
                "this server does not answer by the name that was asked for. Who runs it can add "
                "the name: --allowed-host NAME",
            )
        if scope["method"] not in _READS and not self._may_write(host, headers):
            raise RequestError(
                403,
                Problem.WRONG_ORIGIN,
                "a page of another site asks. Who runs this server can allow it: "
                "--allowed-origin https://SITE",
            )

    def cors(self, headers: Headers) -> list[tuple[bytes, bytes]]:
        """Headers that let a page of an allowed site read the answer; none for any other."""
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
        """What may be asked, for the question that browsers ask before."""
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
    """Host and port of an origin, as in `https://x:8443`; "" for `null` and whatever is none."""
    scheme, found, host = origin.partition("://")
    return _with_port(host, origin) if found and scheme in _DEFAULT_PORTS else ""


def _with_port(host: str, origin: str) -> str:
    """A host with its port, the origin's scheme's own if none is written."""
    name = _without_port(host)
    port = host[len(name) :].lstrip(".").lstrip(":")
    return f"{name}:{port or _DEFAULT_PORTS.get(origin.partition('://')[0], '')}"
