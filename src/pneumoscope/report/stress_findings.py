"""What a stress test says, in plain sentences.

Comes in: `StressContent`. Goes out: `StressFinding`s, the gravest first. Measures nothing.

What the page of a stress test is made from: frozen records that the workflow fills in.

Comes in: what was measured. Goes out: nothing. Knows nothing of HTML, and of no model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pneumoscope.config import IntervalConfig, StressConfig
from pneumoscope.data.audit_record import Severity
from pneumoscope.evaluation.stress import Control, Judgement, Metric, Paired
from pneumoscope.records import Estimate
from pneumoscope.report.content import DataFacts, EvaluatedSplit, ModelFacts, RunFacts
from pneumoscope.report.formatting import in_words, number, plural


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

    Example:
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


_MOST_NAMED = 6
_CHANCE, _STRONG = 0.5, 0.7
"""An AUC whose interval lies above the first ranks better than chance; from the second, well."""

_NEAR = 0.03
"""A control this near to the model's AUC does as well."""

_PARTS = {
    "lungs_removed": (
        "With the lungs painted {ink} the model still ranks with an AUC of {auc}: it reads "
        "something outside of the lungs.",
        "With the lungs painted {ink} the model ranks with an AUC of {auc}, which can’t be told "
        "from chance.",
    ),
    "lungs_only": (
        "Shown the lungs alone, all else {ink}, the model ranks with an AUC of {auc}: there is "
        "something in them that it reads.",
        "Shown the lungs alone, all else {ink}, the model ranks with an AUC of {auc}, which can’t "
        "be told from chance: without their surroundings it does not read them.",
    ),
    "box_removed": (
        "With a box about both lungs and the heart painted {ink} the model still ranks with an "
        "AUC of {auc}: it reads what lies around the chest.",
        "With a box about both lungs and the heart painted {ink} the model ranks with an AUC of "
        "{auc}, which can’t be told from chance.",
    ),
    "ring_only": (
        "From the outer ring of the film alone, all else {ink}, the model ranks with an AUC of "
        "{auc}: frame, shoulders and exposure give the class away.",
        "From the outer ring alone, all else {ink}, the model ranks with an AUC of {auc}, which "
        "can’t be told from chance.",
    ),
}
_EXCHANGED = {
    "ring_of": "the outer ring",
    "around_box_of": "what lies around a box about the lungs",
    "around_lungs_of": "all but the lungs",
}
CONTROL_NAMES = {
    "thumbnails": "a thumbnail of 16×16 greys alone",
    "properties": "a file’s size in pixels and bytes, its mean grey and deviation alone",
    "outline": "nothing but the outline that the lungs were found to have",
    "lung_box": "nothing but the box around the lungs, so the framing,",
    "matched_box": "that box, detected anew once the framing is matched,",
}


@dataclass(frozen=True, slots=True)
class StressFinding:
    """One finding: how grave it is, and a sentence or two."""

    severity: Severity
    text: str


def stress_findings(content: StressContent) -> tuple[StressFinding, ...]:
    """All findings, problems first."""
    found = [*_of_changes(content)]
    if content.shortcuts is not None:
        found += _of_framing(content.shortcuts, content)
        found += _of_parts(content.shortcuts, content.interval.level)
        found += _of_exchanges(content.shortcuts, content)
        found += _of_controls(content.shortcuts, content)
        found += _of_heatmaps(content.shortcuts, content.interval.level)
    order: tuple[Severity, ...] = ("problem", "warning", "note")
    return tuple(sorted(found, key=lambda finding: order.index(finding.severity)))


def verdict(content: StressContent) -> str:
    """Whether the limit holds, in one sentence."""
    limit = f"{number(content.config.largest_fall, 2)} of sensitivity or specificity"
    plausible = [row for row in content.worst_first if row.plausible]
    fails = content.judged("fails")
    if not fails:
        most = plausible[0]
        return (
            f"The limit holds: none of {plural(len(plausible), 'plausible change')} takes more "
            f"than {limit}; the most is {number(max(most.found.fall, 0.0))} ({most.title})."
        )
    verb = "takes" if len(fails) == 1 else "take"
    return (
        f"The limit does not hold: {len(fails)} of {plural(len(plausible), 'plausible change')} "
        f"{verb} more than {limit}: {_named(fails)}."
    )


def _of_changes(content: StressContent) -> list[StressFinding]:
    found = [StressFinding("note" if content.holds else "problem", verdict(content))]
    if unsure := content.judged("unsure"):
        found.append(
            StressFinding(
                "warning",
                f"{plural(len(unsure), 'plausible change')} stayed within the limit, but so few "
                f"images can’t rule out that the fall is larger: {_named(unsure)}.",
            )
        )
    refused = [row for row in content.worst_first if row.found.refused]
    if refused:
        most = max(refused, key=lambda row: row.found.refused)
        found.append(
            StressFinding(
                "note",
                f"{plural(len(refused), 'change')} made the model refuse images that it answers "
                f"for as they are; the most, {most.found.refused}, at {most.title}. Refusals count "
                "in no metric.",
            )
        )
    return found


def _named(rows: tuple[StressRow, ...]) -> str:
    shown = [f"{row.title} ({number(row.found.fall)})" for row in rows[:_MOST_NAMED]]
    more = len(rows) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _of_framing(shortcuts: Shortcuts, content: StressContent) -> list[StressFinding]:
    """What is left of the model's scores where framing can tell nothing."""
    rows = shortcuts.framing
    worst = max(rows, key=lambda row: row.found.fall)
    lowest = min(rows, key=lambda row: row.found.changed["auc"].value or 0.0)
    change = lowest.found.difference["auc"]
    if worst.found.changed["auc"].value is None or change.low is None:
        return []
    told = (
        "With the framing matched, so that the lungs fill the same share of every image, the AUC "
        f"is {number(lowest.found.changed['auc'].value)} at the least ({lowest.title}) instead of "
        f"{number(content.plain['auc'].value)}; sensitivity or specificity falls by "
        f"{number(max(worst.found.fall, 0.0))} at the most ({worst.title})."
    )
    if worst.judgement == "fails":
        return [StressFinding("problem", f"{told} The model uses how images are framed.")]
    return [StressFinding("warning" if (change.high or 0.0) < 0 else "note", told)]


def heatmap_sentence(shortcuts: Shortcuts) -> str:
    """Where heatmaps of true positives point; empty where there are none."""
    found = shortcuts.localisation
    if found.peak.value is None or found.gain.value is None:
        return ""
    return (
        f"Of {plural(found.images, 'true positive')} with known lungs, "
        f"{number(found.peak.value, 2)} have the heatmap’s peak inside a lung; its energy inside "
        f"the lungs is "
        f"{number(found.gain.value, 2)} times their share of the image."
    )


def _of_parts(shortcuts: Shortcuts, level: float) -> list[StressFinding]:
    found = []
    for name, texts in _PARTS.items():
        told = _most_told(shortcuts, name)
        if told is None:
            continue
        ink, auc = told
        above = (auc.low or 0.0) > _CHANCE
        severity: Severity = "note"
        if name == "lungs_only":
            severity = "note" if above else "warning"
        elif above:
            severity = "problem" if (auc.value or 0.0) >= _STRONG else "warning"
        text = texts[0 if above else 1].format(auc=in_words(auc, level, 3), ink=ink)
        if above and name == "lungs_removed":
            severity, text = _within_the_chest(shortcuts, severity, text)
        found.append(StressFinding(severity, text))
    return found


def _most_told(shortcuts: Shortcuts, name: str) -> tuple[str, Estimate] | None:
    """Of a part's two paints the one that leaves the model the more to read, and its AUC there.

    A paint that is like nothing in a film may silence a model that reads what is left.
    """
    rows = {row.name: row.found.changed["auc"] for row in shortcuts.rows}
    inks = {"black": rows.get(name), "grey": rows.get(f"{name}_grey")}
    told = [
        (ink, auc)
        for ink, auc in inks.items()
        if auc is not None and auc.value is not None and auc.low is not None
    ]
    return max(told, key=lambda each: each[1].value or 0.0) if told else None


def _within_the_chest(shortcuts: Shortcuts, severity: Severity, text: str) -> tuple[Severity, str]:
    """What else may explain that a model ranks without the lungs: their outline, their neighbours.

    The shape that was painted over is still there to be read, and so is what lies between the
    lungs. Where a box about both leaves nothing over, all that is read lies within the chest.
    """
    outline = shortcuts.controls.get("outline")
    if outline is not None and outline.auc.low is not None and outline.auc.low > _CHANCE:
        text += (
            " A part of that may be the shape of what was painted over, which by itself reaches "
            f"{number(outline.auc.value)}."
        )
    box = _most_told(shortcuts, "box_removed")
    if box is not None and (box[1].low or 0.0) <= _CHANCE:
        text += (
            " It lies within the chest: with a box about lungs and heart painted over no sign of "
            "it is left."
        )
        severity = "warning"
    return severity, text


def _of_exchanges(shortcuts: Shortcuts, content: StressContent) -> list[StressFinding]:
    """Whose class the answers follow where a part of the film is another film's."""
    found = []
    for row in shortcuts.exchanges:
        same, other = row.found.plain["auc"].value, row.found.changed["auc"].value
        change = row.found.difference["auc"]
        if same is None or other is None or change.low is None or change.high is None:
            continue
        told = (
            f"With {_EXCHANGED[row.name]} of a film of the other class instead of one of the same "
            f"class, the AUC is {number(other)} instead of {number(same)}, a change of "
            f"{in_words(change, content.interval.level, 3)}"
        )
        if change.high >= 0:
            found.append(StressFinding("note", f"{told}, which can’t be told from none."))
            continue
        far = max(row.found.fall, same - other) > content.config.largest_fall
        severity: Severity = "problem" if far else "warning"
        told += ": the answer follows what lies around the lungs, too."
        if row.name == "around_lungs_of":  # nothing was hidden of the lender's own
            severity = "warning"
            told += " A part of that may be the other film’s lungs, where they reach further."
        found.append(StressFinding(severity, told))
    return found


def _of_controls(shortcuts: Shortcuts, content: StressContent) -> list[StressFinding]:
    found = []
    model, level = content.plain["auc"], content.interval.level
    for name, control in shortcuts.controls.items():
        if control is None or control.auc.value is None or model.value is None:
            continue
        found.append(_of_control(CONTROL_NAMES[name], control, model, level))
    return found


def _of_control(name: str, control: Control, model: Estimate, level: float) -> StressFinding:
    reached, best = control.auc.value or 0.0, model.value or 0.0
    told = f"Without the model, {name} tells the classes apart with an AUC of "
    told += f"{in_words(control.auc, level, 3)}; the model reaches {number(best)}."
    if reached >= best - _NEAR:
        return StressFinding(
            "problem", f"{told} These images can’t show that the model knows more than that."
        )
    if reached >= _STRONG:
        return StressFinding(
            "warning", f"{told} A part of the model’s score may come from the same."
        )
    return StressFinding("note", told)


def _of_heatmaps(shortcuts: Shortcuts, level: float) -> list[StressFinding]:
    energy, share = shortcuts.energy, shortcuts.lung_share
    if energy.value is None or share.value is None:
        return []
    told = (
        f"On average {in_words(energy, level)} of a heatmap’s energy lies in the lungs, which take "
        f"{number(share.value, 2)} of the image. {heatmap_sentence(shortcuts)}".rstrip()
    )
    if energy.value >= _CHANCE:
        return [StressFinding("note", told)]
    even = energy.value < share.value
    more = "Spread evenly it would have more there." if even else "Most of it lies elsewhere."
    return [StressFinding("warning", f"{told} {more} Its grid is coarse: read it with care.")]
