"""`pneumoscope train`: which of recipe, file and options decides a setting, what is rejected."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pneumoscope.cli.app import run
from pneumoscope.config import RECIPES, TrainConfig, from_toml, to_toml
from pneumoscope.graph import bundle_files
from pneumoscope.images.phantom.folder import write_phantoms
from pneumoscope.progress import SILENT
from pneumoscope.records import Dataset
from pneumoscope.workflows import train as workflow
from pneumoscope.workflows.run_folder import Prepared

Asked = Callable[..., tuple[TrainConfig, set[str]]]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """The configuration that a command line leads to, and the names of what the user gave."""
    heard: list[Any] = []

    def listening(data: Path, out: Path, config: TrainConfig, *_: Any, **more: Any) -> Any:
        heard.append((config, set(more["given"])))
        return {}, ""

    monkeypatch.setattr(workflow, "run_training", listening)

    def ask(*arguments: object) -> tuple[TrainConfig, set[str]]:
        assert run(["train", "data", "--out", "run", "-q", *map(str, arguments)]) == 0
        found: tuple[TrainConfig, set[str]] = heard.pop()
        return found

    return ask


@pytest.fixture
def file(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "settings.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_a_recipe_is_its_whole_config(asked: Asked, recipe: str) -> None:
    assert asked("--recipe", recipe) == (RECIPES[recipe], {"recipe"})


def test_without_anything_it_is_frozen(asked: Asked) -> None:
    assert asked() == (TrainConfig(), set())


def test_the_file_overrides_the_recipe_and_options_the_file(
    asked: Asked, file: Callable[[str], Path]
) -> None:
    path = file("views = 7\nseed = 3\n[fit]\nepochs = 11\nema = 0.5\n[finetune]\nhead_epochs = 2\n")
    config, given = asked(
        *("--recipe", "finetune", "--config", path, "--epochs", 5, "--seed", 9, "--flip")
    )
    finetune = RECIPES["finetune"]
    assert config == replace(
        finetune,
        views=7,
        seed=9,
        flip=True,
        fit=replace(finetune.fit, epochs=5, ema=0.5),  # the recipe's other settings stay
        finetune=replace(finetune.finetune, head_epochs=2),
    )
    assert given == {
        *("recipe", "views", "seed", "flip", "fit.epochs", "fit.ema", "finetune.head_epochs")
    }


def test_a_file_may_name_the_recipe_that_it_changes(
    asked: Asked, file: Callable[[str], Path]
) -> None:
    path = file('recipe = "scratch"\n[fit]\nepochs = 4\n')
    config, _ = asked("--config", path)
    assert config == replace(RECIPES["scratch"], fit=replace(RECIPES["scratch"].fit, epochs=4))
    # The option is the stronger one: finetune's defaults, under the same file.
    config, _ = asked("--config", path, "--recipe", "finetune")
    assert config == replace(RECIPES["finetune"], fit=replace(RECIPES["finetune"].fit, epochs=4))


def test_the_config_of_a_run_gives_that_run_again(
    asked: Asked, file: Callable[[str], Path], tmp_path: Path
) -> None:
    config, _ = asked("--recipe", "scratch", "--seeds", "4,2", "--weights", "none")
    assert config.seeds == (4, 2)
    path = file(to_toml(config))
    assert asked("--config", path)[0] == from_toml(TrainConfig, path) == config


@pytest.mark.parametrize(("text", "seeds"), [("0,1,2", (0, 1, 2)), ("7", (7,)), (" 3, 1 ", (3, 1))])
def test_seeds_are_whole_numbers_with_commas(asked: Asked, text: str, seeds: Any) -> None:
    config, given = asked("--seeds", text)
    assert (config.seeds, given) == (seeds, {"seeds"})


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--seeds", "0,0"], "--seeds: found '0,0', wanted different whole numbers, as in 0,1,2"),
        (["--seeds", "a,b"], "--seeds: found 'a,b'"),
        (["--seeds", "1.5"], "--seeds: found '1.5'"),
        (["--seeds", "1,,2"], "--seeds: found '1,,2'"),
        (["--seeds", ""], "found an empty argument ('' after --seeds)"),
        (["--seeds=-1,2"], "--seeds: found '-1,2'"),
        (["--recipe", "magic"], "'magic' is not one of 'frozen', 'finetune', 'scratch'"),
        (["--backend", "abacus"], "'abacus' is not one of 'auto'"),
    ],
)
def test_what_makes_no_sense_is_wrong_usage(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["train", "data", "--out", "run", *arguments]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('recipe = "magic"\n', "settings.toml: recipe: found 'magic', wanted one of 'frozen'"),
        ("[fit]\nepoch = 3\n", "unknown setting 'epoch'. Did you mean 'epochs'?"),
        ("[finetune]\nunfreeze = 'conv3'\n", "unfreeze: found 'conv3', wanted one of 'conv5'"),
        ("[fit]\nschedule = 'linear'\n", "schedule: found 'linear', wanted one of 'constant'"),
        ("[scratch]\nsizes = [96, 1.5]\n", "sizes[1]: found 1.5, wanted int"),
        ("seeds = [-1]\n", "seeds: found -1, wanted 0 to"),
        ("[fit]\nema = 2\n", "ema: found 2.0, wanted 0 to"),
    ],
)
def test_a_file_that_makes_no_sense_is_wrong_usage(
    file: Callable[[str], Path], text: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["train", "data", "--out", "run", "--config", str(file(text))]) == 2
    assert said in capsys.readouterr().err


def test_a_conflict_on_resuming_is_reported_with_both_values(
    tmp_path: Path, file: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    stored = replace(RECIPES["finetune"], weights="none")
    (tmp_path / "run" / "config.toml").write_text(to_toml(stored), encoding="utf-8")
    asked = ["train", str(tmp_path / "data"), "--out", str(tmp_path / "run"), "--resume"]
    for arguments, said in (
        (["--recipe", "scratch"], "the run has recipe = 'finetune', you gave 'scratch'"),
        (["--seeds", "0,1"], "the run has seeds = (), you gave (0, 1)"),
        (["--epochs", "3"], "the run has fit.epochs = 20, you gave 3"),
        (
            ["--config", str(file("[finetune]\nunfreeze = 'all'\n"))],
            "the run has finetune.unfreeze = 'conv5', you gave 'all'",
        ),
    ):
        assert run([*asked, *arguments]) == 2
        assert said in capsys.readouterr().err
    # What agrees, or is not said, is no conflict: it goes on to the data, which are not there.
    assert run([*asked, "--recipe", "finetune"]) == 3
    assert run(asked) == 3


def test_bundled_weights_that_did_not_ship_are_missing_and_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bundle_files, "default_folder", lambda: tmp_path / "nothing")
    data, out = write_phantoms(tmp_path / "phantoms", 24, size=64), tmp_path / "run"
    asked = ["train", str(data), "--out", str(out), "--keep-val", "-q"]
    assert run([*asked, "--weights", "bundled"]) == 4
    assert "has no bundled weights" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(("recipe", "one"), [("frozen", True), ("finetune", False)])
def test_a_command_that_trains_a_head_alone_keeps_to_one_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str, one: bool
) -> None:
    """The recipe of the run counts, which a resumed one has from its folder."""
    names = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")
    for name in names:
        monkeypatch.setenv(name, "")  # so that what is set is taken back
        monkeypatch.delenv(name)
    seen: list[dict[str, str | None]] = []

    def stopped(*_: Any) -> Any:
        seen.append({name: os.environ.get(name) for name in names})
        raise KeyboardInterrupt

    given = replace(RECIPES[recipe])
    prepared = Prepared(tmp_path, given, Dataset(tmp_path, ()))
    monkeypatch.setattr(workflow, "prepare", lambda *_: prepared)
    monkeypatch.setattr(workflow, "_train", stopped)
    for call in (workflow.run_training, workflow.train):  # a program's process is its own
        with pytest.raises(KeyboardInterrupt):
            call(tmp_path, tmp_path, TrainConfig(), progress=SILENT)
        assert seen[-1] == dict.fromkeys(names, "1" if one else None)
        one = False
        for name in names:
            monkeypatch.delenv(name, raising=False)


def test_where_epochs_are_recorded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    heard: list[Any] = []

    def listening(*_: Any, **more: Any) -> Any:
        heard.append((more["tensorboard"], more["mlflow"]))
        return {}, ""

    monkeypatch.setattr(workflow, "run_training", listening)
    assert run(["train", "data", "--out", "run", "-q"]) == 0
    given = ["--tensorboard", str(tmp_path), "--mlflow"]
    assert run(["train", "data", "--out", "run", "-q", *given]) == 0
    assert heard == [(None, False), (tmp_path, True)]
