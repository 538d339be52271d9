"""The page in a real browser, with the model that ships and drawn images."""

from __future__ import annotations

import base64
import io
import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from pneumoscope.images.phantom import draw
from pneumoscope.images.phantom.folder import encode_dicom
from pneumoscope.inference.results import COLUMNS
from support.chromium import Tab, chromium_path, chromium_tab
from support.serving import running_server

pytestmark = pytest.mark.skipif(
    chromium_path() is None, reason="Chromium is not installed: apt-get install chromium"
)


@dataclass(frozen=True)
class Page:
    """The page with three files scored: a drawing, a DICOM file, and a text."""

    url: str
    tab: Tab
    xrays: list[Path]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    folder = tmp_path_factory.mktemp("images")
    phantom = draw(1, "guest", number=1, label=1)
    grey = Image.fromarray((phantom.pixels * 255).astype(np.uint8))
    (folder / "notes.txt").write_text("The lungs are clear.\n" * 9)
    (folder / "image.dcm").write_bytes(encode_dicom(phantom, serial=1, seed=1))
    grey.resize((600, 500)).save(folder / "=image<b>.png")
    xrays = [folder / name for name in ("notes.txt", "image.dcm", "=image<b>.png")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PNEUMOSCOPE_CACHE", str(folder / "cache"))
        with running_server("default") as server, chromium_tab() as tab:
            tab.look(1200, 900)
            tab.open(server.url)
            tab.wait("!document.getElementById('plan').hidden")
            for number, image in enumerate(xrays, 1):
                tab.give("#files", [image])
                tab.wait(f"document.querySelectorAll('#rows tr').length === {number}")
            tab.wait("document.getElementById('case-file').textContent.endsWith('image_b_.png')")
            yield Page(server.url, tab, xrays)


def text(tab: Tab, identifier: str) -> str:
    found: str = tab.ask(f"document.getElementById('{identifier}').textContent")
    return found


def choose(tab: Tab, name: str) -> None:
    rows = "[...document.querySelectorAll('#rows button')]"
    tab.ask(f"{rows}.find((button) => button.textContent === {json.dumps(name)}).click()")
    tab.wait(f"document.getElementById('case-file').textContent === {json.dumps(name)}")
    tab.ask("new Promise((resume) => setTimeout(resume, 300))")  # its pictures are decoded


def canvas(tab: Tab) -> np.ndarray:
    """The image as it is shown, (h, w, 3)."""
    data = tab.ask("document.getElementById('xray').toDataURL()")
    picture = Image.open(io.BytesIO(base64.b64decode(data.split(",")[1]))).convert("RGB")
    return np.asarray(picture, float)


def move(tab: Tab, identifier: str, value: object) -> None:
    element = f"document.getElementById('{identifier}')"
    tab.ask(f"{element}.value = {json.dumps(value)}; {element}.dispatchEvent(new Event('input'))")


def test_results_are_those_of_the_interface(page: Page) -> None:
    for image in page.xrays[1:]:
        sent = {"file": ("x", image.read_bytes())}
        row = httpx.post(page.url + "v1/predictions", files=sent, trust_env=False).json()
        choose(page.tab, image.name if image.suffix == ".dcm" else "=image_b_.png")
        assert text(page.tab, "verdict") == (
            "Predicted: pneumonia" if row["prediction"] == "PNEUMONIA" else "Predicted: normal"
        )
        shown = text(page.tab, "probability")
        assert shown == f"{row['probability']:.3f}" or shown.startswith(("<", ">"))
        assert f"threshold of {row['threshold']:.2f}" in text(page.tab, "words")
        place = page.tab.ask("document.getElementById('mark').style.left")
        assert float(place.rstrip("%")) == pytest.approx(100 * row["probability"], abs=1e-3)
        place = page.tab.ask("document.getElementById('tick').style.left")
        assert float(place.rstrip("%")) == pytest.approx(100 * row["threshold"], abs=1e-3)


def test_an_uncertain_prediction_is_called_neither(page: Page) -> None:
    row = {"status": "ok", "prediction": "uncertain", "probability": 0.58, "threshold": 0.6}
    words = "verdict(row), inShort(row), explained(row, null)"
    told = page.tab.ask(
        f"import('/words.js').then(({{ verdict, inShort, explained }}) => "
        f"{{ const row = {json.dumps(row)}; return [{words}]; }})"
    )
    assert told[0].startswith("Indeterminate")
    assert told[1] == "indeterminate"
    assert "the model abstains" in told[2]


def test_a_rejection_is_explained(page: Page) -> None:
    choose(page.tab, "notes.txt")
    assert text(page.tab, "verdict") == "No result: rejected"
    assert text(page.tab, "words") == "This file is not an image in a supported format."
    assert "It seems to be text" in text(page.tab, "more")
    assert page.tab.ask("document.getElementById('scored').hidden")
    assert page.tab.ask("document.getElementById('xray').hidden")


def test_heatmap_window_and_zoom_change_the_picture(page: Page) -> None:
    tab = page.tab
    choose(tab, "image.dcm")
    coloured = canvas(tab)
    assert (coloured.max(axis=2) - coloured.min(axis=2)).max() > 30
    move(tab, "opacity", 0)
    grey = canvas(tab)
    assert (grey.max(axis=2) - grey.min(axis=2)).max() == 0
    move(tab, "opacity", 100)
    assert np.abs(canvas(tab) - grey).mean() > np.abs(coloured - grey).mean() > 1
    tab.ask("document.getElementById('map-on').click()")
    assert np.array_equal(canvas(tab), grey)
    inside = grey[:, grey.shape[1] // 2, 0]
    move(tab, "window", 50)
    narrowed = canvas(tab)[:, grey.shape[1] // 2, 0]
    wanted = np.clip((inside - 127.5) / 0.5 + 127.5, 0, 255)
    assert np.percentile(np.abs(narrowed - wanted), 95) <= 3  # steep edges are scaled before
    move(tab, "level", 20)
    assert canvas(tab).mean() > grey.mean()
    tab.ask("document.getElementById('reset').click()")
    assert np.array_equal(canvas(tab), grey)
    tab.ask("document.getElementById('xray').focus()")
    tab.press("+")
    near = canvas(tab)
    assert not np.array_equal(near, grey)
    tab.press("ArrowLeft")
    assert not np.array_equal(canvas(tab), near)
    tab.press("0")
    assert np.array_equal(canvas(tab), grey)
    tab.press("h")
    assert not np.array_equal(canvas(tab), grey)


def test_table_is_the_session_and_so_is_its_csv(page: Page) -> None:
    cells = "[...document.querySelectorAll('#rows tr')].map((line) => line.cells[1].textContent)"
    assert page.tab.ask(cells)[-1] == "rejected"
    row = {"path": "=a,b", "status": "refused", "reason": 'q"', "probability": None}
    row |= {"warnings": "it is old; it is odd", "detail": "it is blank, all of it"}
    code = (
        "import('/session.js').then((session) => "
        f"session.asCsv([{{row: {json.dumps(row)}}}, {{row: {{path: 'x', probability: -0.5}}}}]))"
    )
    assert page.tab.ask(code) == (
        ",".join(COLUMNS) + "\n"
        '"\'=a,b",refused,"q""",,,,,it is old; it is odd,"it is blank, all of it"\n'
        "x,,,-0.5,,,,,\n"
    )
    page.tab.ask("URL.createObjectURL = (blob) => { window.saved = blob.text(); return '#'; }")
    page.tab.ask("document.getElementById('download').click()")
    lines = page.tab.ask("window.saved").splitlines()
    assert len(lines) == page.tab.ask("document.querySelectorAll('#rows tr').length") + 1
    assert lines[1].startswith('notes.txt,refused,not_an_image,,,,,,"it seems to be text')
    assert lines[3].startswith("'=image_b_.png,ok,,0.")


def test_planner_follows_bayes(page: Page) -> None:
    tab = page.tab
    model = httpx.get(page.url + "v1/model", trust_env=False).json()
    metrics = model["validation"]["metrics"]
    sensitivity, specificity = (metrics[n]["value"] for n in ("sensitivity", "specificity"))
    for prevalence in (0.2, 0.031):
        move(tab, "prevalence", 100 * prevalence)
        found = sensitivity * prevalence
        alarms = (1 - specificity) * (1 - prevalence)
        assert text(tab, "ppv") == f"{100 * found / (found + alarms):.1f} %"
        assert text(tab, "tp") == str(round(1000 * found))
        assert text(tab, "fp") == str(round(1000 * alarms))
    histogram = model["validation"]["curves"]["histogram"]
    move(tab, "threshold", 10)
    flagged = sum(histogram["pneumonia"][10:]) / sum(histogram["pneumonia"])
    assert text(tab, "sensitivity") == f"{100 * flagged:.1f} %"
    assert text(tab, "threshold-text") == "0.50"
    tab.ask("document.getElementById('own-threshold').click()")
    assert text(tab, "sensitivity") == f"{100 * sensitivity:.1f} %"
    assert "the model's own" in text(tab, "threshold-text")
    slider = "document.getElementById('threshold').getAttribute('aria-valuetext')"
    assert tab.ask(slider) == text(tab, "threshold-text")
    for wrong in ("", 150, 0):
        move(tab, "prevalence", wrong)
        assert [text(tab, name) for name in ("ppv", "npv", "tp", "ppv-range")] == [
            "–",
            "–",
            "–",
            "",
        ]
        invalid = tab.ask("document.getElementById('prevalence').getAttribute('aria-invalid')")
        assert invalid == "true"
    assert text(tab, "sensitivity") == f"{100 * sensitivity:.1f} %"
    move(tab, "prevalence", 20)
    assert text(tab, "ppv") != "–"


def test_all_can_be_done_by_keys(page: Page) -> None:
    tab = page.tab
    tab.ask("document.body.focus(); document.activeElement.blur(); scrollTo(0, 0)")
    reached = set()
    for _ in range(60):
        tab.press("Tab")
        reached.add(tab.ask("document.activeElement.id || document.activeElement.className"))
    wanted = {"files", "xray", "map-on", "opacity", "window", "level", "zoom-in", "reset", "print"}
    wanted |= {"download", "forget", "prevalence", "threshold", "link", "skip"}
    assert wanted <= reached
    tab.ask("document.querySelector('#rows tr:last-child button').focus()")
    tab.press("Enter")
    tab.wait("document.getElementById('case-file').textContent === 'notes.txt'")
    assert tab.ask("document.activeElement.id") == "result"


def test_dropped_and_pasted_files_are_taken(page: Page) -> None:
    tab = page.tab
    before = tab.ask("document.querySelectorAll('#rows tr').length")
    give = (
        "const data = new DataTransfer(); data.items.add(new File(['text'], '{name}')); "
        "window.dispatchEvent(new {kind}('{event}', {{{field}: data, cancelable: true}}));"
    )
    drop = give.format(name="dropped", kind="DragEvent", event="drop", field="dataTransfer")
    paste = give.format(name="pasted", kind="ClipboardEvent", event="paste", field="clipboardData")
    for number, code in enumerate((drop, paste), 1):
        tab.ask(f"(() => {{ {code} }})()")
        tab.wait(f"document.querySelectorAll('#rows tr').length === {before + number}")
    names = "[...document.querySelectorAll('#rows button')].map((button) => button.textContent)"
    assert tab.ask(names)[:2] == ["pasted", "dropped"]


def test_printing_shows_one_case(page: Page) -> None:
    tab = page.tab
    choose(tab, "image.dcm")
    tab.call("Emulation.setEmulatedMedia", media="print")
    seen = "[...document.querySelectorAll('main *, footer')].filter((e) => e.checkVisibility())"
    there = set(tab.ask(f"{seen}.map((e) => e.id)"))
    tab.call("Emulation.setEmulatedMedia", media="")
    assert {"xray", "verdict", "probability", "scale", "words", "print-facts"} <= there
    assert there.isdisjoint({"drop", "controls", "session", "planner", "print"})
    assert "image.dcm" in text(tab, "print-facts")


def test_nothing_is_asked_of_any_other_machine(page: Page) -> None:
    asked = page.tab.requests + page.tab.ask(
        "performance.getEntriesByType('resource').map((entry) => entry.name)"
    )
    assert sum("/v1/predictions" in address for address in asked) >= 3
    own = (page.url, "data:", f"blob:{page.url}")
    assert [address for address in asked if not address.startswith(own)] == []
    assert [text for text in page.tab.complaints if "status of 415" not in text] == []


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The source of axe-core, a checker of accessibility."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed: axe-core can't be fetched")
    folder = tmp_path_factory.mktemp("axe")
    options = ["--no-audit", "--no-fund", "--prefer-offline", "--fetch-retries=0"]
    done = subprocess.run(
        [npm, "install", "--prefix", str(folder), *options, "axe-core@4"],
        capture_output=True,
        timeout=60,
        check=False,
    )
    if done.returncode:
        pytest.skip("axe-core can't be fetched by npm")
    return (folder / "node_modules" / "axe-core" / "axe.min.js").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", ["", "docs"])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1200, 390])
def test_axe_finds_nothing_serious(page: Page, axe: str, path: str, dark: bool, width: int) -> None:
    tab = page.tab
    try:
        tab.look(width, 900, dark=dark)
        if path:
            tab.open(page.url + path)
        elif tab.ask("location.pathname") != "/":
            tab.open(page.url)
            tab.give("#files", page.xrays[:2])
            tab.wait("document.querySelectorAll('#rows tr').length === 2")
        tab.ask(axe + "; true")
        found: dict[str, Any] = tab.ask("axe.run()")
    finally:
        tab.look(1200, 900)
    assert len(found["passes"]) > 10
    assert [
        (issue["id"], issue["impact"], [node["html"][:200] for node in issue["nodes"]])
        for issue in found["violations"]
    ] == []


def test_key_is_asked_for_where_one_is_wanted() -> None:
    with running_server("default", PNEUMOSCOPE_API_KEY="k" * 16) as server, chromium_tab() as tab:
        tab.open(server.url)
        tab.wait("!document.getElementById('key-form').hidden")
        assert tab.ask("document.getElementById('plan').hidden")
        for given in ("x" * 16, "k" * 16):
            tab.ask(
                f"document.getElementById('key').value = '{given}'; "
                "document.getElementById('key-form').requestSubmit()"
            )
            if given[0] == "x":
                tab.wait("document.getElementById('said').textContent.includes('not accept')")
        tab.wait("!document.getElementById('plan').hidden")
        assert tab.ask("document.getElementById('key-form').hidden")
