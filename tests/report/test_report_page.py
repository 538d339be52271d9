from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from pneumoscope.config import IntervalConfig, TrainConfig
from pneumoscope.data.training_overlap import TrainingOverlap
from pneumoscope.errors import Reason
from pneumoscope.evaluation.evaluate import Evaluation, evaluate
from pneumoscope.evaluation.groups import Group, GroupColumn
from pneumoscope.evaluation.operating_point import ScoreScale
from pneumoscope.records import Estimate
from pneumoscope.report import figure_sections, text_sections
from pneumoscope.report.content import (
    DataFacts,
    EpochPoint,
    EvaluatedSplit,
    LearningCurves,
    ModelFacts,
    Refusals,
    ReportContent,
    RunFacts,
    SplitCount,
    WorstError,
)
from pneumoscope.report.figure_sections import evaluation_figures
from pneumoscope.report.formatting import METRICS, interval, number
from pneumoscope.report.report_page import render_report, summary

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(40))
HOSTILE = "<script>alert('x')</script>&\"' onload=.jpeg"
VOID = {"meta", "img", "br", "link", "hr", "input"}


class Page(HTMLParser):
    """Reads a page strictly: every tag is closed in order; keeps tags, attributes and texts."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str) -> Iterator[dict[str, str | None]]:
        return (attributes for name, attributes in self.tags if name == tag)

    def ids(self) -> list[str]:
        return [attributes["id"] or "" for _, attributes in self.tags if "id" in attributes]


def scored(images: int = 240, refused: int = 0) -> Evaluation:
    rng = np.random.default_rng(7)
    labels = (rng.random(images) < 0.6).astype(np.int64)
    logits = rng.normal(0, 1.5, images) + np.where(labels == 1, 1.6, -1.6)
    subtypes = [("bacteria", "virus")[i % 2] if label else "" for i, label in enumerate(labels)]
    return evaluate(
        labels,
        1 / (1 + np.exp(-logits)),
        [f"p{i // 2}" for i in range(images)],
        0.37,
        "highest balanced accuracy",
        IntervalConfig(resamples=60),
        refused,
        subtypes,
    )


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    return scored()


@pytest.fixture(scope="module")
def bare(evaluation: Evaluation) -> ReportContent:
    return ReportContent(
        title="Evaluation report",
        evaluation=evaluation,
        split="test",
        run=RunFacts("pneumoscope evaluate DATA --out out"),
        data=DataFacts("phantoms", ()),
        model=ModelFacts("default"),
    )


@pytest.fixture(scope="module")
def full(bare: ReportContent) -> ReportContent:
    epochs = tuple(EpochPoint(i, 0.7 / i, 0.8 / i, 1 - 0.2 / i, 10.0**-i) for i in range(1, 6))
    return replace(
        bare,
        title="Training report",
        split="val",
        run=RunFacts(
            "pneumoscope train DATA --out RUN",
            {"features": 61.0, "head": 4.2},
            {"NumPy": "2.4.6"},
            "2026-01-02T03:04:05Z",
            TrainConfig(),
        ),
        data=DataFacts("phantoms", (SplitCount("train", 1200, 3400, 3000),), "f00d", ("odd",)),
        model=ModelFacts("default", {"Bundle": "c0ffee"}),
        learning=LearningCurves(epochs, 4),
        worst_errors=(
            WorstError(HOSTILE, 0, 0.987, PNG, PNG),
            WorstError("plain.png", 1, 0.012, PNG),
        ),
        refused=(Refusals(Reason.TRUNCATED, 3, (HOSTILE,)),),
        commands={"Evaluate it": "pneumoscope evaluate DATA --model RUN"},
    )


@pytest.fixture(scope="module")
def html(full: ReportContent) -> str:
    return render_report(full)


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


@pytest.fixture(scope="module")
def small(bare: ReportContent) -> Page:
    return Page(render_report(bare))


def test_nothing_is_requested_from_anywhere(html: str, page: Page) -> None:
    for tag, attributes in page.tags:
        for name in ("src", "srcset", "data", "poster", "action", "xlink:href"):
            address = attributes.get(name)
            assert address is None or address.startswith("data:image/png;base64,"), (tag, address)
        href = attributes.get("href")
        if href is not None and not href.startswith("#"):
            assert tag == "a", (tag, href)
    assert not {"script", "link", "iframe", "object", "embed", "form"} & {t for t, _ in page.tags}
    assert "@import" not in html
    assert re.findall(r"url\((?!#)", html) == []


def test_policy_forbids_all_but_inlined_pictures_and_styles(page: Page) -> None:
    policies = [a["content"] for a in page.all("meta") if "http-equiv" in a]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]


def test_figures_share_a_page_without_sharing_ids(page: Page) -> None:
    assert len(page.ids()) == len(set(page.ids()))
    links = [a.get("href") or "" for _, a in page.tags]
    assert {link[1:] for link in links if link.startswith("#")} <= set(page.ids())


def test_every_figure_and_picture_has_a_text_alternative(page: Page) -> None:
    drawn = list(page.all("svg"))
    assert len(drawn) == 9
    for attributes in drawn:
        assert attributes["role"] == "img"
        assert (attributes["aria-label"] or "").endswith(".")
    assert all(attributes["alt"] for attributes in page.all("img"))
    assert len(list(page.all("img"))) == 3


def test_page_has_landmarks_one_main_heading_and_scoped_tables(page: Page) -> None:
    names = [tag for tag, _ in page.tags]
    for landmark in ("header", "nav", "main", "footer", "h1"):
        assert names.count(landmark) == 1, landmark
    assert names.count("caption") == names.count("table")
    assert all(attributes.get("scope") for attributes in page.all("th"))
    assert next(page.all("html"))["lang"] == "en"


def test_numbers_in_the_page_are_those_passed_in(full: ReportContent, html: str) -> None:
    for name, estimate in full.evaluation.metrics.items():
        row = re.search(rf'<tr data-metric="{name}">(.*?)</tr>', html, re.DOTALL)
        assert row is not None
        text = re.sub(r"<[^>]+>", " ", row[1])
        assert METRICS[name].label in text
        assert f" {number(estimate.value)} " in text
        assert f" {interval(estimate)} " in text
        assert row[1].count("–") <= 2  # one interval per number: no second one beside it
    assert full.evaluation.classification_report.strip("\n") in html


def test_run_data_settings_and_commands_are_reported(page: Page) -> None:
    for expected in (
        "pneumoscope train DATA --out RUN",
        "1,200",
        "4,600",
        "f00d",
        "c0ffee",
        "odd",
        "1 min 5 s",
        "2026-01-02T03:04:05Z",
        "class_weights",
        "largest number of epochs",
        "2.4.6",
        "pneumoscope evaluate DATA --model RUN",
    ):
        assert expected in page.text, expected


def test_summary_counts_errors_in_words(bare: ReportContent) -> None:
    matrix = bare.evaluation.confusion_matrix
    text = summary(bare)
    assert text.startswith("On 240 X-rays of 120 patients of the test split, the model detects")
    assert f"raises {matrix.fp} false alarm" in text
    assert f"misses {matrix.fn} of {matrix.fn + matrix.tp}" in text
    assert "gave no result" not in text
    assert "3 further inputs gave no result" in summary(replace(bare, evaluation=scored(40, 3)))


def test_the_lead_does_not_round_errors_or_the_threshold_away(bare: ReportContent) -> None:
    found = bare.evaluation
    nearly = {**found.metrics, "sensitivity": Estimate(0.9975, 0.986, 0.9999)}
    text = summary(replace(bare, evaluation=replace(found, metrics=nearly, threshold=0.00031)))
    assert "sensitivity of 0.99" in text
    assert "at the threshold 0.0003." in text


def test_scores_that_are_no_probabilities_are_not_called_so(bare: ReportContent) -> None:
    scale = ScoreScale(0.0, 100.0, probability=False)
    scores = replace(bare, evaluation=replace(bare.evaluation, scale=scale))
    for sections, noun in ((bare, "probabilities"), (scores, "scores")):
        drawn = figure_sections.decisions(sections).view
        assert drawn.intro.endswith(f"the distribution of the predicted {noun}.")
        assert drawn.figures[1].title == f"{noun.capitalize()} by class"
    assert "outputs a score; the threshold" in render_report(scores)
    assert "also gets a score." in render_report(scores)


def test_only_a_training_report_states_what_was_held_out(bare: ReportContent) -> None:
    val = replace(bare, split="val")
    learning = LearningCurves((EpochPoint(1, 0.3, 0.4, 0.9, 1e-3),), 1)
    assert "held out from training" not in summary(val)
    assert "held out from training" not in summary(bare)
    assert "held out from training" in summary(replace(val, learning=learning))


def test_the_learning_curves_tell_why_an_epoch_was_kept(full: ReportContent) -> None:
    def intro(curves: LearningCurves) -> str:
        section = figure_sections.learning(replace(full, learning=curves))
        assert section is not None
        return str(section.view.intro)

    assert full.learning is not None
    rising = full.learning.epochs  # the AUC rises to the last of 5
    assert "epoch 5 were kept; it has the highest" in intro(LearningCurves(rising, 5))
    early = intro(LearningCurves(rising, 4))
    assert "no later one is higher by more than fit.min_delta; its validation AUC is 0.95" in early
    assert "highest validation AUC" not in early
    falling = tuple(replace(e, val_auc=0.9 - e.epoch / 100) for e in rising)
    last = intro(LearningCurves(falling, 5, "last", networks=2))
    assert "The weights of the last epoch, 5, were kept, as fit.keep sets; its" in last
    assert "the highest 0.8900 in epoch 1." in last
    assert "those of the first of 2 networks." in last


@pytest.mark.parametrize("split", ["train", "val", "all"])
def test_the_name_of_a_split_does_not_tell_what_the_model_was_fitted_to(
    bare: ReportContent, split: EvaluatedSplit
) -> None:
    def optimism(**changes: Any) -> str:
        return str(text_sections.limits(replace(bare, split=split, **changes)).view.optimism)

    assert optimism().startswith("If the model was trained on some of these images, or its")
    assert optimism(seen=TrainingOverlap(240, known=False)).startswith("If the model was trained")
    assert optimism(seen=TrainingOverlap(240, known=True)) == ""
    assert "was trained on 7 of these 240 images" in optimism(seen=TrainingOverlap(240, True, 7))


def test_a_training_report_states_what_was_chosen_on_its_images(full: ReportContent) -> None:
    assert full.learning is not None
    last = replace(full, learning=replace(full.learning, keep="last"))
    for content, chosen in (
        (full, "The epoch and the threshold were"),
        (last, "The threshold was"),
    ):
        optimism = text_sections.limits(content).view.optimism
        assert optimism.startswith(f"{chosen} chosen on these validation images")


def test_what_is_known_of_the_patients_is_reported_by_the_columns_that_hold_values() -> None:
    none = Estimate(None)
    group = Group("f", 9, 9, 5, none, none, none, {}, ())
    sentence = text_sections.subgroup_sentence
    assert sentence(()).startswith("Age, sex and the severity of disease are unknown")
    assert sentence((GroupColumn("site", (), 0, "only one value, a"),)) == sentence(())
    both = (GroupColumn("age_years", (group,), 0, ""), GroupColumn("sex", (group,), 0, ""))
    assert sentence(both).startswith("Results by age and sex are compared above. The severity")
    single = (
        GroupColumn("PatientAge", (group,), 0, ""),
        GroupColumn("PatientSex", (), 0, "only one value, F"),
    )
    assert sentence(single) == (
        "Results by age are compared above. Sex can’t be compared: only one value, F. The severity "
        "of disease is unknown in these data. Differences between hospitals or countries can’t be "
        "assessed."
    )


def test_research_banner_and_limits_are_on_every_page(small: Page, page: Page) -> None:
    for text in (page.text, small.text):
        assert "Research software, not a medical device." in text
        assert "one hospital" in text
        assert "Shortcuts." in text


def test_sections_without_content_disappear(bare: ReportContent, small: Page, page: Page) -> None:
    optional = {"learning", "errors", "refused"}
    always = {"run", "metrics", "calls", "curves", "calibration", "subgroups", "limits"}
    assert optional | always <= set(page.ids())
    assert always <= set(small.ids())
    assert not optional & set(small.ids())
    assert list(small.all("img")) == []
    assert "This page contains X-rays" not in small.text
    assert "This page contains X-rays" in page.text
    no_groups = replace(bare, evaluation=replace(bare.evaluation, subgroups={}))
    assert figure_sections.subgroups(no_groups) is None


def test_page_warns_of_optimistic_results(bare: ReportContent, small: Page, page: Page) -> None:
    assert "optimistic" not in small.text
    assert "too good" not in small.text
    assert "slightly optimistic" in page.text
    assert "optimistic" in text_sections.limits(replace(bare, split="train")).view.optimism


def test_hostile_names_are_escaped_everywhere(full: ReportContent) -> None:
    hostile = replace(
        full,
        title=HOSTILE,
        run=replace(full.run, command=HOSTILE, versions={HOSTILE: HOSTILE}),
        data=replace(full.data, name=HOSTILE, warnings=(HOSTILE,)),
        model=ModelFacts(HOSTILE, {HOSTILE: HOSTILE}),
        evaluation=replace(
            full.evaluation,
            rule=HOSTILE,
            classification_report=HOSTILE,
            subgroups={HOSTILE + "$x$": full.evaluation.subgroups["virus"]},
        ),
        commands={HOSTILE: HOSTILE},
    )
    html = render_report(hostile)
    assert "<script" not in html.lower()
    page = Page(html)
    assert page.text.count("alert('x')") >= 15
    assert all("onload" not in attributes for _, attributes in page.tags)


def test_one_class_only_shows_dashes_and_reasons(bare: ReportContent) -> None:
    lone = evaluate(
        [0, 0, 0],
        [0.1, 0.2, 0.6],
        ["a", "b", "c"],
        0.5,
        "fixed at 0.5",
        IntervalConfig(resamples=20),
    )
    html = render_report(replace(bare, evaluation=lone))
    page = Page(html)
    for name, reason in (("auc", "needs both classes"), ("sensitivity", "needs an X-ray with")):
        row = re.search(rf'<tr data-metric="{name}">(.*?)</tr>', html, re.DOTALL)
        assert row is not None
        assert "<strong>–</strong>" in row[1]
        assert reason in row[1]
    assert "curves" not in page.ids()
    shown = page.text.replace(" ".join(lone.classification_report.split()), "")
    assert not {"nan", "None"} & set(shown.split())


def test_metric_without_interval_shows_its_value(bare: ReportContent) -> None:
    metrics = {**bare.evaluation.metrics, "auc": Estimate(0.875)}
    html = render_report(replace(bare, evaluation=replace(bare.evaluation, metrics=metrics)))
    assert "no interval" in html
    assert "<strong>0.875</strong>" in html


def test_same_content_gives_the_same_bytes(full: ReportContent, html: str) -> None:
    assert render_report(full) == html


def test_evaluation_figures_are_named_and_small(evaluation: Evaluation, tmp_path: Path) -> None:
    figures = evaluation_figures(evaluation)
    names = [svg.name for svg in figures]
    assert names == ["confusion", "scores", "roc", "precision-recall", "reliability", "groups"]
    for svg in figures:
        svg.save(tmp_path / f"{svg.name}.svg")
        ElementTree.fromstring((tmp_path / f"{svg.name}.svg").read_bytes())  # noqa: S314
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 120_000
