"""`input-check`: fit the out-of-distribution detection of a model to its training images.

The statistics are fitted to training images and one modified copy of each, so that another site's
exposure and framing are no reason to refuse. The limits are chosen on held-out patients, on their
unmodified images and on modified copies. `inference/input_check.py` describes the method.

`EmbeddingBackend`, `pooled_by_record` and `scored_by_record` hand embeddings from training and
validation to the input check, so that they are not computed twice.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.arrays import Float32Array
from pneumoscope.data.index import fingerprint, index
from pneumoscope.errors import DataError, ImageRefusedError
from pneumoscope.graph.archive import read_network
from pneumoscope.images.perturbation_sweeps import PERTURBATIONS, rotation
from pneumoscope.images.preprocess import Preprocessor
from pneumoscope.images.read import read_image
from pneumoscope.inference.bundle import (
    Bundle,
    InputCheck,
    check_bundle_target,
    load_bundle,
    write_revised,
)
from pneumoscope.inference.engine import OpenVinoBackend, Outputs
from pneumoscope.inference.input_check import (
    METHOD,
    TABLE,
    ImageDescriptors,
    Statistics,
    choose_limits,
    describe_image,
    fit_statistics,
)
from pneumoscope.inference.predictor import BATCH, Predictor
from pneumoscope.inference.weights_store import Table
from pneumoscope.prefetching import prefetched
from pneumoscope.progress import SILENT, Progress
from pneumoscope.records import ImageRecord, evenly_spread
from pneumoscope.report.formatting import count, percent
from pneumoscope.training.features import Extractor
from pneumoscope.training.recipes import Pooled
from pneumoscope.workflows.run_folder import check_words
from pneumoscope.workflows.scoring import Scored

_LOGGER = logging.getLogger(__name__)

REFUSALS = 0.01
"""Target rejection rate on held-out images and on their copies, all of which are genuine X-rays."""

LEAST_IMAGES = 100
LEAST_PATIENTS = 10
"""With fewer training images or held-out patients the check is not fitted."""

_COPIES = 5
"""Modified copies per held-out image."""

_HEADING, _CITATION = "## Input check", "## Citation"
_SECTION = re.compile(rf"\n*^{_HEADING}$.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)


def _mirrored(image: Float32Array) -> Float32Array:
    return np.ascontiguousarray(image[:, ::-1])


CHANGES: tuple[Callable[[Float32Array], Float32Array], ...] = (
    *(perturbation.apply for perturbation in PERTURBATIONS),
    lambda image: rotation(image, 15.0),
    lambda image: rotation(image, -15.0),
    _mirrored,
)
"""Modifications that an image must tolerate without refusal."""


@dataclass(frozen=True, slots=True)
class _Described:
    """Images as the check describes them: descriptors, embeddings (n, c), labels (n,)."""

    looks: list[ImageDescriptors]
    embeddings: Float32Array
    labels: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Precomputed:
    """Known values of an unmodified image: its embedding (c,), perhaps its descriptors."""

    embedding: Float32Array
    look: ImageDescriptors | None = None


Lookup = Callable[[ImageRecord], Precomputed | None]
"""Returns what is already computed for an image, or `None`."""


def _nothing(_: ImageRecord) -> None:
    return None


@dataclass(frozen=True, slots=True)
class _Input:
    """An image or a copy of it; `pixels` is `None` if everything is already computed."""

    record: ImageRecord
    pixels: Float32Array | None
    lookup: Precomputed | None = None


@dataclass(frozen=True, slots=True)
class Effort:
    """Upper limits on the number of images.

    Attributes:
        images: training images; one copy of each is added.
        changed: held-out images that are modified.
    """

    images: int
    changed: int


WHOLE = Effort(1500, 300)
QUICK = Effort(400, 60)
"""For runs that take about a minute."""


def with_input_check(
    predictor: Predictor,
    train: Sequence[ImageRecord],
    held_out: Sequence[ImageRecord],
    progress: Progress = SILENT,
    *,
    lookup: Lookup = _nothing,
    effort: Effort | None = None,
) -> tuple[InputCheck, dict[str, NDArray[Any]]]:
    """Fit the statistics and choose the limits.

    Args:
        predictor: the model; only its embeddings are used, so it is faster without flip.
        train: its training images.
        held_out: images of other patients.
        progress: advances by one for each image and copy.
        lookup: returns what is already computed; an image with known descriptors is not read.
        effort: number of images; `None` is `WHOLE`.

    Returns:
        The entry of the manifest and the arrays of the table; method `none` and no arrays with
        fewer than `LEAST_IMAGES` training images or `LEAST_PATIENTS` held-out patients.
    """
    effort = effort or WHOLE
    sampled = evenly_spread(train, effort.images)
    to_modify = evenly_spread(held_out, effort.changed)
    patients = len({record.patient for record in held_out})
    if len(sampled) < LEAST_IMAGES or patients < LEAST_PATIENTS:
        return InputCheck(), {}
    total = 2 * len(sampled) + len(held_out) + _COPIES * len(to_modify)
    with progress.task("input check", total, "images") as task:

        def describe(inputs: Iterator[_Input]) -> _Described:
            return _describe(inputs, predictor, task.advance)

        training = describe(_with_one_copy(sampled, lookup))
        plain, changed = describe(_inputs(held_out, lookup)), describe(_copies(to_modify))
    if min(len(described.looks) for described in (training, plain, changed)) < LEAST_PATIENTS:
        return InputCheck(), {}
    gaussians = fit_statistics(training.looks, training.embeddings, training.labels)
    whole = Statistics(gaussians, dict.fromkeys(gaussians, 1.0))
    distances = [
        whole.shares(described.looks, described.embeddings) for described in (plain, changed)
    ]
    pooled = {name: np.concatenate([each[name] for each in distances]) for name in gaussians}
    statistics = Statistics(gaussians, choose_limits(pooled, REFUSALS, patients))
    check = InputCheck(
        METHOD,
        dict(statistics.limits),
        len(sampled),
        patients,
        _refused(plain, statistics),
        _refused(changed, statistics),
    )
    return check, statistics.to_table()


def warn_without_check(
    check: InputCheck, train: Sequence[ImageRecord], held_out: Sequence[ImageRecord]
) -> None:
    """Log a warning with the reason if a model was trained without an input check.

    Args:
        check: of the model.
        train: its training images.
        held_out: the images of other patients that `with_input_check` received.
    """
    if check != InputCheck():
        return
    patients = len({record.patient for record in held_out})
    lacking = [
        f"{found} {what}, wanted at least {least}"
        for found, what, least in (
            (len(train), "training images", LEAST_IMAGES),
            (patients, "validation patients", LEAST_PATIENTS),
        )
        if found < least
    ]
    reason = " and ".join(lacking) or "too few of the images can be read"
    _LOGGER.warning("no input check: %s. This model predicts for any picture.", reason)


def tables_of(table: Table) -> dict[str, Table]:
    """The tables argument of `write_bundle`."""
    return {TABLE: table} if table else {}


def card_with_check(card: str, check: InputCheck) -> str:
    """Insert or replace the section on the input check in a model card."""
    rest, citation, end = _SECTION.sub("\n\n", card).partition(_CITATION)
    words = (
        f"Images that differ from the training images are rejected. Method: {check_words(check)}."
    )
    if check == InputCheck():
        words = "This model has no input check: every readable image gets a prediction."
    return f"{rest.rstrip()}\n\n{_HEADING}\n\n{words}\n" + (citation and f"\n{citation}{end}")


def run_input_check(
    data: Path, model: str, out: Path | None, progress: Progress
) -> tuple[dict[str, Any], str]:
    """Fit the input check of `model` to its data and write a bundle with it to `out`.

    Raises:
        UsageError: no such model, or `out` holds content that is not a bundle.
        DataError: `data` has too few images in its `train` or `val` split.
    """
    bundle = load_bundle(model)
    if out is not None:
        check_bundle_target(out)
    dataset = index(data, hash_files=False, progress=progress)
    parts = {name: dataset.subset(name).records for name in ("train", "val", "test")}
    predictor = embedding_predictor(bundle)
    check, table = with_input_check(predictor, parts["train"], parts["val"], progress)
    if check == InputCheck():
        raise _too_few(data, bundle, progress)
    tested = None
    if parts["test"]:
        statistics = Statistics.from_table(table, check.limits)
        with progress.task("test", len(parts["test"]), "images") as task:
            described = _describe(_inputs(parts["test"]), predictor, task.advance)
        tested = _refused(described, statistics)
    if out is not None:
        manifest = replace(bundle.manifest, input_check=check)
        card = card_with_check(bundle.card.read_text(encoding="utf-8"), check)
        write_revised(out, bundle, manifest, card, tables_of(table))
    document = {
        "out": None if out is None else str(out),
        "images": check.images,
        "patients": check.patients,
        "refused": {"val": check.refused, "val_changed": check.refused_changed, "test": tested},
        "limits": check.limits,
    }
    lines = [
        f"statistics of {count(check.images)} training images, limits chosen on "
        f"{count(check.patients)} held-out patients",
        f"rejected in val            {percent(check.refused, 1)}",
        f"in modified copies of val  {percent(check.refused_changed, 1)}",
    ]
    lines += [] if tested is None else [f"in test                    {percent(tested, 1)}"]
    lines += [f"model  {out}" if out else "not saved: give --out BUNDLE"]
    return document, "\n".join(lines)


def _too_few(data: Path, bundle: Bundle, progress: Progress) -> DataError:
    """The error for data that have too few images for an input check."""
    dataset = index(data, progress=progress)  # with hashes, to tell whose training data these are
    train, val = (
        [record for record, _ in _readable(dataset.subset(name).records)]
        for name in ("train", "val")
    )
    of_the_model = fingerprint(train) == bundle.manifest.training_data.fingerprint
    way_out = (
        "Train on more images."
        if of_the_model
        else "Give the training data of the model with its splits: RUN/split.csv"
    )
    return DataError(
        f"{data}: found {len(train)} readable images in train (wanted at least {LEAST_IMAGES}) "
        f"and {len({record.patient for record in val})} patients in val (wanted at least "
        f"{LEAST_PATIENTS}). {way_out}"
    )


def embedding_predictor(bundle: Bundle) -> Predictor:
    """A predictor with the first network of a bundle, whose embeddings the check uses."""
    manifest = bundle.manifest
    network = read_network(bundle.weights[0], manifest.architecture)
    return Predictor(manifest, OpenVinoBackend([network], manifest.architecture.size))


def _inputs(records: Sequence[ImageRecord], lookup: Lookup = _nothing) -> Iterator[_Input]:
    for record in records:
        precomputed = lookup(record)
        if precomputed is not None and precomputed.look is not None:
            yield _Input(record, None, precomputed)
            continue
        try:
            yield _Input(record, read_image(record.path).pixels, precomputed)
        except ImageRefusedError:  # training and evaluation report it
            continue


def _readable(records: Sequence[ImageRecord]) -> Iterator[tuple[ImageRecord, Float32Array]]:
    for item in _inputs(records):
        if item.pixels is not None:
            yield item.record, item.pixels


def _with_one_copy(records: Sequence[ImageRecord], lookup: Lookup) -> Iterator[_Input]:
    """Each image and one copy: modifications in turn, in every other round also mirrored."""
    for number, (record, pixels) in enumerate(_readable(records)):
        yield _Input(record, pixels, lookup(record))
        changed = CHANGES[number % len(CHANGES)](pixels)
        yield _Input(record, _mirrored(changed) if number // len(CHANGES) % 2 else changed)


def _copies(records: Sequence[ImageRecord]) -> Iterator[_Input]:
    """A few copies of each image, modifications in turn."""
    for number, (record, pixels) in enumerate(_readable(records)):
        for k in range(_COPIES):
            yield _Input(record, CHANGES[(_COPIES * number + k) % len(CHANGES)](pixels))


def _describe(
    inputs: Iterator[_Input], predictor: Predictor, advance: Callable[[int], None]
) -> _Described:
    grey = Preprocessor(predictor.manifest.preprocessing).grey
    found: list[tuple[ImageDescriptors, int, Float32Array | None]] = []
    pending: list[int] = []

    def named() -> Iterator[tuple[str, Float32Array]]:
        for item in inputs:
            look, embedding = (
                (item.lookup.look, item.lookup.embedding) if item.lookup else (None,) * 2
            )
            if look is None and item.pixels is not None:
                look = describe_image(grey(item.pixels))
            if look is not None:
                found.append((look, item.record.label, embedding))
            if embedding is None and item.pixels is not None:
                pending.append(len(found) - 1)
                yield str(item.record.path), item.pixels

    reported = 0
    # A thread reads and describes images while the engine runs.
    results = predictor.predict_images(prefetched(named(), most=2 * BATCH))
    for number, result in enumerate(results):
        look, label, _ = found[pending[number]]
        found[pending[number]] = look, label, result.embedding
        advance(pending[number] + 1 - reported)
        reported = pending[number] + 1
    advance(len(found) - reported)
    kept = [each for each in found if each[2] is not None]
    return _Described(
        [look for look, _, _ in kept],
        np.array([embedding for _, _, embedding in kept], np.float32),
        np.array([label for _, label, _ in kept], np.int64),
    )


def _refused(described: _Described, statistics: Statistics) -> float:
    verdicts = map(statistics.verdict, described.looks, described.embeddings)
    return float(np.mean([verdict.reason is not None for verdict in verdicts]))


class EmbeddingBackend:
    """A backend that computes embeddings only, with the feature extractor of training.

    Args:
        extractor: of pooled features.
    """

    def __init__(self, extractor: Extractor) -> None:
        self._extractor = extractor

    def run(self, batch: NDArray[np.float32]) -> Outputs:
        """Embeddings (n, c) of preprocessed images; logits and heatmaps are 0."""
        rows, count = self._extractor(batch), len(batch)
        return Outputs(np.zeros(count, np.float32), np.zeros((count, 1, 1), np.float32), rows)


def pooled_by_record(pooled: Pooled, records: Sequence[ImageRecord]) -> Lookup:
    """Embeddings by record; the rows of `pooled` are aligned with `records`."""
    rows = {record.path: row for row, record in enumerate(records)}

    def lookup(record: ImageRecord) -> Precomputed | None:
        row = rows.get(record.path)
        if row is None:
            return None
        return Precomputed(pooled.table.take(np.array([row]), np.array([0]))[0])

    return lookup


def scored_by_record(scored: Scored) -> Lookup:
    """Embeddings and image descriptors by record, from results made with `looks=True`."""
    results = {
        record.path: Precomputed(result.embedding, result.look)
        for record, result in zip(scored.records, scored.results, strict=True)
        if result.embedding is not None
    }
    return lambda record: results.get(record.path)


def either(first: Lookup, second: Lookup) -> Lookup:
    """Look a record up in `first`, then in `second`."""
    return lambda record: first(record) or second(record)
