"""`predict` killed again and again and resumed: is the table that of an unbroken run?

    python benchmarks/kills.py DATA [--model default] [--images 4000] [--kills 10] [--workers 0]

First one run to its end, which shows how long it takes. Then as many runs with `--resume` as there
are kills, each ended by SIGKILL at a moment drawn at random, so that they share the way among them;
then one more to the end. Prints Markdown: when each kill came, how many rows it left, and whether
the two tables agree byte for byte. Ends with 1 if they don't, or a run was over before its kill.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np


@dataclass(frozen=True, slots=True)
class Killed:
    """One run that was begun to be killed.

    Attributes:
        seconds: from its start to the kill.
        rows: in the journal afterwards.
        alive: whether it was still running when the kill came.
    """

    seconds: float
    rows: int
    alive: bool


def rows_in(journal: Path) -> int:
    """Whole rows of a journal, without its first line; 0 if there is none."""
    return max(journal.read_bytes().count(b"\n") - 1, 0) if journal.exists() else 0


def kill_one_by_one(
    command: Sequence[str], journal: Path, moments: Sequence[float], chunk: int = 0
) -> Iterator[Killed]:
    """Run the command once per moment and kill it then.

    Args:
        command: resumes what the one before it left.
        journal: where its rows are until the table is whole.
        moments: seconds from the start; with `chunk`, from when so many rows have been added.
        chunk: rows that each run must add before its time counts.
    """
    for moment in moments:
        before = rows_in(journal)
        started = time.monotonic()
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            while rows_in(journal) < before + chunk and process.poll() is None:
                time.sleep(0.01)
            try:
                process.wait(moment)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
            alive = process.wait() == -signal.SIGKILL
        yield Killed(time.monotonic() - started, rows_in(journal), alive)


def linked(images: Sequence[Path], count: int, folder: Path) -> None:
    """A folder of `count` links to images, over and over the same."""
    folder.mkdir()
    for number in range(count):
        image = images[number % len(images)]
        (folder / f"{number:07}{image.suffix}").symlink_to(image)


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="a folder of JPEGs")
    parser.add_argument("--model", default="default")
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    found = sorted(path.resolve() for path in asked.data.rglob("*.jpeg"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        linked(found, asked.images, folder / "images")
        command = [
            *(sys.executable, "-m", "pneumoscope", "predict", str(folder / "images")),
            *("--model", asked.model, "--workers", str(asked.workers), "-q", "--out"),
        ]
        whole, broken = folder / "whole.csv", folder / "broken.csv"
        begun = time.monotonic()
        subprocess.run([*command, str(whole)], check=True, stdout=subprocess.DEVNULL)
        length = time.monotonic() - begun
        # On average they come to a little less than the whole way, start-ups left aside.
        draw = np.random.default_rng(asked.seed).uniform(0, 1.8 * length / asked.kills, asked.kills)
        print(
            f"{date.today().isoformat()}, {os.cpu_count()} cores, {asked.images} images, unbroken "
            f"{length:.1f} s.\n\n| kill | after, s | rows in the journal |\n| ---: | ---: | ---: |"
        )
        again = [*command, str(broken), "--resume"]
        kills = list(kill_one_by_one(again, broken.with_name("broken.csv.partial"), list(draw)))
        for number, kill in enumerate(kills, 1):
            words = "" if kill.alive else " (was over before)"
            print(f"| {number} | {kill.seconds:.1f} | {kill.rows}{words} |")
        subprocess.run(again, check=True, stdout=subprocess.DEVNULL)
        same = whole.read_bytes() == broken.read_bytes()
    print(f"\nThe tables {'agree byte for byte' if same else 'differ'}.")
    if not same or not all(kill.alive for kill in kills):
        sys.exit(1)


if __name__ == "__main__":
    main()
