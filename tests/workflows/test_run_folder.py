"""Where a run may begin or go on, what it writes first, and the error where it may not."""

from __future__ import annotations

import logging
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pneumoscope.config import (
    RECIPES,
    DistortConfig,
    FinetuneConfig,
    FitConfig,
    PreprocessConfig,
    ScratchConfig,
    SplitConfig,
    TrainConfig,
    from_dict,
    from_toml,
    training_config,
)
from pneumoscope.errors import DataError, UsageError
from pneumoscope.images.phantom.folder import write_phantoms
from pneumoscope.progress import SILENT
from pneumoscope.storage import temporary_beside
from pneumoscope.workflows.run_folder import (
    Prepared,
    _settings,
    begin,
    prepare,
    without_unused_subtypes,
)

CONFIG = replace(RECIPES["finetune"], weights="none", keep_val=True)


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantoms(tmp_path_factory.mktemp("run-folder") / "phantoms", 30, 2, size=64)


def prepared(
    data: Path, out: Path, config: TrainConfig = CONFIG, resume: bool = False, given: Any = ()
) -> Prepared:
    return prepare(data, out, config, SILENT, resume, given)


@pytest.fixture
def begun(phantoms: Path, tmp_path: Path) -> Path:
    begin(prepared(phantoms, tmp_path / "run"))
    return tmp_path / "run"


def test_preparing_writes_nothing_and_beginning_two_files(phantoms: Path, tmp_path: Path) -> None:
    ready = prepared(phantoms, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    begin(ready)
    assert {path.name for path in ready.folder.iterdir()} == {"config.toml", "split.csv"}


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_the_config_holds_every_setting_and_reads_back(
    phantoms: Path, tmp_path: Path, recipe: str
) -> None:
    config = replace(RECIPES[recipe], weights="none", keep_val=True, seeds=(3, 1))
    ready = prepared(phantoms, tmp_path / "run", config)
    begin(ready)
    stored = ready.folder / "config.toml"
    document = tomllib.loads(stored.read_text(encoding="utf-8"))
    complete = from_dict(TrainConfig, document, "stored", complete=True)  # nothing is left out
    assert complete == ready.config == from_toml(TrainConfig, stored)
    assert complete == replace(config, provenance=complete.provenance)
    assert complete.provenance.data == str(phantoms)
    # It is a --config as well: the same training from it alone, whatever the recipe's defaults.
    assert training_config(None, stored) == complete


def test_a_folder_with_anything_in_it_is_taken(phantoms: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    temporary_beside(tmp_path / "run" / "config.toml").touch()  # of a process that was killed
    prepared(phantoms, tmp_path / "run")
    (tmp_path / "run" / "notes.txt").touch()
    with pytest.raises(UsageError, match=r"--out .*run: is not empty\. Give another folder, or"):
        prepared(phantoms, tmp_path / "run")


def test_beginning_clears_what_killed_processes_left(phantoms: Path, begun: Path) -> None:
    left = [temporary_beside(begun / name) for name in ("model", "evaluation/metrics.json")]
    left[0].mkdir()
    left[1].parent.mkdir()
    left[1].touch()
    begin(prepared(phantoms, begun, resume=True))
    assert not any(path.exists() for path in left)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("recipe", {"recipe": "scratch"}, "recipe = 'finetune', you gave 'scratch'"),
        ("views", {"views": 9}, "views = 4, you gave 9"),
        ("seeds", {"seeds": (0, 1)}, r"seeds = \(\), you gave \(0, 1\)"),
        ("flip", {"flip": True}, "flip = False, you gave True"),
        ("backend", {"backend": "jax"}, "backend = 'auto', you gave 'jax'"),
        ("fit.epochs", {"fit": replace(CONFIG.fit, epochs=3)}, "fit.epochs = 20, you gave 3"),
        (
            "finetune.unfreeze",
            {"finetune": FinetuneConfig(unfreeze="conv4")},
            "finetune.unfreeze = 'conv5', you gave 'conv4'",
        ),
    ],
)
def test_a_setting_that_conflicts_on_resuming_is_named(
    phantoms: Path, begun: Path, name: str, change: dict[str, Any], said: str
) -> None:
    other = replace(CONFIG, **change)
    with pytest.raises(UsageError, match=rf"--resume: the run has {said}\. Leave it out"):
        prepared(phantoms, begun, other, resume=True, given=[name])
    # What was not given but merely differs from the defaults of another recipe is the run's.
    assert prepared(phantoms, begun, other, resume=True).config.recipe == "finetune"
    assert prepared(phantoms, begun, CONFIG, resume=True, given=[name]).folder == begun


def test_resuming_takes_the_runs_own_settings_and_the_same_data(
    phantoms: Path, begun: Path, tmp_path: Path
) -> None:
    first = from_toml(TrainConfig, begun / "config.toml")
    assert prepared(phantoms, begun, TrainConfig(), resume=True).config == first
    other = write_phantoms(tmp_path / "other", 30, 9, size=64)
    with pytest.raises(DataError, match=r"has the fingerprint .* changed. Start a new run"):
        prepared(other, begun, TrainConfig(), resume=True)
    with pytest.raises(UsageError, match="holds no run to resume"):
        prepared(phantoms, tmp_path / "nothing", TrainConfig(), resume=True)


def test_a_finished_run_is_not_trained_again(phantoms: Path, begun: Path) -> None:
    (begun / "model").mkdir()
    for name in ("model/bundle.json", "report.html", "checkpoint-head-0.npz"):
        (begun / name).touch()
    prepared(phantoms, begun, resume=True)  # killed before its checkpoint was removed
    (begun / "checkpoint-head-0.npz").unlink()
    with pytest.raises(UsageError, match="is finished; nothing to resume"):
        prepared(phantoms, begun, resume=True)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seeds": (1, 2, 1)}, r"seeds: found \[1, 2, 1\], wanted at most 32, all different"),
        ({"seeds": tuple(range(33))}, "wanted at most 32"),
        ({"seeds": (-1,)}, "seeds: found -1, wanted 0 to"),
        (
            {
                "recipe": "scratch",
                "fit": FitConfig(batch_size=1),
                "distort": DistortConfig(surround=0.3),
            },
            r"fit\.batch_size: found 1, wanted 2 or more for background swap",
        ),
        ({"recipe": "scratch", "scratch": ScratchConfig(sizes=())}, r"scratch\.sizes: found \[\]"),
        ({"recipe": "scratch", "scratch": ScratchConfig(sizes=(64,))}, r"scratch\.shares: found"),
        (
            {"preprocess": PreprocessConfig(size=72), "finetune": FinetuneConfig(unfreeze="all")},
            r"preprocess\.size: found 72, wanted a multiple of 16 for finetune\.unfreeze = 'all'",
        ),
    ],
)
def test_settings_that_dont_fit_one_another_are_rejected_before_any_work(
    phantoms: Path, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        prepared(phantoms, tmp_path / "run", replace(CONFIG, **change))
    # Where the recipe does not use a setting, it does not matter.
    unused = {k: v for k, v in change.items() if k in ("scratch", "preprocess")}
    prepared(phantoms, tmp_path / "run", replace(CONFIG, **unused))


def test_inference_at_another_size_than_training_ended_at_is_reported(
    phantoms: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="pneumoscope")  # a command before may have hushed it
    config = replace(RECIPES["scratch"], keep_val=True)
    prepared(phantoms, tmp_path / "run", config)
    assert "training ends at" not in caplog.text
    prepared(phantoms, tmp_path / "run", replace(config, preprocess=PreprocessConfig(size=224)))
    assert "training ends at 128 pixels (scratch.sizes), but the model will predict at 224" in (
        caplog.text
    )


def test_a_file_of_weights_is_found_from_any_folder(
    phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = prepared(phantoms, tmp_path / "run", replace(CONFIG, weights="mine.h5")).config
    assert config.weights == str(tmp_path / "mine.h5")


def test_the_bundled_model_has_two_names_in_both_options(phantoms: Path, tmp_path: Path) -> None:
    scratch = replace(RECIPES["scratch"], keep_val=True)
    for word in ("default", "bundled"):
        config = replace(scratch, weights=word, teachers=(word,), preprocess=PreprocessConfig())
        ready = prepared(phantoms, tmp_path / word, config)
        assert (ready.config.weights, ready.config.teachers) == ("bundled", ("default",))
        begin(ready)
        other = replace(config, weights="default", teachers=("bundled",))
        named = ["weights", "teachers"]
        prepared(phantoms, tmp_path / word, other, resume=True, given=named)


def test_one_given_preprocessing_value_leaves_the_others_of_the_weights(
    phantoms: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="pneumoscope")
    config = replace(CONFIG, weights="bundled")
    theirs = prepared(phantoms, tmp_path / "run", config).config.preprocess
    assert theirs.normalisation != config.preprocess.normalisation
    larger = replace(config, preprocess=PreprocessConfig(size=160))
    found = prepared(phantoms, tmp_path / "run", larger, given=["preprocess.size"]).config
    assert found.preprocess == replace(theirs, size=160)
    assert "preprocess.normalisation is" not in caplog.text
    # A value that is the recipe's own counts if it was given.
    usual = ["preprocess.size", "preprocess.normalisation"]
    found = prepared(phantoms, tmp_path / "run", config, given=usual).config
    assert found.preprocess == replace(config.preprocess, fit=theirs.fit)
    assert (
        "preprocess.normalisation is 'imagenet', but the initial weights were trained with "
        "'standardise'. Leave it out to take theirs."
    ) in caplog.text


def test_a_configuration_made_in_python_keeps_what_differs_from_its_recipe(
    phantoms: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="pneumoscope")
    config = training_config(
        "scratch", weights="bundled", keep_val=True, preprocess={"size": 64},
        scratch={"sizes": [64], "shares": [1.0]},
    )  # fmt: skip
    found = prepared(phantoms, tmp_path / "run", config).config
    assert found.preprocess.size == 64
    assert "training ends at" not in caplog.text
    assert found.backbone == "densenet121-stride16"
    assert "backbone of the initial weights: densenet121-stride16" in caplog.text
    other = replace(config, backbone="densenet169")
    assert prepared(phantoms, tmp_path / "run", other).config.backbone == "densenet169"


def test_settings_for_subtypes_that_the_data_lack_are_reported(
    phantoms: Path, tmp_path: Path
) -> None:
    config = replace(RECIPES["scratch"], keep_val=True, kinds=0.3, even_kinds=True)
    ready = prepared(phantoms, tmp_path / "run", config)
    assert len({record.subtype for record in ready.dataset.records} - {""}) == 2
    assert "kinds" not in " ".join(ready.dataset.warnings)
    train = ready.dataset.subset("train").records
    assert without_unused_subtypes(config, train) == config
    one = tmp_path / "one"
    for number, record in enumerate(ready.dataset.records):
        copy = one / record.label_name / f"{number}{record.path.suffix}"
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(record.path.read_bytes())
    ready = prepared(one, tmp_path / "run", config)
    assert "kinds and even_kinds have no effect" in " ".join(ready.dataset.warnings)
    assert ready.config.kinds == 0.3  # as it was asked for: --resume with the same file goes on
    train = ready.dataset.subset("train").records
    effective = without_unused_subtypes(ready.config, train)
    assert (effective.kinds, effective.even_kinds) == (0.0, False)


def test_a_seed_of_the_split_that_is_not_used_is_reported(
    phantoms: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="pneumoscope")
    prepared(phantoms, tmp_path / "run", replace(CONFIG, seed=3))
    same = replace(CONFIG, seed=3, split=SplitConfig(seed=3))
    prepared(phantoms, tmp_path / "run", same)
    assert "has no effect" not in caplog.text
    prepared(phantoms, tmp_path / "run", replace(CONFIG, seed=3, split=SplitConfig(seed=5)))
    assert (
        "split.seed = 5 has no effect here: the split is made with 3. Set seed instead."
    ) in caplog.text


def test_every_setting_has_a_dotted_name() -> None:
    names = _settings(CONFIG)
    assert names["fit.epochs"] == 20
    assert names["scratch.sizes"] == ScratchConfig().sizes
    assert names["recipe"] == "finetune"
    assert "fit" not in names
