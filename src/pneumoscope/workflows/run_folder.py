"""Prepare the folder of a training run, and describe a run for reports and model cards.

`prepare` checks that a run can start or resume in a folder; `begin` writes `config.toml` and
`split.csv`, which suffice to repeat it. `data_facts`, `model_facts` and `software_versions`
describe data, model and environment in the records of `report/content.py`.
"""

from __future__ import annotations

import logging
import platform
import shlex
import sys
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from pneumoscope.config import (
    RECIPES,
    PreprocessConfig,
    ProvenanceConfig,
    SplitConfig,
    TrainConfig,
    check_ranges,
    from_dict,
    from_toml,
    to_toml,
)
from pneumoscope.data.index import class_counts, fingerprint, index
from pneumoscope.data.public_tables import age_in_years
from pneumoscope.data.splits import with_usable_validation, write_split
from pneumoscope.data.tree import notes_on_flat_images
from pneumoscope.errors import DataError, UsageError
from pneumoscope.images.dicom.patient import describe_ages
from pneumoscope.inference.bundle import MOST_MEMBERS, BundleManifest, InputCheck
from pneumoscope.progress import Progress
from pneumoscope.records import Dataset, ImageRecord
from pneumoscope.report.content import DataFacts, ModelFacts, SplitCount
from pneumoscope.report.formatting import count, percent, unrounded
from pneumoscope.storage import (
    LOCK_FILE,
    claim_folder,
    leftovers,
    path_text,
    remove_leftovers,
    write_text,
)
from pneumoscope.training.backbones import check_name
from pneumoscope.training.end_to_end import check_batches, check_sizes
from pneumoscope.training.guidance import BUNDLED, teacher_folder
from pneumoscope.training.weights import WEIGHTS_BY_NAME, backbone_of, preprocessing_of

_LOGGER = logging.getLogger(__name__)

_SOFTWARE = ("pneumoscope", "keras", "tensorflow-cpu", "tensorflow", "numpy", "pillow", "pydicom")

_KERMANY_MIN_IMAGES = 5000

_MOSTLY = 0.9
"""Share of training images with a known age, from which the model states their ages."""


def is_kermany(dataset: Dataset) -> bool:
    """Whether this is the Kermany data set, by its file names and its number of images.

    Names alone do not suffice: phantoms use the same scheme.
    """
    named = {record.subtype for record in dataset.records} >= {"bacteria", "virus"}
    return named and len(dataset.records) >= _KERMANY_MIN_IMAGES


def ages_of(records: Sequence[ImageRecord]) -> tuple[int, ...]:
    """Youngest and oldest patient of training images, completed years, by their column `age`.

    Empty unless the column states the age of nine images in ten.
    """
    ages = [age_in_years(record.extra.get("age", "")) for record in records]
    known = [age for age in ages if age is not None]
    if not known or len(known) < _MOSTLY * len(ages):
        return ()
    return int(min(known)), int(max(known))


def split_counts(dataset: Dataset) -> tuple[SplitCount, ...]:
    """Images per split and class, and patients per split."""
    rows = []
    for counts in class_counts(dataset):
        rows.append(
            SplitCount(counts.split or "all", counts.normal, counts.pneumonia, counts.patients)
        )
    return tuple(rows)


def data_facts(name: str, dataset: Dataset, fingerprint: str) -> DataFacts:
    """Describe a data set for a report."""
    return DataFacts(name, split_counts(dataset), fingerprint, dataset.warnings)


def software_versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that matter for results."""
    versions = {"Python": platform.python_version()}
    for name in _SOFTWARE:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def announce(dataset: Dataset) -> None:
    """Log the warnings about a data set; reports repeat them."""
    for warning in dataset.warnings:
        _LOGGER.warning("%s", warning)


def with_cautions(dataset: Dataset, *cautions: str) -> Dataset:
    """The data set with further warnings, which are logged; those that are empty are left out."""
    added = tuple(filter(None, cautions))
    announce(replace(dataset, warnings=added))
    return replace(dataset, warnings=(*dataset.warnings, *added))


def command_line() -> str:
    """The command line of this process, quoted for a shell."""
    return shlex.join(["pneumoscope", *sys.argv[1:]])


def how_many(manifest: BundleManifest) -> str:
    """Number of networks, precision of their stored weights, test-time augmentation; in words."""
    networks = f"{manifest.members}, averaged" if manifest.members > 1 else "1"
    mirrored = "; averaged over image and mirror image" if manifest.flip else ""
    return f"{networks}; weights in {manifest.store}{mirrored}"


def made_for(manifest: BundleManifest) -> str:
    """The patients whose ages the model is for, in words."""
    return describe_ages(manifest.ages) if manifest.ages else "no stated ages"


def check_words(check: InputCheck) -> str:
    """The input check of a model and its rejection rates on held-out patients, in words."""
    if check == InputCheck():
        return "none: every readable image gets a prediction"
    return (
        f"{check.method} of {count(check.images)} training images, limits chosen on "
        f"{count(check.patients)} held-out patients: rejects {percent(check.refused, 1)} of their "
        f"images and {percent(check.refused_changed, 1)} of modified copies"
    )


def model_facts(name: Path | str, manifest: BundleManifest) -> ModelFacts:
    """Describe a model for a report, from its manifest."""
    architecture, preprocessing = manifest.architecture, manifest.preprocessing
    calibration = manifest.calibration
    return ModelFacts(
        str(name),
        {
            "Architecture": f"{architecture.name}, {architecture.size}×{architecture.size} pixels, "
            f"dropout {architecture.dropout}, {architecture.hidden_units} hidden units",
            "Networks": how_many(manifest),
            "Preprocessing": f"{preprocessing.fit} to a square, {preprocessing.normalisation}",
            "Initial weights": manifest.initial_weights.origin,
            "Threshold": f"{unrounded(manifest.threshold.value, 4)}, {manifest.threshold.rule}",
            "Calibration": f"{calibration.method}, slope {calibration.slope:.3f}, "
            f"intercept {calibration.intercept:.3f}",
            "Input check": check_words(manifest.input_check),
            "Made for": made_for(manifest),
            "Trained on": f"{manifest.training_data.images} images of "
            f"{manifest.training_data.patients} patients",
        },
    )


@dataclass(frozen=True, slots=True)
class Prepared:
    """A training run before it starts: its folder, configuration and data."""

    folder: Path
    config: TrainConfig
    dataset: Dataset


def prepare(
    data: Path,
    out: Path,
    config: TrainConfig,
    progress: Progress,
    resume: bool,
    given: Collection[str],
) -> Prepared:
    """Check that `out` can take the run and that the data suits training; writes nothing.

    Args:
        data: a folder with class folders, or a CSV manifest.
        out: the run folder.
        config: the settings; with `resume` the stored settings apply.
        progress: receives the indexing of the data.
        resume: continue the run in `out`.
        given: dotted names of settings that the user gave (`fit.epochs`).

    Raises:
        UsageError: `out` is not empty, a setting conflicts with the run that is resumed, or
            settings contradict each other.
        DataError: the data is unsuitable for training, or changed since the run began.
    """
    stored = out / "config.toml"
    if resume and not stored.exists():
        raise UsageError(
            f"--resume: {stored} does not exist, so {out} holds no run to resume. "
            "Start one: the same command without --resume."
        )
    if resume and _is_finished(out):
        raise UsageError(
            f"--resume: the run in {out} is finished; nothing to resume. Give another --out."
        )
    if not resume:
        check_empty(out)
    config = settings_of_run(out, config, given, resume=resume)
    check_settings(config)
    dataset = index(data, progress=progress)
    flat = notes_on_flat_images(dataset.records, progress)
    shares = replace(config.split, seed=config.seed)
    warn_of_unused_split(config.split, shares)
    dataset, messages = with_usable_validation(
        dataset, shares, config.keep_val, from_manifest=data.is_file()
    )
    train = dataset.subset("train").records
    if without_unused_subtypes(config, train) != config:
        unused = "kinds and even_kinds have no effect: the training images name fewer than two "
        messages = (*messages, unused + "subtypes of pneumonia.")
    dataset = replace(dataset, warnings=(*dataset.warnings, *flat, *messages))
    announce(dataset)
    found = fingerprint(dataset.records)
    if resume and config.provenance.fingerprint != found:
        raise DataError(
            f"{data}: has the fingerprint {found[:16]}…; the run started on "
            f"{config.provenance.fingerprint[:16]}… ({config.provenance.data}). The images, labels "
            "or patients changed. Start a new run in another folder."
        )
    config = replace(
        config,
        provenance=ProvenanceConfig(
            path_text(data.absolute()), found, metadata.version("pneumoscope")
        ),
    )
    return Prepared(out, config, dataset)


def check_empty(out: Path) -> None:
    """Check that a new run may begin in `out`.

    A process that was killed before its first file left nothing worth keeping.

    Raises:
        UsageError: it has content.
    """
    if out.is_dir() and not set(out.iterdir()) <= {*leftovers(out), out / LOCK_FILE}:
        raise UsageError(
            f"--out {out}: is not empty. Give another folder, or --resume to continue its run."
        )


def warn_of_unused_split(asked: SplitConfig, used: SplitConfig) -> None:
    """Log a warning for each `[split]` setting that is neither the default nor the one used."""
    instead = {"seed": "seed", "by": "--by", "test": "--folds"}
    for name, value in asdict(asked).items():
        if value not in (getattr(SplitConfig(), name), getattr(used, name)):
            _LOGGER.warning(
                "split.%s = %r has no effect here: the split is made with %r. Set %s instead.",
                name,
                value,
                getattr(used, name),
                instead.get(name, "another"),
            )


def without_unused_subtypes(config: TrainConfig, train: Sequence[ImageRecord]) -> TrainConfig:
    """The settings without those that need subtypes, where `train` names fewer than two."""
    if len({record.subtype for record in train} - {""}) > 1:
        return config
    return replace(config, kinds=0.0, even_kinds=False)


def _is_finished(out: Path) -> bool:
    """Whether the run in `out` has written its last file and removed its checkpoints."""
    last = (out / "model" / "bundle.json", out / "report.html")
    return all(path.exists() for path in last) and not any(out.glob("checkpoint-*.npz"))


def settings_of_run(
    out: Path, config: TrainConfig, given: Collection[str], *, resume: bool
) -> TrainConfig:
    """The settings of a new run, or those stored in `out` of the run that is resumed.

    Args:
        out: the run's folder.
        config: the settings that were asked for.
        given: dotted names of those that the user gave (`fit.epochs`).
        resume: whether the run in `out` is resumed.

    Raises:
        UsageError: a given setting conflicts with the run that is resumed.
        BundleError: the bundle of the initial weights can't be read.
    """
    config = _with_fixed_names(config)
    if not resume:
        return _with_settings_of_weights(config, given)
    return _resumed(config, from_toml(TrainConfig, out / "config.toml"), given)


def _with_fixed_names(config: TrainConfig) -> TrainConfig:
    """The settings with absolute paths, and with one name for the bundled model.

    `--weights` and `--teacher` both accept `default` and `bundled`; the stored settings use
    `bundled` for weights and `default` for teachers.
    """
    weights = "bundled" if config.weights in BUNDLED else config.weights
    if weights not in WEIGHTS_BY_NAME:
        weights = str(Path(weights).absolute())
    teachers = tuple(
        "default" if teacher in BUNDLED else str(Path(teacher).absolute())
        for teacher in config.teachers
    )
    return replace(config, weights=weights, teachers=teachers)


def check_settings(config: TrainConfig) -> None:
    """Check that settings are valid and consistent with each other, before any work starts.

    Raises:
        UsageError: one is out of range, or they contradict each other.
    """
    check_ranges(config)
    size = config.preprocess.size
    check_name(config.backbone)
    if len(set(config.seeds)) != len(config.seeds) or len(config.seeds) > MOST_MEMBERS:
        raise UsageError(
            f"seeds: found {list(config.seeds)}, wanted at most {MOST_MEMBERS}, all different"
        )
    if config.teachers and config.recipe != "scratch":
        raise UsageError(
            f"--teacher: found with --recipe {config.recipe}, wanted scratch, which "
            "trains the whole network. Add it (--weights sets the initial weights)."
        )
    for teacher in config.teachers:
        teacher_folder(teacher)
    whole = config.recipe == "finetune" and config.finetune.unfreeze == "all"
    if config.recipe == "scratch" or whole:
        check_batches(config)
    if config.recipe == "scratch":
        check_sizes(config.scratch)
        if config.scratch.sizes[-1] != size:
            _LOGGER.warning(
                "training ends at %d pixels (scratch.sizes), but the model will predict at %d "
                "(preprocess.size). Set both to the same size unless this is intended.",
                config.scratch.sizes[-1],
                size,
            )
    if whole and size % 16:
        raise UsageError(
            f"preprocess.size: found {size}, wanted a multiple of 16 for finetune.unfreeze = 'all'"
        )


def _with_settings_of_weights(config: TrainConfig, given: Collection[str]) -> TrainConfig:
    """Take backbone and preprocessing from the bundle of the initial weights, unless chosen.

    A setting is chosen if the user gave it or if it differs from the recipe's: a configuration made
    in Python does not say which of its values were given.

    Raises:
        BundleError, UsageError: the bundle's manifest can't be read.
    """
    own, usual = _settings(config), _settings(RECIPES.get(config.recipe, TrainConfig()))
    chosen = {name for name in own if name in given or own[name] != usual[name]}
    backbone = backbone_of(config.weights) or config.backbone
    if backbone != config.backbone and "backbone" not in chosen:
        _LOGGER.info("backbone of the initial weights: %s; --backbone overrides it.", backbone)
        config = replace(config, backbone=backbone)
    of_weights = preprocessing_of(config.weights)
    if of_weights is None:
        return config
    its = from_dict(PreprocessConfig, of_weights, f"--weights {config.weights}")
    kept = {
        name: value
        for name, value in asdict(config.preprocess).items()
        if f"preprocess.{name}" in chosen
    }
    preprocess = replace(its, **kept)
    for name in ("fit", "normalisation"):
        mine, wanted = getattr(preprocess, name), getattr(its, name)
        if mine != wanted:
            _LOGGER.warning(
                "preprocess.%s is %r, but the initial weights were trained with %r. Leave it out "
                "to take theirs.",
                name,
                mine,
                wanted,
            )
    if preprocess != config.preprocess:
        _LOGGER.info(
            "preprocessing as for the initial weights: %d pixels, %s, %s; [preprocess] overrides "
            "it.",
            preprocess.size,
            preprocess.fit,
            preprocess.normalisation,
        )
    return replace(config, preprocess=preprocess)


def begin(prepared: Prepared) -> None:
    """Write the first files of a run; called once all that it needs is available."""
    out = prepared.folder
    claim_folder(out)
    for folder in (out, out / "evaluation", out / "evaluation" / "figures"):
        remove_leftovers(folder)
    write_text(out / "config.toml", to_toml(prepared.config))
    write_split(out / "split.csv", prepared.dataset)


def _resumed(given_config: TrainConfig, stored: TrainConfig, given: Collection[str]) -> TrainConfig:
    """The stored settings; a setting that the user gave must agree with them."""
    mine, its = _settings(given_config), _settings(_with_fixed_names(stored))
    for name in sorted(given):
        if mine[name] != its[name]:
            raise UsageError(
                f"--resume: the run has {name} = {its[name]!r}, you gave {mine[name]!r}. Leave it "
                "out to continue, or start a new run in another folder."
            )
    return stored


def _settings(config: Any, prefix: str = "") -> dict[str, Any]:
    """Every setting by its dotted name, such as `fit.epochs`."""
    found: dict[str, Any] = {}
    for setting in fields(config):
        name, value = prefix + setting.name, getattr(config, setting.name)
        found |= _settings(value, f"{name}.") if is_dataclass(value) else {name: value}
    return found
