"""`benchmarks/backends.py` runs: a step of training on TensorFlow, small."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "backends.py"


def test_a_step_is_timed() -> None:
    asked = ["--way", "0", "--sizes", "32", "--batch", "4", "--steps", "1"]
    asked += ["--backbone", "mobilenetv3small"]  # compiled much faster than DenseNet121
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *asked],
        env=os.environ | {"KERAS_BACKEND": "tensorflow"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found["rates"]) == 1
    assert found["rates"][0] > 0
    assert "tensorflow" in found["runtime"]
