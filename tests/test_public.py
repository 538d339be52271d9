"""What a user meets first: light imports, the public names, exit codes."""

from __future__ import annotations

import subprocess
import sys

import pytest

import pneumoscope
from pneumoscope import errors
from pneumoscope.errors import Reason

HEAVY = ("tensorflow", "keras", "openvino", "matplotlib", "torch", "jax", "numpy", "scipy")


def test_import_and_help_load_nothing_heavy() -> None:
    code = (
        "import sys, pneumoscope, pneumoscope.cli.app as a\n"
        "assert a.run(['--help']) == 0\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert "predict" in done.stdout


def test_public_surface_is_locked() -> None:
    assert sorted(pneumoscope.__all__) == [
        "Answer",
        "AugmentConfig",
        "Bundle",
        "Dataset",
        "Evaluation",
        "FitConfig",
        "IntervalConfig",
        "Prediction",
        "Predictor",
        "PreprocessConfig",
        "SplitConfig",
        "StressConfig",
        "TrainConfig",
        "__version__",
        "audit",
        "class_counts",
        "crossvalidate",
        "evaluate",
        "evaluate_model",
        "index",
        "load_bundle",
        "read_image",
        "split",
        "stress",
        "train",
        "write_phantoms",
        "write_split",
    ]
    for name in pneumoscope.__all__:
        assert getattr(pneumoscope, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = pneumoscope.nothing


def test_every_error_has_an_exit_code_of_the_contract() -> None:
    kinds = [
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, errors.PneumoscopeError)
    ]
    assert len(kinds) > 10
    assert {kind.exit_code for kind in kinds} == {1, 2, 3, 4, 130}
    for kind in kinds:
        assert kind.__name__ in (errors.__doc__ or ""), kind


def test_every_reason_is_refused_or_error() -> None:
    assert {reason.status for reason in Reason} == {"refused", "error"}
    assert Reason.TRUNCATED.status == "error"
    assert Reason.WRONG_MODALITY.status == "refused"
