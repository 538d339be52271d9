"""AE titles, addresses and TLS settings of the node and its peers. Opens no connection."""

from __future__ import annotations

import ssl
from dataclasses import dataclass

from pneumoscope.config import NodeConfig
from pneumoscope.errors import UsageError

_MOST_AET = 16


@dataclass(frozen=True, slots=True)
class Peer:
    """The address of another DICOM application entity."""

    aet: str
    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.aet}@{self.host}:{self.port}"


def check_aet(text: str, where: str) -> str:
    """Check an application entity title (PS3.5 6.2, VR AE) and strip its blanks.

    Raises:
        UsageError: it is empty, too long, or has characters that are not allowed.
    """
    title = text.strip()
    if (
        not 1 <= len(title) <= _MOST_AET
        or not title.isascii()
        or not title.isprintable()
        or ("\\" in title)
    ):
        raise UsageError(
            f"{where}: found {text!r}, wanted an AE title: 1 to {_MOST_AET} plain characters "
            "without a backslash"
        )
    return title


def parse_peer(text: str, where: str) -> Peer:
    """Parse `AET@HOST:PORT`; the host is a name or an address (IPv6 in brackets).

    Raises:
        UsageError: the text has another form.
    """
    title, at, address = text.partition("@")
    host, colon, port = address.rpartition(":")
    if not (at and colon and host and port.isdecimal() and 1 <= int(port) <= 65_535):
        raise UsageError(f"{where}: found {text!r}, wanted AET@HOST:PORT, as in PACS@10.0.0.5:104")
    return Peer(check_aet(title, where), host.removeprefix("[").removesuffix("]"), int(port))


def server_context(config: NodeConfig) -> ssl.SSLContext | None:
    """TLS for callers, `None` without TLS; with `tls_ca` callers need a certificate.

    Raises:
        UsageError: a file is missing, or is not a certificate or key.
    """
    if not config.tls_cert:
        if config.tls_key:
            raise UsageError("--tls-key: found a key alone, wanted --tls-cert as well. Give both.")
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    load_files(context, config)
    if config.tls_ca:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(config: NodeConfig) -> ssl.SSLContext | None:
    """TLS for the destination, `None` without TLS.

    Raises:
        UsageError: as `server_context` does.
    """
    if not config.forward_tls:
        return None
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH)
    load_files(context, config)
    return context


def load_files(context: ssl.SSLContext, config: NodeConfig) -> None:
    """Load the own certificate and key, and the authorities, into a TLS context.

    Raises:
        UsageError: a file is missing, or is not a certificate or key.
    """
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        if config.tls_cert:
            context.load_cert_chain(config.tls_cert, config.tls_key or None)
        if config.tls_ca:
            context.load_verify_locations(config.tls_ca)
    except (OSError, ssl.SSLError) as error:
        named = ", ".join(filter(None, (config.tls_cert, config.tls_key, config.tls_ca)))
        raise UsageError(
            f"TLS files {named}: can't be used ({error}). Give certificates and key as PEM files."
        ) from error
