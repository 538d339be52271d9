"""A server in a process of its own, on a free loopback port, as a user would start it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Server:
    """A running server.

    Attributes:
        url: of its page, with a slash at the end.
        process: what runs it; its log is lines of JSON on stderr.
    """

    url: str
    process: subprocess.Popen[str]


@contextmanager
def running_server(model: Path | str, *options: str, **variables: str) -> Iterator[Server]:
    """`pneumoscope serve` from when it listens; stopped at the end if it is not by then."""
    command = [sys.executable, "-m", "pneumoscope", "serve", "--model", str(model), "--port", "0"]
    process = subprocess.Popen(
        [*command, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | variables,
    )
    try:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            told = json.loads(line) if line.startswith("{") else {}
            if told.get("event") == "listening":
                assert all(each.startswith("{") for each in said), "its log is lines of JSON"
                yield Server(told["url"], process)
                break
        else:
            raise AssertionError(f"the server did not start: {''.join(said)}")
    finally:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=60)
