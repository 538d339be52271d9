"""What the page of a stress test is made from: frozen records that the workflow fills in.

Comes in: what was measured. Goes out: nothing. Knows nothing of HTML, and of no model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pneumoscope.config import IntervalConfig, StressConfig
from pneumoscope.evaluation.shortcut_baselines import Control
from pneumoscope.evaluation.stress import Judgement, Metric, Paired
from pneumoscope.records import Estimate
from pneumoscope.report.content import DataFacts, EvaluatedSplit, ModelFacts, RunFacts


@dataclass(frozen=True, slots=True)
class StressRow:
    """One change at one strength.

    Attributes:
        sweep: which sweep it is of; `""` for the parts of a film.
        name: a key.
        title: for tables.
        strength: on the sweep's axis; 0 for the parts of a film.
        plausible: whether the verdict goes by it.
        found: compared with the images as they are.
        judgement: within the limit or not.
    """

    sweep: str
    name: str
    title: str
    strength: float
    plausible: bool
    found: Paired
    judgement: Judgement


@dataclass(frozen=True, slots=True)
class ExchangeRow:
    """A part of the film that is another film's.

    Attributes:
        name: a key.
        title: the part, for tables.
        found: the part of a film of the other class (`changed`), compared with the part of one of
            the same class (`plain`).
    """

    name: str
    title: str
    found: Paired


@dataclass(frozen=True, slots=True)
class Localisation:
    """Where heatmaps point, on true positives whose lungs are known.

    Attributes:
        images: how many there are that have a heatmap.
        peak: share of them whose heatmap is hottest inside one of the lungs.
        gain: mean of a heatmap's energy inside the lungs over the lungs' share of the image; 1 is
            what an even heatmap has.
    """

    images: int
    peak: Estimate
    gain: Estimate


@dataclass(frozen=True, slots=True)
class Shortcuts:
    """The shortcut battery.

    Attributes:
        rows: what the model does by parts of the film.
        exchanges: what it does where a part is another film's, of either class.
        controls: what can be told without the model, by name; `None`: too few patients.
        lungs_from: `found`, or `masks`.
        with_lungs: images whose lungs could be used.
        without_lungs: the others, left out wherever lungs are needed.
        lung_share: mean share of the film that is lung.
        energy: mean share of the heatmap inside the lungs.
        energy_images: how many images have one.
        framing: what the model does on images re-cut so that the lungs fill one share of all.
        localisation: where heatmaps point.
    """

    rows: tuple[StressRow, ...]
    exchanges: tuple[ExchangeRow, ...]
    controls: Mapping[str, Control | None]
    lungs_from: str
    with_lungs: int
    without_lungs: int
    lung_share: Estimate
    energy: Estimate
    energy_images: int
    framing: tuple[StressRow, ...]
    localisation: Localisation


@dataclass(frozen=True, slots=True)
class Example:
    """One film as a change leaves it: PNG bytes, and the probability it was given if any."""

    sweep: str
    title: str
    picture: bytes
    probability: float | None


@dataclass(frozen=True, slots=True)
class StressContent:
    """Everything in one stress test.

    Attributes:
        split: which part of the data.
        images: those that could be read and had an answer as they are.
        patients: how many patients they are of.
        positives: PNEUMONIA images among them.
        drawn_from: images in the split, of which these are a sample if there are more.
        refused: images without an answer as they are, by reason.
        threshold: the model's own.
        plain: each metric of the images as they are.
        rows: every change at every strength, in the order of the sweeps.
        shortcuts: `None`: not asked for.
        config: limits and sizes.
        interval: how uncertainty is stated.
        run: command, times, versions.
        data: the data set.
        model: what was stressed.
        examples: one film, changed; the page then holds an X-ray.
        uncertain: images that the model would answer `uncertain`, by the name of the change and
            `plain`; `None`: it never does. All else takes them by the threshold.
        warned: how many of the images have each kind of warning.
    """

    split: EvaluatedSplit
    images: int
    patients: int
    positives: int
    drawn_from: int
    refused: Mapping[str, int]
    threshold: float
    plain: Mapping[Metric, Estimate]
    rows: tuple[StressRow, ...]
    shortcuts: Shortcuts | None
    config: StressConfig
    interval: IntervalConfig
    run: RunFacts
    data: DataFacts
    model: ModelFacts
    examples: tuple[Example, ...] = field(default=())
    uncertain: Mapping[str, int] | None = None
    warned: Mapping[str, int] = field(default_factory=dict)

    @property
    def worst_first(self) -> tuple[StressRow, ...]:
        """The rows by fall, largest first; equal ones in the order of the sweeps."""
        return tuple(sorted(self.rows, key=lambda row: -row.found.fall))

    def judged(self, judgement: Judgement) -> tuple[StressRow, ...]:
        """The rows that were judged so, worst first."""
        return tuple(row for row in self.worst_first if row.judgement == judgement)

    @property
    def holds(self) -> bool:
        """Whether no plausible change costs more than the limit."""
        return not self.judged("fails")
