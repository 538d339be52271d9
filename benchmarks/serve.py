"""The server under load: many clients, films of 2 megapixels, for some time, on loopback.

    python benchmarks/serve.py [--model default] [--clients 64] [--seconds 180] [--films 40]

Each client sends a film, waits for the answer and sends the next; told to come back later (503),
it comes back after Retry-After. `pneumoscope predict` answers for the same films in the same run,
before and after, and what it does in a second is what the server is measured by. The films are
drawn, so no data are needed. Prints Markdown: statuses, latency of what was accepted, throughput,
memory.
"""

from __future__ import annotations

import argparse
import asyncio
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

import httpx
import numpy as np
from PIL import Image

LARGE = (1600, 1250)
"""Width and height of a film of 2 megapixels."""

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


def draw_films(folder: Path, count: int) -> list[Path]:
    """Drawn films as JPEGs of 2 megapixels."""
    from pneumoscope.images.phantom import draw

    made = []
    for number in range(count):
        pixels = draw(0, f"guest-{number}", film=1, label=number % 2).pixels
        film = Image.fromarray(np.round(pixels * 255).astype(np.uint8))
        path = folder / f"{number}.jpeg"
        film.resize(LARGE, Image.Resampling.BICUBIC).save(path, quality=92)
        made.append(path)
    return made


def predict_rate(films: list[Path], model: str) -> tuple[float, float]:
    """Films per second of `predict`, and its processor seconds per film, start-up taken off."""

    def seconds(paths: list[Path]) -> tuple[float, float]:
        command = [sys.executable, "-m", "pneumoscope", "predict", "-q", "--json"]
        began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [*command, "--model", model, *map(str, paths)], check=True, stdout=subprocess.DEVNULL
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        worked = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return time.perf_counter() - began, worked

    seconds(films[:2])  # fills the cache of compiled graphs
    (wall, worked), (least_wall, least_worked) = seconds(films * 4), seconds(films[:2])
    more = 4 * len(films) - 2
    return more / (wall - least_wall), (worked - least_worked) / more


async def load(url: str, process: int, films: list[bytes], clients: int, seconds: float) -> Load:
    """`clients` at once for `seconds`."""
    told = Load()
    began = time.perf_counter()
    limits = httpx.Limits(max_connections=clients + 1, max_keepalive_connections=clients + 1)
    async with httpx.AsyncClient(
        base_url=url, timeout=120, limits=limits, trust_env=False
    ) as client:

        async def one(number: int) -> None:
            while time.perf_counter() - began < seconds:
                sent = {"file": ("film.jpeg", films[number % len(films)])}
                asked = time.perf_counter()
                response = await client.post("v1/predictions", files=sent)
                told.statuses[response.status_code] += 1
                if response.status_code == httpx.codes.OK:
                    told.seconds.append(time.perf_counter() - asked)
                else:
                    await asyncio.sleep(float(response.headers.get("Retry-After", "1")))
                number += clients

        async def watch() -> None:
            while True:
                told.memory_mb.append((time.perf_counter() - began, resident_mb(process)))
                await asyncio.sleep(1)

        watching = asyncio.create_task(watch())
        told.worked = -worked_seconds(process)
        await asyncio.gather(*map(one, range(clients)))
        told.worked += worked_seconds(process)
        watching.cancel()
    told.elapsed = time.perf_counter() - began
    return told


def resident_mb(process: int) -> float:
    """Memory of a process, Linux alone."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def worked_seconds(process: int) -> float:
    """Processor time of a process, Linux alone."""
    fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def serve_and_load(model: str, films: list[Path], clients: int, seconds: float) -> Load:
    """A server of its own, loaded, and stopped."""
    command = [sys.executable, "-m", "pneumoscope", "serve", "--model", model, "--port", "0"]
    with tempfile.TemporaryFile("w+") as log:
        server = subprocess.Popen(command, stderr=log, stdout=subprocess.DEVNULL)
        try:
            while not (url := listening(log)):
                if server.poll() is not None:
                    sys.exit("the server did not start")
                time.sleep(0.1)
            contents = [path.read_bytes() for path in films]
            return asyncio.run(load(url, server.pid, contents, clients, seconds))
        finally:
            server.terminate()
            server.wait(60)


def listening(log: io.TextIOBase) -> str:
    """The server's address, when it has said so."""
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
    ours = told.worked / len(told.seconds)
    theirs = sum(worked for _, worked in beside) / len(beside)
    counts = ", ".join(f"{code}: {n}" for code, n in sorted(told.statuses.items()))
    return "\n".join(
        [
            f"{clients} clients for {told.elapsed:.0f} s:",
            "",
            "| what | found |",
            "| --- | ---: |",
            f"| answers by status | {counts} |",
            f"| accepted: median, 99 % within | {p50:.2f} s, {p99:.2f} s |",
            f"| accepted films/s | {throughput:.1f} |",
            f"| `predict` films/s, before and after | {rates[0]:.1f}, {rates[1]:.1f} |",
            f"| server over `predict` | {throughput / predict:.2f} |",
            f"| processor seconds per film, server and `predict` | {ours:.3f}, {theirs:.3f} |",
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
    parser.add_argument("--films", type=int, default=40)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        films = draw_films(Path(name), asked.films)
        before = predict_rate(films, asked.model)
        told = serve_and_load(asked.model, films, asked.clients, asked.seconds)
        beside = [before, predict_rate(films, asked.model)]
    print(
        f"{date.today().isoformat()}, {os.cpu_count()} cores, {platform.machine()}, "
        f"Python {platform.python_version()}.\n"
    )
    print(report(told, beside, asked.clients))


if __name__ == "__main__":
    main()
