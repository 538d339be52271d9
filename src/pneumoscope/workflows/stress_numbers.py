"""From what a model said of every copy to all there is to show: `StressContent`.

Comes in: records and one `Stressed` for each. Goes out: numbers with intervals, judgements,
controls, one film changed in every way. Asks no model.
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
from pneumoscope.evaluation.stress import Control, Judgement, Paired, compare_paired, control, judge
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
from pneumoscope.workflows.stress_answers import (
    PLAIN,
    Condition,
    Shown,
    conditions_of,
    exchanges,
    framing_conditions,
    lenders_of,
    lungs_of,
    read_film,
    shortcut_conditions,
)
from pneumoscope.workflows.stress_files import Said, Stressed

_EXAMPLE_SIDE = 144
_PARTS = "Parts of the film"


@dataclass(frozen=True, slots=True)
class StressGiven:
    """What is stressed, and how.

    Attributes:
        data_name: what the reader knows the data by.
        dataset: the split's images.
        split: which it is.
        records: those that are used, a sample where there are more.
        drawn_from: how many there are.
        masks: a user's lungs; `None`: they are looked for.
        config: limits and sizes.
        interval: how uncertainty is stated.
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
class _Answered:
    """The images that had an answer as they are, in step with what was said of them."""

    records: tuple[ImageRecord, ...]
    stressed: tuple[Stressed, ...]

    @property
    def labels(self) -> list[int]:
        return [record.label for record in self.records]

    @property
    def patients(self) -> list[str]:
        return [record.patient for record in self.records]

    def where(self, kept: Sequence[bool]) -> _Answered:
        """Some of them."""
        pairs = zip(self.records, self.stressed, kept, strict=True)
        chosen = [(record, said) for record, said, keep in pairs if keep]
        return _Answered(tuple(r for r, _ in chosen), tuple(s for _, s in chosen))


def stress_content(
    given: StressGiven,
    stressed: Sequence[Stressed],
    manifest: BundleManifest,
    model: str,
    progress: Progress,
) -> StressContent:
    """All numbers of a stress test.

    Args:
        given: images and settings.
        stressed: what was said of each image.
        manifest: of the model that said it.
        model: its name.
        progress: is told of every condition.

    Raises:
        DataError: no image of one class had an answer as it is.
    """
    answered, refused = _split_off_refused(given.records, stressed)
    require_both_classes(
        answered.records, f"the {len(answered.records)} of {len(stressed)} images with an answer"
    )
    conditions = conditions_of(given.config)
    threshold = manifest.threshold.value
    compared = _compared(answered, conditions, threshold, given.interval, progress)
    return StressContent(
        split=given.split,
        images=len(answered.records),
        patients=len(set(answered.patients)),
        positives=sum(answered.labels),
        drawn_from=given.drawn_from,
        refused=refused,
        threshold=threshold,
        plain=compared[PLAIN].plain,
        rows=_rows(conditions, compared, given.config.largest_fall),
        shortcuts=(
            _shortcuts(answered, compared, given, threshold) if given.config.shortcuts else None
        ),
        config=given.config,
        interval=given.interval,
        run=RunFacts(""),
        data=data_facts(given.data_name, given.dataset, fingerprint(given.dataset.records)),
        model=model_facts(model, manifest),
        examples=_examples(answered, conditions, given),
        uncertain=_uncertain(answered, conditions, manifest.abstention),
    )


def _split_off_refused(
    records: Sequence[ImageRecord], stressed: Sequence[Stressed]
) -> tuple[_Answered, dict[str, int]]:
    """The images with an answer as they are, and the others counted by reason."""
    fine = [bool(one.said) and isinstance(one.said[0], float) for one in stressed]
    reasons = [
        str(one.said[0]) if one.said else one.reason
        for one, answered in zip(stressed, fine, strict=True)
        if not answered
    ]
    answered = _Answered(tuple(records), tuple(stressed)).where(fine)
    return answered, dict(Counter(reasons).most_common())


def _compared(
    answered: _Answered,
    conditions: Sequence[Condition],
    threshold: float,
    interval: IntervalConfig,
    progress: Progress,
) -> dict[str, Paired]:
    """Every condition against the images as they are.

    An image of which no copy was made (no lungs) is left out on both sides and is no refusal.
    """
    found = {}
    with progress.task("comparing", len(conditions), "changes") as task:
        for number, condition in enumerate(conditions):
            own = answered.where([one.said[number] is not None for one in answered.stressed])
            plain, changed = _column(own, 0), _column(own, number)
            found[condition.name] = compare_paired(
                own.labels, own.patients, plain, changed, threshold, interval
            )
            task.advance()
    return found


def _uncertain(
    answered: _Answered, conditions: Sequence[Condition], band: Abstention
) -> dict[str, int] | None:
    """How many images of each condition would be answered `uncertain`."""
    if band.method == "none":
        return None
    return {
        condition.name: int(
            np.count_nonzero(
                (_column(answered, k) >= band.low) & (_column(answered, k) < band.high)
            )
        )
        for k, condition in enumerate(conditions)
    }


def _column(answered: _Answered, number: int) -> NDArray[np.float64]:
    return np.array([_probability(one.said[number]) for one in answered.stressed], np.float64)


def _probability(said: Said) -> float:
    return said if isinstance(said, float) else float("nan")


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
    """The mean of values from 0 up with its interval over patients: as shares of the largest."""
    largest = max([1.0, *values])
    share = bootstrap_share([value / largest for value in values], patients, interval)
    ends = (share.value, share.low, share.high)
    return Estimate(*(None if end is None else largest * end for end in ends))


def _exchanges(
    answered: _Answered, given: StressGiven, threshold: float
) -> tuple[ExchangeRow, ...]:
    """Surroundings of the other class against surroundings of the same class, on the same films."""
    columns = {condition.name: k for k, condition in enumerate(conditions_of(given.config))}
    rows = []
    for exchange in exchanges(given.config):
        same, other = (columns[each.name] for each in (exchange.same, exchange.other))
        own = answered.where(
            [None not in (one.said[same], one.said[other]) for one in answered.stressed]
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
    answered: _Answered, compared: dict[str, Paired], given: StressGiven, threshold: float
) -> Shortcuts:
    rows = tuple(
        StressRow("", part.name, part.title, 0.0, False, compared[part.name], "shown")
        for part in shortcut_conditions(given.config)
    )
    lungs = answered.where([one.lung_share is not None for one in answered.stressed])
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
    warm = lungs.where([one.energy is not None for one in lungs.stressed])
    energies = [one.energy or 0.0 for one in warm.stressed]
    return Shortcuts(
        rows=rows,
        exchanges=_exchanges(answered, given, threshold),
        controls=_controls(answered, lungs, given),
        lungs_from="masks" if given.masks else "found",
        with_lungs=len(lungs.records),
        without_lungs=len(answered.records) - len(lungs.records),
        lung_share=bootstrap_share(shares, lungs.patients, given.interval),
        energy=bootstrap_share(energies, warm.patients, given.interval),
        energy_images=len(warm.records),
        framing=framing,
        localisation=_localisation(warm, threshold, given.interval),
    )


def _judged(condition: Condition, compared: dict[str, Paired], given: StressGiven) -> Judgement:
    return judge(compared[condition.name], given.config.largest_fall, plausible=True)


def _localisation(warm: _Answered, threshold: float, interval: IntervalConfig) -> Localisation:
    """On the true positives among images with lungs and a heatmap."""
    found = warm.where(
        [
            record.label == 1 and _probability(one.said[0]) >= threshold
            for record, one in zip(warm.records, warm.stressed, strict=True)
        ]
    )
    peaks = [float(bool(one.peak)) for one in found.stressed]
    gains = [(one.energy or 0.0) / (one.lung_share or 1.0) for one in found.stressed]
    return Localisation(
        len(found.records),
        bootstrap_share(peaks, found.patients, interval),
        _mean(gains, found.patients, interval),
    )


def _controls(
    answered: _Answered, lungs: _Answered, given: StressGiven
) -> dict[str, Control | None]:
    """What can be told by thumbnails, file properties, the lungs' outline or box alone."""
    boxed = lungs.where([bool(one.matched_box) for one in lungs.stressed])
    told = {
        "thumbnails": (answered, [one.thumbnail for one in answered.stressed]),
        "properties": (answered, [one.properties for one in answered.stressed]),
        "outline": (lungs, [one.outline for one in lungs.stressed]),
        "lung_box": (boxed, [_measures(one.box) for one in boxed.stressed]),
        "matched_box": (boxed, [_measures(one.matched_box) for one in boxed.stressed]),
    }
    folds, interval = given.config.folds, given.interval
    return {
        name: control(np.array(numbers), own.labels, own.patients, folds, interval)
        for name, (own, numbers) in told.items()
    }


def _measures(box: tuple[float, ...]) -> tuple[float, ...]:
    """A box's edges, its width and its height."""
    left, top, right, bottom = box
    return (*box, right - left, bottom - top)


def _examples(
    answered: _Answered, conditions: Sequence[Condition], given: StressGiven
) -> tuple[Example, ...]:
    """One film with pneumonia, at the lower quartile of probability, in every way it was shown."""
    ill = [k for k, record in enumerate(answered.records) if record.label == 1]
    ill.sort(key=lambda k: (_probability(answered.stressed[k].said[0]), k))
    chosen = ill[len(ill) // 4]
    record, stressed = answered.records[chosen], answered.stressed[chosen]
    film = read_film(record, given.config)
    lungs = lungs_of(record, film, given.config, given.masks)
    lenders = lenders_of(given.records, given.records.index(record), given.config)
    shown = Shown(film, lungs, lenders)
    of_sweep = {step.perturbation.name: sweep.title for sweep in SWEEPS for step in sweep.steps}
    found = []
    for condition, said in zip(conditions, stressed.said, strict=True):
        copy = None if said is None else condition.change(shown)
        if copy is not None:
            title = "As it is" if condition.name == PLAIN else of_sweep.get(condition.name, _PARTS)
            probability = said if isinstance(said, float) else None
            found.append(
                Example(title, condition.title, image_png(copy, _EXAMPLE_SIDE), probability)
            )
    return tuple(found)
