"""Service and node under good and hostile input: are all good images scored, is memory flat.

    python benchmarks/hostile.py [--minutes 60 | --quick] [--model default] [--share 20]

One in `--share` inputs is hostile: files that state thousands of parts, streams of hundreds of
scans, half heads, slow bodies, readers that never read, objects that are none. All on loopback. The
memory of each process tree is measured every second. Prints Markdown; exits with 1 if a good image
had no result or two, if any response was a 500, or if memory grew by more than 50 MB after the
first sixth of the time.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]

import httpx  # noqa: E402
from pydicom import dcmread  # noqa: E402
from pydicom.uid import JPEGBaseline8Bit, generate_uid  # noqa: E402

from pneumoscope.images.phantom.folder import write_phantoms  # noqa: E402
from serve import resident_mb  # noqa: E402
from support import hostile_files as hostile  # noqa: E402
from support.dicom_peers import audited, modality  # noqa: E402

MANY = 200_000
MOST_GROWTH_MB = 50.0
NODE = 11122
STALLED = 60.0
"""Seconds without a result after which the node is taken to have stopped scoring."""


@dataclass(slots=True)
class Seen:
    """What came of the inputs."""

    good: Counter[int] = field(default_factory=Counter)
    bad: Counter[int] = field(default_factory=Counter)
    longest: float = 0.0
    cut_off: int = 0
    memory: dict[str, list[tuple[float, float]]] = field(default_factory=dict)


def hostile_contents() -> list[bytes]:
    """Files that ask for much more work than they are large."""
    return [
        hostile.progressive(5000),
        hostile.sequential(5000),
        hostile.encapsulated(hostile.progressive(5000), JPEGBaseline8Bit),
        hostile.many_directories(20_000),
        hostile.png_of_chunks(MANY),
        hostile.jpeg_of_comments(MANY),
        hostile.elements(4000) * 2,
        hostile.fragments(MANY),
        hostile.meta_elements(MANY),
        hostile.long_value(),
        b"\0" * 1000,
    ]


def idle_client(port: int, until: float) -> None:
    """Half heads, slow bodies, and a reader that never reads, again and again."""
    half = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: "
    slow = (
        b"POST /v1/predictions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n"
        b"Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\n"
    )
    while time.monotonic() < until:
        held = []
        for number in range(20):
            with contextlib.suppress(OSError):
                client = socket.create_connection(("127.0.0.1", port), timeout=5)
                client.sendall(half if number % 2 else slow)
                held.append(client)
        time.sleep(min(5.0, max(until - time.monotonic(), 0)))
        for client in held:
            client.close()


def post(
    url: str, images: list[bytes], bad: list[bytes], share: int, until: float, to: Seen
) -> None:
    """One client of the service."""
    number = 0
    with httpx.Client(base_url=url, timeout=120, trust_env=False) as client:
        while time.monotonic() < until:
            number += 1
            hostile_one = number % share == 0
            of, place = (bad, number // share) if hostile_one else (images, number)
            content = of[place % len(of)]
            began = time.perf_counter()
            status = status_of(client, content, until, to)
            if status != 503:
                (to.bad if hostile_one else to.good)[status] += 1
                to.longest = max(to.longest, time.perf_counter() - began)


def status_of(client: httpx.Client, content: bytes, until: float, to: Seen) -> int:
    """The status of one upload: sent again at Retry-After, or once where it was cut off.

    A server may close a connection that was idle just when the next request leaves.
    """
    tries = 2
    while True:
        try:
            response = client.post("v1/predictions", files={"file": ("x", content)})
        except httpx.TransportError:
            to.cut_off += 1
            tries -= 1
            if tries == 0:
                return 0
            continue
        if response.status_code != 503 or time.monotonic() >= until:
            return response.status_code
        time.sleep(float(response.headers["Retry-After"]))


def store(images: list[bytes], bad: list[bytes], share: int, until: float, sent: list[str]) -> None:
    """One sender to the node; `sent` are the UIDs of good images that were acknowledged."""
    number = 0
    datasets = [dcmread(BytesIO(image)) for image in images]
    while time.monotonic() < until:
        association = modality().associate("127.0.0.1", NODE, ae_title="PNEUMOSCOPE")
        while association.is_established and time.monotonic() < until:
            number += 1
            dataset = datasets[number % len(datasets)]
            if number % share == 0:
                with contextlib.suppress(Exception):
                    dataset = dcmread(BytesIO(bad[number // share % len(bad)]), force=True)
            try:
                uid = generate_uid()
                dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = uid
                response = association.send_c_store(dataset)
            except (ValueError, RuntimeError, AttributeError):
                break
            if response.get("Status") == 0 and number % share:
                sent.append(str(dataset.SOPInstanceUID))
            time.sleep(0.2)
        if association.is_established:
            association.release()
        time.sleep(0.2)


def watch(processes: dict[str, int], until: float, seen: Seen) -> None:
    """Memory, every second."""
    began = time.monotonic()
    while time.monotonic() < until:
        for name, process in processes.items():
            seen.memory.setdefault(name, []).append(
                (time.monotonic() - began, resident_mb(process))
            )
        time.sleep(1.0)


def growth(points: list[tuple[float, float]], seconds: float) -> float:
    """How much memory grew after the first sixth of the time: medians of its two ends."""
    settled = [mb for when, mb in points if when > seconds / 6]
    part = max(len(settled) // 5, 1)
    first, last = sorted(settled[:part]), sorted(settled[-part:])
    return last[len(last) // 2] - first[len(first) // 2]


def begin(work: Callable[..., None], *arguments: object) -> threading.Thread:
    """Run it beside."""
    thread = threading.Thread(target=work, args=arguments, daemon=True)
    thread.start()
    return thread


def main() -> int:
    """Run both, and judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--quick", action="store_true", help="one minute")
    parser.add_argument("--model", default="default")
    parser.add_argument("--share", type=int, default=20)
    asked = parser.parse_args()
    seconds = 60.0 if asked.quick else 60 * asked.minutes
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as ends:
        place = Path(folder)
        for kind in ("png", "dicom"):
            write_phantoms(place / kind, 20, format=kind)
        images = [p.read_bytes() for p in sorted((place / "png").rglob("*.png"))]
        dicoms = [p.read_bytes() for p in sorted((place / "dicom").rglob("*.dcm"))]
        bad = hostile_contents()
        told = (place / "serve.log").open("w+")
        run = [sys.executable, "-m", "pneumoscope"]
        environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
        service = subprocess.Popen(
            [*run, "serve", "--port", "0", "--model", asked.model], stderr=told, env=environment
        )
        ends.callback(service.kill)
        node = subprocess.Popen(
            [
                *(*run, "node", "-q", "--port", str(NODE), "--model", asked.model),
                *("--spool", str(place / "spool")),
            ],
            env=environment,
        )
        ends.callback(node.kill)
        url = listening(place / "serve.log")
        until = time.monotonic() + seconds
        seen, sent = Seen(), list[str]()
        threads = [
            *(begin(post, url, images, bad, asked.share, until, seen) for _ in range(4)),
            *(begin(store, dicoms, bad, asked.share, until, sent) for _ in range(2)),
            begin(idle_client, int(url.rstrip("/").rsplit(":", 1)[1]), until),
            begin(watch, {"service": service.pid, "node": node.pid}, until, seen),
        ]
        for thread in threads:
            thread.join(seconds + 180)
        ended_at = time.monotonic()
        scored = drained(place / "spool")
        queued = time.monotonic() - ended_at
        service.terminate()
        node.terminate()
        ended = (service.wait(60), node.wait(60))
    print(f"The node scored what was queued for {queued:.0f} s after the last image came.\n")
    return judged(seen, len(sent), scored, ended, seconds)


def listening(log: Path) -> str:
    """The service's address, once it has printed it."""
    while True:
        for line in log.read_text().splitlines():
            if json.loads(line).get("event") == "listening":
                return str(json.loads(line)["url"])
        time.sleep(0.2)


def drained(spool: Path) -> Counter[int]:
    """How often each image was scored, once none waits, or none was scored for a while."""
    most, since = -1, time.monotonic()
    while True:
        lines = audited(spool)
        came = {line["film"] for line in lines if line["event"] == "received"}
        done = Counter(line["film"] for line in lines if line["event"] == "answered")
        aside = {line["film"] for line in lines if line["event"] in ("set aside", "given up")}
        if done.total() > most:
            most, since = done.total(), time.monotonic()
        if came <= set(done) | aside or time.monotonic() - since > STALLED:
            return Counter({image: done[image] for image in came - aside})
        time.sleep(1.0)


def judged(
    seen: Seen, sent: int, scored: Counter[int], ended: tuple[int, int], seconds: float
) -> int:
    """Print what was found; 1 if it is not good enough."""
    grown = {name: growth(points, seconds) for name, points in seen.memory.items()}
    print(f"| {seconds:.0f} s | good | hostile |\n| --- | --- | --- |")
    print(f"| service, statuses | {dict(seen.good)} | {dict(seen.bad)} |")
    print(f"| node | {sent} acknowledged | |")
    once = sum(count == 1 for count in scored.values())
    print(f"\nNode: {once} of {len(scored)} images that came were scored once.")
    print(f"Longest wait at the service: {seen.longest:.1f} s. Exit codes: {ended}.")
    print(f"Connections that ended before a response: {seen.cut_off}.")
    for name, points in seen.memory.items():
        most = max(mb for _, mb in points)
        print(f"Memory of the {name}: at most {most:.0f} MB, grew by {grown[name]:.0f} MB.")
    good = set(seen.good) <= {200, 422} and 500 not in seen.bad
    once_each = once == len(scored) and len(scored) >= sent
    flat = all(value <= MOST_GROWTH_MB for value in grown.values())
    return 0 if good and once_each and flat and ended == (0, 0) else 1


if __name__ == "__main__":
    sys.exit(main())
