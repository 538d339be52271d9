"""Orthanc as a hospital would start it from `examples/pacs/`, and a network of its own to do so in.

Comes in: ports and a folder. Goes out: a running Orthanc, what it shows over REST. Orthanc 1.10
binds every address of its machine, so everything runs where there is none but loopback.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

EXAMPLE = Path(__file__).parents[2] / "examples" / "pacs"
PATHS = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
HTTP, DICOM = 8042, 4242
URL = f"http://127.0.0.1:{HTTP}"
USER = ("pilot", "change-me")


def isolated() -> list[str]:
    """A command that runs another one where there is no network but loopback; empty if it can't."""
    for flags in (["-n"], ["-r", "-n"]):
        words = ["unshare", *flags, "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
        try:
            done = subprocess.run([*words, "true"], capture_output=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return []
        if done.returncode == 0:
            return words
    return []


def in_isolation(script: Path, *arguments: str, timeout: float) -> dict[str, Any]:
    """Run a script where there is only loopback; the JSON document on its last line of output."""
    source = Path(__file__).parents[2]
    paths = [str(source / "src"), str(source / "tests"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PATH": PATHS, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(
        [*isolated(), sys.executable, str(script), *arguments],
        capture_output=True,
        text=True,
        env=environment,
        timeout=timeout,
    )
    if done.returncode:
        raise AssertionError(f"{script.name} failed:\n{done.stdout}\n{done.stderr}")
    document: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return document


def ask(path: str, content: bytes | None = None) -> httpx.Response:
    """Ask Orthanc; with content a POST."""
    method = "GET" if content is None else "POST"
    response = httpx.request(method, f"{URL}{path}", content=content, auth=USER, timeout=60)
    return response.raise_for_status()


def get(path: str) -> Any:
    """What Orthanc says there, from JSON."""
    return ask(path).json()


@contextmanager
def orthanc(
    folder: Path, node_port: int, route: bool = True, plugins: Sequence[str] = ()
) -> Iterator[None]:
    """Orthanc with the example's settings, but for hosts and folders; `route`: with its rule."""
    settings = json.loads((EXAMPLE / "orthanc.json").read_text())
    settings |= {
        "StorageDirectory": str(folder / "orthanc"),
        "IndexDirectory": str(folder / "orthanc"),
        "LuaScripts": [str(EXAMPLE / "route.lua")] if route else [],
        "Plugins": list(plugins),
        "HttpPort": HTTP,
        "DicomPort": DICOM,
    }
    settings["DicomModalities"]["pneumoscope"] |= {"Host": "127.0.0.1", "Port": node_port}
    (folder / "orthanc.json").write_text(json.dumps(settings))
    program = shutil.which("Orthanc", path=PATHS)
    assert program
    with (folder / "orthanc.log").open("wb") as log:
        process = subprocess.Popen(
            [program, str(folder / "orthanc.json")], stdout=log, stderr=subprocess.STDOUT
        )
        try:
            _wait_for(process, folder)
            yield
        finally:
            process.terminate()
            process.wait(30)


def _wait_for(process: subprocess.Popen[bytes], folder: Path) -> None:
    end = time.monotonic() + 60
    while True:
        try:
            get("/system")
        except httpx.HTTPError as error:
            if process.poll() is not None or time.monotonic() > end:
                text = (folder / "orthanc.log").read_text(errors="replace")
                raise AssertionError(f"Orthanc did not start: {error}\n{text}") from error
            time.sleep(0.1)
        else:
            return


def instances() -> list[dict[str, str]]:
    """What Orthanc has: SOP class, modality, patient, study and UID of every instance."""
    wanted = ("SOPClassUID", "Modality", "PatientID", "StudyInstanceUID", "SOPInstanceUID")
    found = []
    for name in get("/instances"):
        tags = get(f"/instances/{name}/simplified-tags")
        found.append({word: str(tags.get(word, "")) for word in wanted} | {"name": name})
    return found
