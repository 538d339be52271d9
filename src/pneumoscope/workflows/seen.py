"""What images a model has seen: written by `train`, added to older bundles, asked by evaluations.

`python -m pneumoscope.workflows.seen MODEL DATA` adds it to a bundle that was trained on DATA.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from pneumoscope.data.index import index
from pneumoscope.data.training_overlap import (
    PARTS,
    TABLE_NAME,
    Part,
    TrainingOverlap,
    count_overlap,
    training_hashes,
)
from pneumoscope.errors import DataError
from pneumoscope.graph.bundle_files import bundle_in
from pneumoscope.inference.bundle import Bundle, load_bundle, write_revised
from pneumoscope.inference.predictor import Predictor
from pneumoscope.inference.weights_store import Table
from pneumoscope.progress import SILENT, Progress, TerminalProgress
from pneumoscope.records import ImageRecord

_LOGGER = logging.getLogger(__name__)


def seen_by(
    predictor: Predictor, records: Sequence[ImageRecord], progress: Progress = SILENT
) -> TrainingOverlap:
    """How many images a model has seen, said as a warning if there are any.

    Of a model without hashes that can't be told.
    """
    seen = count_overlap(predictor.seen, records, progress)
    if seen.is_optimistic:
        _LOGGER.warning("%s", seen.in_words())
    return seen


def remembered(
    train: Sequence[ImageRecord],
    val: Sequence[ImageRecord],
    weights: str,
    progress: Progress = SILENT,
) -> dict[str, Table]:
    """The table of a new model, by its name.

    Args:
        train: the images that it was trained on.
        val: those that epoch, calibration and threshold were chosen on.
        weights: what it began with (`TrainConfig.weights`): what that model saw, this one has seen.
        progress: told of every image.
    """
    found: dict[Part, Sequence[ImageRecord]] = {"train": train, "val": val}
    return {TABLE_NAME: training_hashes(found, progress, _table_of(weights))}


def add_to_bundle(model: Path | str, data: Path | str, progress: Progress = SILENT) -> Bundle:
    """Write a bundle anew with the hashes of its images; weights and all else stay as they are.

    Args:
        model: a bundle, a run, or `default`.
        data: what it was trained on, with its splits: `split.csv` of the run.
        progress: told of every image.

    Raises:
        DataError: the training images are not those that the bundle was made with.
    """
    bundle = load_bundle(model)
    dataset = index(data, progress=progress, refuse_leaks=False)
    found: dict[Part, Sequence[ImageRecord]] = {p: dataset.subset(p).records for p in PARTS}
    wanted = bundle.manifest.training_data.images
    if len(found["train"]) != wanted:
        raise DataError(
            f"{data}: found {len(found['train'])} training images, the model in {bundle.folder} "
            f"was trained on {wanted}. Give the split.csv of its run."
        )
    table = training_hashes(found, progress)
    card = bundle.card.read_text(encoding="utf-8")
    return write_revised(bundle.folder, bundle, bundle.manifest, card, {TABLE_NAME: table})


def _table_of(weights: str) -> Table | None:
    """The table of the model whose weights a training began with, if it was one."""
    if weights == "bundled":
        return load_bundle("default").table(TABLE_NAME)
    folder = None if weights in ("imagenet", "none") else bundle_in(Path(weights))
    return None if folder is None else load_bundle(folder).table(TABLE_NAME)


if __name__ == "__main__":
    add_to_bundle(sys.argv[1], sys.argv[2], TerminalProgress())
