"""A recipe is a complete configuration; a file changes only what it names."""

from __future__ import annotations

import inspect
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from pneumoscope.config import (
    RECIPES,
    FitConfig,
    PreprocessConfig,
    TrainConfig,
    to_toml,
    training_config,
)
from pneumoscope.errors import UsageError


def written(folder: Path, text: str) -> Path:
    path = folder / "settings.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_there_are_three_and_each_knows_its_name() -> None:
    assert list(RECIPES) == ["frozen", "finetune", "scratch"]
    for name, config in RECIPES.items():
        assert config.recipe == name
        assert training_config(name) == config


def test_without_a_name_and_a_file_it_is_frozen_as_ever() -> None:
    assert training_config() == RECIPES["frozen"] == TrainConfig()


def test_what_the_recipes_are_known_for() -> None:
    finetune, scratch = RECIPES["finetune"].fit, RECIPES["scratch"].fit
    assert RECIPES["scratch"].weights == "none"
    assert (finetune.schedule, scratch.schedule) == ("cosine", "one-cycle")
    for fit in (finetune, scratch):
        assert fit.warmup > 0
        assert fit.ema > 0
        assert fit.weight_decay > 0
        assert fit.label_smoothing > 0
    assert finetune.stop_patience < finetune.epochs  # it stops early
    sizes = RECIPES["scratch"].scratch.sizes
    assert list(sizes) == sorted(sizes)
    assert sizes[-1] == RECIPES["scratch"].preprocess.size  # the last size is that of inference
    assert sum(RECIPES["scratch"].scratch.shares) == pytest.approx(1)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_file_overrides_what_it_names(tmp_path: Path, recipe: str) -> None:
    path = written(tmp_path, "views = 2\n[fit]\nepochs = 3\n")
    base = RECIPES[recipe]
    assert training_config(recipe, path) == replace(base, views=2, fit=replace(base.fit, epochs=3))


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_file_may_name_the_recipe(tmp_path: Path, recipe: str) -> None:
    path = written(tmp_path, f"recipe = '{recipe}'\nseed = 4\n")
    assert training_config(None, path) == replace(RECIPES[recipe], seed=4)


def test_a_name_given_goes_before_the_files(tmp_path: Path) -> None:
    path = written(tmp_path, "recipe = 'finetune'\nseed = 4\n")
    assert training_config("scratch", path) == replace(RECIPES["scratch"], seed=4)


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_file_that_a_run_writes_says_it_all(tmp_path: Path, recipe: str) -> None:
    config = replace(RECIPES[recipe], seed=9, seeds=(1, 2), flip=True, backend="jax")
    assert training_config(None, written(tmp_path, to_toml(config))) == config


@pytest.mark.parametrize(
    ("recipe", "text", "fragment"),
    [
        ("magic", "", "found 'magic', wanted one of 'frozen', 'finetune', 'scratch'"),
        (None, "recipe = 'magic'", "settings.toml: recipe: found 'magic'"),
        (None, "recipe = 3", "settings.toml: recipe: found 3"),
        ("scratch", "[scratch]\nsize = [96]", "scratch: .*Did you mean 'sizes'"),
        ("finetune", "[finetune]\nunfreeze = 'conv3'", "wanted one of 'conv5', 'conv4', 'all'"),
    ],
)
def test_what_is_wrong_is_named(
    tmp_path: Path, recipe: str | None, text: str, fragment: str
) -> None:
    with pytest.raises(UsageError, match=fragment):
        training_config(recipe, written(tmp_path, text))


def test_a_name_that_is_wrong_is_looked_for_where_it_was_given() -> None:
    with pytest.raises(UsageError, match="--recipe: recipe: found 'magic'"):
        training_config("magic")


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_constructor_means_what_the_command_line_means(
    recipe: Literal["frozen", "finetune", "scratch"],
) -> None:
    assert TrainConfig(recipe=recipe) == TrainConfig(recipe) == training_config(recipe)
    changed = TrainConfig(recipe=recipe, views=3, fit=FitConfig(epochs=2))
    assert changed == replace(RECIPES[recipe], views=3, fit=FitConfig(epochs=2))
    assert replace(RECIPES["frozen"], recipe=recipe).fit == RECIPES["frozen"].fit
    assert pickle.loads(pickle.dumps(changed)) == changed  # noqa: S301


def test_the_constructor_keeps_its_signature() -> None:
    parameters = inspect.signature(TrainConfig).parameters
    assert list(parameters)[:3] == ["recipe", "backbone", "weights"]
    with pytest.raises(TypeError, match="magic"):
        TrainConfig(magic=1)  # type: ignore[call-arg]  # refused: there is no such setting


def test_single_settings_override_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, "views = 2\nseed = 4\n[fit]\nepochs = 3\n")
    base = RECIPES["scratch"]
    found = training_config("scratch", path, seed=5, seeds=(1, 2), fit={"batch_size": 8}, epochs=7)
    fit = replace(base.fit, epochs=7, batch_size=8)
    assert found == replace(base, views=2, seed=5, seeds=(1, 2), fit=fit)
    whole = training_config(preprocess=PreprocessConfig(size=64))
    assert whole == replace(RECIPES["frozen"], preprocess=PreprocessConfig(size=64))


@pytest.mark.parametrize(
    ("settings", "fragment"),
    [
        ({"view": 1}, "Did you mean 'views'"),
        ({"fit": {"epoch": 1}}, r"Did you mean 'epochs'\?"),
        ({"epoch": 1}, r"Did you mean 'epochs' \(of 'fit'\)\?"),
        ({"view": 1}, r"Did you mean 'views'\?"),
        ({"zzz": 1}, "Known: ages, "),
        ({"epochs": 0}, "epochs: found 0"),
        ({"views": "many"}, "views: found 'many', wanted int"),
        ({"part": FitConfig()}, "unknown setting 'part'"),
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, Any], fragment: str) -> None:
    with pytest.raises(UsageError, match=fragment):
        training_config("frozen", **settings)
