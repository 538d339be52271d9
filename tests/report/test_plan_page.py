"""The plan's page: its words, its policy, and its script run on its own numbers."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pneumoscope.config import IntervalConfig, PlanConfig
from pneumoscope.evaluation.abstention import choose_sets, risk_coverage
from pneumoscope.evaluation.decision import decision_curve
from pneumoscope.evaluation.pilot import patients_to_verify
from pneumoscope.evaluation.plan import confident_threshold, threshold_table
from pneumoscope.inference.bundle import OperatingPoint
from pneumoscope.report.content import PlanContent
from pneumoscope.report.formatting import number
from pneumoscope.report.page import template_text
from pneumoscope.report.plan_page import page_data, render_plan_page
from support.chromium import Tab, chromium_path, chromium_tab

HOSTILE = "</script><script>alert(1)</script>"
FAST = IntervalConfig(resamples=40)


@pytest.fixture(scope="module")
def content() -> PlanContent:
    rng = np.random.default_rng(0)
    labels = (rng.random(300) < 0.5).astype(int)
    scores = 1 / (1 + np.exp(-(4 * (labels - 0.5) + rng.normal(size=300))))
    patients = [f"p{k // 2}" for k in range(300)]
    sure = confident_threshold(
        labels, scores, patients, "sensitivity", 0.9, PlanConfig(resamples=40)
    )
    table = threshold_table(labels, scores, patients, FAST, keep=sure.value)
    return PlanContent(
        name=HOSTILE,
        images=300,
        patients=150,
        positives=int(labels.sum()),
        prevalence=0.1,
        given=True,
        table=table,
        at=table.nearest(sure.value),
        current=table.row(table.nearest(0.5), 0.1),
        chosen=OperatingPoint(sure.value, sure.rule, "300 images"),
        confident=sure,
        verify={"sensitivity": patients_to_verify(0.97, 0.9, 0.95, 0.9)},
        curve=decision_curve(labels, scores, patients, 0.1, FAST),
        risk=risk_coverage(labels, scores, patients, 0.5, FAST),
        abstention=choose_sets(labels, scores, patients, sure.value, 0.9),
        recalibration=None,
        level=0.95,
        notes=("A note of the plan.",),
        command="pneumoscope plan evaluation",
    )


@pytest.fixture(scope="module")
def page(content: PlanContent) -> str:
    return render_plan_page(content)


def scripts(page: str) -> list[tuple[str, str]]:
    """Attributes and content of every script element."""
    return re.findall(r"<script([^>]*)>(.*?)</script>", page, re.DOTALL)


def test_policy_lets_our_script_run_and_no_other(page: str) -> None:
    (kind, data), (plain, code) = scripts(page)
    assert 'type="application/json"' in kind
    assert plain == ""
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy
    assert policy[1] == (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'"
    )
    json.loads(data)
    assert HOSTILE not in page
    assert not re.search(r"""\son\w+\s*=\s*["']""", page)
    assert not re.search(r'(?:src|href)="https?:', page)


def test_controls_are_named_and_need_no_mouse(page: str) -> None:
    class Controls(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.inputs: dict[str, dict[str, str | None]] = {}
            self.labelled: set[str | None] = set()
            self.live: list[str | None] = []

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            named = dict(attrs)
            if tag == "input":
                self.inputs[named["id"] or ""] = named
            if tag == "label":
                self.labelled.add(named["for"])
            if "aria-live" in named:
                self.live.append(named["id"])
            assert int(named.get("tabindex") or 0) <= 0  # the page's own order

    found = Controls()
    found.feed(page)
    assert {name: named["type"] for name, named in found.inputs.items()} == {
        "plan-threshold": "range",
        "plan-prevalence": "number",
    }
    assert found.labelled == set(found.inputs)
    assert found.live == ["plan-summary"]
    assert "<noscript>" in page


def test_without_the_script_the_numbers_stand_there(page: str, content: PlanContent) -> None:
    row = content.row
    cell = re.search(r'id="plan-ppv">([^<]*)<', page)
    assert cell
    assert cell[1] == number(row.ppv.value)
    text = re.sub(r"<[^>]+>", " ", page)
    assert "A note of the plan." in text
    assert number(row.threshold, 4) in text
    assert "Sensitivity above 0.900" in text
    assert "at least 0.9 with 95% confidence" in text
    assert text.count("chosen") >= 2


def test_what_was_not_asked_for_has_no_section(content: PlanContent) -> None:
    bare = replace(
        content, chosen=None, confident=None, abstention=None, verify={}, curve=content.curve
    )
    page = render_plan_page(bare)
    assert 'id="uncertain"' not in page
    assert 'id="calibration"' not in page
    assert "No new threshold was requested." in page
    assert 'id="uncertain"' in render_plan_page(content)


DRIVER = """
const fs = require("fs");
const [code, data, moves] = JSON.parse(fs.readFileSync(0, "utf8"));
const elements = {};
const element = () => ({
  textContent: "", value: "", hidden: true, attributes: {}, heard: {},
  setAttribute(name, value) { this.attributes[name] = value; },
  addEventListener(name, listener) { this.heard[name] = listener; },
});
global.document = { getElementById: (id) => (elements[id] ??= element()) };
document.getElementById("plan-data").textContent = data;
(0, eval)(code);
const states = [];
for (const [threshold, prevalence] of [[null, null], ...moves]) {
  if (threshold !== null) {
    elements["plan-threshold"].value = String(threshold);
    elements["plan-threshold"].heard.input();
    elements["plan-prevalence"].value = prevalence;
    elements["plan-prevalence"].heard.input();
  }
  const shown = {};
  for (const [id, one] of Object.entries(elements)) {
    if (id !== "plan-data") shown[id] = [one.textContent, one.hidden, { ...one.attributes }];
  }
  states.push(shown);
}
console.log(JSON.stringify(states));
"""


def driven(page: str, moves: list[tuple[int, str]]) -> list[dict[str, Any]]:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    (_, data), (_, code) = scripts(page)
    done = subprocess.run(
        [node, "-e", DRIVER],
        input=json.dumps([code, data, moves]),
        capture_output=True,
        text=True,
        check=True,
    )
    states: list[dict[str, Any]] = json.loads(done.stdout)
    return states


def test_script_agrees_with_python(page: str, content: PlanContent) -> None:
    table = content.table
    size = table.thresholds.size
    assert len(page_data(content)["thresholds"]) == size  # none was thinned here
    places = [0, 1, size // 3, size // 2, size - 2, size - 1]
    moves = [(k, share) for k in places for share in ("0.5", "10", "73.5")]
    start, *states = driven(page, moves)
    assert start["plan-controls"][1] is False
    assert start["plan-at"][0] == number(content.row.threshold, 4)
    for (k, share), shown in zip(moves, states, strict=True):
        row = table.row(k, float(share) / 100)
        wanted = {
            "sensitivity": (row.sensitivity, 3),
            "specificity": (row.specificity, 3),
            "ppv": (row.ppv, 3),
            "npv": (row.npv, 3),
            "missed": (row.missed, 1),
            "alarms": (row.false_alarms, 1),
        }
        for name, (estimate, digits) in wanted.items():
            value = shown[f"plan-{name}"][0]
            if estimate.value is None:
                assert value == "–"
                continue
            # The page carries six digits: the last one shown may round the other way.
            near = pytest.approx(estimate.value, abs=0.51 * 10**-digits)
            assert float(value.replace("−", "-")) == near, (name, k, share)
            low, high = shown[f"plan-{name}-span"][0].split("–")
            assert float(low) == pytest.approx(estimate.low, abs=0.51 * 10**-digits)
            assert float(high) == pytest.approx(estimate.high, abs=0.51 * 10**-digits)
        assert shown["plan-threshold"][2]["aria-valuetext"] == number(row.threshold, 4)
        assert f"prevalence {share} %" in shown["plan-summary"][0]


@pytest.mark.parametrize("share", ["", "0", "100", "-3", "abc"])
def test_script_rejects_invalid_prevalences(page: str, share: str) -> None:
    _, shown = driven(page, [(3, share)])
    assert shown["plan-wrong"][1] is False
    assert shown["plan-prevalence"][2]["aria-invalid"] == "true"
    assert "NaN" not in json.dumps(shown)


def test_other_pages_run_no_script() -> None:
    from pneumoscope.report.page import render_page
    from pneumoscope.report.report_page import ReportHead

    page = render_page("report.html.j2", ReportHead("t", "e", "s", "b", ()), ())
    assert "script" not in page
    assert template_text("plan.js").startswith("\n")  # as between the tags


@pytest.fixture
def keyboard(page: str, tmp_path: Path) -> Iterator[Tab]:
    """The page in a browser, the focus nowhere yet; no mouse is touched from here on."""
    (tmp_path / "plan.html").write_text(page, encoding="utf-8")
    with chromium_tab() as tab:
        tab.look(1000, 800)
        tab.open((tmp_path / "plan.html").as_uri())
        yield tab


def focused(tab: Tab) -> str:
    found: str = tab.ask("document.activeElement.id || document.activeElement.tagName")
    return found


def tab_to(tab: Tab, identifier: str) -> None:
    for _ in range(40):
        tab.press("Tab")
        if focused(tab) == identifier:
            return
    raise AssertionError(f"Tab never came to {identifier}")


def summary(tab: Tab) -> str:
    found: str = tab.ask("document.getElementById('plan-summary').textContent")
    return found


NEEDS_CHROMIUM = pytest.mark.skipif(
    chromium_path() is None, reason="Chromium is not installed: apt-get install chromium"
)


@NEEDS_CHROMIUM
def test_keys_alone_move_the_threshold(keyboard: Tab, content: PlanContent) -> None:
    data = page_data(content)
    tab_to(keyboard, "plan-threshold")
    assert keyboard.ask("getComputedStyle(document.activeElement).outlineStyle") != "none"
    last = len(data["thresholds"]) - 1
    place = data["at"]
    page_keys = {"PageDown": -1, "PageUp": 1}
    for key, wanted in (
        ("ArrowRight", min(place + 1, last)),
        ("Home", 0),
        ("ArrowUp", 1),
        ("ArrowLeft", 0),
        ("End", last),
        ("ArrowDown", last - 1),
    ):
        keyboard.press(key)
        place = int(keyboard.ask("document.activeElement.value"))
        assert place == wanted, key
        spoken = keyboard.ask("document.activeElement.getAttribute('aria-valuetext')")
        assert spoken == f"{data['thresholds'][wanted]:.4f}"
        assert summary(keyboard).startswith(f"Threshold {spoken}, ")
        shown = keyboard.ask("document.getElementById('plan-sensitivity').textContent")
        assert shown == f"{data['sensitivity'][wanted][0]:.3f}"
    for key, way in page_keys.items():
        keyboard.press(key)
        now = int(keyboard.ask("document.activeElement.value"))
        assert (now - place) * way > 1, key
        place = now
    assert focused(keyboard) == "plan-threshold"
    assert keyboard.complaints == []


@NEEDS_CHROMIUM
def test_keys_alone_set_the_prevalence_and_go_on_through_the_page(keyboard: Tab) -> None:
    tab_to(keyboard, "plan-threshold")
    before = summary(keyboard)
    keyboard.press("Tab")
    assert focused(keyboard) == "plan-prevalence"
    for key in "25":  # a field that Tab comes to has its text selected: typing replaces it
        keyboard.press(key)
    assert "prevalence 25 %" in summary(keyboard)
    assert summary(keyboard) != before
    keyboard.press("Backspace")
    keyboard.press("Backspace")
    assert keyboard.ask("document.activeElement.getAttribute('aria-invalid')") == "true"
    assert not keyboard.ask("document.getElementById('plan-wrong').hidden")
    assert "prevalence 2 %" in summary(keyboard)  # the last one that made sense
    keyboard.press("5")
    assert "prevalence 5 %" in summary(keyboard)
    seen = []
    for _ in range(60):  # no trap: Tab leads out of the page, and shows each place on the way
        keyboard.press("Tab")
        if focused(keyboard) == "BODY":
            break
        seen.append(focused(keyboard))
        assert keyboard.ask("getComputedStyle(document.activeElement).outlineStyle") != "none"
    assert focused(keyboard) == "BODY"
    assert "DIV" in seen  # tables that scroll can be reached, to scroll them
    assert keyboard.complaints == []
