"""How long the command line takes to print something, beside importing the training framework.

    python benchmarks/startup.py [--repeats 7]

Each row is a process of its own, the median of the repeats after one to warm the disk cache.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from datetime import date

COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import pneumoscope": ["-c", "import pneumoscope"],
    "pneumoscope --help": ["-m", "pneumoscope", "--help"],
    "pneumoscope train --help": ["-m", "pneumoscope", "train", "--help"],
    "import tensorflow (what we avoid)": ["-c", "import tensorflow"],
}


def seconds(arguments: list[str], repeats: int) -> float:
    """Median wall time of a process."""
    times = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    print(
        f"{date.today().isoformat()}, {os.cpu_count()} cores, Python {platform.python_version()}.\n"
        "\n| process | seconds |\n| --- | --- |"
    )
    for name, arguments in COMMANDS.items():
        print(f"| {name} | {seconds(arguments, repeats):.2f} |")


if __name__ == "__main__":
    main()
