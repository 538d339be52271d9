"""What a report and a model card say about a run: data, versions, model, in the report's records.

Comes in: datasets, manifests, configs. Goes out: the frozen records of `report.content`.
"""

from __future__ import annotations

import logging
import platform
import shlex
import sys
from importlib import metadata
from pathlib import Path

from pneumoscope.data.index import class_counts
from pneumoscope.inference.bundle import BundleManifest, InputCheck
from pneumoscope.records import Dataset
from pneumoscope.report.content import DataFacts, ModelFacts, SplitCount
from pneumoscope.report.formatting import count, percent

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
