"""The folder of a training run: whether it can begin or go on there, and its first files.

Comes in: DATA, RUN and a configuration. Goes out: what the run is about to do, and
`config.toml` and `split.csv`, which hold all that is needed to run it again.

What a report and a model card say about a run: data, versions, model, in the report's records.

Comes in: datasets, manifests, configs. Goes out: the frozen records of `report.content`.
"""

from __future__ import annotations

import logging
import platform
import shlex
import sys
from collections.abc import Collection
from dataclasses import dataclass, fields, is_dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from pneumoscope.config import (
    PreprocessConfig,
    ProvenanceConfig,
    TrainConfig,
    check_ranges,
    from_dict,
    from_toml,
    to_toml,
)
from pneumoscope.data.index import class_counts, fingerprint, index
from pneumoscope.data.masks import notes_on_flat_images
from pneumoscope.data.split_files import with_usable_validation, write_split
from pneumoscope.errors import DataError, UsageError
from pneumoscope.inference.bundle import MOST_MEMBERS, BundleManifest, InputCheck
from pneumoscope.progress import Progress
from pneumoscope.records import Dataset
from pneumoscope.report.content import DataFacts, ModelFacts, SplitCount
from pneumoscope.report.formatting import count, percent
from pneumoscope.storage import (
    LOCK_FILE,
    claim_folder,
    leftovers,
    path_text,
    remove_leftovers,
    write_text,
)
from pneumoscope.training.backbones import check_name
from pneumoscope.training.end_to_end import check_sizes
from pneumoscope.training.teachers import BUNDLED, teacher_folder
from pneumoscope.training.weights import WEIGHTS_BY_NAME, backbone_of, preprocessing_of

_LOGGER = logging.getLogger(__name__)

_SOFTWARE = ("pneumoscope", "keras", "tensorflow-cpu", "tensorflow", "numpy", "pillow", "pydicom")

_KERMANY_MIN_IMAGES = 5000


def is_kermany(dataset: Dataset) -> bool:
    """Whether this is the Kermany set: its file names, and about as many images as it has.

    Names alone would not do: phantoms bear them too.
    """
    named = {record.subtype for record in dataset.records} >= {"bacteria", "virus"}
    return named and len(dataset.records) >= _KERMANY_MIN_IMAGES


def split_counts(dataset: Dataset) -> tuple[SplitCount, ...]:
    """Images per split and class, and patients per split, for tables."""
    rows = []
    for counts in class_counts(dataset):
        rows.append(
            SplitCount(counts.split or "all", counts.normal, counts.pneumonia, counts.patients)
        )
    return tuple(rows)


def data_facts(name: str, dataset: Dataset, fingerprint: str) -> DataFacts:
    """The data set for a report."""
    return DataFacts(name, split_counts(dataset), fingerprint, dataset.warnings)


def software_versions() -> dict[str, str]:
    """Python, and what of our libraries is installed."""
    versions = {"Python": platform.python_version()}
    for name in _SOFTWARE:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def announce(dataset: Dataset) -> None:
    """Tell the user what was odd about the data; the report repeats it."""
    for warning in dataset.warnings:
        _LOGGER.warning("%s", warning)


def command_line() -> str:
    """The command that runs now, ready for a shell."""
    return shlex.join(["pneumoscope", *sys.argv[1:]])


def how_many(manifest: BundleManifest) -> str:
    """How many networks answer, in which precision their weights lie on disk, and of what."""
    networks = f"{manifest.members}, averaged" if manifest.members > 1 else "1"
    mirrored = "; image and mirror image" if manifest.flip else ""
    return f"{networks}; weights in {manifest.store}{mirrored}"


def check_words(check: InputCheck) -> str:
    """What a model refuses for what it shows, and how often it would refuse films of its kind."""
    if check == InputCheck():
        return "none: whatever can be read gets an answer"
    return (
        f"{check.method} of {count(check.images)} training images, limits chosen on "
        f"{count(check.patients)} held-out patients: refuses {percent(check.refused, 1)} of their "
        f"images, {percent(check.refused_changed, 1)} of changed copies"
    )


def model_facts(name: Path | str, manifest: BundleManifest) -> ModelFacts:
    """What a bundle says of its model, for a report."""
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
            "Threshold": f"{manifest.threshold.value:.4f}, {manifest.threshold.rule}",
            "Calibration": f"{calibration.method}, slope {calibration.slope:.3f}, "
            f"intercept {calibration.intercept:.3f}",
            "Input check": check_words(manifest.input_check),
            "Trained on": f"{manifest.training_data.images} images of "
            f"{manifest.training_data.patients} patients",
        },
    )


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a run is about to do: its folder, its configuration and its data."""

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
    """See that `out` can take the run and that the data can be trained on; writes nothing.

    Raises:
        UsageError: `out` is taken, a setting conflicts with the run that is resumed, or settings
            make no sense together.
        DataError: the data can't be trained on, or changed since the run began.
    """
    stored = out / "config.toml"
    if resume and not stored.exists():
        raise UsageError(
            f"--resume: {stored} is not there, so {out} holds no run to go on with. "
            "Start it: the same command without --resume."
        )
    # A process killed before it wrote its first file left nothing to go on with, nor to lose.
    harmless = {*leftovers(out), out / LOCK_FILE}
    if not resume and out.is_dir() and not set(out.iterdir()) <= harmless:
        raise UsageError(
            f"--out {out}: is not empty. Give another folder, or --resume to go on with its run."
        )
    if config.weights not in WEIGHTS_BY_NAME:  # a file: found again from any folder
        config = replace(config, weights=str(Path(config.weights).absolute()))
    teachers = (_absolute(choice) for choice in config.teachers)
    config = replace(config, teachers=tuple(teachers))
    if not resume:
        config = _as_the_weights_saw(config, given)
    if resume:
        config = _resumed(config, from_toml(TrainConfig, stored), given)
    check_ranges(config)
    _check_together(config)
    dataset = index(data, progress=progress)
    flat = notes_on_flat_images(dataset.records, progress)
    dataset, messages = with_usable_validation(
        dataset,
        replace(config.split, seed=config.seed),
        config.keep_val,
        from_manifest=data.is_file(),
    )
    dataset = replace(dataset, warnings=(*dataset.warnings, *flat, *messages))
    announce(dataset)
    found = fingerprint(dataset.records)
    if resume and config.provenance.fingerprint != found:
        raise DataError(
            f"{data}: its fingerprint is {found[:16]}…, the run began on "
            f"{config.provenance.fingerprint[:16]}… ({config.provenance.data}). The images, labels "
            "or patients changed: begin a new run in another folder."
        )
    config = replace(
        config,
        provenance=ProvenanceConfig(
            path_text(data.absolute()), found, metadata.version("pneumoscope")
        ),
    )
    return Prepared(out, config, dataset)


def _absolute(teacher: str) -> str:
    """A teacher's name, found again from any folder."""
    return teacher if teacher in BUNDLED else str(Path(teacher).absolute())


def _check_together(config: TrainConfig) -> None:
    """See, before hours of work, that settings that are right each also fit one another.

    Raises:
        UsageError: they don't.
    """
    size = config.preprocess.size
    check_name(config.backbone)
    if len(set(config.seeds)) != len(config.seeds) or len(config.seeds) > MOST_MEMBERS:
        raise UsageError(
            f"seeds: found {list(config.seeds)}, wanted at most {MOST_MEMBERS}, all different"
        )
    if config.teachers and config.recipe != "scratch":
        raise UsageError(
            f"--teacher: found with --recipe {config.recipe}, wanted scratch, which trains the "
            "whole network. Add --recipe scratch (--weights says where it begins)."
        )
    for teacher in config.teachers:
        teacher_folder(teacher)
    if config.recipe == "scratch":
        check_sizes(config.scratch)
        if config.scratch.sizes[-1] != size:
            _LOGGER.warning(
                "training ends at %d pixels (scratch.sizes), the model will answer at %d "
                "(preprocess.size). Make them the same unless that is meant.",
                config.scratch.sizes[-1],
                size,
            )
    if config.recipe == "finetune" and config.finetune.unfreeze == "all" and size % 16:
        raise UsageError(
            f"preprocess.size: found {size}, wanted a multiple of 16 for finetune.unfreeze = 'all'"
        )


def _as_the_weights_saw(config: TrainConfig, given: Collection[str]) -> TrainConfig:
    """With a bundle's weights, its backbone and preprocessing, unless others were given.

    Raises:
        BundleError, UsageError: the bundle's manifest can't be read.
    """
    named = backbone_of(config.weights)
    if named is not None and "backbone" not in given:
        config = replace(config, backbone=named)
    theirs = preprocessing_of(config.weights)
    if theirs is None or any(name.startswith("preprocess.") for name in given):
        return config
    preprocess = from_dict(PreprocessConfig, theirs, f"--weights {config.weights}")
    if preprocess != config.preprocess:
        _LOGGER.info(
            "preprocessing as the weights saw it: %d pixels, %s. Set [preprocess] for another.",
            preprocess.size,
            preprocess.normalisation,
        )
    return replace(config, preprocess=preprocess)


def begin(prepared: Prepared) -> None:
    """Write the first files of a run, once nothing that it needs is missing any more."""
    out = prepared.folder
    claim_folder(out)
    for folder in (out, out / "evaluation", out / "evaluation" / "figures"):
        remove_leftovers(folder)
    write_text(out / "config.toml", to_toml(prepared.config))
    write_split(out / "split.csv", prepared.dataset)


def _resumed(asked: TrainConfig, stored: TrainConfig, given: Collection[str]) -> TrainConfig:
    """The stored config; a setting that the user gave must agree with it."""
    mine, its = _settings(asked), _settings(stored)
    for name in given:
        if mine[name] != its[name]:
            raise UsageError(
                f"--resume: the run has {name} = {its[name]!r}, you gave {mine[name]!r}. Leave it "
                "out to go on, or begin a new run in another folder."
            )
    return stored


def _settings(config: Any, prefix: str = "") -> dict[str, Any]:
    """Every setting by its dotted name, `fit.epochs`."""
    found: dict[str, Any] = {}
    for setting in fields(config):
        name, value = prefix + setting.name, getattr(config, setting.name)
        found |= _settings(value, f"{name}.") if is_dataclass(value) else {name: value}
    return found
