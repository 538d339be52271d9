"""Those a node speaks with, in this process on loopback: an archive, and a modality that sends.

Comes in: images. Goes out: what the archive was sent, the statuses that the modality was sent.
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE, _config, evt
from pynetdicom.sop_class import (
    Comprehensive3DSRStorage,
    CTImageStorage,
    DigitalXRayImageStorageForPresentation,
    SecondaryCaptureImageStorage,
    Verification,
)
from pynetdicom.transport import AssociationSocket

_config.LOG_HANDLER_LEVEL = "none"
PATIENCE = 60.0


def _shut(self: AssociationSocket) -> None:
    """Close a socket even if its other end has gone, where pynetdicom leaves it to the collector.

    Which would make a warning, and so a failure, of some later test.
    """
    with contextlib.suppress(OSError):
        self.socket.shutdown(socket.SHUT_RDWR)
    self.socket.close()


AssociationSocket._shutdown_socket = _shut


@dataclass
class Archive:
    """Stands for a PACS: keeps what it is sent. `statuses` are those to give first."""

    port: int = 0
    received: list[tuple[str, bytes]] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)

    @property
    def datasets(self) -> list[Any]:
        return [dcmread(BytesIO(content)) for _, content in self.received]

    def store(self, event: Any) -> int:
        if self.statuses:
            status = self.statuses.pop(0)
            if status:
                return status
        self.received.append((str(event.request.AffectedSOPInstanceUID), event.encoded_dataset()))
        return 0x0000


@contextmanager
def archive(
    port: int = 0,
    syntaxes: Sequence[str] = (ExplicitVRLittleEndian,),
    tls: ssl.SSLContext | None = None,
    **how: Any,
) -> Iterator[Archive]:
    """An archive that listens, on any free port unless told."""
    kept = Archive(**how)
    entity = AE("ARCHIVE")
    for kind in (Comprehensive3DSRStorage, SecondaryCaptureImageStorage):
        entity.add_supported_context(kind, list(syntaxes))
    server = entity.start_server(
        ("127.0.0.1", port),
        block=False,
        ssl_context=tls,
        evt_handlers=[(evt.EVT_C_STORE, kept.store)],
    )
    assert server is not None
    kept.port = server.socket.getsockname()[1]
    try:
        yield kept
    finally:
        server.shutdown()


def modality(
    title: str = "MODALITY",
    syntaxes: Sequence[str] = (ExplicitVRLittleEndian,),
    dimse_timeout: float = PATIENCE,
) -> AE:
    """Someone who sends images."""
    entity = AE(title)
    entity.acse_timeout = entity.network_timeout = PATIENCE
    entity.dimse_timeout = dimse_timeout
    entity.add_requested_context(Verification)
    for kind in (
        *(DigitalXRayImageStorageForPresentation, CTImageStorage),
        SecondaryCaptureImageStorage,
    ):
        entity.add_requested_context(kind, list(syntaxes))
    return entity


def send(port: int, images: Sequence[bytes], title: str = "MODALITY", **how: Any) -> list[int]:
    """Store images at a node in one association; the statuses of its responses (-1: none)."""
    association = modality(title).associate("127.0.0.1", port, ae_title="PNEUMOSCOPE", **how)
    assert association.is_established
    try:
        responses = [association.send_c_store(dcmread(BytesIO(image))) for image in images]
        return [int(response.Status) if "Status" in response else -1 for response in responses]
    finally:
        association.release()


def send_until_acknowledged(
    port: int,
    images: Sequence[bytes],
    told: Callable[[int], None],
    stop: threading.Event,
    title: str = "MODALITY",
) -> None:
    """Store images one by one, each as often as it takes; `told` gets the number of each."""
    datasets = [dcmread(BytesIO(image)) for image in images]
    number = 0
    while number < len(datasets) and not stop.is_set():
        # pynetdicom may not see that a node was killed, and waits for its response.
        entity = modality(title, dimse_timeout=3.0)
        association = entity.associate("127.0.0.1", port, ae_title="PNEUMOSCOPE")
        while association.is_established and number < len(datasets):
            try:
                response = association.send_c_store(datasets[number])
            except RuntimeError:  # the node went away meanwhile
                break
            if response.get("Status") == 0:
                told(number)
                number += 1
        if association.is_established:
            association.release()
        else:
            time.sleep(0.05)


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for something that must happen."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen in {PATIENCE} s"
        time.sleep(0.02)


def audited(spool: Path) -> list[dict[str, Any]]:
    """The lines of a node's audit."""
    lines = (spool / "audit.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]
