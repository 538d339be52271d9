"""Many images on the page, in a real browser; the server's responses are made up."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from support.chromium import Tab, chromium_path, chromium_tab
from support.serving import running_server

pytestmark = pytest.mark.skipif(
    chromium_path() is None, reason="Chromium is not installed: apt-get install chromium"
)

# Results by the file's name: p… and n… are scored, r… is rejected, u… can't be read; …w… is odd.
FAKE = """
window.asked = [];
window.slow = 0;
const really = window.fetch;
window.fetch = async (address, how) => {
  if (!String(address).includes('predictions')) return really(address, how);
  const name = how.body.get('file').name;
  window.asked.push(name);
  await new Promise((resume) => setTimeout(resume, window.slow));
  const number = Number(name.match(/[0-9]+/)[0]);
  const base = {path: name, status: 'ok', reason: null, threshold: 0.5, input_score: 0.2,
                preview: 'PNG', map: null, model: 'm', detail: '',
                warnings: name.includes('w') ? 'the patient is 64 years old; <b>odd' : ''};
  const scored = {p: ['PNEUMONIA', 0.5 + number / 1000], n: ['NORMAL', number / 1000]}[name[0]];
  const row = scored ? {...base, prediction: scored[0], probability: scored[1]}
    : {...base, status: name[0] === 'r' ? 'refused' : 'error', prediction: null, probability: null,
       threshold: null, input_score: null, preview: null,
       reason: name[0] === 'r' ? 'not_a_chest_xray' : 'corrupt', detail: 'it is so'};
  return new Response(JSON.stringify(row), {status: scored ? 200 : 422});
};
"""


def _png() -> str:
    buffer = io.BytesIO()
    Image.new("L", (40, 40), 120).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PNEUMOSCOPE_CACHE", str(tmp_path_factory.mktemp("cache")))
        with running_server("default") as running:
            yield running.url


@pytest.fixture
def tab(server: str) -> Iterator[Tab]:
    with chromium_tab() as opened:
        opened.look(1200, 900)
        opened.open(server)
        opened.wait("!document.getElementById('plan').hidden")
        opened.ask(FAKE.replace("PNG", _png()) + "; 1")
        yield opened


def drop(tab: Tab, names: list[str]) -> None:
    """Drop files of these names; they hold a picture if they are named so."""
    content = f"Uint8Array.from(atob('{_png()}'), (letter) => letter.charCodeAt(0))"
    tab.ask(
        f"(() => {{ const data = new DataTransfer(); for (const name of {json.dumps(names)}) "
        "{ const type = name.endsWith('.png') ? 'image/png' : ''; "
        f"data.items.add(new File([{content}], name, {{type}})); }} "
        "window.dispatchEvent(new DragEvent('drop', {dataTransfer: data, cancelable: true})); })()"
    )


def text(tab: Tab, identifier: str) -> str:
    found: str = tab.ask(f"document.getElementById('{identifier}').textContent")
    return found


def rows(tab: Tab) -> list[str]:
    found: list[str] = tab.ask(
        "[...document.querySelectorAll('#rows button')].map((button) => button.textContent)"
    )
    return found


def click(tab: Tab, selector: str) -> None:
    tab.ask(f"document.querySelector({json.dumps(selector)}).click()")


NAMES = [f"p{k}.png" for k in range(12)] + [f"n{k}.png" for k in range(9)]
NAMES += [f"r{k}.png" for k in range(4)] + ["u1.dcm"]


def test_a_batch_is_counted_by_result(tab: Tab) -> None:
    drop(tab, NAMES)
    tab.wait("document.getElementById('said').textContent.startsWith('26 images')")
    assert (
        text(tab, "said")
        == "26 images: 21 scored (12 pneumonia, 9 normal), 4 rejected, 1 not read."
    )
    assert [one.strip() for one in tab.ask(
        "[...document.querySelectorAll('#kinds button')].map((button) => button.textContent)"
    )] == ["All 26", "Pneumonia 12", "Normal 9", "Rejected 4", "Not read 1"]  # fmt: skip
    # Twenty rows a page, in a box that shows them all.
    assert len(rows(tab)) == 20
    assert text(tab, "pages") == "1 to 20 of 26"
    box = "document.querySelector('#session .scroll')"
    assert tab.ask(f"{box}.scrollHeight - {box}.clientHeight") == 0
    click(tab, "#after")
    assert len(rows(tab)) == 6
    assert tab.ask("document.getElementById('after').disabled")


def test_a_warning_is_in_the_row_in_words(tab: Tab) -> None:
    drop(tab, ["p1w.png", "n2.png", "r3w.png"])
    tab.wait("document.getElementById('said').textContent.startsWith('3 images')")
    cells = "[...document.querySelectorAll('#rows tr')].map((line) => line.cells[1].innerText)"
    told = "Warning: the patient is 64 years old; <b>odd."
    assert sorted(cell.split("\n") for cell in tab.ask(cells)) == [
        ["normal"],
        ["pneumonia", told],
        ["rejected", told],
    ]


def test_sort_and_filter(tab: Tab) -> None:
    drop(tab, NAMES)
    tab.wait("document.getElementById('said').textContent.startsWith('26 images')")
    click(tab, "[data-by=probability]")
    assert rows(tab)[:3] == ["p11.png", "p10.png", "p9.png"]
    click(tab, "[data-by=probability]")
    assert rows(tab)[:3] == ["n0.png", "n1.png", "n2.png"]
    assert tab.ask("document.querySelectorAll('[aria-sort=ascending]').length") == 1
    click(tab, "[data-by=path]")
    assert rows(tab)[:3] == ["n0.png", "n1.png", "n2.png"]
    assert rows(tab)[9:12] == ["p0.png", "p1.png", "p2.png"]  # 2 before 10
    click(tab, "#kinds [data-kind=refused]")
    assert rows(tab) == [f"r{k}.png" for k in range(4)]
    assert tab.ask("document.getElementById('pager').hidden")
    find = "document.getElementById('find')"
    tab.ask(f"{find}.value = 'R2'; {find}.dispatchEvent(new Event('input'))")
    assert rows(tab) == ["r2.png"]


def test_a_choice_during_a_batch_stays(tab: Tab) -> None:
    tab.ask("window.slow = 150")
    drop(tab, [f"p{k}.png" for k in range(8)])
    tab.wait("document.querySelectorAll('#rows tr').length >= 2")
    chosen = rows(tab)[-1]
    click(tab, "#rows tr:last-child button")
    tab.wait("document.getElementById('said').textContent.startsWith('8 images')")
    assert text(tab, "case-file") == chosen
    tab.ask("window.slow = 0")
    drop(tab, ["n5.png"])  # what is given next is shown again
    tab.wait("document.getElementById('case-file').textContent === 'n5.png'")


def test_after_a_stop_a_batch_has_its_own_files_only(tab: Tab) -> None:
    tab.ask("window.slow = 300")
    drop(tab, [f"p{k}.png" for k in range(20)])
    tab.wait("document.querySelectorAll('#rows tr').length >= 2")
    click(tab, "#stop")
    before = rows(tab)
    assert text(tab, "said").startswith(f"Stopped. {len(before)} images")
    drop(tab, ["n1.png", "n2.png", "n3.png"])  # while two requests are still under way
    tab.wait("document.getElementById('said').textContent.startsWith('3 images')")
    assert sorted(rows(tab)) == sorted([*before, "n1.png", "n2.png", "n3.png"])
    assert tab.ask("document.getElementById('progress').hidden")


def test_what_is_forgotten_during_a_batch_stays_away(tab: Tab) -> None:
    tab.ask("window.slow = 200")
    drop(tab, [f"p{k}.png" for k in range(20)])
    tab.wait("document.querySelectorAll('#rows tr').length >= 2")
    click(tab, "#forget")
    asked = tab.ask("window.asked.length")
    tab.ask("new Promise((resume) => setTimeout(resume, 800))")
    assert tab.ask("window.asked.length") == asked
    assert rows(tab) == []
    assert tab.ask("document.getElementById('progress').hidden")
    assert text(tab, "said") == "All images were removed from memory."


def test_old_pictures_are_loaded_again(tab: Tab) -> None:
    drop(tab, [f"p{k}.dcm" for k in range(104)])
    tab.wait("document.getElementById('said').textContent.startsWith('104 images')")
    before = tab.ask("window.asked.length")
    click(tab, "[data-by=time]")
    click(tab, "#rows button")
    tab.wait("!document.getElementById('xray').hidden")
    assert text(tab, "case-file") == "p0.dcm"
    assert tab.ask("window.asked.length") == before + 1
    # One that can't be had again: the words are of that, not of a file that can't be read.
    tab.ask("window.fetch = () => Promise.reject(new TypeError('gone'))")
    click(tab, "#rows tr:nth-child(2) button")
    tab.wait("document.getElementById('no-image').textContent.includes('no longer in memory')")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("r1.dcm", "No image: it was rejected."),
        ("u1.dcm", "No image: the file could not"),
    ],
)
def test_why_there_is_no_picture(tab: Tab, name: str, words: str) -> None:
    drop(tab, [name])
    tab.wait(f"document.getElementById('case-file').textContent === {json.dumps(name)}")
    tab.wait("!document.getElementById('no-image').hidden")
    assert text(tab, "no-image").startswith(words)


def test_a_rejected_picture_is_shown_as_the_browser_reads_it(tab: Tab) -> None:
    drop(tab, ["r1.png"])
    tab.wait("document.getElementById('case-file').textContent === 'r1.png'")
    tab.wait(
        "document.getElementById('map-words').textContent.includes('as your browser decodes it')"
    )
    assert not tab.ask("document.getElementById('xray').hidden")
    assert "the patient may be of another age" in text(tab, "words")


def test_a_folder_gives_its_files(tab: Tab) -> None:
    """A folder of folders as a browser hands it over, a hundred entries at a time."""
    walked: list[Any] = tab.ask(
        "import('/dropped.js').then(async ({ filesOf }) => {"
        " const file = (path) => ({name: path.split('/').pop(), fullPath: path, isDirectory: false,"
        "   file: (resolve) => resolve(new File(['x'], path.split('/').pop()))});"
        " const folder = (path, entries) => ({name: path.split('/').pop(), isDirectory: true,"
        "   createReader: () => { const rest = [...entries];"
        "     return {readEntries: (resolve) => resolve(rest.splice(0, 100))}; }});"
        " const many = Array.from({length: 230}, (_, k) => file(`/top/in/${k}.png`));"
        " const top = folder('/top', [file('/top/b.dcm'), file('/top/.hidden'), file('/top/a.png'),"
        "   folder('/top/in', many), file('/top/Thumbs.db')]);"
        " const items = [{kind: 'file', webkitGetAsEntry: () => top, getAsFile: () => null},"
        "   {kind: 'string'}, {kind: 'file', getAsFile: () => new File(['y'], 'single.png')}];"
        " const found = await filesOf({items, files: []});"
        " return found.map((each) => each.place ?? each.name); })"
    )
    assert walked[:3] == ["top/a.png", "top/b.dcm", "top/in/0.png"]
    assert walked[-1] == "single.png"
    assert len(walked) == 2 + 230 + 1
    assert walked[12] == "top/in/10.png"


def test_a_file_that_the_browser_can_not_read(tab: Tab) -> None:
    """A folder taken for a file, or one that was moved: that is not the server's fault."""
    row = tab.ask(
        "import('/server.js').then(({ resultFor }) => {"
        " window.fetch = () => Promise.reject(new TypeError('Failed to fetch'));"
        " const slice = () => ({arrayBuffer: () => Promise.reject()});"
        " const gone = {name: 'x', place: 'a/x', slice};"
        " FormData.prototype.append = () => {};"
        " return resultFor(gone, () => false); })"
    )
    assert (row["reason"], row["path"]) == ("gone", "a/x")


def test_a_folder_of_the_file_field(tab: Tab, tmp_path: Path) -> None:
    for name in ("p1.png", "n2.png", ".DS_Store"):
        (tmp_path / name).write_bytes(base64.b64decode(_png()))
    tab.give("#folder", [tmp_path])
    tab.wait("document.querySelectorAll('#rows tr').length === 2")
    assert sorted(name.split("/")[-1] for name in rows(tab)) == ["n2.png", "p1.png"]
    assert all(name.startswith(f"{tmp_path.name}/") for name in rows(tab))
