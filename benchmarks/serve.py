"""The server under load: many clients, images of 2 megapixels, for some time, on loopback.

    python benchmarks/serve.py [--model default] [--clients 64] [--seconds 180] [--images 40]

Each client sends an image, waits for the response and sends the next; after a 503 it comes back at
Retry-After. `pneumoscope predict` scores the same images in the same run, before and after: the
server's throughput is compared with it. The clients run on the same processor; they send bytes that
were made before, and their cost is printed. The images are drawn, so no data are needed. Prints
Markdown: statuses, latency of the images that were scored or rejected, throughput, processor time,
memory.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

LARGE = (1600, 1250)
"""Width and height of an image of 2 megapixels."""

HANDLED = (200, 422)
"""Statuses of images that went through the network: scored, or rejected for what they show. Both
are a row of `predict`, and counted alike."""

SAMPLING = 5.0
"""Seconds between two looks at memory: a look costs about a third of an image."""

SETTLED = 60.0
"""Seconds after which memory should be flat; of shorter runs, a third of their time."""


@dataclass(slots=True)
class Load:
    """What the clients saw."""

    statuses: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    memory_mb: list[tuple[float, float]] = field(default_factory=list)
    elapsed: float = 0.0
    worked: float = 0.0
    clients_worked: float = 0.0


def draw_images(folder: Path, count: int) -> list[Path]:
    """Drawn images as JPEGs of 2 megapixels."""
    from pneumoscope.images.phantom import draw

    made = []
    for number in range(count):
        pixels = draw(0, f"guest-{number}", number=1, label=number % 2).pixels
        image = Image.fromarray(np.round(pixels * 255).astype(np.uint8))
        path = folder / f"{number}.jpeg"
        image.resize(LARGE, Image.Resampling.BICUBIC).save(path, quality=92)
        made.append(path)
    return made


def predict_rate(images: list[Path], model: str) -> tuple[float, float]:
    """Images per second of `predict`, and its processor seconds per image, start-up taken off."""

    def seconds(paths: list[Path]) -> tuple[float, float]:
        command = [sys.executable, "-m", "pneumoscope", "predict", "-q", "--json"]
        began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [*command, "--model", model, *map(str, paths)], check=True, stdout=subprocess.DEVNULL
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        worked = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return time.perf_counter() - began, worked

    seconds(images[:2])  # fills the cache of compiled graphs
    (wall, worked), (least_wall, least_worked) = seconds(images * 4), seconds(images[:2])
    more = 4 * len(images) - 2
    return more / (wall - least_wall), (worked - least_worked) / more


async def load(url: str, process: int, images: list[bytes], clients: int, seconds: float) -> Load:
    """`clients` at once for `seconds`, each over a connection of its own that is kept."""
    told = Load()
    address = urlsplit(url)
    requests = [whole_request(address.netloc, image) for image in images]
    began = time.perf_counter()

    async def one(number: int) -> None:
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        while time.perf_counter() - began < seconds:
            asked = time.perf_counter()
            writer.write(requests[number % len(requests)])
            code, wait, goes_on = await response_of(reader)
            told.statuses[code] += 1
            if code in HANDLED:
                told.seconds.append(time.perf_counter() - asked)
            else:
                await asyncio.sleep(wait)
            if not goes_on:
                writer.close()
                reader, writer = await asyncio.open_connection(address.hostname, address.port)
            number += clients
        writer.close()

    async def watch() -> None:
        while True:
            told.memory_mb.append((time.perf_counter() - began, resident_mb(process)))
            await asyncio.sleep(SAMPLING)

    watching = asyncio.create_task(watch())
    told.worked, told.clients_worked = -worked_seconds(process), -time.process_time()
    await asyncio.gather(*map(one, range(clients)))
    told.worked += worked_seconds(process)
    told.clients_worked += time.process_time()
    watching.cancel()
    told.elapsed = time.perf_counter() - began
    return told


def whole_request(host: str, image: bytes) -> bytes:
    """The bytes that a client sends for one image, made once: its own work should cost little."""
    body = b"".join(
        [
            b'--image\r\nContent-Disposition: form-data; name="file"; filename="xray.jpg"\r\n\r\n',
            image,
            b"\r\n--image--\r\n",
        ]
    )
    head = (
        f"POST /v1/predictions HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n"
        "Content-Type: multipart/form-data; boundary=image\r\n\r\n"
    )
    return head.encode() + body


async def response_of(reader: asyncio.StreamReader) -> tuple[int, float, bool]:
    """The status of a response, when to come again, and whether the connection stays open."""
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines[1:] if line)
    await reader.readexactly(int(headers["content-length"]))
    wait = float(headers.get("retry-after", "1"))
    return int(lines[0].split()[1]), wait, headers.get("connection") != "close"


def tree_of(process: int) -> list[int]:
    """A process and all that it began, directly or not: images are read in such. Linux alone."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found = [process]
    for one in found:
        found += children.get(one, [])
    return found


def resident_mb(process: int) -> float:
    """Memory of a process and those below it, each page by its share."""
    total = 0
    for one in tree_of(process):
        with contextlib.suppress(OSError):  # it has ended
            for line in Path(f"/proc/{one}/smaps_rollup").read_text().splitlines():
                total += int(line.split()[1]) if line.startswith("Pss:") else 0
    return total / 1024


def worked_seconds(process: int) -> float:
    """Processor time of a process and those below it."""
    ticks = 0
    for one in tree_of(process):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{one}/stat").read_text().rsplit(")", 1)[1].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def serve_and_load(model: str, images: list[Path], clients: int, seconds: float) -> Load:
    """A server of its own, loaded, and stopped."""
    command = [sys.executable, "-m", "pneumoscope", "serve", "--model", model, "--port", "0"]
    with tempfile.TemporaryFile("w+") as log:
        server = subprocess.Popen(command, stderr=log, stdout=subprocess.DEVNULL)
        try:
            while not (url := listening(log)):
                if server.poll() is not None:
                    sys.exit("the server did not start")
                time.sleep(0.1)
            contents = [path.read_bytes() for path in images]
            return asyncio.run(load(url, server.pid, contents, clients, seconds))
        finally:
            server.terminate()
            server.wait(60)


def listening(log: io.TextIOBase) -> str:
    """The server's address, once it has printed it."""
    log.seek(0)
    lines = [json.loads(line) for line in log if line.startswith("{") and line.endswith("\n")]
    return next((str(line["url"]) for line in lines if line["event"] == "listening"), "")


def report(told: Load, beside: list[tuple[float, float]], clients: int) -> str:
    """All that was seen, as Markdown."""
    settled = min(SETTLED, told.elapsed / 3)
    after = [mb for when, mb in told.memory_mb if when >= settled]
    p50, p99 = np.percentile(told.seconds, [50, 99])
    throughput = len(told.seconds) / told.elapsed
    rates = [rate for rate, _ in beside]
    predict = sum(rates) / len(rates)
    ours, clients_own = (n / len(told.seconds) for n in (told.worked, told.clients_worked))
    theirs = sum(worked for _, worked in beside) / len(beside)
    counts = ", ".join(f"{code}: {n}" for code, n in sorted(told.statuses.items()))
    return "\n".join(
        [
            f"{clients} clients for {told.elapsed:.0f} s:",
            "",
            "| what | found |",
            "| --- | ---: |",
            f"| responses by status | {counts} |",
            f"| response time: median, 99 % within | {p50:.2f} s, {p99:.2f} s |",
            f"| images/s | {throughput:.1f} |",
            f"| `predict` images/s, before and after | {rates[0]:.1f}, {rates[1]:.1f} |",
            f"| server over `predict` | {throughput / predict:.2f} |",
            f"| processor time per image: server | {1000 * ours:.1f} ms |",
            f"| the same: clients, on the same cores | {1000 * clients_own:.1f} ms |",
            f"| the same: `predict` | {1000 * theirs:.1f} ms |",
            f"| images per processor second, server over `predict` | {theirs / ours:.2f} |",
            f"| memory after {settled:.0f} s, at the end | {after[0]:.0f} MB, {after[-1]:.0f} MB |",
            f"| least and most in between | {min(after):.0f} MB, {max(after):.0f} MB |",
        ]
    )


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="default")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--images", type=int, default=40)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        images = draw_images(Path(name), asked.images)
        before = predict_rate(images, asked.model)
        told = serve_and_load(asked.model, images, asked.clients, asked.seconds)
        beside = [before, predict_rate(images, asked.model)]
    print(
        f"{date.today().isoformat()}, {os.cpu_count()} cores, {platform.machine()}, "
        f"Python {platform.python_version()}.\n"
    )
    print(report(told, beside, asked.clients))


if __name__ == "__main__":
    main()
