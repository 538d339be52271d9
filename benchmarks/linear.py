"""Does the cost of `predict` grow with the number of files, and with nothing else?

    python benchmarks/linear.py DATA [--model default] [--counts 1000 10000 100000] [--workers 0]
        [--precision auto]

For each count a folder of so many links to the images of DATA, a thousand to a folder, and one
`predict` on it in a process of its own, start to end, table included. Prints Markdown: images/s
after start-up (the time of one image), peak memory, and both against the first count.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

_PER_FOLDER = 1000


@dataclass(frozen=True, slots=True)
class Measured:
    """One process: wall time, and the most memory of it or any process of its own."""

    seconds: float
    peak_mb: float


def linked(images: Sequence[Path], count: int, folder: Path) -> Path:
    """A folder of folders with `count` links to images, over and over the same."""
    for number in range(count):
        image = images[number % len(images)]
        inner = folder / f"{number // _PER_FOLDER:05}"
        if number % _PER_FOLDER == 0:
            inner.mkdir(parents=True)
        (inner / f"{number:07}{image.suffix}").symlink_to(image)
    return folder


def measured(command: Sequence[str]) -> Measured:
    """Run a command to its end."""
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return Measured(time.perf_counter() - started, usage.ru_maxrss / 1024)


def table_of(found: dict[int, Measured], alone: Measured) -> str:
    """Every count beside the first, as Markdown."""
    lines = [
        "| files | seconds | images/s after start-up | peak memory, MB |",
        "| ---: | ---: | ---: | ---: |",
    ]
    rates = {n: (n - 1) / max(run.seconds - alone.seconds, 1e-9) for n, run in found.items()}
    first = next(iter(found))
    for count, run in found.items():
        lines.append(
            f"| {count:,} | {run.seconds:.1f} | {rates[count]:.1f} "
            f"({rates[count] / rates[first]:.2f} ×) | {run.peak_mb:.0f} "
            f"({run.peak_mb - found[first].peak_mb:+.0f}) |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="a folder of JPEGs")
    parser.add_argument("--model", default="default")
    parser.add_argument("--counts", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--precision", help="handed on to predict")
    asked = parser.parse_args()
    images = sorted(path.resolve() for path in asked.data.rglob("*.jpeg"))
    options = ["--model", asked.model, "--workers", str(asked.workers), "-q"]
    options += ["--precision", asked.precision] if asked.precision else []
    start = [sys.executable, "-m", "pneumoscope", "predict"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def run(what: Path) -> Measured:
            return measured([*start, str(what), *options, "--out", str(folder / "p.csv")])

        run(linked(images, 2, folder / "two"))  # fills the cache of compiled graphs: both sizes
        run(images[0])
        alone = run(images[0])
        print(
            f"{date.today().isoformat()}, {os.cpu_count()} cores, {platform.machine()}, "
            f"Python {platform.python_version()}; one image: {alone.seconds:.1f} s, "
            f"{alone.peak_mb:.0f} MB.\n"
        )
        found = {n: run(linked(images, n, folder / str(n))) for n in asked.counts}
    print(table_of(found, alone))


if __name__ == "__main__":
    main()
