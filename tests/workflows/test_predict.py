"""`predict` over many inputs: resumed at any row, and what it prints on the way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pneumoscope.config import BatchConfig, PreprocessConfig
from pneumoscope.errors import UsageError
from pneumoscope.inference.bundle import BundleManifest
from pneumoscope.inference.engine import Outputs
from pneumoscope.inference.predictor import BATCH, Predictor
from pneumoscope.inference.results import Journal, journal_of
from pneumoscope.progress import SILENT, Task
from pneumoscope.workflows.predict import run_prediction

MANIFEST = BundleManifest(preprocessing=PreprocessConfig(size=32))
IMAGES = 2 * BATCH + 1


class CompanyBackend:
    """Results depend on the row and on the size of the batch, as an engine's last bits may."""

    def run(self, batch: np.ndarray) -> Outputs:
        rows = np.arange(len(batch), dtype=np.float32) / len(batch)
        logits = batch[..., 0].mean((1, 2)) + rows
        zeros = np.zeros((len(batch), 2, 2), np.float32)
        return Outputs(logits.astype(np.float32), zeros, np.zeros((len(batch), 4), np.float32))


@pytest.fixture(autouse=True)
def fake_model(monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = Predictor(MANIFEST, CompanyBackend())
    monkeypatch.setattr(Predictor, "load", lambda *_, **__: predictor)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for k in range(IMAGES):
        grey = np.full((40, 48), 10 + k, np.uint8)
        grey[10:20] += 30
        Image.fromarray(grey).save(folder / f"{k:03}.png")
    return folder


def cut_journal(out: Path, images: Path, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a run that was killed after so many rows leaves."""
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "finish", lambda _: None)
        run_prediction([images], "m", out, None, SILENT)
    journal = journal_of(out)
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[: rows + 1]))


class Watching:
    """A progress that remembers."""

    def __init__(self) -> None:
        self.title, self.total, self.done = "", 0, 0

    @contextmanager
    def task(self, title: str, total: int, unit: str) -> Iterator[Task]:
        self.title, self.total = title, total
        yield self

    def advance(self, count: int = 1, note: str = "") -> None:
        self.done += count


@pytest.mark.parametrize("rows", [0, 1, BATCH - 1, BATCH, BATCH + 3, IMAGES - 1, IMAGES])
def test_gone_on_with_at_any_row_the_table_is_the_same(
    images: Path, tmp_path: Path, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = tmp_path / "whole.csv", tmp_path / "p.csv"
    run_prediction([images], "m", whole, None, SILENT)
    cut_journal(out, images, rows, monkeypatch)
    watching = Watching()
    document, _, _ = run_prediction([images], "m", out, None, watching, resume=True)
    assert document["resumed_after"] == rows
    assert out.read_bytes() == whole.read_bytes()
    assert whole.read_bytes().count(b"\n") == 1 + IMAGES
    # The rate and the time left are of what is done now.
    assert watching.total == watching.done == IMAGES - rows
    assert watching.title == (f"predicting, after {rows}" if rows else "predicting")


def test_processes_give_the_table_that_threads_give(images: Path, tmp_path: Path) -> None:
    (images / "bad.png").write_bytes(b"no image")
    tables = [tmp_path / f"{workers}.csv" for workers in (0, 2)]
    for workers, out in zip((0, 2), tables, strict=True):
        run_prediction([images], "m", out, None, SILENT, batch=BatchConfig(workers=workers))
    assert tables[0].read_bytes() == tables[1].read_bytes()
    assert b"not_an_image" in tables[0].read_bytes()


def test_a_pattern_is_as_good_as_its_files(images: Path, tmp_path: Path) -> None:
    document, _, _ = run_prediction([images / "00*.png"], "m", None, None, SILENT)
    paths = [row["path"] for row in document["predictions"]]
    assert paths == [str(images / f"00{k}.png") for k in range(10)]


def test_two_runs_for_one_table_are_wrong_usage(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.csv"
    other = Journal(out, "o", resume=False)
    with pytest.raises(UsageError, match="another process is writing it"):
        run_prediction([images], "m", out, None, SILENT)
    other.close()
    run_prediction([images], "m", out, None, SILENT)
    assert out.exists()


def test_what_an_earlier_run_wrote_among_the_images_is_no_input(
    images: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out, maps = images / "p.csv", images / "maps"
    first, _, code = run_prediction([images], "m", out, maps, SILENT)
    table = out.read_bytes()
    assert len(list(maps.iterdir())) == IMAGES
    again, _, again_code = run_prediction(
        [images], "m", out, maps, SILENT, batch=BatchConfig(strict=True)
    )
    assert (code, again_code) == (0, 0)
    assert again["predictions"] == first["predictions"]
    assert out.read_bytes() == table
    assert f"{IMAGES} files in the folders for results are not taken as inputs" in caplog.text


def test_inputs_given_by_name_are_read_wherever_results_go(images: Path) -> None:
    inner = images / "inner"
    inner.mkdir()
    (images / "000.png").rename(inner / "000.png")
    for paths in ([inner], [inner / "000.png"], [images, inner]):
        document, _, _ = run_prediction(paths, "m", None, inner, SILENT)
        assert str(inner / "000.png") in [row["path"] for row in document["predictions"]]


def test_a_table_in_the_place_of_an_input_is_wrong_usage(images: Path) -> None:
    listed = images / "list.csv"
    listed.write_text("path\n000.png\n")
    with pytest.raises(UsageError, match="is one of the inputs"):
        run_prediction([images / "x" / ".." / "list.csv"], "m", listed, None, SILENT)
    assert listed.read_text() == "path\n000.png\n"


def test_resumed_with_other_outputs_is_wrong_usage(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, maps = tmp_path / "p.csv", tmp_path / "maps"
    cut_journal(out, images, BATCH, monkeypatch)
    with pytest.raises(UsageError, match=r"started with no option .* this command has --heatmaps"):
        run_prediction([images], "m", out, maps, SILENT, resume=True)
    document, _, _ = run_prediction([images], "m", out, None, SILENT, resume=True)
    assert document["resumed_after"] == BATCH  # the rejected command left the rows as they were


def test_rows_of_a_release_that_did_not_note_the_outputs_are_continued(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "p.csv"
    cut_journal(out, images, BATCH, monkeypatch)
    header, *rows = journal_of(out).read_text().splitlines(keepends=True)
    journal_of(out).write_text(header.replace(', "outputs": []', "") + "".join(rows))
    document, _, _ = run_prediction([images], "m", out, tmp_path / "maps", SILENT, resume=True)
    assert document["resumed_after"] == BATCH
