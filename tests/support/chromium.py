"""A headless Chromium, driven by the Chrome DevTools Protocol: no driver program, no framework.

Comes in: nothing. Goes out: a page that can be opened, asked, photographed, and that tells of every
request that it made. Skips the test, with the reason, where there is no Chromium.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage", "--hide-scrollbars", "--force-color-profile=srgb"),
    *("--remote-debugging-port=0", "--remote-allow-origins=*"),
)
_PATIENCE = 60
_KEYS = {
    **{"Backspace": 8, "Tab": 9, "Enter": 13, " ": 32, "PageUp": 33, "PageDown": 34},
    **{"End": 35, "Home": 36, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40},
}
"""Numbers of the keys that do something by themselves."""


def chromium_path() -> str | None:
    """The program, if it is installed."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Tab:
    """One page: everything that it does is an event of the protocol.

    Attributes:
        requests: address of every request so far, data and blob addresses included.
        complaints: errors and violations of the Content-Security-Policy in the console.
    """

    def __init__(self, address: str) -> None:
        import websocket

        self._socket = websocket.create_connection(address, timeout=_PATIENCE)
        self._number = 0
        self.requests: list[str] = []
        self.complaints: list[str] = []
        for domain in ("Page", "Network", "Runtime", "Log", "DOM"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command, and its result."""
        self._number += 1
        asked = {"id": self._number, "method": method, "params": parameters}
        self._socket.send(json.dumps(asked))
        while True:
            told = json.loads(self._socket.recv())
            if told.get("id") == self._number:
                assert "error" not in told, (method, told)
                result: dict[str, Any] = told["result"]
                return result
            self._hear(told)

    def _hear(self, told: dict[str, Any]) -> None:
        found = told.get("params", {})
        if told["method"] == "Network.requestWillBeSent":
            self.requests.append(found["request"]["url"])
        elif told["method"] == "Log.entryAdded" and found["entry"]["level"] == "error":
            self.complaints.append(found["entry"]["text"])
        elif told["method"] == "Runtime.consoleAPICalled" and found["type"] == "error":
            self.complaints += [str(said.get("description", said)) for said in found["args"]]
        elif told["method"] == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(found["exceptionDetails"])[:500])

    def ask(self, expression: str) -> Any:
        """The value of a JavaScript expression, awaited."""
        found = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, expression: str) -> Any:
        """Evaluate until the result is true."""
        until = time.monotonic() + _PATIENCE
        while time.monotonic() < until:
            if found := self.ask(expression):
                return found
            time.sleep(0.05)
        raise AssertionError(f"never true: {expression}; complaints: {self.complaints}")

    def open(self, address: str) -> None:
        """Go to a page and wait until it is loaded."""
        self.call("Page.navigate", url=address)
        self.wait(f"document.readyState === 'complete' && location.href.startsWith({address!r})")

    def give(self, selector: str, files: Sequence[Path]) -> None:
        """Choose files in a file field."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path) for path in files])

    def press(self, key: str) -> None:
        """One key, on what has the focus."""
        text = {"text": key} if len(key) == 1 else {"text": "\r"} if key == "Enter" else {}
        code = _KEYS.get(key, 0)
        extra = text | {"windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **extra)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def look(self, width: int, height: int, *, dark: bool = False, scale: float = 1) -> None:
        """Another size and colour scheme."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def photograph(self) -> bytes:
        """PNG of what is seen."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])

    def close(self) -> None:
        self._socket.close()


@contextmanager
def chromium_tab() -> Iterator[Tab]:
    """A tab of a new browser with an empty profile, gone afterwards."""
    program = chromium_path()
    if program is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    # Its helpers may write to the profile for a moment after it has ended.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        # Its own messages go to a file: a pipe that nobody reads would stop it.
        with (Path(profile) / "log").open("w+b") as log:
            browser = subprocess.Popen(
                command, stderr=log, stdout=log, env=os.environ | {"HOME": profile}
            )
            try:
                tab = Tab(_address(Path(profile) / "log"))
                yield tab
                tab.close()
            finally:
                browser.terminate()
                browser.wait(_PATIENCE)


def _address(log: Path) -> str:
    """The first tab's address, from what the browser says when it listens."""
    import httpx

    until = time.monotonic() + _PATIENCE
    while time.monotonic() < until:
        if found := re.search(r"DevTools listening on ws://([\d.:]+)/", log.read_text("utf-8")):
            pages = httpx.get(f"http://{found[1]}/json", trust_env=False).json()
            if addresses := [p["webSocketDebuggerUrl"] for p in pages if p["type"] == "page"]:
                return str(addresses[0])
        time.sleep(0.05)
    raise AssertionError(f"Chromium did not start: {log.read_text('utf-8')[-2000:]}")
