"""`predict --engine ray` on two nodes, one killed on the way: the rows are those of one machine."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pneumoscope.config import BatchConfig
from pneumoscope.errors import UsageError
from pneumoscope.progress import SILENT
from pneumoscope.workflows.predict import run_prediction
from support import ray_run
from support.small_bundle import small_bundle

pytestmark = pytest.mark.engines

IMAGES = 640
SECONDS = 0.02
"""That the storage takes for an image, so that there is a midst to kill in."""


def test_a_cluster_makes_no_heatmaps_and_one_machine_reads_no_urls(tmp_path: Path) -> None:
    ray = BatchConfig(engine="ray")
    with pytest.raises(UsageError, match="--engine ray writes tables only"):
        run_prediction([tmp_path], "default", None, tmp_path / "maps", SILENT, batch=ray)
    with pytest.raises(UsageError, match="Use --engine ray"):
        run_prediction(["s3://images/a.png"], "default", None, None, SILENT)


def rows_of(table: Path) -> list[dict[str, str]]:
    with table.open(newline="", encoding="utf-8") as stream:
        return [row | {"path": row["path"].rsplit("/", 1)[1]} for row in csv.DictReader(stream)]


@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("ray", "pyarrow", "aiohttp"))),
    reason="Ray is not installed (extra ray)",
)
def test_a_node_is_killed_and_nothing_is_lost_or_doubled(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for k in range(IMAGES):
        coarse = Image.fromarray(generator.integers(0, 256, (8, 8), dtype=np.uint8))
        coarse.resize((64, 64), Image.Resampling.BICUBIC).save(folder / f"{k:04}.png")
    (folder / "0100.png").write_bytes(b"no image")
    model = str(small_bundle(tmp_path / "model").folder)
    asked: Counter[str] = Counter()

    class Slow(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            asked[self.path] += 1
            time.sleep(SECONDS)
            super().do_GET()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Slow, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        command = [sys.executable, ray_run.__file__, f"http://127.0.0.1:{server.server_port}/"]
        done = subprocess.run(
            [*command, model, str(tmp_path / "cluster.csv"), "40"],
            capture_output=True,
            text=True,
            timeout=180,
            env=os.environ | {"PYTHONWARNINGS": "ignore"},
        )
    finally:
        server.shutdown()
        server.server_close()
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["nodes"] == [2, 1]
    assert told["rows"] == IMAGES
    assert told["counts"] == {"ok": IMAGES - 1, "refused": 1, "error": 0}
    # What the lost node had begun was read again by the other.
    assert len(asked) == IMAGES + 1
    assert max(asked.values()) >= 2
    run_prediction([folder], model, tmp_path / "alone.csv", None, SILENT)
    alone, cluster = rows_of(tmp_path / "alone.csv"), rows_of(tmp_path / "cluster.csv")
    assert cluster == alone
    assert len(alone) == IMAGES
