"""Batch prediction on Ray: two nodes of one core each against one node of one core.

    python benchmarks/ray_nodes.py [--files 4000] [--rounds 3]

Both nodes are raylets on this machine, each bound to a core of its own (Linux), with the model that
ships. The files are links to 200 drawn X-rays of 224 pixels, so that storage and network play no
part. Every run is a process of its own, and the two kinds take turns. Counted are the whole run,
and its rate between the first and the last row, without the start of Ray and of the graphs. Needs
the extra `ray`. Prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

from pneumoscope.config import BatchConfig
from pneumoscope.images.phantom import write_phantoms
from pneumoscope.progress import Task
from pneumoscope.report.formatting import count
from pneumoscope.workflows.predict import run_prediction

DRAWN = 200
_STORE = 100 << 20


class Watch:
    """A progress that notes when the first and the last row came."""

    def __init__(self) -> None:
        self.first = self.last = 0.0
        self.before = self.rows = 0

    @contextmanager
    def task(self, title: str, total: int, unit: str) -> Iterator[Task]:
        """Begin to watch."""
        yield self

    def advance(self, count: int = 1, note: str = "") -> None:
        """Note rows."""
        self.last = time.perf_counter()
        self.rows += count
        if not self.first:
            self.first, self.before = self.last, self.rows


def run_on(nodes: int, folder: Path) -> dict[str, float]:
    """One run on so many nodes; in a process that does nothing else."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # keeps it to the loopback
    import ray
    from ray.cluster_utils import Cluster

    node: dict[str, Any] = {"num_cpus": 1, "object_store_memory": _STORE}
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[:1])  # a raylet and its workers inherit it
    cluster = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
    if nodes == 2:
        os.sched_setaffinity(0, cores[1:2])
        cluster.add_node(**node)
    os.sched_setaffinity(0, cores)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    watch, began = Watch(), time.perf_counter()
    batch = BatchConfig(engine="ray", input_check=False)
    with tempfile.TemporaryDirectory() as out:
        table = Path(out) / "rows.csv"
        document, _, _ = run_prediction([folder], "default", table, None, watch, batch=batch)
    whole = time.perf_counter() - began
    ray.shutdown()
    cluster.shutdown()
    if document["counts"]["ok"] != watch.rows:
        raise SystemExit(f"not every file has a row: {document['counts']}")
    rate = (watch.rows - watch.before) / (watch.last - watch.first)
    return {"seconds": whole, "rate": rate}


def main() -> None:
    """Take turns, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.only:
        print(json.dumps(run_on(given.only, given.folder)))
        return
    found: dict[int, list[dict[str, float]]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as base:
        drawn = sorted(write_phantoms(Path(base) / "drawn", DRAWN, 1).rglob("*.png"))
        folder = Path(base) / "files"
        folder.mkdir()
        for number in range(given.files):
            (folder / f"{number:06}.png").hardlink_to(drawn[number % len(drawn)])
        for _ in range(given.rounds):
            for nodes, runs in found.items():
                command = [sys.executable, __file__, "--only", str(nodes), "--folder", str(folder)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                runs.append(json.loads(done.stdout.splitlines()[-1]))
    print(f"{date.today()}, {count(given.files)} files, {given.rounds} rounds, median\n")
    print("| nodes of one core | whole run | images/s from first to last row |")
    print("| ---: | ---: | ---: |")
    rates = {}
    for nodes, runs in found.items():
        seconds = statistics.median(run["seconds"] for run in runs)
        rates[nodes] = statistics.median(run["rate"] for run in runs)
        print(f"| {nodes} | {seconds:.1f} s | {rates[nodes]:.0f} |")
    print(f"\nTwo nodes against one: {rates[2] / rates[1]:.2f} times the images/s.")


if __name__ == "__main__":
    main()
