"""Keras comes in quietly, or with a message that says what to install."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pneumoscope.errors import ExtraMissingError
from pneumoscope.training.runtime import describe_runtime, load_keras


def test_says_nothing_on_stderr() -> None:
    code = (
        "from pneumoscope.training.runtime import load_keras\n"
        "k = load_keras(); print(k.ops.add(1, 2)); import sys; print('kept', file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "kept\n"


def test_names_what_runs() -> None:
    assert describe_runtime().startswith("keras 3.")
    assert load_keras() is load_keras()


def test_absent_keras_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "keras", None)  # as if it were not installed
    with pytest.raises(ExtraMissingError, match=r"pneumoscope\[train\]") as caught:
        load_keras()
    assert caught.value.exit_code == 4


def test_a_backend_that_is_none_is_wrong_usage() -> None:
    code = (
        "from pneumoscope.errors import UsageError\n"
        "from pneumoscope.training.runtime import load_keras\n"
        "try:\n    load_keras()\nexcept UsageError as error:\n    print(error)"
    )
    environment = os.environ | {"KERAS_BACKEND": "abacus"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.startswith("KERAS_BACKEND: found 'abacus', wanted tensorflow")
