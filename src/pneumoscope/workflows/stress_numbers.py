"""Compute the results of a stress test from the scores: `StressContent`.

The results are metrics with intervals per condition, judgements against the limit, shortcut
baselines, and one image under every condition as an example. No model runs here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pneumoscope.config import IntervalConfig, StressConfig
from pneumoscope.data.index import fingerprint, require_both_classes
from pneumoscope.evaluation.intervals import bootstrap_share
from pneumoscope.evaluation.stress import (
    Judgement,
    Paired,
    ShortcutBaseline,
    compare_paired,
    judge,
    shortcut_baseline,
)
from pneumoscope.images.lungs import MaskFolder
from pneumoscope.images.perturbation_sweeps import SWEEPS
from pneumoscope.inference.bundle import Abstention, BundleManifest
from pneumoscope.inference.overlay import image_png
from pneumoscope.progress import Progress
from pneumoscope.records import Dataset, Estimate, ImageRecord
from pneumoscope.report.content import EvaluatedSplit, RunFacts
from pneumoscope.report.stress_findings import (
    Example,
    ExchangeRow,
    Localisation,
    Shortcuts,
    StressContent,
    StressRow,
)
from pneumoscope.workflows.run_folder import data_facts, model_facts
from pneumoscope.workflows.stress_files import Output, Stressed
from pneumoscope.workflows.stress_scoring import (
    PLAIN,
    ChangeInput,
    Condition,
    conditions_of,
    donors_of,
    exchanges,
    framing_conditions,
    lungs_of,
    read_pixels,
    shortcut_conditions,
)

_EXAMPLE_SIDE = 144
_PARTS = "Parts of the image"


@dataclass(frozen=True, slots=True)
class StressInput:
    """The images and settings of a stress test.

    Attributes:
        data_name: name of the data set in reports.
        dataset: all images of the split.
        split: its name.
        records: the images that are used, a sample of whole patients if there is a limit.
        drawn_from: number of images that the sample was drawn from.
        masks: a user's lung masks; `None`: lungs are segmented.
        config: limits and sizes.
        interval: confidence level and number of resamples.
    """

    data_name: str
    dataset: Dataset
    split: EvaluatedSplit
    records: tuple[ImageRecord, ...]
    drawn_from: int
    masks: MaskFolder | None
    config: StressConfig
    interval: IntervalConfig


@dataclass(frozen=True, slots=True)
class _Scored:
    """The images whose unmodified version has a prediction, and their scores, aligned."""

    records: tuple[ImageRecord, ...]
    stressed: tuple[Stressed, ...]

    @property
    def labels(self) -> list[int]:
        return [record.label for record in self.records]

    @property
    def patients(self) -> list[str]:
        return [record.patient for record in self.records]

    def where(self, kept: Sequence[bool]) -> _Scored:
        """The subset selected by `kept`, (n,) booleans."""
        pairs = zip(self.records, self.stressed, kept, strict=True)
        chosen = [(record, one) for record, one, keep in pairs if keep]
        return _Scored(tuple(r for r, _ in chosen), tuple(s for _, s in chosen))


def stress_content(
    given: StressInput,
    stressed: Sequence[Stressed],
    manifest: BundleManifest,
    model: str,
    progress: Progress,
) -> StressContent:
    """Compute all results of a stress test.

    Args:
        given: images and settings.
        stressed: the scores of each image, aligned with `given.records`.
        manifest: of the model that was scored.
        model: its name.
        progress: advances by one for each condition.

    Raises:
        DataError: no unmodified image of one class has a prediction.
    """
    scored, refused = _split_off_refused(given.records, stressed)
    require_both_classes(
        scored.records, f"the {len(scored.records)} of {len(stressed)} images with a prediction"
    )
    conditions = conditions_of(given.config)
    threshold = manifest.threshold.value
    compared = _compared(scored, conditions, threshold, given.interval, progress)
    return StressContent(
        split=given.split,
        images=len(scored.records),
        patients=len(set(scored.patients)),
        positives=sum(scored.labels),
        drawn_from=given.drawn_from,
        refused=refused,
        threshold=threshold,
        plain=compared[PLAIN].plain,
        rows=_rows(conditions, compared, given.config.largest_fall),
        shortcuts=(
            _shortcuts(scored, compared, given, threshold) if given.config.shortcuts else None
        ),
        config=given.config,
        interval=given.interval,
        run=RunFacts(""),
        data=data_facts(given.data_name, given.dataset, fingerprint(given.dataset.records)),
        model=model_facts(model, manifest),
        examples=_examples(scored, conditions, given),
        uncertain=_uncertain(scored, conditions, manifest.abstention),
    )


def _split_off_refused(
    records: Sequence[ImageRecord], stressed: Sequence[Stressed]
) -> tuple[_Scored, dict[str, int]]:
    """Separate images whose unmodified version has a prediction; count the others by reason."""
    usable = [bool(one.outputs) and isinstance(one.outputs[0], float) for one in stressed]
    reasons = [
        str(one.outputs[0]) if one.outputs else one.reason
        for one, has_prediction in zip(stressed, usable, strict=True)
        if not has_prediction
    ]
    scored = _Scored(tuple(records), tuple(stressed)).where(usable)
    return scored, dict(Counter(reasons).most_common())


def _compared(
    scored: _Scored,
    conditions: Sequence[Condition],
    threshold: float,
    interval: IntervalConfig,
    progress: Progress,
) -> dict[str, Paired]:
    """Compare every condition with the unmodified images, paired.

    An image without a copy under a condition (no lungs) is excluded from both sides; it does not
    count as refused.
    """
    found = {}
    with progress.task("comparing", len(conditions), "changes") as task:
        for number, condition in enumerate(conditions):
            own = scored.where([one.outputs[number] is not None for one in scored.stressed])
            plain, changed = _column(own, 0), _column(own, number)
            found[condition.name] = compare_paired(
                own.labels, own.patients, plain, changed, threshold, interval
            )
            task.advance()
    return found


def _uncertain(
    scored: _Scored, conditions: Sequence[Condition], band: Abstention
) -> dict[str, int] | None:
    """Number of images per condition whose probability lies in the abstention band."""
    if band.method == "none":
        return None
    return {
        condition.name: int(
            np.count_nonzero((_column(scored, k) >= band.low) & (_column(scored, k) < band.high))
        )
        for k, condition in enumerate(conditions)
    }


def _column(scored: _Scored, number: int) -> NDArray[np.float64]:
    return np.array([_probability(one.outputs[number]) for one in scored.stressed], np.float64)


def _probability(output: Output) -> float:
    return output if isinstance(output, float) else float("nan")


def _rows(
    conditions: Sequence[Condition], compared: dict[str, Paired], largest_fall: float
) -> tuple[StressRow, ...]:
    titles = {condition.name: condition.title for condition in conditions}
    rows = []
    for sweep in SWEEPS:
        for step in sweep.steps:
            name, strength = step.perturbation.name, step.perturbation.strength
            found = compared[name]
            judged = judge(found, largest_fall, plausible=step.plausible)
            row = StressRow(sweep.name, name, titles[name], strength, step.plausible, found, judged)
            rows.append(row)
    return tuple(rows)


def _mean(values: Sequence[float], patients: Sequence[str], interval: IntervalConfig) -> Estimate:
    """Mean of non-negative values with its interval over patients, scaled by the largest value."""
    largest = max([1.0, *values])
    share = bootstrap_share([value / largest for value in values], patients, interval)
    ends = (share.value, share.low, share.high)
    return Estimate(*(None if end is None else largest * end for end in ends))


def _exchanges(scored: _Scored, given: StressInput, threshold: float) -> tuple[ExchangeRow, ...]:
    """Backgrounds of the other class compared with those of the same class, on the same images."""
    columns = {condition.name: k for k, condition in enumerate(conditions_of(given.config))}
    rows = []
    for exchange in exchanges(given.config):
        same, other = (columns[each.name] for each in (exchange.same, exchange.other))
        own = scored.where(
            [None not in (one.outputs[same], one.outputs[other]) for one in scored.stressed]
        )
        found = compare_paired(
            own.labels,
            own.patients,
            _column(own, same),
            _column(own, other),
            threshold,
            given.interval,
        )
        rows.append(ExchangeRow(exchange.name, exchange.title, found))
    return tuple(rows)


def _shortcuts(
    scored: _Scored, compared: dict[str, Paired], given: StressInput, threshold: float
) -> Shortcuts:
    rows = tuple(
        StressRow("", part.name, part.title, 0.0, False, compared[part.name], "shown")
        for part in shortcut_conditions(given.config)
    )
    lungs = scored.where([one.lung_share is not None for one in scored.stressed])
    shares = [one.lung_share or 0.0 for one in lungs.stressed]
    framing = tuple(
        StressRow(
            "",
            each.name,
            each.title,
            0.0,
            True,
            compared[each.name],
            _judged(each, compared, given),
        )
        for each in framing_conditions(given.config)
    )
    with_heatmap = lungs.where([one.energy is not None for one in lungs.stressed])
    energies = [one.energy or 0.0 for one in with_heatmap.stressed]
    return Shortcuts(
        rows=rows,
        exchanges=_exchanges(scored, given, threshold),
        baselines=_baselines(scored, lungs, given),
        lungs_from="masks" if given.masks else "found",
        with_lungs=len(lungs.records),
        without_lungs=len(scored.records) - len(lungs.records),
        lung_share=bootstrap_share(shares, lungs.patients, given.interval),
        energy=bootstrap_share(energies, with_heatmap.patients, given.interval),
        energy_images=len(with_heatmap.records),
        framing=framing,
        localisation=_localisation(with_heatmap, threshold, given.interval),
    )


def _judged(condition: Condition, compared: dict[str, Paired], given: StressInput) -> Judgement:
    return judge(compared[condition.name], given.config.largest_fall, plausible=True)


def _localisation(
    with_heatmap: _Scored, threshold: float, interval: IntervalConfig
) -> Localisation:
    """Heatmap localisation on the true positives, among images with lungs and a heatmap."""
    found = with_heatmap.where(
        [
            record.label == 1 and _probability(one.outputs[0]) >= threshold
            for record, one in zip(with_heatmap.records, with_heatmap.stressed, strict=True)
        ]
    )
    peaks = [float(bool(one.peak)) for one in found.stressed]
    gains = [(one.energy or 0.0) / (one.lung_share or 1.0) for one in found.stressed]
    return Localisation(
        len(found.records),
        bootstrap_share(peaks, found.patients, interval),
        _mean(gains, found.patients, interval),
    )


def _baselines(
    scored: _Scored, lungs: _Scored, given: StressInput
) -> dict[str, ShortcutBaseline | None]:
    """Shortcut baselines: classifiers on thumbnails, file properties, lung outline or lung box."""
    with_box = lungs.where([bool(one.matched_box) for one in lungs.stressed])
    features = {
        "thumbnails": (scored, [one.thumbnail for one in scored.stressed]),
        "properties": (scored, [one.properties for one in scored.stressed]),
        "outline": (lungs, [one.outline for one in lungs.stressed]),
        "lung_box": (with_box, [_measures(one.box) for one in with_box.stressed]),
        "matched_box": (with_box, [_measures(one.matched_box) for one in with_box.stressed]),
    }
    folds, interval = given.config.folds, given.interval
    return {
        name: shortcut_baseline(np.array(numbers), own.labels, own.patients, folds, interval)
        for name, (own, numbers) in features.items()
    }


def _measures(box: tuple[float, ...]) -> tuple[float, ...]:
    """The edges of a box, its width and its height."""
    left, top, right, bottom = box
    return (*box, right - left, bottom - top)


def _examples(
    scored: _Scored, conditions: Sequence[Condition], given: StressInput
) -> tuple[Example, ...]:
    """One image with pneumonia, at the lower quartile of probability, under every condition."""
    positives = [k for k, record in enumerate(scored.records) if record.label == 1]
    positives.sort(key=lambda k: (_probability(scored.stressed[k].outputs[0]), k))
    chosen = positives[len(positives) // 4]
    record, stressed = scored.records[chosen], scored.stressed[chosen]
    pixels = read_pixels(record, given.config)
    lungs = lungs_of(record, pixels, given.config, given.masks)
    donors = donors_of(given.records, given.records.index(record), given.config)
    change_input = ChangeInput(pixels, lungs, donors)
    of_sweep = {step.perturbation.name: sweep.title for sweep in SWEEPS for step in sweep.steps}
    found = []
    for condition, output in zip(conditions, stressed.outputs, strict=True):
        copy = None if output is None else condition.change(change_input)
        if copy is not None:
            title = (
                "Unmodified" if condition.name == PLAIN else of_sweep.get(condition.name, _PARTS)
            )
            probability = output if isinstance(output, float) else None
            found.append(
                Example(title, condition.title, image_png(copy, _EXAMPLE_SIDE), probability)
            )
    return tuple(found)
