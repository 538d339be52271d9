"""Labelled images through the `Predictor`: what training and evaluation both need.

Comes in: records and a predictor. Goes out: labels, patients and answers in step, the evaluation
of them, and the pictures of the worst errors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pneumoscope.config import IntervalConfig, PreprocessConfig
from pneumoscope.errors import DataError, ImageRefusedError, Reason
from pneumoscope.evaluation.evaluate import Evaluation, evaluate, in_own_units
from pneumoscope.evaluation.groups import by_group
from pneumoscope.evaluation.recalibrate import ScoreScale
from pneumoscope.images.cautions import counted
from pneumoscope.images.dicom.attributes import film_attributes
from pneumoscope.images.framing import match_framing, reliable_box
from pneumoscope.images.grey import FloatArray
from pneumoscope.images.read import read_image
from pneumoscope.inference.bundle import BundleManifest
from pneumoscope.inference.overlay import image_png, overlay_png
from pneumoscope.inference.predictor import Answer, Predictor, decide
from pneumoscope.inference.table import COLUMNS
from pneumoscope.progress import Progress
from pneumoscope.records import CLASS_NAMES, UNCERTAIN, ImageRecord, Prediction
from pneumoscope.report.content import Refusals, WorstError

WORST_SHOWN = 8
_THUMBNAIL_SIDE = 320


@dataclass(frozen=True, slots=True)
class Answered:
    """Records and the answer to each, in step."""

    records: tuple[ImageRecord, ...]
    answers: tuple[Answer, ...]

    @property
    def ok(self) -> list[int]:
        """Positions of the images that have an answer."""
        return [k for k, answer in enumerate(self.answers) if answer.prediction.status == "ok"]

    def labels(self) -> NDArray[np.int64]:
        """Labels (n,) of the images that have an answer."""
        return np.array([self.records[k].label for k in self.ok], np.int64)

    def patients(self) -> list[str]:
        """Patients of the images that have an answer."""
        return [self.records[k].patient for k in self.ok]

    def logits(self) -> NDArray[np.float64]:
        """Logits (n,) of the images that have an answer."""
        return np.array([self.answers[k].logit for k in self.ok], np.float64)

    def probabilities(self) -> NDArray[np.float64]:
        """Calibrated probabilities (n,) of the images that have an answer."""
        return np.array([self.answers[k].prediction.probability for k in self.ok], np.float64)

    def warned(self) -> Counter[str]:
        """How many of the images, with an answer or without, have each kind of warning."""
        return counted(answer.prediction.warnings for answer in self.answers)

    def checked_by(self, predictor: Predictor) -> Answered:
        """The same forward passes after the input check of `predictor`, whose network made them."""
        return replace(self, answers=tuple(map(predictor.checked, self.answers)))

    def decided_anew(self, manifest: BundleManifest) -> Answered:
        """The same forward passes under another calibration and threshold."""
        return replace(self, answers=tuple(decide(answer, manifest) for answer in self.answers))


def answer_all(
    records: Sequence[ImageRecord], predictor: Predictor, title: str, progress: Progress
) -> Answered:
    """Run every record through the predictor.

    Raises:
        DataError: not one image could be answered for.
    """
    answers = []
    with progress.task(title, len(records), "images") as task:
        for answer in predictor.predict_files([record.path for record in records]):
            answers.append(answer)
            task.advance()
    answered = Answered(tuple(records), tuple(answers))
    if not answered.ok:
        first = answers[0].prediction if answers else None
        example = f" The first: {first.path}: {first.detail}" if first else ""
        raise DataError(
            f"none of {len(records)} images could be answered for.{example} "
            "Look at the data: pneumoscope data audit DATA"
        )
    return answered


@dataclass(frozen=True, slots=True)
class ScoredCases:
    """Labelled inputs with a score each, from a model or a file: what an evaluation measures.

    Attributes:
        labels: int64, (n,), 0 or 1.
        scores: float64, (n,), in their own units.
        patients: (n,) ids.
        threshold: PNEUMONIA is called from here up, in the scores' units.
        rule: how it was chosen, in words.
        columns: further columns, (n,) texts each, for groups; `subtype` among them.
        refused: how many more inputs have no score.
    """

    labels: NDArray[np.int64]
    scores: NDArray[np.float64]
    patients: Sequence[str]
    threshold: float
    rule: str
    columns: Mapping[str, Sequence[str]]
    refused: int = 0

    def unit_scores(self) -> tuple[ScoreScale, NDArray[np.float64], float]:
        """The scale, and scores and threshold on it, from 0 to 1."""
        scale = ScoreScale.of(self.scores, self.threshold)
        return scale, scale.to_unit(self.scores), float(scale.to_unit(self.threshold))


@dataclass(frozen=True, slots=True)
class MatchedFraming:
    """Results on re-cut images: `images/framing.py`.

    Attributes:
        share: of each side that the lungs fill.
        by_median_box: images without detected lungs, which were re-cut by the median box.
        answered: the results.
    """

    share: float
    by_median_box: int
    answered: Answered

    def note(self) -> str:
        """What the reader of the results must know."""
        return (
            f"Framing matched: every image was re-cut so that the lungs fill "
            f"{100 * self.share:g} % of its width and height. In {self.by_median_box} of "
            f"{len(self.answered.records)} images no lungs were detected; these were re-cut by the "
            "median box. The input check was off."
        )


def answer_matched(
    records: Sequence[ImageRecord],
    predictor: Predictor,
    share: float,
    title: str,
    progress: Progress,
) -> MatchedFraming:
    """Run every record through the predictor, re-cut so that the lungs fill `share` of each side.

    Raises:
        DataError: not one image could be read.
    """
    answers: list[Answer | None] = [None] * len(records)
    waiting: list[int] = []
    without = 0

    def images() -> Iterator[tuple[str, FloatArray]]:
        nonlocal without
        for position, record in enumerate(records):
            try:
                pixels = read_image(record.path).pixels
            except ImageRefusedError as error:
                answers[position] = Answer(
                    Prediction(str(record.path), "refused", error.reason, detail=str(error))
                )
                continue
            box = reliable_box(pixels)
            without += box is None
            waiting.append(position)
            yield str(record.path), match_framing(pixels, box, share)

    with progress.task(title, len(records), "images") as task:
        for done, answer in enumerate(predictor.predict_images(images())):
            answers[waiting[done]] = answer
            task.advance()
    answered = Answered(tuple(records), tuple(each for each in answers if each is not None))
    if not answered.ok:
        raise DataError(
            f"none of {len(records)} images could be read. "
            "Look at the data: pneumoscope data audit DATA"
        )
    return MatchedFraming(share, without, answered)


def evaluate_answers(
    answered: Answered, manifest: BundleManifest, interval: IntervalConfig
) -> Evaluation:
    """Every metric of the answers at the model's threshold, and by group of patients."""
    cases = ScoredCases(
        answered.labels(),
        answered.probabilities(),
        answered.patients(),
        manifest.threshold.value,
        manifest.threshold.rule,
        group_columns([answered.records[k] for k in answered.ok]),
        refused=len(answered.answers) - len(answered.ok),
    )
    return evaluate_cases(cases, interval)


def evaluate_cases(cases: ScoredCases, interval: IntervalConfig) -> Evaluation:
    """Every metric of scores at their threshold, and by group of patients."""
    scale, scores, threshold = cases.unit_scores()
    found = evaluate(
        cases.labels,
        scores,
        cases.patients,
        threshold,
        cases.rule,
        interval,
        refused=cases.refused,
        subtypes=cases.columns.get("subtype"),
    )
    groups = by_group(
        cases.labels, scores, cases.patients, threshold, cases.columns, interval.level
    )
    return in_own_units(replace(found, groups=groups), scale, cases.threshold)


def group_columns(records: Sequence[ImageRecord]) -> dict[str, list[str]]:
    """Subtypes, further columns of the manifest, what DICOM headers say of patient and film.

    A column of the manifest counts before what a header says under the same name.
    """
    told = [
        {"subtype": record.subtype, **film_attributes(record.path), **record.extra}
        for record in records
    ]
    names = dict.fromkeys(name for values in told for name in values)
    return {name: [values.get(name, "") for values in told] for name in names}


def label_columns(answered: Answered) -> dict[str, list[str]]:
    """What stands beside each answer in an evaluation's predictions.csv, in step with the answers.

    `label`, `patient`, `split`, and the columns that groups were made of (empty without an answer).
    """
    records = answered.records
    columns: dict[str, list[str]] = {
        "label": [CLASS_NAMES[record.label] for record in records],
        "patient": [record.patient for record in records],
        "split": [record.split or "" for record in records],
    }
    groups = group_columns([records[k] for k in answered.ok])
    for name, values in groups.items():
        if name in columns or name in COLUMNS:
            continue
        columns[name] = [""] * len(records)
        for k, value in zip(answered.ok, values, strict=True):
            columns[name][k] = value
    return columns


def refusals_of(answered: Answered) -> tuple[Refusals, ...]:
    """Inputs without an answer, counted by reason, most frequent first."""
    without = [a.prediction for a in answered.answers if a.prediction.reason is not None]
    counts = Counter(p.reason for p in without)
    return tuple(
        Refusals(
            Reason(reason),
            count,
            tuple(Path(p.path).name for p in without if p.reason == reason)[:3],
        )
        for reason, count in counts.most_common()
        if reason is not None
    )


def worst_errors(answered: Answered, config: PreprocessConfig) -> tuple[WorstError, ...]:
    """The most confident wrong answers as thumbnails and overlays, worst first."""
    wrong = []
    for k in answered.ok:
        record, prediction = answered.records[k], answered.answers[k].prediction
        if prediction.prediction not in (CLASS_NAMES[record.label], UNCERTAIN):
            wrong.append((abs((prediction.probability or 0.0) - record.label), k))
    wrong.sort(key=lambda item: (-item[0], item[1]))
    return tuple(_pictured(answered, k, config) for _, k in wrong[:WORST_SHOWN])


def _pictured(answered: Answered, k: int, config: PreprocessConfig) -> WorstError:
    record, answer = answered.records[k], answered.answers[k]
    pixels = read_image(record.path).pixels
    cam = answer.cam
    return WorstError(
        record.path.name,
        record.label,
        answer.prediction.probability or 0.0,
        image_png(pixels, _THUMBNAIL_SIDE),
        None if cam is None else overlay_png(pixels, cam, config, _THUMBNAIL_SIDE),
    )
