"""What whole commands take on real X-rays: wall time and peak memory, each a process of its own.

    python benchmarks/commands.py DATA RUN

DATA is a folder of train/NORMAL and train/PNEUMONIA, RUN a finished run on it. Beside each
command the images it handled; start-up (TensorFlow's import, the network) is counted. Prints
Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path


def measured(arguments: list[str]) -> tuple[float, int]:
    """Wall seconds and peak memory in MB of one command."""
    code = (
        "import resource, subprocess, sys\n"
        "subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024)"
    )
    command = [sys.executable, "-m", "pneumoscope", *arguments, "-q"]
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, *command], check=True, stdout=subprocess.PIPE, text=True
    )
    return time.perf_counter() - started, int(done.stdout)


def main() -> None:
    """Run the commands."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("run", type=Path)
    asked = parser.parse_args()
    data, run = asked.data, asked.run
    normal = data / "train" / "NORMAL"
    xrays = len(list(normal.iterdir()))
    held_out = json.loads((run / "evaluation" / "metrics.json").read_text())["n"]
    everything = sum(path.is_file() for path in (data / "train").rglob("*"))
    model = ["--model", str(run)]
    print(
        f"{date.today().isoformat()}, {os.cpu_count()} cores, Python {platform.python_version()}.\n"
        "\n| command | images | seconds | images/s | peak MB |\n| --- | --- | --- | --- | --- |"
    )
    with tempfile.TemporaryDirectory() as name:
        out = Path(name)
        split = str(run / "split.csv")
        table = ["predict", str(normal), *model, "--out", str(out / "p.csv")]
        rows = {
            "evaluate RUN/split.csv --split val": (
                ["evaluate", split, "--split", "val", *model, "--out", str(out / "e")],
                held_out,
            ),
            "predict train/NORMAL": (table, xrays),
            "the same with --heatmaps": ([*table, "--heatmaps", str(out / "maps")], xrays),
            "data audit DATA": (["data", "audit", str(data)], everything),
        }
        for title, (arguments, images) in rows.items():
            seconds, peak = measured(arguments)
            print(f"| `{title}` | {images} | {seconds:.0f} | {images / seconds:.0f} | {peak} |")


if __name__ == "__main__":
    main()
