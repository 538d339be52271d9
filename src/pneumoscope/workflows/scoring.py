"""Score labelled images with a `Predictor` and evaluate the results.

Training, evaluation, cross-validation and comparison all score images through this module. It
keeps labels, patients and results aligned, computes metrics, and collects the largest errors.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pneumoscope.arrays import Float32Array
from pneumoscope.config import IntervalConfig, PreprocessConfig
from pneumoscope.errors import DataError, ImageRefusedError, Reason
from pneumoscope.evaluation.evaluate import Evaluation, evaluate, in_own_units
from pneumoscope.evaluation.groups import by_group
from pneumoscope.evaluation.operating_point import ScoreScale
from pneumoscope.images.dicom.patient import image_attributes
from pneumoscope.images.grey import count_warnings
from pneumoscope.images.lungs import match_framing, reliable_box
from pneumoscope.images.read import read_image
from pneumoscope.inference.bundle import BundleManifest
from pneumoscope.inference.overlay import image_png, overlay_png
from pneumoscope.inference.predictor import Predictor
from pneumoscope.inference.results import COLUMNS, Result, decide
from pneumoscope.progress import Progress
from pneumoscope.records import CLASS_NAMES, UNCERTAIN, ImageRecord, Prediction
from pneumoscope.report.content import Refusals, WorstError
from pneumoscope.report.formatting import number, plural

WORST_SHOWN = 8
_THUMBNAIL_SIDE = 320


@dataclass(frozen=True, slots=True)
class Scored:
    """Records and their results, aligned.

    Attributes:
        records: the images.
        results: one per record; a refused or unreadable image has a result without a probability.
    """

    records: tuple[ImageRecord, ...]
    results: tuple[Result, ...]

    @property
    def ok(self) -> list[int]:
        """Positions of the images that have a prediction."""
        return [k for k, result in enumerate(self.results) if result.prediction.status == "ok"]

    def labels(self) -> NDArray[np.int64]:
        """Labels (n,), 0 or 1, of the images that have a prediction."""
        return np.array([self.records[k].label for k in self.ok], np.int64)

    def patients(self) -> list[str]:
        """Patient ids (n) of the images that have a prediction."""
        return [self.records[k].patient for k in self.ok]

    def logits(self) -> NDArray[np.float64]:
        """Logits (n,) of the images that have a prediction."""
        return np.array([self.results[k].logit for k in self.ok], np.float64)

    def probabilities(self) -> NDArray[np.float64]:
        """Calibrated probabilities of pneumonia (n,) of the images that have a prediction."""
        return np.array([self.results[k].prediction.probability for k in self.ok], np.float64)

    def warning_counts(self) -> Counter[str]:
        """Number of images with each warning; refused images count too."""
        return count_warnings(result.prediction.warnings for result in self.results)

    def checked_by(self, predictor: Predictor) -> Scored:
        """The same results after the input check of `predictor`, without a second forward pass.

        Args:
            predictor: must have the network that produced these results.
        """
        return replace(self, results=tuple(map(predictor.checked, self.results)))

    def with_decisions(self, manifest: BundleManifest) -> Scored:
        """The same logits with the calibration and threshold of `manifest`."""
        return replace(self, results=tuple(decide(result, manifest) for result in self.results))

    def at_threshold(self, threshold: float) -> Scored:
        """The same probabilities with the predictions of another threshold.

        Unlike `with_decisions`, each result keeps the calibration of the model that it came from.
        """
        results = []
        for result in self.results:
            prediction = result.prediction
            if prediction.probability is not None:
                label = CLASS_NAMES[int(prediction.probability >= threshold)]
                withheld = prediction.prediction == UNCERTAIN
                prediction = replace(
                    prediction, threshold=threshold, prediction=UNCERTAIN if withheld else label
                )
            results.append(replace(result, prediction=prediction))
        return replace(self, results=tuple(results))


def score_all(
    records: Sequence[ImageRecord], predictor: Predictor, title: str, progress: Progress
) -> Scored:
    """Run inference on every record.

    Args:
        records: the images.
        predictor: the model.
        title: shown beside the progress bar.
        progress: advances by one for each image.

    Raises:
        DataError: no image has a prediction.
    """
    results = []
    with progress.task(title, len(records), "images") as task:
        for result in predictor.predict_files([record.path for record in records]):
            results.append(result)
            task.advance()
    scored = Scored(tuple(records), tuple(results))
    if not scored.ok:
        first = results[0].prediction if results else None
        example = f" The first one, {first.path}: {first.detail.rstrip('.')}." if first else ""
        raise DataError(
            f"none of {len(records)} images has a prediction.{example} "
            "Check the data: pneumoscope data audit DATA"
        )
    return scored


@dataclass(frozen=True, slots=True)
class ScoredCases:
    """Labelled images with one score each, from a model or from a file: the input of an evaluation.

    Attributes:
        labels: int64, (n,), 0 or 1.
        scores: float64, (n,), in the units of their source.
        patients: (n,) ids.
        threshold: scores at or above it are predicted PNEUMONIA; same units as `scores`.
        rule: how the threshold was chosen, in words.
        columns: further columns, (n,) texts each, that define subgroups; may include `subtype`.
        refused: number of further inputs that have no score.
    """

    labels: NDArray[np.int64]
    scores: NDArray[np.float64]
    patients: Sequence[str]
    threshold: float
    rule: str
    columns: Mapping[str, Sequence[str]]
    refused: int = 0

    def unit_scores(self) -> tuple[ScoreScale, NDArray[np.float64], float]:
        """The scale, and the scores and the threshold mapped onto it, from 0 to 1."""
        scale = ScoreScale.of(self.scores, self.threshold)
        return scale, scale.to_unit(self.scores), float(scale.to_unit(self.threshold))


@dataclass(frozen=True, slots=True)
class MatchedFraming:
    """Results on cropped images: `images/lungs.py`.

    Attributes:
        share: fraction of each side that the lungs fill, from 0 to 1.
        by_median_box: number of images without detected lungs, cropped by the median box.
        scored: the results.
    """

    share: float
    by_median_box: int
    scored: Scored

    def facts(self) -> dict[str, float]:
        """How the images were cropped, for `metrics.json`."""
        return {"share": self.share, "median_box": self.by_median_box}

    def note(self) -> str:
        """A sentence for reports: how the images were cropped."""
        return (
            f"Framing matched: every image was cropped so that the lungs fill "
            f"{100 * self.share:g} % of its width and height. In {self.by_median_box} of "
            f"{len(self.scored.records)} images no lungs were detected; these were cropped by the "
            "median box. The input check was off."
        )


def score_matched(
    records: Sequence[ImageRecord],
    predictor: Predictor,
    shares: Sequence[float],
    title: str,
    progress: Progress,
) -> dict[float, MatchedFraming]:
    """Run inference on every record, cropped so that the lungs fill each of `shares` of each side.

    An image is read, and its lungs are found, once for all shares.

    Raises:
        DataError: no image can be read.
    """
    results: list[list[Result]] = [[] for _ in records]
    waiting: list[int] = []
    without = 0

    def images() -> Iterator[tuple[str, Float32Array]]:
        nonlocal without
        for position, record in enumerate(records):
            try:
                pixels = read_image(record.path).pixels
            except ImageRefusedError as error:
                refused = Prediction(str(record.path), "refused", error.reason, detail=error.detail)
                results[position] = [Result(refused)] * len(shares)
                continue
            box = reliable_box(pixels)
            without += box is None
            for share in shares:
                waiting.append(position)
                yield str(record.path), match_framing(pixels, box, share)

    with progress.task(title, len(records), "images") as task:
        for done, result in enumerate(predictor.predict_images(images())):
            mine = results[waiting[done]]
            mine.append(result)
            if len(mine) == len(shares):
                task.advance()
    by_share = zip(*results, strict=True)
    found = {
        share: MatchedFraming(share, without, Scored(tuple(records), each))
        for share, each in zip(shares, by_share, strict=True)
    }
    if not all(each.scored.ok for each in found.values()):
        raise DataError(
            f"none of {len(records)} images could be read. "
            "Check the data: pneumoscope data audit DATA"
        )
    return found


def abstained(scored: Scored, manifest: BundleManifest) -> str:
    """State how many predictions are `uncertain`, and that metrics count them; `""` if none can."""
    if manifest.abstention.method == "none":
        return ""
    withheld = sum(scored.results[k].prediction.prediction == UNCERTAIN for k in scored.ok)
    return (
        f"The model abstains: {withheld} of {plural(len(scored.ok), 'prediction')} are "
        f"indeterminate ({manifest.abstention.rule}). All metrics apply the threshold, as if it "
        "never abstained."
    )


def reversed_scores(found: Evaluation) -> str:
    """A caution if scores are lower for pneumonia, beyond chance; `""` otherwise."""
    auc = found.metrics["auc"]
    if auc.high is None or auc.high >= 0.5:
        return ""
    return (
        f"The AUC is {number(auc.value)}, and its interval ends below 0.5: scores are lower for "
        "PNEUMONIA. Labels or scores may be reversed; higher scores must mean PNEUMONIA."
    )


def evaluate_scored(
    scored: Scored, manifest: BundleManifest, interval: IntervalConfig
) -> Evaluation:
    """Every metric of the results at the model's threshold, overall and by subgroup."""
    cases = ScoredCases(
        scored.labels(),
        scored.probabilities(),
        scored.patients(),
        manifest.threshold.value,
        manifest.threshold.rule,
        group_columns([scored.records[k] for k in scored.ok]),
        refused=len(scored.results) - len(scored.ok),
    )
    return evaluate_cases(cases, interval)


def evaluate_cases(cases: ScoredCases, interval: IntervalConfig) -> Evaluation:
    """Every metric of the scores at their threshold, overall and by subgroup."""
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
    """Columns that define subgroups: subtype, DICOM attributes, further columns of the manifest.

    A column of the manifest takes precedence over a DICOM attribute of the same name.
    """
    columns = [
        {"subtype": record.subtype, **image_attributes(record.path), **record.extra}
        for record in records
    ]
    names = dict.fromkeys(name for values in columns for name in values)
    return {name: [values.get(name, "") for values in columns] for name in names}


def label_columns(scored: Scored) -> dict[str, list[str]]:
    """The extra columns of an evaluation's predictions.csv, aligned with the results.

    They are `label`, `patient`, `split`, and the subgroup columns (empty without a prediction).
    """
    records = scored.records
    columns: dict[str, list[str]] = {
        "label": [CLASS_NAMES[record.label] for record in records],
        "patient": [record.patient for record in records],
        "split": [record.split or "" for record in records],
    }
    groups = group_columns([records[k] for k in scored.ok])
    for name, values in groups.items():
        if name in columns or name in COLUMNS:
            continue
        columns[name] = [""] * len(records)
        for k, value in zip(scored.ok, values, strict=True):
            columns[name][k] = value
    return columns


def refusals_of(scored: Scored) -> tuple[Refusals, ...]:
    """Counts of inputs without a prediction by reason, most frequent first."""
    without = [a.prediction for a in scored.results if a.prediction.reason is not None]
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


def worst_errors(scored: Scored, config: PreprocessConfig) -> tuple[WorstError, ...]:
    """The most confident wrong predictions as thumbnails and heatmap overlays, worst first."""
    wrong = []
    for k in scored.ok:
        record, prediction = scored.records[k], scored.results[k].prediction
        if prediction.prediction not in (CLASS_NAMES[record.label], UNCERTAIN):
            wrong.append((abs((prediction.probability or 0.0) - record.label), k))
    wrong.sort(key=lambda item: (-item[0], item[1]))
    return tuple(_pictured(scored, k, config) for _, k in wrong[:WORST_SHOWN])


def _pictured(scored: Scored, k: int, config: PreprocessConfig) -> WorstError:
    record, result = scored.records[k], scored.results[k]
    pixels = read_image(record.path).pixels
    cam = result.cam
    return WorstError(
        record.path.name,
        record.label,
        result.prediction.probability or 0.0,
        image_png(pixels, _THUMBNAIL_SIDE),
        None if cam is None else overlay_png(pixels, cam, config, _THUMBNAIL_SIDE),
    )
