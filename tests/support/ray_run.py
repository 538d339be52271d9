"""A run of `predict --engine ray` on two nodes of this machine, one of which is killed on the way.

Run as a script, in a process of its own: Ray keeps much of a process, and warns a lot.

    python ray_run.py URL MODEL OUT KILL_AFTER

Prints one JSON document: rows when the node was killed, nodes alive at the end, the workflow's
counts.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pneumoscope.config import BatchConfig
from pneumoscope.progress import Task
from pneumoscope.workflows.predict import run_prediction

HASTY = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 3,
}
"""How soon a node that does not respond counts as dead."""


class Killing:
    """A progress that kills a node when so many rows have come."""

    def __init__(self, cluster: Any, node: Any, after: int) -> None:
        self._cluster, self._node, self._after = cluster, node, after
        self.rows = 0

    @contextmanager
    def task(self, title: str, total: int, unit: str) -> Iterator[Task]:
        yield self

    def advance(self, count: int = 1, note: str = "") -> None:
        self.rows += count
        if self.rows == self._after:
            self._cluster.remove_node(self._node, allow_graceful=False)  # SIGKILL


def main() -> None:
    url, model, out, after = sys.argv[1:]
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # which makes it keep to the loopback
    import ray
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 2, "object_store_memory": 100 << 20}
    head = node | {"include_dashboard": False, "_system_config": HASTY}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    other = cluster.add_node(**node)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    both = sum(node["Alive"] for node in ray.nodes())
    watching = Killing(cluster, other, int(after))
    document, _, _ = run_prediction(
        [url], model, Path(out), None, watching, batch=BatchConfig(engine="ray")
    )
    alive = sum(node["Alive"] for node in ray.nodes())
    found = {"nodes": [both, alive], "rows": watching.rows, "counts": document["counts"]}
    ray.shutdown()
    cluster.shutdown()
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
