"""Record which images a model was trained on, and count them among other images.

`train` stores salted hashes of the training images in the bundle (`data/training_overlap.py`).
`evaluate`, `compare`, `stress`, `crossvalidate` and `plan --recalibrate` use them to report how
many of their images the model was trained on. `train` reports how many validation images its
initial weights or teachers were trained on.

`python -m pneumoscope.workflows.seen MODEL DATA` adds the hashes to an older bundle that was
trained on DATA.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from pneumoscope.config import TrainConfig
from pneumoscope.data.index import index
from pneumoscope.data.training_overlap import (
    PARTS,
    UNKNOWN_IMAGES,
    Part,
    TrainingOverlap,
    count_overlap,
    training_hashes,
)
from pneumoscope.errors import DataError
from pneumoscope.graph.bundle_files import SEEN_TABLE, bundle_in, default_folder
from pneumoscope.inference.bundle import Bundle, load_bundle, write_revised
from pneumoscope.inference.predictor import Predictor
from pneumoscope.inference.weights_store import Table
from pneumoscope.progress import SILENT, Progress, TerminalProgress
from pneumoscope.records import ImageRecord
from pneumoscope.training.guidance import BUNDLED, teacher_folder

_LOGGER = logging.getLogger(__name__)

_COLUMN = re.compile(r"(\d+)_(\w+)")
"""Of a table: the number of the model that it belongs to, and the column's name."""


def seen_by(
    predictor: Predictor, records: Sequence[ImageRecord], progress: Progress = SILENT
) -> TrainingOverlap:
    """Count the images that a model was trained on; log a warning if there are any.

    The count is unknown for a bundle without hashes.

    Args:
        predictor: the model.
        records: images, hashed by `index`.
        progress: advances by one for each image.
    """
    seen = count_overlap(predictor.seen, records, progress)
    if seen.is_optimistic:
        _LOGGER.warning("%s", seen.in_words())
    return seen


def caution_on_validation(
    earlier: Table | None, val: Sequence[ImageRecord], progress: Progress = SILENT
) -> str:
    """A caution if the initial weights or a teacher were trained on validation images; else empty.

    Images that only an earlier threshold was chosen on don't count: they stay validation images.

    Args:
        earlier: result of `hashes_of_earlier`.
        val: the validation images of the new model, hashed by `index`.
        progress: advances by one for each image.
    """
    trained_on = 0 if earlier is None else count_overlap(earlier, val, progress).trained_on
    if not trained_on:
        return ""
    return (
        f"The initial weights or teachers were trained on {trained_on:,} of the {len(val):,} "
        "validation images: epoch, calibration, threshold and metrics are too optimistic. Give "
        "others, or the split that they were trained with."
    )


def caution_on_folds(seen: TrainingOverlap) -> str:
    """A caution if models of a cross-validation saw images that they hold out; else empty."""
    if not seen.is_optimistic:
        return ""
    return (
        f"Held-out images: {seen.in_words()} It saw them through its initial weights or a teacher "
        "(give a teacher per fold: CV/fold-{fold}), or as copies under another patient."
    )


def hashes_of_earlier(config: TrainConfig) -> Table | None:
    """The hashes of the model whose weights a training starts from, and of its teachers.

    Args:
        config: `weights` and `teachers` are used.

    Returns:
        `None` if there is no such model; `UNKNOWN_IMAGES` stands for one without hashes.

    Raises:
        BundleError: one of their bundles is damaged, incomplete, or of an older version.
    """
    earlier = [_table_of_weights(config.weights), *map(_table_of_teacher, config.teachers)]
    return _union(filter(None, earlier))


def hashes_of_training(
    train: Sequence[ImageRecord],
    val: Sequence[ImageRecord],
    earlier: Table | None = None,
    progress: Progress = SILENT,
) -> dict[str, Table]:
    """The hashes of everything that a new model was trained on, as tables of its bundle.

    Args:
        train: the training images.
        val: the images on which epoch, calibration and threshold were chosen.
        earlier: result of `hashes_of_earlier`.
        progress: advances by one for each image.
    """
    parts: dict[Part, Sequence[ImageRecord]] = {"train": train, "val": val}
    return {SEEN_TABLE: training_hashes(parts, progress, earlier)}


def add_to_bundle(model: Path | str, data: Path | str, progress: Progress = SILENT) -> Bundle:
    """Rewrite a bundle with the hashes of its training images; all else stays unchanged.

    Args:
        model: a bundle, a run, or `default`.
        data: the data it was trained on, with its splits: `split.csv` of the run.
        progress: advances by one for each image.

    Raises:
        DataError: the number of training images differs from that in the bundle.
    """
    bundle = load_bundle(model)
    dataset = index(data, progress=progress, refuse_leaks=False)
    found: dict[Part, Sequence[ImageRecord]] = {p: dataset.subset(p).records for p in PARTS}
    wanted = bundle.manifest.training_data.images
    if len(found["train"]) != wanted:
        raise DataError(
            f"{data}: found {len(found['train'])} training images; the model in {bundle.folder} "
            f"was trained on {wanted}. Give the split.csv of its run."
        )
    table = training_hashes(found, progress, bundle.table(SEEN_TABLE))
    card = bundle.card.read_text(encoding="utf-8")
    return write_revised(bundle.folder, bundle, bundle.manifest, card, {SEEN_TABLE: table})


def _table_of_weights(weights: str) -> Table | None:
    """The hashes of the model that provided the initial weights, if a model did.

    What is missing is left to the loader of the weights, which says what can be given instead.
    """
    if weights in ("imagenet", "none"):
        return None
    folder = bundle_in(default_folder() if weights in BUNDLED else Path(weights))
    return None if folder is None else _table_or_warning(folder, f"--weights {weights}")


def _table_of_teacher(teacher: str) -> Table:
    """The hashes of a teacher; a warning if its bundle has none."""
    return _table_or_warning(teacher_folder(teacher), f"--teacher {teacher}")


def _table_or_warning(model: Path | str, option: str) -> Table:
    table = load_bundle(model).table(SEEN_TABLE)
    if table is None:
        _LOGGER.warning(
            "%s: its bundle holds no hashes of its training images, so evaluations of the new "
            "model can't recognise them. Add them: python -m pneumoscope.workflows.seen MODEL DATA",
            option,
        )
        return UNKNOWN_IMAGES
    return table


def _union(tables: Iterable[Table]) -> Table | None:
    """One table of several: every model once, renumbered from 0; `None` without a table."""
    union: dict[str, NDArray[Any]] = {}
    salts: set[bytes] = set()
    for table in tables:
        models: dict[str, dict[str, NDArray[Any]]] = {}
        for name, column in table.items():
            if match := _COLUMN.fullmatch(name):
                models.setdefault(match[1], {})[match[2]] = column
        for _, columns in sorted(models.items(), key=lambda each: int(each[0])):
            salt = columns["salt"].tobytes()
            if salt not in salts:
                union |= {f"{len(salts)}_{name}": column for name, column in columns.items()}
                salts.add(salt)
    return union or None


if __name__ == "__main__":
    add_to_bundle(sys.argv[1], sys.argv[2], TerminalProgress())
