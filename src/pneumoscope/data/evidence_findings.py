"""What likeness, tests of splits and doubtful labels mean, in sentences.

Comes in: `Evidence`. Goes out: findings with severity and a stable code.
Knows nothing of how anything was measured.
"""

from __future__ import annotations

from collections.abc import Iterator

from pneumoscope.data.audit_evidence import Driver, Evidence, LabelReview, Likeness, SplitTest
from pneumoscope.data.audit_record import Finding
from pneumoscope.records import CLASS_NAMES

PROPERTY_WORDS = {
    "width": "width",
    "height": "height",
    "aspect": "aspect ratio",
    "file_bytes": "file size",
    "mean": "brightness",
    "deviation": "contrast",
    "border": "brightness of the border",
    "centre": "brightness of the centre",
}

_SURE = 0.01
_ENOUGH_IDS = 20
_SHIFT_AUC = 0.75
_SLIGHT_AUC = 0.6
_SPLIT_ALONE = 0.6
"""A property that tells less than this alone explains nothing."""


def evidence_findings(evidence: Evidence) -> tuple[Finding, ...]:
    """Everything worth saying of it, in the order of the analyses."""
    return (
        *_on_likeness(evidence.likeness),
        *_on_splits(evidence.split_tests),
        *_on_labels(evidence.labels),
    )


def _on_likeness(found: tuple[Likeness, ...]) -> Iterator[Finding]:
    for one in found:
        if one.kind == "patient":
            yield from _on_ids(one)
        elif one.kind == "across":
            yield _on_shared(one, _control(one, found))
        else:
            yield _on_numbers(one, _control(one, found))


def _control(one: Likeness, found: tuple[Likeness, ...]) -> float | None:
    """What films of one patient and class have in common: without it, silence proves nothing."""
    label = next((name for name in CLASS_NAMES if one.where.startswith(name)), "")
    alike = [
        other.difference
        for other in found
        if other.kind == "patient" and other.where.startswith(label) and other.p_value <= _SURE
    ]
    return max(alike, default=None)


def _figures(one: Likeness) -> str:
    p_value = "p below 0.01" if one.p_value <= _SURE else f"p {one.p_value:.2f}"
    return (
        f"likeness {_short(one.same)} against {_short(one.strangers)} of strangers, difference "
        f"{_short(one.difference)} (95 % interval {_short(one.low)} to {_short(one.high)}), "
        f"{p_value}"
    )


def _short(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}"  # + 0.0: no minus before a zero


def _on_ids(one: Likeness) -> Iterator[Finding]:
    who = f"{one.where}: films of one patient ({one.patients} patients with several)"
    if one.p_value <= _SURE:
        yield Finding(
            "note",
            "patients_alike",
            f"{who} look more alike than strangers: {_figures(one)}. {_beside_neighbours(one)}",
        )
    elif one.patients >= _ENOUGH_IDS:
        yield Finding(
            "warning",
            "patients_not_alike",
            f"{who} look no more alike than strangers: {_figures(one)}. The ids may not be those "
            "of persons; then splits by patient protect from nothing.",
        )


def _beside_neighbours(one: Likeness) -> str:
    if one.neighbours is None:
        return "The ids mean something."
    drift = f"strangers whose ids follow each other have {_short(one.neighbours)}"
    if one.beats_neighbours:
        return f"The ids mean persons: {drift}."
    return f"But {drift}: the likeness may come from when films were made, not from whom."


def _on_shared(one: Likeness, control: float | None) -> Finding:
    who = f"{one.where}: {one.patients} ids stand in both splits, and films that share one"
    if one.p_value <= _SURE:
        return Finding(
            "problem",
            "shared_patients_alike",
            f"{who} look like the same person: {_figures(one)}. The leak is real. Make a new "
            "split: pneumoscope data split DATA --out split.csv",
        )
    if control is not None and one.high < control / 2:
        return Finding(
            "warning",
            "shared_patients_differ",
            f"{who} look no more alike than strangers: {_figures(one)}; patients inside one split "
            f"differ from strangers by {control:.2f}. Very likely the ids start again in each "
            "split: give a manifest with ids of their own.",
        )
    return Finding(
        "warning",
        "shared_patients_unclear",
        f"{who} can't be told from strangers by thumbnails: {_figures(one)}. That does not show "
        "that they are different persons.",
    )


def _on_numbers(one: Likeness, control: float | None) -> Finding:
    who = f"{one.where}: films whose ids share a number ({one.patients} numbers)"
    if one.p_value <= _SURE:
        return Finding(
            "warning",
            "numbers_alike",
            f"{who} look more alike than strangers: {_figures(one)}. The same number may be the "
            "same person; then give a manifest with one id for both.",
        )
    if control is not None and one.high < control / 2:
        return Finding(
            "note",
            "numbers_not_alike",
            f"{who} look no more alike than strangers: {_figures(one)}; true pairs differ from "
            f"strangers by {control:.2f}. The numbers start again in each series: it is right to "
            "take them for different persons.",
        )
    return Finding(
        "note",
        "numbers_unclear",
        f"{who} can't be told from strangers by thumbnails: {_figures(one)}. That does not show "
        "that they are different persons.",
    )


def _on_splits(found: tuple[SplitTest, ...]) -> Iterator[Finding]:
    for test in sorted(found, key=lambda test: -test.auc):
        what = f"{test.label} films of {test.first} and {test.second}"
        figure = f"AUC {test.auc:.2f} (95 % interval {test.low:.2f} to {test.high:.2f})"
        if test.auc >= _SHIFT_AUC and test.low > 0.5:
            yield Finding(
                "warning",
                "splits_told_apart",
                f"{what} can be told apart: {figure}. {_cause(test)} Results on one may not hold "
                "on the other.",
            )
        elif test.auc >= _SLIGHT_AUC and test.low > 0.5:
            yield Finding(
                "note",
                "splits_slightly_apart",
                f"{what} differ somewhat: {figure}. {_cause(test)}",
            )
    level = [test for test in found if test.auc < _SLIGHT_AUC or test.low <= 0.5]
    if level:
        named = "; ".join(f"{t.label} of {t.first} and {t.second} ({t.auc:.2f})" for t in level)
        yield Finding(
            "note",
            "splits_alike",
            f"A classifier can't tell from which split a film comes (AUC): {named}.",
        )


def _cause(test: SplitTest) -> str:
    telling = [driver for driver in test.drivers if driver.auc >= _SPLIT_ALONE]
    framed = (
        f" With brightness and contrast taken out it is still {test.shape_auc:.2f}: framing, "
        "position or build differ too."
        if test.shape_auc >= _SHIFT_AUC
        else ""
    )
    if not telling:
        return (
            "No single property explains it (brightness, contrast, border, aspect, file size)."
            f"{framed}"
        )
    return f"They differ most in {_driver_in_words(telling[0], test)}.{framed}"


def _driver_in_words(driver: Driver, test: SplitTest) -> str:
    first, second = (_value(driver, value) for value in (driver.first, driver.second))
    return (
        f"{PROPERTY_WORDS[driver.name]} (median {first} in {test.first}, {second} in "
        f"{test.second}; AUC of it alone {driver.auc:.2f})"
    )


def _value(driver: Driver, value: float) -> str:
    if driver.name == "file_bytes":
        return f"{value / 1000:.1f} kB"
    return f"{value:.0f} px" if driver.name in ("width", "height") else f"{value:.2f}"


def _on_labels(review: LabelReview | None) -> Iterator[Finding]:
    if review is not None and not review.expected:
        yield Finding(
            "note",
            "labels_not_judged",
            f"No label was judged: thumbnails or predictions tell the classes too badly (AUC "
            f"{review.auc:.2f}).",
        )
    if review is None or not review.doubts:
        return
    judge = (
        "classifiers on thumbnails that never saw the patient"
        if review.source == "thumbnails"
        else "the predictions that were given"
    )
    counts = {label: sum(d.label == label for d in review.doubts) for label, _ in review.expected}
    listed = " and ".join(f"{number} {label}" for label, number in counts.items() if number)
    estimated = sum(number for _, number in review.expected)
    first = review.doubts[0]
    yield Finding(
        "warning",
        "doubtful_labels",
        f"{listed} of {review.judged} labels contradict {judge} (AUC {review.auc:.3f}); about "
        f"{estimated:.0f} may be wrong, or films hard to judge. Look at them, the most doubtful "
        f"first: {first.path} is labelled {first.label}, at a probability of "
        f"{first.probability:.2f}.",
    )
