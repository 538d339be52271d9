"""Import of Keras: the requested backend, or a message with the reason."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest

from pneumoscope.errors import ExtraMissingError, UsageError
from pneumoscope.training import runtime
from pneumoscope.training.runtime import (
    arithmetic,
    choose_backend,
    describe_runtime,
    distribute,
    load_keras,
)


def test_prints_nothing_on_stderr() -> None:
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


Install = Callable[..., None]


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> Install:
    """As if Keras were not imported yet and just these backends installed."""
    monkeypatch.setenv("KERAS_BACKEND", "")  # so that what a test sets is taken back
    monkeypatch.delenv("KERAS_BACKEND")
    monkeypatch.delitem(sys.modules, "keras", raising=False)

    def install(*names: str) -> None:
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name: object() if name in names else None
        )

    return install


@pytest.mark.parametrize(
    ("installed", "convolutions", "chosen"),
    [
        (("tensorflow", "torch", "jax"), True, "torch"),
        (("tensorflow", "torch", "jax"), False, "tensorflow"),
        (("tensorflow", "jax"), True, "tensorflow"),
        (("torch", "jax"), False, "torch"),
        (("jax",), True, "jax"),
        ((), True, "tensorflow"),  # what the extra installs, so that the error names that
    ],
)
def test_auto_takes_the_fastest_that_is_installed(
    unloaded: Install, installed: tuple[str, ...], convolutions: bool, chosen: str
) -> None:
    unloaded(*installed)
    choose_backend("auto", trains_convolutions=convolutions)
    assert os.environ["KERAS_BACKEND"] == chosen


def test_auto_heeds_the_environment(unloaded: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    unloaded("tensorflow", "torch", "jax")
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    choose_backend("auto", trains_convolutions=True)
    assert os.environ["KERAS_BACKEND"] == "jax"


def test_a_name_goes_before_the_environment(
    unloaded: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    unloaded("tensorflow", "torch")
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    choose_backend("torch", trains_convolutions=False)
    assert os.environ["KERAS_BACKEND"] == "torch"


def test_what_runs_already_stays_or_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    running = load_keras().backend.backend()
    other = "jax" if running != "jax" else "torch"
    monkeypatch.setenv("KERAS_BACKEND", running)
    choose_backend("auto", trains_convolutions=True)
    choose_backend(running, trains_convolutions=True)
    wanted = f"backend: found Keras running on {running} in this process, wanted {other}"
    with pytest.raises(UsageError, match=wanted):
        choose_backend(other, trains_convolutions=True)
    assert os.environ["KERAS_BACKEND"] == running
    assert load_keras().backend.backend() == running


def test_the_choice_is_what_keras_then_runs_on() -> None:
    """In a separate process, with another setting in the environment."""
    code = (
        "from pneumoscope.training.runtime import choose_backend, describe_runtime\n"
        "choose_backend('tensorflow', trains_convolutions=True)\n"
        "print(describe_runtime())"
    )
    environment = os.environ | {"KERAS_BACKEND": "abacus"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert " on tensorflow " in done.stdout


def policies() -> tuple[str, str]:
    """Compute and variable type of a layer made now."""
    layer = load_keras().layers.Dense(1)
    layer.build((None, 2))
    return layer.compute_dtype, layer.kernel.dtype


def test_bfloat16_is_for_layers_made_inside_and_their_weights_stay_float32() -> None:
    before = policies()
    with arithmetic("bf16"):
        layer = load_keras().layers.Dense(1)
        assert policies() == ("bfloat16", "float32")
    assert policies() == before
    out = layer(np.ones((2, 3), np.float32))  # used later, it keeps what it was made with
    assert "bfloat16" in str(out.dtype)


def test_f32_is_float32_whatever_is_set_outside() -> None:
    with arithmetic("bf16"), arithmetic("f32"):
        assert policies() == ("float32", "float32")


def test_the_policy_of_before_comes_back_after_an_error() -> None:
    before = policies()
    with pytest.raises(KeyboardInterrupt), arithmetic("bf16"):
        raise KeyboardInterrupt
    assert policies() == before


@pytest.mark.parametrize(
    ("backend", "gpus", "compute"),
    [
        ("tensorflow", [], "float32"),
        ("tensorflow", ["gpu:0"], "bfloat16"),
        ("jax", [], "float32"),
        ("jax", ["gpu:0", "gpu:1"], "bfloat16"),
    ],
)
def test_auto_is_bfloat16_where_it_is_faster(
    monkeypatch: pytest.MonkeyPatch, backend: str, gpus: list[str], compute: str
) -> None:
    keras = load_keras()
    pretended = SimpleNamespace(
        config=keras.config,
        backend=SimpleNamespace(backend=lambda: backend),
        distribution=SimpleNamespace(list_devices=lambda: [*gpus, "cpu:0"]),
    )
    with monkeypatch.context() as patched:
        patched.setattr(runtime, "load_keras", lambda: pretended)
        with arithmetic("auto"):
            assert policies()[0] == compute
    assert policies()[0] == "float32"


def test_other_backends_than_jax_run_on_one_device() -> None:
    """What JAX does with several is in `test_backends.py`."""
    if load_keras().backend.backend() == "jax":
        pytest.skip("Keras runs on JAX here")
    assert distribute(7) == 1
    assert load_keras().distribution.distribution() is None
