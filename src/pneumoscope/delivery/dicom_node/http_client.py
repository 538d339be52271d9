"""An HTTP client for servers that are not trusted: bounded responses, bounded time, no redirects.

`HttpService` is one server: its address, its token and its TLS settings, all checked when it is
made. Redirects are not followed, because the token would go along. Proxy settings of the
environment are not used.
"""

from __future__ import annotations

import logging
import os
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from pneumoscope.config import NodeConfig
from pneumoscope.delivery.dicom_node.peers import load_files
from pneumoscope.delivery.dicom_node.wire import Wire
from pneumoscope.errors import UsageError

_LOGGER = logging.getLogger(__name__)

_LOOPBACK = ("127.", "::1", "localhost")
_TRY_AGAIN = frozenset({401, 403, 407, 408, 425, 429})
"""Statuses that concern access to the server, not the content that was sent; so does each 5xx."""

_NO_CONTENT, _FIRST_ERROR, _FIRST_SERVER_ERROR = 204, 400, 500


class ServerError(Exception):
    """The server can't be reached, or its response can't be used; a later try may succeed.

    Attributes:
        why: a short reason for the audit log, without patient data.
        status: HTTP status, if there was one.
        everywhere: no connection was made, so that other requests would fail as well.
    """

    def __init__(self, why: str, status: int | None = None, *, everywhere: bool = False) -> None:
        super().__init__(f"{why} {status or ''}".strip())
        self.why, self.status, self.everywhere = why, status, everywhere


class TooLargeError(Exception):
    """A response has more bytes than are allowed.

    Attributes:
        status: its HTTP status.
    """

    def __init__(self, status: int) -> None:
        super().__init__("response too large")
        self.status = status


@dataclass(frozen=True, slots=True)
class ServiceOptions:
    """The command-line options that an `HttpService` is configured by, for its messages.

    Attributes:
        url: the option with the address, as in `--dicomweb`.
        token_file: the option with the file of the token.
        token_variable: the environment variable with the token.
        kind: what the address belongs to, as in `a DICOMweb service`.
        example: an address of this kind.
    """

    url: str
    token_file: str
    token_variable: str
    kind: str
    example: str


class HttpService:
    """One server.

    Args:
        url: its base address.
        token_file: file with the token; `""`: the environment variable, if it is set.
        options: names of the options, for messages.
        config: time-outs and TLS files.

    Raises:
        UsageError: the address is not an HTTP URL, holds a password, or the token can't be read.
    """

    def __init__(
        self, url: str, token_file: str, options: ServiceOptions, config: NodeConfig
    ) -> None:
        address = _checked(url, options)
        token = _token(token_file, options)
        headers = {"Authorization": token} if token else {}
        if headers and address.scheme == "http" and not address.host.startswith(_LOOPBACK):
            _LOGGER.warning(
                "%s %s: the token and the patients' data can be read on the way. Take https.",
                options.url,
                address,
            )
        self.name = address.host
        self._base = str(address).rstrip("/")
        self._wire = Wire(config.dimse_timeout)
        self._client = httpx.Client(
            headers=headers,
            timeout=httpx.Timeout(config.dimse_timeout, connect=config.acse_timeout),
            transport=self._wire.transport(_tls(config)),
            follow_redirects=False,
            trust_env=False,
        )

    def stop(self) -> None:
        """End the requests under way, from another thread."""
        self._wire.stop()

    def close(self) -> None:
        """Close its connections."""
        self._client.close()

    def exchange(
        self, method: str, path: str, headers: dict[str, str], most: int, **more: Any
    ) -> tuple[int, str, bytes]:
        """Send one request and read its response.

        Args:
            method: HTTP method.
            path: below the base address; `""` for the base address itself.
            headers: beside `Authorization`.
            most: bytes of a response body that are held at most.
            more: further arguments of `httpx.Client.stream`.

        Returns:
            Status, content type and body.

        Raises:
            ServerError: no connection, a time-out, a redirect, a status of 5xx, or one that
                concerns access (401, 403, 407, 408, 425, 429).
            TooLargeError: the body has more than `most` bytes.
        """
        content = bytearray()
        url = f"{self._base}/{path}" if path else self._base
        self._wire.begin()
        try:
            with self._client.stream(method, url, headers=headers, **more) as response:
                _check_access(response.status_code)
                for chunk in response.iter_bytes():
                    content += chunk
                    if len(content) > most:
                        raise TooLargeError(response.status_code)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise ServerError(type(error).__name__, everywhere=True) from error
        except (httpx.HTTPError, httpx.StreamError) as error:
            raise ServerError(type(error).__name__) from error
        return response.status_code, response.headers.get("Content-Type", ""), bytes(content)


def _check_access(status: int) -> None:
    redirect = _NO_CONTENT < status < _FIRST_ERROR
    if status in _TRY_AGAIN or status >= _FIRST_SERVER_ERROR or redirect:
        raise ServerError("turned away", status)


def _checked(text: str, options: ServiceOptions) -> httpx.URL:
    try:
        url = httpx.URL(text.rstrip("/") + "/")
    except httpx.InvalidURL as error:
        raise UsageError(f"{options.url}: found {text!r}, wanted a URL ({error})") from error
    if url.scheme not in ("http", "https") or not url.host or url.query or url.fragment:
        raise UsageError(
            f"{options.url}: found {text!r}, wanted the address of {options.kind}, as in "
            f"{options.example}"
        )
    if url.userinfo:
        raise UsageError(
            f"{options.url}: found a password in the address, where others can read it. Give it by "
            f"{options.token_file} or ${options.token_variable}."
        )
    return url


def _token(token_file: str, options: ServiceOptions) -> str:
    """The header `Authorization`: a bearer token (RFC 6750) unless the text names its scheme."""
    text = os.environ.get(options.token_variable, "").strip()
    if token_file:
        where = f"{options.token_file} {token_file}"
        try:
            text = Path(token_file).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(
                f"{where}: can't be read ({error}). Give a text file with the token alone."
            ) from error
        if not text:
            raise UsageError(f"{where}: is empty, wanted a token")
    if not text.isascii() or not all(c.isprintable() for c in text):
        raise UsageError(
            f"the token of {options.url}: found more than one line or characters that are not "
            "printable ASCII"
        )
    return text if " " in text or not text else f"Bearer {text}"


def _tls(config: NodeConfig) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH)
    load_files(context, config)
    return context
