"""`node`: a model as a DICOM node, until it is told to stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import util
from typing import Any

from pneumoscope.config import NodeConfig, check_ranges
from pneumoscope.errors import ExtraMissingError
from pneumoscope.inference.predictor import Predictor

_PACKAGES = ("pynetdicom", "highdicom")


def run_node(
    config: NodeConfig, model: str, stop: threading.Event | None = None
) -> tuple[dict[str, Any], str]:
    """Run a node until SIGTERM, Ctrl-C or `stop`; what was begun is ended first.

    Args:
        config: its settings.
        model: a bundle, a run, or `default`.
        stop: ends it when set.

    Returns:
        A document of what waits and what was sent, and the same as text.

    Raises:
        ExtraMissingError: a package is not installed.
        UsageError: a setting can't be, or there is no such model.
        KeyboardInterrupt: Ctrl-C, after all was ended.
    """
    check_ranges(config, "node")
    if any(util.find_spec(name) is None for name in _PACKAGES):
        raise ExtraMissingError("The DICOM node", "dicom")
    from pneumoscope.delivery.dicom_node.node import Node

    stop = stop or threading.Event()
    with _ended_by_sigterm(stop):
        node = Node(config, Predictor.load(model, any_age=config.any_age))
        try:
            node.run(stop)
        finally:
            counts = node.stop()
    lines = [f"{name.replace('_', ' '):<17} {count}" for name, count in counts.items()]
    return {"spool": config.spool, **counts}, "\n".join(lines)


@contextmanager
def _ended_by_sigterm(stop: threading.Event) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # which alone gets signals
        return
    before = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
