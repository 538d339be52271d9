from __future__ import annotations

import re
import sys
from dataclasses import replace
from subprocess import run
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest

from pneumoscope.evaluation.metrics import ConfusionMatrix, Curve, Reliability, ScoreHistogram
from pneumoscope.records import Estimate
from pneumoscope.report import figure_sections, plots
from pneumoscope.report.content import EpochPoint, LearningCurves
from pneumoscope.report.svg import MUTED, NORMAL, PALETTE, PAPER, PNEUMONIA, Svg, spread

SVG = "{http://www.w3.org/2000/svg}"
GRID = tuple(float(x) for x in np.linspace(0, 1, 101))
CURVE = Curve(GRID, tuple(x**0.2 for x in GRID), tuple(x**0.3 for x in GRID), (1.0,) * 101)
MATRIX = ConfusionMatrix(tn=1180, fp=20, fn=3, tp=4077)
HISTOGRAM = ScoreHistogram(
    tuple(float(x) for x in np.linspace(0, 1, 21)),
    (1100, *(4,) * 18, 28),
    (1, *(2,) * 18, 4043),
)
EPOCHS = tuple(EpochPoint(i, 0.5 / i, 0.6 / i, 1 - 0.1 / i, 1e-3) for i in range(1, 31))


def every_figure() -> dict[str, Svg]:
    point = plots.OperatingPoint(0.05, 0.55, 0.371)
    found = (
        plots.confusion(MATRIX),
        plots.score_histogram(HISTOGRAM, 0.371, MATRIX),
        plots.roc(CURVE, point, Estimate(0.911, 0.9, 0.925), 0.95),
        plots.precision_recall(CURVE, point, Estimate(0.9, 0.8, 0.95), 0.95, 0.7),
        plots.reliability(
            Reliability((0.1, 0.9), (0.2, 0.8), (0.1, 0.7), (0.3, 0.9), (40, 42)),
            Estimate(0.1, 0.05, 0.15),
        ),
        plots.group_rates([plots.Group("Virus", Estimate(0.9, 0.8, 0.95), 31)], "Rate", 0.95),
        figure_sections.learning_loss(LearningCurves(EPOCHS, 12)),
        figure_sections.learning_auc(LearningCurves(EPOCHS, 12)),
        figure_sections.learning_rate(LearningCurves(EPOCHS, 12)),
    )
    return {svg.name: svg for svg in found}


@pytest.fixture(scope="module")
def figures() -> dict[str, Svg]:
    return every_figure()


def texts(svg: Svg) -> list[str]:
    root = ElementTree.fromstring(svg.inline)  # noqa: S314
    return ["".join(text.itertext()) for text in root.iter(f"{SVG}text")]


def luminance(colour: str) -> float:
    """Relative luminance, WCAG 2.2."""
    parts = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_inline_and_standalone_svgs_are_well_formed(figures: dict[str, Svg]) -> None:
    assert len(figures) == 9
    for svg in figures.values():
        for source in (svg.inline, svg.standalone):
            assert ElementTree.fromstring(source).tag == f"{SVG}svg"  # noqa: S314
        assert svg.inline.count("<g") == svg.inline.count("</g>")


def test_same_input_gives_the_same_bytes(figures: dict[str, Svg]) -> None:
    assert every_figure() == figures


def test_ids_bear_the_figures_name_and_all_references_resolve(figures: dict[str, Svg]) -> None:
    for name, svg in figures.items():
        ids = re.findall(r'\bid="([^"]+)"', svg.inline)
        assert len(ids) == len(set(ids))
        assert all(i.startswith(f"{name}-") for i in ids)
        used = re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', svg.inline)
        assert {a or b for a, b in used} == set(ids)


def test_colours_follow_the_page_and_nothing_styles_it(figures: dict[str, Svg]) -> None:
    known = {colour.light for colour in PALETTE}
    for svg in figures.values():
        assert "<style" not in svg.inline
        assert "<metadata" not in svg.inline
        bare = re.findall(r"(?<!,)#[0-9a-f]{6}\b", re.sub(r'="#[^"]*"', "", svg.inline))
        assert bare == [], svg.name
        assert set(re.findall(r"var\(--\w+,(#[0-9a-f]{6})\)", svg.inline)) <= known


def test_text_stays_text_in_the_pages_font(figures: dict[str, Svg]) -> None:
    for svg in figures.values():
        assert "font-family" not in svg.inline
        assert len(texts(svg)) >= 4


def test_settings_of_matplotlib_stay_as_they_were() -> None:
    before = dict(matplotlib.rcParams)
    every_figure()
    assert dict(matplotlib.rcParams) == before


def test_no_pyplot_and_no_training_framework_is_loaded() -> None:
    code = (
        "import sys, pneumoscope.report.report_page, pneumoscope.report.audit_page, "
        "pneumoscope.report.model_card; "
        "print(*({'matplotlib.pyplot', 'keras', 'tensorflow'} & set(sys.modules)))"
    )
    done = run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_confusion_matrix_shows_counts_and_shares(figures: dict[str, Svg]) -> None:
    shown = texts(figures["confusion"])
    assert {"1,180", "20", "3", "4,077"} <= set(shown)
    assert "correct, 98.3\N{NO-BREAK SPACE}%" in shown
    assert "wrong, 0.1\N{NO-BREAK SPACE}%" in shown


def test_readings_state_the_numbers(figures: dict[str, Svg]) -> None:
    expected = {
        "confusion": "of 4,080 X-rays with pneumonia, 4,077 were detected and 3 were missed.",
        "scores": "20 false alarms at or above the threshold 0.371, 3 missed below it.",
        "roc": "0.911 (95\N{NO-BREAK SPACE}% interval 0.900–0.925)",
        "precision-recall": "55.0\N{NO-BREAK SPACE}% of the pneumonia predictions are correct",
        "reliability": "In 2 bins",
        "groups": "0.90 (95\N{NO-BREAK SPACE}% interval 0.80–0.95) for virus",
        "learning-loss": "In the kept epoch, 12, the validation loss is 0.050",
        "learning-auc": "peaks at 0.9967 in epoch 30; it is 0.9917 in the kept epoch, 12",
        "learning-rate": "0.001",
    }
    for name, part in expected.items():
        assert part in figures[name].reading, name
        assert figures[name].reading.endswith(".")


def test_kept_epoch_is_marked(figures: dict[str, Svg]) -> None:
    for name in ("learning-loss", "learning-auc", "learning-rate"):
        assert "kept: epoch 12" in texts(figures[name])


def test_an_epoch_that_was_kept_as_the_last_is_not_called_the_best() -> None:
    falling = tuple(replace(epoch, val_auc=0.95 - epoch.epoch / 100) for epoch in EPOCHS)
    reading = figure_sections.learning_auc(LearningCurves(falling, 30, "last")).reading
    assert reading == (
        "Validation AUC peaks at 0.9400 in epoch 1; it is 0.6500 in the kept epoch, 30."
    )


def test_curves_without_band_point_or_interval_are_drawn() -> None:
    bare = Curve(GRID, GRID)
    drawn = plots.roc(bare, None, Estimate(0.5), 0.95)
    assert "fill-opacity" not in drawn.inline
    assert drawn.reading == "The area under the ROC curve is 0.500."
    drawn = plots.precision_recall(bare, None, Estimate(None), 0.95, 0.2)
    assert drawn.reading == "Average precision is –."


def test_hostile_group_names_are_escaped_and_no_formula() -> None:
    hostile = plots.Group('<script>"&$x$</script>', Estimate(0.5), 3)
    svg = plots.group_rates([hostile], "Rate", 0.95)
    assert "<script" not in svg.inline
    assert '<script>"&$x$</script> (3)' in texts(svg)
    root = ElementTree.fromstring(svg.inline)  # noqa: S314
    assert "<script>" in (root.get("aria-label") or "")


def test_long_group_names_keep_their_numbers_and_control_characters_vanish() -> None:
    long = plots.Group("Universitätsklinikum für Kinder- und Jugendmedizin", Estimate(0.5), 1234)
    odd = plots.Group("a\x07b\x00", Estimate(0.5), 3)
    svg = plots.group_rates([long, odd], "Rate", 0.95)
    (label,) = (text for text in texts(svg) if text.endswith("… (1,234)"))
    assert label.startswith("Univ")
    assert "a b  (3)" in texts(svg)
    ElementTree.fromstring(svg.standalone.encode())  # noqa: S314


def test_an_empty_class_has_no_shares() -> None:
    shown = texts(plots.confusion(ConfusionMatrix(0, 0, 1, 4)))
    assert shown.count("correct") == 1
    assert shown.count("wrong") == 1
    assert not any(text.endswith(" 0.0\N{NO-BREAK SPACE}%") for text in shown)


@pytest.mark.parametrize("threshold", [0.0, 0.02, 0.5, 0.98, 1.0])
def test_histogram_is_drawn_at_any_threshold(threshold: float) -> None:
    svg = plots.score_histogram(HISTOGRAM, threshold, MATRIX)
    assert f"threshold {threshold:.3f}" in texts(svg)


@pytest.mark.parametrize(
    ("threshold", "shown"), [(0.005, "0.005"), (0.00031, "0.0003"), (0.8978, "0.898")]
)
def test_figures_round_a_threshold_as_the_lead_of_the_page_does(
    threshold: float, shown: str
) -> None:
    point = plots.OperatingPoint(0.1, 0.9, threshold)
    for svg in (
        plots.roc(CURVE, point, Estimate(0.911), 0.95),
        plots.precision_recall(CURVE, point, Estimate(0.9), 0.95, 0.7),
        plots.score_histogram(HISTOGRAM, threshold, MATRIX),
    ):
        assert f"threshold {shown}" in texts(svg)
        assert re.search(rf"the threshold {re.escape(shown)}\b", svg.reading)


def test_empty_class_and_single_epoch_are_drawn() -> None:
    empty = ScoreHistogram(HISTOGRAM.edges, (0,) * 20, (1,) * 20)
    assert "0 normal X-rays" in plots.score_histogram(empty, 0.5, MATRIX).reading
    none = ConfusionMatrix(0, 0, 1, 4)
    assert "Of 0 normal X-rays" in plots.confusion(none).reading
    one = LearningCurves((EpochPoint(1, 0.5, 0.6, 0.7, 0.0),), 1)
    assert "over 1 epoch." in figure_sections.learning_rate(one).reading
    assert "kept: epoch 1" in texts(figure_sections.learning_loss(one))


def test_colours_have_enough_contrast_in_light_and_dark() -> None:
    for colour in PALETTE:
        if colour.variable in ("--rule", "--paper"):
            continue
        assert contrast(colour.light, PAPER.light) >= 4.5, colour
        assert contrast(colour.dark, PAPER.dark) >= 4.5, colour


def test_style_sheet_and_figures_share_their_colours() -> None:
    from pneumoscope.report.page import template_text

    style = template_text("style.css")
    light, dark = style.split("@media (prefers-color-scheme: dark)")[:2]
    for colour in (MUTED, NORMAL, PNEUMONIA, PAPER):
        assert f"{colour.variable}: {colour.light};" in light
        assert f"{colour.variable}: {colour.dark};" in dark


def test_labels_are_spread_until_they_do_not_touch() -> None:
    assert spread([0.5, 0.5], 0.2) == pytest.approx([0.4, 0.6])
    assert spread([0.9, 0.1], 0.2) == [0.9, 0.1]
