"""AE titles and addresses as text, and what is no such."""

from __future__ import annotations

import pytest

from pneumoscope.config import NodeConfig
from pneumoscope.delivery.dicom_node.peers import (
    Peer,
    check_aet,
    client_context,
    is_loopback,
    parse_peer,
    server_context,
)
from pneumoscope.errors import UsageError


@pytest.mark.parametrize(
    ("text", "peer"),
    [
        ("PACS@10.0.0.5:104", Peer("PACS", "10.0.0.5", 104)),
        ("MY PACS@pacs.example:11112", Peer("MY PACS", "pacs.example", 11112)),
        ("PACS@[::1]:104", Peer("PACS", "::1", 104)),
    ],
)
def test_addresses(text: str, peer: Peer) -> None:
    assert parse_peer(text, "--forward") == peer


@pytest.mark.parametrize(
    "text",
    ["PACS", "PACS@host", "@host:104", "PACS@:104", "PACS@host:0", "PACS@host:x", "P@h:70000"],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(UsageError, match="--forward: found"):
        parse_peer(text, "--forward")


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        *(("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("LocalHost", True)),
        *(("0.0.0.0", False), ("10.0.0.7", False), ("::", False), ("", False)),  # noqa: S104
        *(("127.0.0.1.pacs.example", False), ("localhost.pacs.example", False)),
    ],
)
def test_loopback_is_an_address_or_one_name(host: str, loopback: bool) -> None:
    assert is_loopback(host) == loopback


@pytest.mark.parametrize("text", ["", "   ", "A" * 17, "A\\B", "Ä", "A\nB"])
def test_what_is_no_ae_title(text: str) -> None:
    # PS3.5 6.2, VR AE.
    with pytest.raises(UsageError, match="--aet: found"):
        check_aet(text, "--aet")


def test_tls_files_that_are_none() -> None:
    assert server_context(NodeConfig()) is None
    assert client_context(NodeConfig()) is None
    with pytest.raises(UsageError, match=r"none\.pem"):
        server_context(NodeConfig(tls_cert="none.pem"))
    with pytest.raises(UsageError, match="wanted --tls-cert as well"):
        server_context(NodeConfig(tls_key="key.pem"))
    with pytest.raises(UsageError, match=r"none\.pem"):
        client_context(NodeConfig(forward_tls=True, tls_ca="none.pem"))
