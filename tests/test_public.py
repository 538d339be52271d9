"""What a user meets first: light imports, exit codes, settings that round-trip."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

import pneumoscope
from pneumoscope import errors
from pneumoscope.config import TrainConfig, from_dict, from_toml, named_in, to_toml
from pneumoscope.errors import Reason, UsageError

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
        "TrainConfig",
        "__version__",
        "audit",
        "class_counts",
        "evaluate",
        "evaluate_model",
        "index",
        "load_bundle",
        "read_image",
        "split",
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


def test_config_round_trips_through_toml(tmp_path: Path) -> None:
    config = dataclasses.replace(TrainConfig(), views=7, weights="none")
    path = tmp_path / "config.toml"
    path.write_text(to_toml(config), encoding="utf-8")
    assert from_toml(TrainConfig, path) == config


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("veiws = 3", "Did you mean 'views'"),
        ("views = 'three'", "wanted int"),
        ("views = true", "wanted int"),
        ("recipe = 'magic'", "wanted one of 'frozen'"),
        ("fit = 3", "wanted a table"),
        ("[fit]\nepoch = 3", "Did you mean 'epochs'"),
        ("views = ", "is no TOML"),
        ("views = 0", "views: found 0, wanted 1 or more"),
        ("seed = -1", "seed: found -1, wanted 0 to"),
        ("[fit]\nbatch_size = 0", "fit: batch_size: found 0, wanted 1 or more"),
        ("[fit]\ndropout = 1.0", "dropout: found 1.0, wanted 0 to 0.99"),
        ("[fit]\nlearning_rate = nan", "learning_rate: found nan"),
        ("[fit]\nlearning_rate = 1" + 400 * "0", "learning_rate: found inf"),
        ("[augment]\nrotation = inf", "rotation: found inf, wanted a finite number"),
        ("[threshold]\ntarget = 2", "target: found 2.0, wanted 0 to 1"),
    ],
)
def test_bad_config_names_what_is_wrong(tmp_path: Path, text: str, fragment: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=fragment):
        from_toml(TrainConfig, path)


def test_missing_config_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Give an existing TOML file"):
        from_toml(TrainConfig, tmp_path / "none.toml")


def test_whole_numbers_serve_as_floats() -> None:
    assert from_dict(TrainConfig, {"split": {"val": 0}}, "here").split.val == 0.0


def test_settings_that_a_file_names_are_told_from_defaults(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("views = 2\n[fit]\nepochs = 3\n[provenance]\ndata = 'x'\n", encoding="utf-8")
    assert named_in(path) == {"views", "fit.epochs"}
