"""A node in a process of its own, to be killed: `python -m support.node_process '{"port": …}'`.

The argument holds the node's settings as JSON, and with `ages` the ages that its model is for. The
model is the mean brightness, so that the node starts at once.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]
QUICK = {"retry_first": 0.05, "retry_most": 0.2, "min_free": 0, "grace": 2.0}


def start(**settings: Any) -> subprocess.Popen[bytes]:
    """Start one; it listens a moment later."""
    source = str(TESTS.parent / "src")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([source, str(TESTS)])}
    command = [sys.executable, "-m", "support.node_process", json.dumps({**QUICK, **settings})]
    return subprocess.Popen(command, env=environment, cwd=TESTS)


def main(text: str) -> None:
    from pneumoscope.config import NodeConfig
    from pneumoscope.delivery.dicom_node.node import Node
    from support.dicom_reports import predictor

    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    settings = json.loads(text)
    ages = tuple(settings.pop("ages", ()))
    node = Node(NodeConfig(**settings), predictor(ages=ages))
    try:
        node.run(stop)
    finally:
        node.stop()


if __name__ == "__main__":
    main(sys.argv[1])
