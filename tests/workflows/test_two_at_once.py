"""Two commands into one folder at once: the second fails with a message, and touches nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pneumoscope.config import TrainConfig
from pneumoscope.errors import UsageError
from pneumoscope.progress import SILENT
from pneumoscope.storage import alone_in
from pneumoscope.workflows.compare import run_compare
from pneumoscope.workflows.evaluate import evaluate_model
from pneumoscope.workflows.stress import stress
from pneumoscope.workflows.train import run_training, train

COMMANDS: list[Callable[[Path, Path], Any]] = [
    lambda data, out: train(data, out),
    lambda data, out: train(data, out, resume=True),
    lambda data, out: run_training(data, out, TrainConfig(), SILENT),
    lambda data, out: evaluate_model(data, out),
    lambda data, out: stress(data, out),
    lambda data, out: run_compare("default", "default", data, out),
]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_second_one_fails_and_touches_nothing(
    tmp_path: Path, command: Callable[[Path, Path], Any]
) -> None:
    out = tmp_path / "out"
    with alone_in(out):
        with pytest.raises(UsageError, match="another process is writing there"):
            command(tmp_path / "data", out)
        assert [path.name for path in out.iterdir()] == [".lock"]


def test_a_command_that_fails_leaves_no_folder_behind(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="data"):
        train(tmp_path / "data", tmp_path / "out")
    assert not (tmp_path / "out").exists()
