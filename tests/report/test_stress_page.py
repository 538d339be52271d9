"""The page of a stress test: sentences for known results, and their order."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from pneumoscope.config import IntervalConfig, StressConfig
from pneumoscope.evaluation.stress import METRICS, Metric, Paired, ShortcutBaseline, judge
from pneumoscope.images.perturbation_sweeps import PLAUSIBLE, SWEEPS
from pneumoscope.records import Estimate
from pneumoscope.report.content import DataFacts, ModelFacts, RunFacts
from pneumoscope.report.stress_findings import (
    Example,
    ExchangeRow,
    Localisation,
    Shortcuts,
    StressContent,
    StressRow,
    stress_findings,
    verdict,
)
from pneumoscope.report.stress_page import render_stress_page, stress_figures

HOSTILE = "<script>alert('x')</script>"
PLAIN: dict[Metric, Estimate] = {
    "sensitivity": Estimate(0.9, 0.85, 0.95),
    "specificity": Estimate(0.8, 0.7, 0.9),
    "auc": Estimate(0.95, 0.92, 0.98),
}


def paired(fall: float = 0.0, auc: Estimate | None = None, refused: int = 0) -> Paired:
    """A change that lowers specificity by `fall`, known to 0.01 either way."""
    changed = {**PLAIN, "specificity": Estimate(0.8 - fall, 0.6 - fall, 0.9 - fall)}
    changed["auc"] = auc or PLAIN["auc"]
    difference: dict[Metric, Estimate] = {metric: Estimate(0.0, 0.0, 0.0) for metric in METRICS}
    difference["specificity"] = Estimate(-fall, -fall - 0.01, -fall + 0.01)
    return Paired(100, 90, 60, refused, PLAIN, changed, difference)


def rows(falls: dict[str, float]) -> tuple[StressRow, ...]:
    """Every step of the sweeps with its fall, 0 where none is given."""
    found = []
    for sweep in SWEEPS:
        for step in sweep.steps:
            change = step.perturbation
            own = paired(falls.get(change.name, 0.0))
            found.append(
                StressRow(
                    sweep.name,
                    change.name,
                    change.title,
                    change.strength,
                    step.plausible,
                    own,
                    judge(own, 0.05, plausible=step.plausible),
                )
            )
    return tuple(found)


def shortcuts(
    removed: Estimate, box: Estimate, outline: Estimate, energy: Estimate, thumbnails: Estimate
) -> Shortcuts:
    chance = Estimate(0.5, 0.4, 0.6)
    aucs = {"lungs_removed": removed, "box_removed": box, "lungs_only": chance, "ring_only": chance}
    return Shortcuts(
        tuple(
            StressRow("", name, name.replace("_", " "), 0.0, False, paired(auc=auc), "shown")
            for name, auc in aucs.items()
        ),
        (),
        {
            "thumbnails": ShortcutBaseline(100, 90, thumbnails),
            "properties": None,
            "outline": ShortcutBaseline(88, 80, outline),
        },
        "found",
        88,
        12,
        Estimate(0.2, 0.19, 0.21),
        energy,
        88,
        matched(0.0, 0.0),
        Localisation(50, Estimate(0.8, 0.7, 0.9), Estimate(1.9, 1.8, 2.0)),
    )


def matched(fall: float, auc_fall: float, reach: float = 0.01) -> tuple[StressRow, ...]:
    """Two framings: the first changes nothing, the second costs `fall` (± `reach`), `auc_fall`."""
    found = []
    for share, lost, ranked in ((63, 0.0, 0.0), (79, fall, auc_fall)):
        own = paired(lost, Estimate(0.95 - ranked, 0.9 - ranked, 0.98 - ranked))
        own.difference["specificity"] = Estimate(-lost, -lost - reach, -lost + reach)
        own.difference["auc"] = Estimate(-ranked, -ranked - 0.01, -ranked + 0.01)
        title = f"lungs fill {share} % of each side"
        judged = judge(own, 0.05, plausible=True)
        found.append(StressRow("", f"matched_{share}", title, 0.0, True, own, judged))
    return tuple(found)


def content(falls: dict[str, float] | None = None, **changes: Any) -> StressContent:
    whole = StressContent(
        split="test",
        images=100,
        patients=90,
        positives=60,
        drawn_from=100,
        refused={},
        threshold=0.7,
        plain=PLAIN,
        rows=rows(falls or {}),
        shortcuts=None,
        config=StressConfig(),
        interval=IntervalConfig(),
        run=RunFacts("pneumoscope stress x --out y"),
        data=DataFacts(HOSTILE, ()),
        model=ModelFacts("default"),
    )
    return replace(whole, **changes)


def texts(found: StressContent, severity: str) -> str:
    return " | ".join(f.text for f in stress_findings(found) if f.severity == severity)


def test_a_plausible_fall_beyond_the_limit_fails_and_a_stronger_change_does_not() -> None:
    found = content({"blur_2": 0.06, "blur_4": 0.7})
    assert not found.holds
    limit = "lowers sensitivity or specificity by more than 0.05"
    assert f"1 of {len(PLAUSIBLE)} plausible changes {limit}" in verdict(found)
    assert "blur 1\N{NO-BREAK SPACE}% of the side (0.060)" in texts(found, "problem")
    strong = content({"blur_4": 0.7})
    assert strong.holds
    assert f"none of {len(PLAUSIBLE)} plausible changes {limit}" in texts(strong, "note")
    assert texts(strong, "problem") == ""


def test_a_fall_that_may_be_larger_is_a_warning() -> None:
    found = content({"gamma_2": 0.045})
    assert found.holds
    assert "interval of the decrease reaches beyond it: gamma 0.6 (0.045)" in texts(
        found, "warning"
    )


def test_use_of_regions_outside_the_lungs_is_a_problem_unless_they_lie_in_the_chest() -> None:
    high, chance = Estimate(0.9, 0.85, 0.95), Estimate(0.52, 0.45, 0.58)
    energy = Estimate(0.6, 0.55, 0.65)
    found = content(shortcuts=shortcuts(high, high, chance, energy, chance))
    problems = texts(found, "problem")
    assert "With the lungs painted black, the AUC is still 0.900" in problems
    assert "the shape of the hidden region" not in problems
    assert "the region around the chest" in problems
    within = content(shortcuts=shortcuts(high, chance, Estimate(0.8, 0.7, 0.9), energy, chance))
    assert texts(within, "problem") == ""
    warnings = texts(within, "warning")
    assert "shape of the hidden region, which alone reaches an AUC of 0.800" in warnings
    assert "Most of this information lies within the chest" in warnings
    assert "the upper limit of the AUC is 0.580." in warnings
    few = content(shortcuts=shortcuts(high, Estimate(0.72, 0.45, 0.93), chance, energy, chance))
    assert "With the lungs painted black, the AUC is still 0.900" in texts(few, "problem")
    assert "lies within the chest" not in texts(few, "problem")
    clean = content(shortcuts=shortcuts(chance, chance, chance, energy, chance))
    assert "not distinguishable from chance" in texts(clean, "note")
    assert "painted black, the AUC is still" not in texts(clean, "warning")


def test_an_auc_below_chance_is_not_called_chance() -> None:
    high, chance = Estimate(0.9, 0.85, 0.95), Estimate(0.52, 0.42, 0.62)
    below, energy = Estimate(0.3, 0.22, 0.39), Estimate(0.6, 0.55, 0.65)
    found = content(shortcuts=shortcuts(below, chance, chance, energy, chance))
    told = texts(found, "note")
    assert "With the lungs painted black, the AUC is 0.300" in told
    assert "below chance: the fill reverses the ranking." in told
    within = content(shortcuts=shortcuts(high, below, chance, energy, chance))
    assert "lies within the chest" not in texts(within, "warning") + texts(within, "problem")
    assert "With the lungs painted black, the AUC is still" in texts(within, "problem")


@pytest.mark.parametrize(
    ("auc", "expected"),
    [
        (
            Estimate(0.51, 0.45, 0.57),
            "Without their surroundings, the model hardly uses the lungs.",
        ),
        (Estimate(0.78, 0.46, 0.95), "The 100 images do not show whether the model uses the lungs"),
        (Estimate(0.2, 0.1, 0.3), "This does not show whether the model uses the lungs"),
        (Estimate(0.8, 0.7, 0.9), "the model uses information inside the lungs."),
    ],
)
def test_only_a_low_upper_limit_shows_that_the_lungs_are_not_used(
    auc: Estimate, expected: str
) -> None:
    chance = Estimate(0.5, 0.4, 0.6)
    battery = shortcuts(chance, chance, chance, Estimate(0.6, 0.55, 0.65), chance)
    alone = StressRow("", "lungs_only_grey", "lungs", 0.0, False, paired(auc=auc), "shown")
    kept = tuple(row for row in battery.rows if row.name != "lungs_only")
    found = content(shortcuts=replace(battery, rows=(*kept, alone)))
    (finding,) = (f for f in stress_findings(found) if "everything but the lungs" in f.text)
    assert expected in finding.text
    assert "does not use the lungs" not in finding.text


def test_findings_report_the_fill_with_the_higher_auc() -> None:
    """Black is unlike any X-ray and may suppress the output of a model that uses the ring."""
    high, chance = Estimate(0.86, 0.8, 0.9), Estimate(0.52, 0.42, 0.62)
    black = shortcuts(chance, chance, chance, Estimate(0.6, 0.55, 0.65), chance)
    grey = StressRow("", "ring_only_grey", "ring", 0.0, False, paired(auc=high), "shown")
    both = content(shortcuts=replace(black, rows=(*black.rows, grey)))
    assert "the outer ring of the image" not in texts(content(shortcuts=black), "problem")
    found = "With everything but the outer ring of the image painted grey, the AUC is 0.86"
    assert found in texts(both, "problem")


@pytest.mark.parametrize(
    ("name", "low", "value", "high", "severity", "expected"),
    [
        ("ring_of", -0.09, -0.06, -0.03, "problem", "also depend on the region around"),
        ("around_box_of", -0.05, -0.03, -0.01, "warning", "also depend on the region around"),
        ("around_lungs_of", -0.5, -0.4, -0.3, "warning", "may come from the other image’s lungs"),
        ("ring_of", -0.02, -0.005, 0.01, "note", "not distinguishable from zero"),
    ],
)
def test_predictions_that_follow_another_images_surroundings_are_reported(
    name: str, low: float, value: float, high: float, severity: str, expected: str
) -> None:
    found = paired(auc=Estimate(0.95 + value))
    found.difference["auc"] = Estimate(value, low, high)
    chance = Estimate(0.5, 0.4, 0.6)
    battery = shortcuts(chance, chance, chance, Estimate(0.6, 0.55, 0.65), chance)
    page = content(shortcuts=replace(battery, exchanges=(ExchangeRow(name, HOSTILE, found),)))
    (finding,) = (f for f in stress_findings(page) if "of the other class instead of" in f.text)
    assert finding.severity == severity
    assert expected in finding.text
    assert f"the AUC is {0.95 + value:.3f} instead of 0.950" in finding.text
    html = render_stress_page(page)
    assert "Parts replaced from another image" in html
    assert HOSTILE not in html


@pytest.mark.parametrize(("auc", "severity"), [(0.93, "problem"), (0.8, "warning"), (0.6, "note")])
def test_a_baseline_is_more_severe_the_closer_it_is_to_the_model(auc: float, severity: str) -> None:
    chance = Estimate(0.5, 0.4, 0.6)
    baseline = Estimate(auc, auc - 0.05, auc + 0.05)
    found = content(shortcuts=shortcuts(chance, chance, chance, Estimate(0.6), baseline))
    assert f"uses only thumbnails of 16×16 pixels reaches an AUC of {auc:.3f}" in (
        texts(found, severity)
    )


@pytest.mark.parametrize(
    ("energy", "expected"),
    [(0.15, "A uniform heatmap would have more"), (0.3, "Most of the energy lies outside")],
)
def test_heatmaps_outside_of_the_lungs_are_a_warning(energy: float, expected: str) -> None:
    chance = Estimate(0.5, 0.4, 0.6)
    found = content(shortcuts=shortcuts(chance, chance, chance, Estimate(energy), chance))
    assert expected in texts(found, "warning")


def test_the_table_is_worst_first_and_rejections_have_a_column_only_where_there_are_any() -> None:
    page = render_stress_page(content({"crop_4": 0.3, "noise_4": 0.2, "zoom_1": 0.1}))
    cropped = "20\N{NO-BREAK SPACE}% cropped off each edge"
    titles = (cropped, "noise 0.2", "zoom × 0.75", "brightness −0.30")
    order = [page.index(f'<th scope="row">{title}') for title in titles]
    assert order == sorted(order)
    assert ">Rejected<" not in page
    refused = content()
    first = replace(refused.rows[0], found=paired(refused=7))
    page = render_stress_page(replace(refused, rows=(first, *refused.rows[1:])))
    assert ">Rejected<" in page
    assert "the most, 7, with brightness −0.30" in page


def test_the_page_is_whole_quiet_and_escaped() -> None:
    high = Estimate(0.9, 0.85, 0.95)
    found = content(
        shortcuts=shortcuts(high, high, high, high, high),
        examples=(
            Example("Blur", HOSTILE, b"\x89PNG", 0.25),
            Example("Blur", "b", b"\x89PNG", None),
        ),
    )
    page = render_stress_page(found)
    assert HOSTILE not in page
    assert "0.250" in page
    assert "no result" in page
    assert "This page contains X-rays." in page
    identifiers = re.findall(r'<section id="([^"]+)"', page)
    assert identifiers == [
        *("findings", "changes", "curves", "shortcuts", "examples", "method", "reproduce")
    ]
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert "://" not in re.sub(r'xmlns="[^"]+"', "", page)
    assert render_stress_page(found) == page


def test_the_page_states_which_images_are_missing_and_repeats_cautions() -> None:
    page = render_stress_page(
        content(
            images=96,
            drawn_from=300,
            refused={"truncated": 3, "too_small": 1},
            warned={"colour_picture": 5},
            data=DataFacts("d", (), warnings=("Patients are in two splits.",)),
        )
    )
    assert '<section id="notes"' in page
    for note in (
        "a sample of 100 of 300 images",
        "4 of 100 images gave no result when unchanged and are excluded: truncated (3), "
        "too_small (1).",
        "Images with unusual files: ",
        "Patients are in two splits.",
    ):
        assert note in page
    whole = render_stress_page(content(images=96, refused={"truncated": 4}))
    assert "a sample of" not in whole
    assert "96 X-rays of 100" not in whole
    assert '<section id="notes"' not in render_stress_page(content())


def test_the_limit_is_shown_as_it_was_set() -> None:
    found = content({"blur_2": 0.04}, config=StressConfig(largest_fall=0.025))
    assert "by more than 0.025" in verdict(found)
    assert "a decrease of 0.025 in" in render_stress_page(found)


def test_every_sweep_has_its_curve_with_the_unchanged_images_in_it() -> None:
    figures = {figure.name: figure for figure in stress_figures(content({"blur_4": 0.7}))}
    assert set(figures) == {f"sweep-{sweep.name}" for sweep in SWEEPS}
    assert "the largest decrease is at blur 4" in figures["sweep-blur"].reading
    assert "from 0.800 to 0.100, by −0.70" in figures["sweep-blur"].reading
    assert "no strength lowers" in figures["sweep-jpeg"].reading
    blur = figures["sweep-blur"].inline
    assert [label for label in ("0", "0.5", "1", "2", "4") if f">{label}<" in blur] == [
        *("0", "0.5", "1", "2", "4")
    ]
    assert ">none<" in figures["sweep-resolution"].inline


def test_few_images_do_not_show_that_framing_is_used() -> None:
    nothing = Estimate(0.5, 0.4, 0.6)
    tested = replace(
        shortcuts(nothing, nothing, nothing, nothing, nothing), framing=matched(0.2, 0.0, 0.25)
    )
    found = content(shortcuts=tested)
    assert "The model uses how images are framed" not in texts(found, "problem")
    assert (
        "decreases by at most 0.200 (lungs fill 79 % of each side). But its interval includes 0: "
        "100 images do not show whether the model uses how images are framed."
    ) in texts(found, "note")


@pytest.mark.parametrize(
    ("fall", "auc_fall", "severity", "ending"),
    [
        (0.2, 0.03, "problem", "The model uses how images are framed."),
        (0.02, 0.03, "warning", "decreases by at most 0.020 (lungs fill 79 % of each side)."),
        (0.0, 0.0, "note", "decreases by at most 0.000 (lungs fill 63 % of each side)."),
    ],
)
def test_the_effect_of_matched_framing_is_reported(
    fall: float, auc_fall: float, severity: str, ending: str
) -> None:
    nothing = Estimate(0.5, 0.4, 0.6)
    tested = replace(
        shortcuts(nothing, nothing, nothing, nothing, nothing), framing=matched(fall, auc_fall)
    )
    found = texts(content(shortcuts=tested), severity)
    assert "With the framing matched" in found
    assert ending in found
    page = render_stress_page(content(shortcuts=tested))
    assert "Framing matched: the lungs fill the same share of every image" in page
    assert "the heatmap peaks inside a lung in 80\N{NO-BREAK SPACE}%" in page
