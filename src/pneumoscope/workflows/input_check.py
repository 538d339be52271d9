"""`input-check`: what a model's training images look like, so that it knows what is none.

Comes in: a model that answers, the images that it was trained on, held-out ones. Goes out: the
`InputCheck` of a manifest and its table, or a bundle that has both.

Statistics are of training images as they are and of one changed copy each: another site's exposure
and framing are no reason to refuse. Limits are chosen on held-out patients, their images as they
are and in changed copies.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pneumoscope.data.index import index
from pneumoscope.errors import DataError, ImageRefusedError
from pneumoscope.graph.archive import read_network
from pneumoscope.images.framing import ImageDescriptors, describe_image
from pneumoscope.images.perturbation_sweeps import PERTURBATIONS, rotation
from pneumoscope.images.preprocess import Preprocessor
from pneumoscope.images.read import read_image
from pneumoscope.inference.bundle import Bundle, InputCheck, load_bundle, write_revised
from pneumoscope.inference.engine import OpenVinoBackend
from pneumoscope.inference.input_check import (
    METHOD,
    TABLE,
    Statistics,
    choose_limits,
    fit_statistics,
)
from pneumoscope.inference.predictor import BATCH, Predictor
from pneumoscope.inference.weights_store import Table
from pneumoscope.prefetching import prefetched
from pneumoscope.progress import SILENT, Progress
from pneumoscope.records import ImageRecord
from pneumoscope.report.formatting import count, percent
from pneumoscope.workflows.run_folder import check_words

FloatArray = NDArray[np.float32]

REFUSALS = 0.01
"""Share of held-out films and their copies that may be refused; real ones are all of them."""

LEAST_IMAGES = 100
LEAST_PATIENTS = 10
"""Of fewer training images, or held-out patients, nothing is concluded."""

_COPIES = 5
"""Of each held-out image whose copies are looked at."""

_HEADING, _CITATION = "## Input check", "## Citation"
_SECTION = re.compile(rf"\n*^{_HEADING}$.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)


def _mirrored(image: FloatArray) -> FloatArray:
    return np.ascontiguousarray(image[:, ::-1])


CHANGES: tuple[Callable[[FloatArray], FloatArray], ...] = (
    *(perturbation.apply for perturbation in PERTURBATIONS),
    lambda image: rotation(image, 15.0),
    lambda image: rotation(image, -15.0),
    _mirrored,
)
"""What may be done to a film without its being refused."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """Films as the check sees them: looks, embeddings (n, c), labels (n,)."""

    looks: list[ImageDescriptors]
    embeddings: FloatArray
    labels: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Glimpse:
    """What was worked out before of a film as it is: its embedding (c,), and perhaps its look."""

    embedding: FloatArray
    look: ImageDescriptors | None = None


Known = Callable[[ImageRecord], Glimpse | None]
"""What was worked out before of a film, if it was."""


def _unknown(_: ImageRecord) -> None:
    return None


@dataclass(frozen=True, slots=True)
class _Film:
    """A film or a copy of it; the pixels are there unless all is known."""

    record: ImageRecord
    pixels: FloatArray | None
    known: Glimpse | None = None


@dataclass(frozen=True, slots=True)
class Effort:
    """How many images are looked at, at most.

    Attributes:
        images: training images; one copy of each is, too.
        changed: held-out images of which copies are.
    """

    images: int
    changed: int


WHOLE = Effort(1500, 300)
QUICK = Effort(400, 60)
"""Where all else takes a minute."""


def with_input_check(
    predictor: Predictor,
    train: Sequence[ImageRecord],
    held_out: Sequence[ImageRecord],
    progress: Progress = SILENT,
    *,
    known: Known = _unknown,
    effort: Effort | None = None,
) -> tuple[InputCheck, dict[str, NDArray[Any]]]:
    """What the model's images look like, and how far from them others may be.

    Args:
        predictor: the model; only its embeddings count, so without its flip it is quicker.
        train: images that it was trained on.
        held_out: images of other patients.
        progress: is told of every image.
        known: what need not be worked out again; a film whose look is known is not read.
        effort: how many images are looked at; `None` is `WHOLE`.

    Returns:
        The manifest's entry and the table's arrays; method `none` and no array, where there are
        fewer than `LEAST_IMAGES` or `LEAST_PATIENTS`.
    """
    effort = effort or WHOLE
    some, few = _spread(train, effort.images), _spread(held_out, effort.changed)
    patients = len({record.patient for record in held_out})
    if len(some) < LEAST_IMAGES or patients < LEAST_PATIENTS:
        return InputCheck(), {}
    total = 2 * len(some) + len(held_out) + _COPIES * len(few)
    with progress.task("input check", total, "images") as task:

        def see(films: Iterator[_Film]) -> _Seen:
            return _see(films, predictor, task.advance)

        ours = see(_with_one_copy(some, known))
        plain, changed = see(_films(held_out, known)), see(_copies(few))
    if min(len(seen.looks) for seen in (ours, plain, changed)) < LEAST_PATIENTS:
        return InputCheck(), {}
    gaussians = fit_statistics(ours.looks, ours.embeddings, ours.labels)
    whole = Statistics(gaussians, dict.fromkeys(gaussians, 1.0))
    distances = [whole.shares(seen.looks, seen.embeddings) for seen in (plain, changed)]
    pooled = {name: np.concatenate([each[name] for each in distances]) for name in gaussians}
    statistics = Statistics(gaussians, choose_limits(pooled, REFUSALS, patients))
    check = InputCheck(
        METHOD,
        dict(statistics.limits),
        len(some),
        patients,
        _refused(plain, statistics),
        _refused(changed, statistics),
    )
    return check, statistics.to_table()


def tables_of(table: Table) -> dict[str, Table]:
    """The tables of a bundle, as `write_bundle` takes them."""
    return {TABLE: table} if table else {}


def card_with_check(card: str, check: InputCheck) -> str:
    """A model card with a section on the check, in place of the one that it had."""
    rest, citation, end = _SECTION.sub("\n\n", card).partition(_CITATION)
    words = f"What is unlike the training images is refused; how it is told: {check_words(check)}."
    if check == InputCheck():
        words = "It can't tell what is no chest X-ray: whatever can be read gets an answer."
    return f"{rest.rstrip()}\n\n{_HEADING}\n\n{words}\n" + (citation and f"\n{citation}{end}")


def run_input_check(
    data: Path, model: str, out: Path | None, progress: Progress
) -> tuple[dict[str, Any], str]:
    """Make the check of `model` from its data, and write a bundle with it to `out`.

    Raises:
        UsageError: no such model.
        DataError: `data` has no `train` or no `val` split, or too few images in them.
    """
    bundle = load_bundle(model)
    dataset = index(data, hash_files=False, progress=progress)
    parts = {name: dataset.subset(name).records for name in ("train", "val", "test")}
    predictor = embedding_predictor(bundle)
    check, table = with_input_check(predictor, parts["train"], parts["val"], progress)
    if check == InputCheck():
        raise DataError(
            f"{data}: found {len(parts['train'])} images in train and "
            f"{len({record.patient for record in parts['val']})} patients in val, wanted at least "
            f"{LEAST_IMAGES} and {LEAST_PATIENTS} that can be read. Give the data that the model "
            "was trained on, split as then: RUN/split.csv"
        )
    tested = None
    if parts["test"]:
        statistics = Statistics.from_table(table, check.limits)
        with progress.task("test", len(parts["test"]), "images") as task:
            seen = _see(_films(parts["test"]), predictor, task.advance)
        tested = _refused(seen, statistics)
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
        f"refused of val             {percent(check.refused, 1)}",
        f"of changed copies of it    {percent(check.refused_changed, 1)}",
    ]
    lines += [] if tested is None else [f"of test                    {percent(tested, 1)}"]
    lines += [f"model  {out}" if out else "nothing written: give --out BUNDLE"]
    return document, "\n".join(lines)


def embedding_predictor(bundle: Bundle) -> Predictor:
    """A bundle's first network alone, un-flipped: its embeddings are those of the whole bundle."""
    manifest = bundle.manifest
    network = read_network(bundle.weights[0], manifest.architecture)
    return Predictor(manifest, OpenVinoBackend([network], manifest.architecture.size))


def _spread(records: Sequence[ImageRecord], most: int) -> Sequence[ImageRecord]:
    """At most so many records, evenly spread, so that classes keep their shares."""
    step = max(len(records) / most, 1.0)
    return [records[int(k * step)] for k in range(min(len(records), most))]


def _films(records: Sequence[ImageRecord], known: Known = _unknown) -> Iterator[_Film]:
    for record in records:
        glimpse = known(record)
        if glimpse is not None and glimpse.look is not None:
            yield _Film(record, None, glimpse)
            continue
        try:
            yield _Film(record, read_image(record.path).pixels, glimpse)
        except ImageRefusedError:  # training and evaluation tell of it
            continue


def _readable(records: Sequence[ImageRecord]) -> Iterator[tuple[ImageRecord, FloatArray]]:
    for film in _films(records):
        if film.pixels is not None:
            yield film.record, film.pixels


def _with_one_copy(records: Sequence[ImageRecord], known: Known) -> Iterator[_Film]:
    """Each film and one copy of it: the changes take turns, every other one is mirrored as well."""
    for number, (record, pixels) in enumerate(_readable(records)):
        yield _Film(record, pixels, known(record))
        changed = CHANGES[number % len(CHANGES)](pixels)
        yield _Film(record, _mirrored(changed) if number // len(CHANGES) % 2 else changed)


def _copies(records: Sequence[ImageRecord]) -> Iterator[_Film]:
    """A few copies of each film; the changes take turns."""
    for number, (record, pixels) in enumerate(_readable(records)):
        for k in range(_COPIES):
            yield _Film(record, CHANGES[(_COPIES * number + k) % len(CHANGES)](pixels))


def _see(films: Iterator[_Film], predictor: Predictor, advance: Callable[[int], None]) -> _Seen:
    grey = Preprocessor(predictor.manifest.preprocessing).grey
    found: list[tuple[ImageDescriptors, int, FloatArray | None]] = []
    asked: list[int] = []

    def named() -> Iterator[tuple[str, FloatArray]]:
        for film in films:
            look, embedding = (film.known.look, film.known.embedding) if film.known else (None,) * 2
            if look is None and film.pixels is not None:
                look = describe_image(grey(film.pixels))
            if look is not None:
                found.append((look, film.record.label, embedding))
            if embedding is None and film.pixels is not None:
                asked.append(len(found) - 1)
                yield str(film.record.path), film.pixels

    told = 0
    # Read and looked at in a thread, while the engine works.
    results = predictor.predict_images(prefetched(named(), most=2 * BATCH))
    for number, result in enumerate(results):
        look, label, _ = found[asked[number]]
        found[asked[number]] = look, label, result.embedding
        advance(asked[number] + 1 - told)
        told = asked[number] + 1
    advance(len(found) - told)
    kept = [each for each in found if each[2] is not None]
    return _Seen(
        [look for look, _, _ in kept],
        np.array([embedding for _, _, embedding in kept], np.float32),
        np.array([label for _, label, _ in kept], np.int64),
    )


def _refused(seen: _Seen, statistics: Statistics) -> float:
    verdicts = map(statistics.verdict, seen.looks, seen.embeddings)
    return float(np.mean([verdict.reason is not None for verdict in verdicts]))
