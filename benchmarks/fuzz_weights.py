"""Weight files changed at random: how the HDF5 library ends on them, and what pneumoscope reports.

    python benchmarks/fuzz_weights.py [--cases 8000] [--seed 0]

Each case is a small weight file with one to eight places changed: random bytes, flipped bits, or
addresses that point elsewhere in the file. A process reads it with the library alone, as
`open_weight_file` would without its check, and is ended after six seconds. Every file that crashes
the library or that it reads for ever is then given to `open_weight_file`, which must reject it by
name; anything else is a failure. Needs Linux or macOS. Prints Markdown.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
from collections import Counter
from datetime import date
from pathlib import Path

import h5py
import numpy as np

from pneumoscope import reading
from pneumoscope.errors import InputError
from pneumoscope.graph.archive import open_weight_file, read_all
from pneumoscope.progress import TerminalProgress
from pneumoscope.report.formatting import count

SECONDS = 6
_ADDRESS = 8


def weight_file(path: Path) -> bytes:
    """A file of three convolutions, as Keras 3 writes them."""
    with h5py.File(path, "w") as file:
        for number in range(3):
            group = file.create_group(f"layers/conv{number}/vars")
            group.attrs["name"] = f"conv{number}"
            group["0"] = np.ones((3, 3, 2, 2), np.float32)
            group["1"] = np.ones(2, np.float32)
    return path.read_bytes()


def changed(whole: bytes, generator: random.Random) -> bytes:
    """The file with some places changed."""
    content = bytearray(whole)
    for _ in range(generator.choice((1, 1, 2, 4, 8))):
        at, kind = generator.randrange(len(content)), generator.random()
        if kind < 0.4:
            some = generator.randbytes(generator.choice((1, 1, 2, 4, 8)))
            content[at : at + len(some)] = some
        elif kind < 0.7:
            target = generator.randrange(0, len(content), _ADDRESS)
            content[at : at + _ADDRESS] = target.to_bytes(_ADDRESS, "little")
        else:
            content[at] ^= 1 << generator.randrange(8)
    return bytes(content[: len(whole)])


def outcome(path: Path) -> str:
    """How reading a file with the library alone ends, in a process of its own."""
    child = os.fork()
    if not child:
        signal.alarm(SECONDS)
        code = 1
        try:
            read_all(str(path))
            code = 0
        except InputError:
            code = 2
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        late = os.WTERMSIG(status) == signal.SIGALRM
        return f"not over after {SECONDS} s" if late else f"signal {os.WTERMSIG(status)}"
    return {0: "read", 1: "another exception", 2: "rejected as damaged"}[os.WEXITSTATUS(status)]


def is_rejected(path: Path) -> bool:
    """Whether pneumoscope rejects a file by its name."""
    try:
        with open_weight_file(path):
            return False
    except InputError as error:
        return str(path) in str(error)


def main() -> int:
    """Run all cases; the exit code is 1 if one of them failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=8000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    reading.MOST_SECONDS = SECONDS
    counts: Counter[str] = Counter()
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "changed.h5"
        whole = weight_file(Path(folder) / "whole.h5")
        with TerminalProgress().task("files", given.cases, "files") as task:
            for case in range(given.cases):
                path.write_bytes(changed(whole, random.Random(given.seed + case)))  # noqa: S311
                ended = outcome(path)
                counts[ended] += 1
                failed += ended == "another exception"
                if ended.startswith(("signal", "not over")):
                    failed += not is_rejected(path)
                task.advance()
    print(f"{date.today()}, HDF5 {h5py.version.hdf5_version}, seed {given.seed}\n")
    print("| Reading by the library alone | files |\n| --- | ---: |")
    for words, number in counts.most_common():
        print(f"| {words} | {count(number)} |")
    print(f"\nNot rejected by pneumoscope, or another exception: {failed}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
