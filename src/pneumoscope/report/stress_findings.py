"""The content of a stress test and its findings in words, most severe first.

The workflow fills in the frozen records; `stress_findings` turns them into sentences.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pneumoscope.config import IntervalConfig, StressConfig
from pneumoscope.data.audit_record import Severity
from pneumoscope.evaluation.stress import Judgement, Metric, Paired, ShortcutBaseline
from pneumoscope.records import Estimate
from pneumoscope.report.content import DataFacts, EvaluatedSplit, ModelFacts, RunFacts
from pneumoscope.report.formatting import in_words, number, percent, plural

_MOST_NAMED = 6
_NEAR = 0.03
"""A baseline whose AUC is at most this much lower than the model's is as good as the model."""

_LITTLE = 0.6
"""Only an AUC whose upper limit is below this shows that little information is used."""

_PARTS = {
    "lungs_removed": (
        "With the lungs painted {ink}, the AUC is still {auc}: the model uses information outside "
        "the lungs.",
        "With the lungs painted {ink}, the AUC is {auc}, {chance}.",
    ),
    "lungs_only": (
        "With everything but the lungs painted {ink}, the AUC is {auc}: the model uses information "
        "inside the lungs.",
        "With everything but the lungs painted {ink}, the AUC is {auc}, {chance}. {without}",
    ),
    "box_removed": (
        "With a box around both lungs and the heart painted {ink}, the AUC is still {auc}: the "
        "model uses the region around the chest.",
        "With a box around both lungs and the heart painted {ink}, the AUC is {auc}, {chance}.",
    ),
    "ring_only": (
        "With everything but the outer ring of the image painted {ink}, the AUC is {auc}: frame, "
        "shoulders and exposure reveal the class.",
        "With everything but the outer ring of the image painted {ink}, the AUC is {auc}, "
        "{chance}.",
    ),
}
_EXCHANGED = {
    "ring_of": "the outer ring",
    "around_box_of": "the region outside a box around the lungs",
    "around_lungs_of": "everything but the lungs",
}
BASELINE_NAMES = {
    "thumbnails": "thumbnails of 16×16 pixels",
    "properties": "file properties (size in pixels and bytes, mean and deviation of the greys)",
    "outline": "the outlines of the segmented lungs",
    "lung_box": "the bounding boxes of the lungs (framing)",
    "matched_box": "the bounding boxes of the lungs, detected again after framing was matched",
}


@dataclass(frozen=True, slots=True)
class StressRow:
    """The result of one change at one strength.

    Attributes:
        sweep: name of its sweep; `""` for parts of the image.
        name: a key.
        title: for tables.
        strength: on the sweep's axis; 0 for parts of the image.
        plausible: whether the verdict includes it.
        found: the changed images compared with the unchanged ones.
        judgement: whether the decrease is within the limit.
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
    """The result of replacing a part of each image with that of another image.

    Attributes:
        name: a key.
        title: the part, for tables.
        found: the part taken from an image of the other class (`changed`), compared with the part
            taken from an image of the same class (`plain`).
    """

    name: str
    title: str
    found: Paired


@dataclass(frozen=True, slots=True)
class Localisation:
    """Localisation of the heatmaps of true positives whose lungs were segmented.

    Attributes:
        images: number of these images with a heatmap.
        peak: share of them with the maximum of the heatmap inside a lung (pointing game).
        gain: mean ratio of the share of the heatmap's energy inside the lungs to the lungs' share
            of the image; a uniform heatmap has 1.
    """

    images: int
    peak: Estimate
    gain: Estimate


@dataclass(frozen=True, slots=True)
class Shortcuts:
    """The results of the shortcut tests.

    Attributes:
        rows: results with parts of the image hidden.
        exchanges: results with a part replaced by that of another image, of either class.
        baselines: shortcut baselines by name; `None`: too few patients.
        lungs_from: `found` (segmentation) or `masks` (given by the user).
        with_lungs: number of images with usable lung masks.
        without_lungs: number of the other images, left out wherever lungs are needed.
        lung_share: mean share of the image area that is lung.
        energy: mean share of the heatmap's energy inside the lungs.
        energy_images: number of images with a heatmap.
        framing: results on images cropped so that the lungs fill the same share of each.
        localisation: where heatmaps of true positives peak.
    """

    rows: tuple[StressRow, ...]
    exchanges: tuple[ExchangeRow, ...]
    baselines: Mapping[str, ShortcutBaseline | None]
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
    """One changed image: PNG bytes, and its predicted probability, if any."""

    sweep: str
    title: str
    picture: bytes
    probability: float | None


@dataclass(frozen=True, slots=True)
class StressContent:
    """Everything in one stress test.

    Attributes:
        split: the tested split.
        images: number of images with a result when unchanged.
        patients: number of their patients.
        positives: number of PNEUMONIA images among them.
        drawn_from: number of images in the split; `sampled` of them were tested.
        refused: images without a result when unchanged, by reason.
        threshold: the model's threshold.
        plain: each metric on the unchanged images.
        rows: every change at every strength, in the order of the sweeps.
        shortcuts: the shortcut tests; `None`: not requested.
        config: limits and sizes.
        interval: level, resamples and seed of the intervals.
        run: command, times, versions.
        data: the data set.
        model: the tested model.
        examples: one image under every change; the page then shows an X-ray.
        uncertain: number of images in the abstention band, by the name of the change and `plain`;
            `None`: the model does not abstain. All metrics use the threshold only.
        warned: number of images with each kind of warning.

    Examples:
        >>> config = StressConfig(limit=4, shortcuts=False)
        >>> found = stress(xrays, folder / "stress", run.folder, config=config)
        >>> isinstance(found, StressContent)
        True
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
    def sampled(self) -> int:
        """Number of tested images, with or without a result when unchanged."""
        return self.images + sum(self.refused.values())

    @property
    def worst_first(self) -> tuple[StressRow, ...]:
        """The rows by decrease, largest first; ties in the order of the sweeps."""
        return tuple(sorted(self.rows, key=lambda row: -row.found.fall))

    def judged(self, judgement: Judgement) -> tuple[StressRow, ...]:
        """The rows with this judgement, worst first."""
        return tuple(row for row in self.worst_first if row.judgement == judgement)

    @property
    def holds(self) -> bool:
        """Whether no plausible change lowers sensitivity or specificity beyond the limit."""
        return not self.judged("fails")


_CHANCE, _STRONG = 0.5, 0.7
"""AUC of chance, and from which AUC on discrimination is called strong."""


@dataclass(frozen=True, slots=True)
class StressFinding:
    """One finding: its severity, and one or a few sentences."""

    severity: Severity
    text: str


def stress_findings(content: StressContent) -> tuple[StressFinding, ...]:
    """All findings, problems first."""
    found = [*_change_findings(content)]
    if content.shortcuts is not None:
        found += _framing_findings(content.shortcuts, content)
        found += _part_findings(content.shortcuts, content.interval.level)
        found += _exchange_findings(content.shortcuts, content)
        found += _baseline_findings(content.shortcuts, content)
        found += _heatmap_findings(content.shortcuts, content.interval.level)
    order: tuple[Severity, ...] = ("problem", "warning", "note")
    return tuple(sorted(found, key=lambda finding: order.index(finding.severity)))


def verdict(content: StressContent) -> str:
    """State in one sentence whether the limit is met, and for how many changes that is unsure."""
    limit = f"{content.config.largest_fall:g}"
    plausible = [row for row in content.worst_first if row.plausible]
    fails = content.judged("fails")
    if not fails:
        most = plausible[0]
        unsure = len(content.judged("unsure"))
        reservation = f", but for {unsure} of them the interval reaches beyond it" if unsure else ""
        return (
            f"The limit is met on these images{reservation}: none of "
            f"{plural(len(plausible), 'plausible change')} lowers sensitivity or specificity by "
            f"more than {limit}; the largest decrease is {number(max(most.found.fall, 0.0))} "
            f"({most.title})."
        )
    verb = "lowers" if len(fails) == 1 else "lower"
    return (
        f"The limit is exceeded: {len(fails)} of {plural(len(plausible), 'plausible change')} "
        f"{verb} sensitivity or specificity by more than {limit}: {_named(fails)}."
    )


def _change_findings(content: StressContent) -> list[StressFinding]:
    found = [StressFinding("note" if content.holds else "problem", verdict(content))]
    if unsure := content.judged("unsure"):
        found.append(
            StressFinding(
                "warning",
                f"{plural(len(unsure), 'plausible change')} stayed within the limit, but the "
                f"interval of the decrease reaches beyond it: {_named(unsure)}.",
            )
        )
    refused = [row for row in content.worst_first if row.found.refused]
    if refused:
        most = max(refused, key=lambda row: row.found.refused)
        found.append(
            StressFinding(
                "note",
                f"With {plural(len(refused), 'change')}, images were rejected that are accepted "
                f"unchanged; the most, {most.found.refused}, with {most.title}. Rejected images "
                "excluded from all metrics.",
            )
        )
    return found


def _named(rows: tuple[StressRow, ...]) -> str:
    shown = [f"{row.title} ({number(row.found.fall)})" for row in rows[:_MOST_NAMED]]
    more = len(rows) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _framing_findings(shortcuts: Shortcuts, content: StressContent) -> list[StressFinding]:
    """The model's results when framing carries no information about the class."""
    rows = shortcuts.framing
    worst = max(rows, key=lambda row: row.found.fall)
    lowest = min(rows, key=lambda row: row.found.changed["auc"].value or 0.0)
    change = lowest.found.difference["auc"]
    if worst.found.changed["auc"].value is None or change.low is None:
        return []
    text = (
        "With the framing matched, so that the lungs fill the same share of every image, the "
        f"lowest AUC is {number(lowest.found.changed['auc'].value)} ({lowest.title}) instead of "
        f"{number(content.plain['auc'].value)}; sensitivity or specificity decreases by at most "
        f"{number(max(worst.found.fall, 0.0))} ({worst.title})."
    )
    fails = [row.found for row in rows if row.judgement == "fails"]
    if any(found.fall_is_shown for found in fails):
        return [StressFinding("problem", f"{text} The model uses how images are framed.")]
    if fails:
        text += (
            f" But its interval includes 0: {plural(worst.found.images, 'image')} do not show "
            "whether the model uses how images are framed."
        )
    return [StressFinding("warning" if (change.high or 0.0) < 0 else "note", text)]


def heatmap_sentence(shortcuts: Shortcuts) -> str:
    """Where heatmaps of true positives peak; empty if there are none."""
    found = shortcuts.localisation
    if found.peak.value is None or found.gain.value is None:
        return ""
    return (
        f"Among {plural(found.images, 'true positive')} with segmented lungs, the heatmap peaks "
        f"inside a lung in {percent(found.peak.value)}; the share of its energy inside the lungs "
        f"is {number(found.gain.value, 2)} times the lungs’ share of the image."
    )


def _part_findings(shortcuts: Shortcuts, level: float) -> list[StressFinding]:
    found = []
    for name, texts in _PARTS.items():
        best = _highest_auc(shortcuts, name)
        if best is None:
            continue
        ink, tested = best
        auc, images = tested.changed["auc"], plural(tested.images, "image")
        above = (auc.low or 0.0) > _CHANCE
        severity: Severity = "note"
        if name == "lungs_only":
            severity = "note" if above else "warning"
        elif above:
            severity = "problem" if (auc.value or 0.0) >= _STRONG else "warning"
        chance = "not distinguishable from chance"
        without = f"The {images} do not show whether the model uses the lungs alone."
        if _reversed(auc):
            chance = "below chance: the fill reverses the ranking"
            without = "This does not show whether the model uses the lungs alone."
        elif _is_little(auc):
            chance += f", its upper limit below {number(_LITTLE, 1)}"
            without = "Without their surroundings, the model hardly uses the lungs."
        text = texts[0 if above else 1].format(
            auc=in_words(auc, level, 3), ink=ink, chance=chance, without=without
        )
        if above and name == "lungs_removed":
            severity, text = _within_the_chest(shortcuts, severity, text)
        found.append(StressFinding(severity, text))
    return found


def _reversed(auc: Estimate) -> bool:
    """Whether an AUC is below chance, which an AUC at chance is not."""
    return auc.high is not None and auc.high < _CHANCE


def _is_little(auc: Estimate) -> bool:
    """Whether an AUC at chance is also known to be low: a wide interval shows no absence."""
    return auc.high is not None and auc.high < _LITTLE and not _reversed(auc)


def _highest_auc(shortcuts: Shortcuts, name: str) -> tuple[str, Paired] | None:
    """The fill colour of a hidden part with the higher AUC, and its results.

    A fill that is unlike any X-ray may suppress the output even if the model uses the remaining
    region.
    """
    rows = {row.name: row.found for row in shortcuts.rows}
    inks = {"black": rows.get(name), "grey": rows.get(f"{name}_grey")}
    defined = [
        (ink, found)
        for ink, found in inks.items()
        if found is not None and None not in (found.changed["auc"].value, found.changed["auc"].low)
    ]
    return max(defined, key=lambda each: each[1].changed["auc"].value or 0.0, default=None)


def _within_the_chest(shortcuts: Shortcuts, severity: Severity, text: str) -> tuple[Severity, str]:
    """Add other explanations of an AUC above chance without the lungs: outline and mediastinum.

    The shape of the hidden region is still visible, and so is the region between the lungs. If the
    AUC is low with a box around both hidden, most of the information used lies within the chest.
    """
    outline = shortcuts.baselines.get("outline")
    if outline is not None and outline.auc.low is not None and outline.auc.low > _CHANCE:
        text += (
            " Part of this may come from the shape of the hidden region, which alone reaches an "
            f"AUC of {number(outline.auc.value)}."
        )
    box = _highest_auc(shortcuts, "box_removed")
    hidden = Estimate(None) if box is None else box[1].changed["auc"]
    if (hidden.low or 0.0) <= _CHANCE and _is_little(hidden):
        text += (
            " Most of this information lies within the chest: with a box around lungs and heart "
            f"hidden, the upper limit of the AUC is {number(hidden.high)}."
        )
        severity = "warning"
    return severity, text


def _exchange_findings(shortcuts: Shortcuts, content: StressContent) -> list[StressFinding]:
    """Whether predictions follow the class of the image that a replaced part comes from."""
    found = []
    for row in shortcuts.exchanges:
        same, other = row.found.plain["auc"].value, row.found.changed["auc"].value
        change = row.found.difference["auc"]
        if same is None or other is None or change.low is None or change.high is None:
            continue
        text = (
            f"With {_EXCHANGED[row.name]} taken from an image of the other class instead of one of "
            f"the same class, the AUC is {number(other)} instead of {number(same)}, a change of "
            f"{in_words(change, content.interval.level, 3)}"
        )
        if change.high >= 0:
            found.append(StressFinding("note", f"{text}, not distinguishable from zero."))
            continue
        far = max(row.found.fall, same - other) > content.config.largest_fall
        severity: Severity = "problem" if far else "warning"
        text += ": the predictions also depend on the region around the lungs."
        if row.name == "around_lungs_of":  # the source image's own lungs are not hidden
            severity = "warning"
            text += " Part of this may come from the other image’s lungs where they extend further."
        found.append(StressFinding(severity, text))
    return found


def _baseline_findings(shortcuts: Shortcuts, content: StressContent) -> list[StressFinding]:
    found = []
    model, level = content.plain["auc"], content.interval.level
    for name, baseline in shortcuts.baselines.items():
        if baseline is None or baseline.auc.value is None or model.value is None:
            continue
        found.append(_baseline_finding(BASELINE_NAMES[name], baseline, model, level))
    return found


def _baseline_finding(
    name: str, baseline: ShortcutBaseline, model: Estimate, level: float
) -> StressFinding:
    reached, best = baseline.auc.value or 0.0, model.value or 0.0
    text = f"A simple classifier that uses only {name} reaches an AUC of "
    text += f"{in_words(baseline.auc, level, 3)}; the model reaches {number(best)}."
    if reached >= best - _NEAR:
        return StressFinding(
            "problem",
            f"{text} On these images, the model can’t be shown to use more than this information.",
        )
    if reached >= _STRONG:
        return StressFinding(
            "warning", f"{text} Part of the model’s AUC may come from the same information."
        )
    return StressFinding("note", text)


def _heatmap_findings(shortcuts: Shortcuts, level: float) -> list[StressFinding]:
    energy, share = shortcuts.energy, shortcuts.lung_share
    if energy.value is None or share.value is None:
        return []
    text = (
        f"On average, {in_words(energy, level)} of a heatmap’s energy lies in the lungs, which "
        f"cover {number(share.value, 2)} of the image. {heatmap_sentence(shortcuts)}".rstrip()
    )
    if energy.value >= _CHANCE:
        return [StressFinding("note", text)]
    more = (
        "A uniform heatmap would have more energy there."
        if energy.value < share.value
        else "Most of the energy lies outside the lungs."
    )
    return [
        StressFinding(
            "warning", f"{text} {more} The heatmap’s grid is coarse: interpret it with caution."
        )
    ]
