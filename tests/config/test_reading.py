"""Settings read back to what was written; errors in a file name their place."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from pathlib import Path

import pytest

from pneumoscope.config import (
    RECIPES,
    FitConfig,
    PreprocessConfig,
    ScratchConfig,
    TrainConfig,
    check_ranges,
    from_dict,
    from_toml,
    named_in,
    replace_from,
    to_dict,
    to_toml,
)
from pneumoscope.errors import UsageError

CHANGED = TrainConfig(
    views=7,
    weights="none",
    seeds=(0, 1, 2),
    flip=True,
    fit=FitConfig(epochs=3, learning_rate=1 / 3),
    scratch=ScratchConfig(sizes=(64, 96), shares=(0.25, 0.75)),
)


@pytest.mark.parametrize("config", [CHANGED, *RECIPES.values()], ids=["changed", *RECIPES])
def test_config_round_trips_through_toml(tmp_path: Path, config: TrainConfig) -> None:
    path = tmp_path / "config.toml"
    path.write_text(to_toml(config), encoding="utf-8")
    assert from_toml(TrainConfig, path) == config
    assert from_dict(TrainConfig, to_dict(config), "here", complete=True) == config


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("veiws = 3", "Did you mean 'views'"),
        ("qqq = 3", "Known: .*views"),
        ("views = 'three'", "wanted int"),
        ("views = 2.0", "wanted int"),
        ("views = true", "wanted int"),
        ("recipe = 'magic'", "wanted one of 'frozen'"),
        ("recipe = ['frozen']", "wanted one of 'frozen'"),
        ("fit = 3", "wanted a table"),
        ("[fit]\nepoch = 3", "fit: .*Did you mean 'epochs'"),
        ("views = ", "is not valid TOML"),
        ("views = 0", "views: found 0, wanted 1 or more"),
        ("seed = -1", "seed: found -1, wanted 0 to"),
        ("flip = 1", "flip: found 1, wanted bool"),
        ("seeds = 1", "seeds: found 1, wanted list"),
        ("seeds = [1, 2.5]", r"seeds\[1\]: found 2.5, wanted int"),
        ("seeds = [1, true]", r"seeds\[1\]: found True, wanted int"),
        ("seeds = [0, -1]", "seeds: found -1, wanted 0 to"),
        ("[fit]\nbatch_size = 0", "fit: batch_size: found 0, wanted 1 or more"),
        ("[fit]\ndropout = 1.0", "dropout: found 1.0, wanted 0 to 0.99"),
        ("[fit]\nlearning_rate = nan", "learning_rate: found nan"),
        ("[fit]\nlearning_rate = 1" + 400 * "0", "learning_rate: found inf"),
        ("[fit]\nema = 1.0", "ema: found 1.0, wanted 0 to 0.99999"),
        ("[fit]\nwarmup = 0.95", "warmup: found 0.95, wanted 0 to 0.9"),
        ("[fit]\nschedule = 'linear'", "schedule: found 'linear', wanted one of 'constant'"),
        ("[augment]\nrotation = inf", "rotation: found inf, wanted a finite number"),
        ("[distort]\nflip = 1.5", "distort: flip: found 1.5, wanted 0 to 1"),
        ("[scratch]\nsizes = ['96']", r"sizes\[0\]: found '96', wanted int"),
        ("[scratch]\nshares = [inf]", "shares: found inf, wanted a finite number"),
        ("[threshold]\ntarget = 2", "target: found 2.0, wanted 0 to 1"),
    ],
)
def test_bad_config_names_what_is_wrong(tmp_path: Path, text: str, fragment: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=fragment) as caught:
        from_toml(TrainConfig, path)
    assert str(path) in str(caught.value)


def test_missing_config_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Give an existing TOML file"):
        from_toml(TrainConfig, tmp_path / "none.toml")


def test_bytes_that_are_no_text_are_no_toml(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(b"weights = '\xff'")
    with pytest.raises(UsageError, match="is not valid TOML"):
        from_toml(TrainConfig, path)


def test_whole_numbers_serve_as_floats() -> None:
    found = from_dict(TrainConfig, {"split": {"val": 0}, "scratch": {"shares": [1]}}, "here")
    assert found.split.val == 0.0
    assert isinstance(found.split.val, float)
    assert found.scratch.shares == (1.0,)


def test_what_is_left_out_comes_from_the_base_at_every_depth() -> None:
    found = from_dict(TrainConfig, {"views": 2, "fit": {"epochs": 5}}, "here", base=CHANGED)
    assert found == replace(CHANGED, views=2, fit=replace(CHANGED.fit, epochs=5))
    plain = from_dict(TrainConfig, {"views": 2, "fit": {"epochs": 5}}, "here")
    assert plain == TrainConfig(views=2, fit=FitConfig(epochs=5))


def test_a_complete_document_leaves_nothing_out() -> None:
    document = to_dict(PreprocessConfig())
    assert from_dict(PreprocessConfig, document, "bundle.json", complete=True) == PreprocessConfig()
    for name in document:
        lacking = {key: value for key, value in document.items() if key != name}
        with pytest.raises(UsageError, match=f"bundle.json: '{name}' is missing"):
            from_dict(PreprocessConfig, lacking, "bundle.json", complete=True)


def test_settings_that_a_file_names_are_distinguished_from_defaults(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("views = 2\n[fit]\nepochs = 3\n[provenance]\ndata = 'x'\n", encoding="utf-8")
    assert named_in(path) == {"views", "fit.epochs"}


@pytest.mark.parametrize(
    "text",
    [
        "epochs = " + "1" * 5000,
        "a = " + "[" * 5000 + "]" * 5000,
        "# \n" * 400_000,
        "a" + ".a" * 301 + "=1",
    ],
)
def test_toml_that_is_none_is_rejected(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.toml").write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=r"c\.toml: "):
        from_toml(TrainConfig, tmp_path / "c.toml")


def test_a_setting_nested_deeply_is_unknown(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("a" + ".a" * 300 + " = 1", encoding="utf-8")
    assert len(named_in(tmp_path / "c.toml")) == 1
    with pytest.raises(UsageError, match="unknown setting 'a'"):
        from_toml(TrainConfig, tmp_path / "c.toml")


def test_ranges_hold_for_configs_made_in_python_too() -> None:
    for config in RECIPES.values():
        check_ranges(config)
    with pytest.raises(UsageError, match="fit: epochs: found 0, wanted 1 or more"):
        check_ranges(TrainConfig(fit=FitConfig(epochs=0)))
    with pytest.raises(UsageError, match="seeds: found -3"):
        check_ranges(TrainConfig(seeds=(1, -3)))


def test_replacing_takes_what_is_given_only() -> None:
    assert replace_from(CHANGED, views=None, seed=None) == CHANGED
    assert replace_from(CHANGED, views=1, flip=False) == replace(CHANGED, views=1, flip=False)
    assert dataclasses.is_dataclass(replace_from(CHANGED))
