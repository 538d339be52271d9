"""`stress` from a folder of images to its files, with a model that reads what it is told to."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import pneumoscope
from pneumoscope.cli.app import run
from pneumoscope.config import IntervalConfig, PreprocessConfig, StressConfig
from pneumoscope.errors import DataError, Reason, UsageError
from pneumoscope.evaluation.calibration import Calibration
from pneumoscope.images.lungs import find_lungs, lung_box, match_framing
from pneumoscope.images.perturbation_sweeps import SWEEPS
from pneumoscope.images.phantom import draw
from pneumoscope.images.read import read_image
from pneumoscope.inference.bundle import Abstention, BundleManifest, OperatingPoint
from pneumoscope.inference.engine import Outputs
from pneumoscope.inference.predictor import Predictor
from pneumoscope.inference.results import Result
from pneumoscope.records import ImageRecord, Prediction
from pneumoscope.report.stress_findings import StressContent
from pneumoscope.workflows.stress import stress
from pneumoscope.workflows.stress_scoring import donors_of, shortcut_conditions
from support.known import known

SIZE = 32
MANIFEST = BundleManifest(
    preprocessing=PreprocessConfig(size=SIZE),
    threshold=OperatingPoint(0.5, "for the test", "nothing"),
    calibration=Calibration("platt", 40.0, 0.0),
)
QUICK = IntervalConfig(resamples=30)
PARTS = 10 + 6
SHARES = 3
WAYS = 1 + sum(len(sweep.steps) for sweep in SWEEPS) + PARTS + SHARES


class Reader:
    """Logit: how bright a part of the picture is, against 0.3; its heatmap is that part."""

    def __init__(self, part: str = "ring") -> None:
        self.runs = 0
        self.part = np.zeros((SIZE, SIZE), bool)
        if part == "ring":
            self.part[:3] = True
        else:
            self.part[10:22, 6:13] = self.part[10:22, 19:26] = True

    def run(self, batch: np.ndarray) -> Outputs:
        self.runs += 1
        grey = batch[..., 0] * 0.229 + 0.485
        logits = (grey[:, self.part].mean(1) - 0.3).astype(np.float32)
        cams = np.repeat(self.part[None].astype(np.float32), len(batch), 0)
        return Outputs(logits, cams, np.zeros((len(batch), 2), np.float32))


class Rejecting(Predictor):
    """Rejects what is mostly white."""

    def predict_images(self, images: object) -> Iterator[Result]:
        for result in super().predict_images(images):  # type: ignore[arg-type]
            bright = result.logit is not None and result.logit > 0.5
            rejected = Prediction(result.prediction.path, "refused", Reason.BLANK, detail="white")
            yield Result(rejected) if bright else result


@pytest.fixture(scope="module")
def xrays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty phantoms of ten patients, none with pneumonia; those labelled so have a bright top."""
    folder = tmp_path_factory.mktemp("stress") / "images"
    folder.mkdir()
    rows = []
    for k in range(20):
        label = k % 2
        grey = draw(3, f"p{k // 2}", k, 0, size=96).pixels.copy()
        grey[:10] = 0.55 if label else 0.05 + 0.01 * (k % 5)
        Image.fromarray((grey * 255).astype(np.uint8)).save(folder / f"{k}.png")
        rows.append((f"{k}.png", label, f"p{k // 2}-{label}", "test"))
    with (folder / "split.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("path", "label", "patient", "split"), *rows])
    return folder / "split.csv"


def with_model(monkeypatch: pytest.MonkeyPatch, predictor: Predictor) -> None:
    monkeypatch.setattr(Predictor, "load", lambda model, **_: predictor)


def scores_of(out: Path) -> dict[tuple[str, str], str]:
    with (out / "answers.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    return {(Path(row["path"]).name, row["change"]): row["probability"] for row in rows}


@pytest.fixture(scope="module")
def whole(xrays: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[StressContent, Path]:
    """What a model that reads the upper edge is found to do, and where the files are."""
    out = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as monkeypatch:
        with_model(monkeypatch, Predictor(MANIFEST, Reader("ring")))
        return pneumoscope.stress(xrays, out, interval=QUICK), out


def test_it_measures_every_change_and_finds_that_the_ring_is_read(
    xrays: Path, whole: tuple[StressContent, Path]
) -> None:
    predictor, (content, out) = Predictor(MANIFEST, Reader("ring")), whole
    assert (content.images, content.patients, content.positives) == (20, 20, 10)
    assert content.plain["auc"].value == content.plain["sensitivity"].value == 1.0
    # What it says of each copy is what the predictor says of the copy.
    results = scores_of(out)
    image = read_image(xrays.parent / "7.png").pixels
    for sweep in SWEEPS:
        for step in sweep.steps[:1]:
            copy = step.perturbation.apply(image, StressConfig().seed)
            wanted = predictor.predict_image(copy).prediction.probability
            assert float(results["7.png", step.perturbation.name]) == pytest.approx(
                wanted, rel=1e-5
            )
    # The black border takes the bright top away: everything looks normal.
    border = next(row for row in content.rows if row.name == "border_2")
    assert border.found.changed["sensitivity"].value == 0.0
    assert border.found.difference["sensitivity"].value == -1.0
    assert border.judgement == "fails"
    assert not content.holds
    assert content.worst_first[0].found.fall == 1.0
    # A model that reads the top edge does so without the lungs and not by them.
    shortcuts = known(content.shortcuts)
    parts = {row.name: known(row.found.changed["auc"].value) for row in shortcuts.rows}
    assert parts["ring_only"] == parts["lungs_removed"] == parts["box_removed"] == 1.0
    assert parts["centre_only"] == 0.5
    assert parts["lungs_only"] < 0.7
    for name in ("ring_only", "lungs_removed", "box_removed"):
        assert parts[f"{name}_grey"] == 1.0
    assert 0.2 < parts["centre_only_grey"] < 0.8
    # With another image's ring it mostly says what that image's class is.
    for name in ("ring_of", "around_box_of"):
        assert parts[f"{name}_same"] > 0.9
        assert parts[f"{name}_other"] < 0.3
    ring = shortcuts.exchanges[0].found
    assert ring.images == 20
    assert ring.plain["auc"].value == parts["ring_of_same"]
    assert ring.changed["auc"].value == parts["ring_of_other"]
    assert known(ring.difference["auc"].high) < -0.5
    assert shortcuts.with_lungs + shortcuts.without_lungs == 20
    assert shortcuts.with_lungs >= 10
    assert known(shortcuts.energy.value) < 0.05
    assert shortcuts.localisation.peak.value == 0.0
    assert known(shortcuts.localisation.gain.value) < 0.2
    # An image whose lungs are detected is cropped by its own box, another by the median box.
    for row in shortcuts.framing:
        share = float(row.name.removeprefix("matched_")) / 100
        lungs = find_lungs(image)
        box = lung_box(lungs) if lungs.quality >= StressConfig().lung_quality else None
        wanted = predictor.predict_image(match_framing(image, box, share)).prediction.probability
        assert float(results["7.png", row.name]) == pytest.approx(wanted, rel=1e-5)
    assert known(known(shortcuts.baselines["thumbnails"]).auc.value) > 0.9  # the top is in them
    assert known(known(shortcuts.baselines["outline"]).auc.value) < 0.9


def test_a_model_that_reads_the_lungs_is_distinguished(
    xrays: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_model(monkeypatch, Predictor(MANIFEST, Reader("lungs")))
    shortcuts = known(stress(xrays, tmp_path, interval=QUICK).shortcuts)
    assert known(shortcuts.energy.value) > 0.5
    assert known(shortcuts.localisation.peak.value) > 0.7
    assert known(shortcuts.localisation.gain.value) > 1.8
    ring = next(row for row in shortcuts.rows if row.name == "ring_only")
    assert ring.found.changed["auc"].value == 0.5
    for exchange in shortcuts.exchanges[:2]:
        assert exchange.found.difference["auc"].value == pytest.approx(0.0, abs=0.03)


def test_surroundings_are_lent_by_the_next_image_of_another_patient(xrays: Path) -> None:
    labels, patients = [0, 0, 1, 0, 1], "aabcb"
    records = [
        ImageRecord(xrays.parent / f"{k}.png", label, patient)
        for k, (label, patient) in enumerate(zip(labels, patients, strict=True))
    ]

    pixels = [read_image(record.path).pixels for record in records]

    def lent(position: int) -> dict[str, int]:
        lenders = donors_of(records, position, StressConfig())
        return {
            whose: next(k for k, own in enumerate(pixels) if np.array_equal(own, image))
            for whose, image in lenders.items()
        }

    assert lent(0) == {"same": 3, "other": 2}  # not 1, of the same patient
    assert lent(3) == {"same": 0, "other": 4}  # from the end on from the beginning
    assert lent(2) == {"other": 3}  # both positive images are of one patient
    records[3] = replace(records[3], path=xrays)  # no image
    assert lent(0) == {"other": 2}
    assert donors_of(records, 0, StressConfig(shortcuts=False)) == {}


def test_files_hold_what_was_found(
    xrays: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with_model(monkeypatch, Predictor(MANIFEST, Reader()))
    arguments = ["stress", str(xrays), "--out", str(tmp_path), "--resamples", "30", "--json"]
    assert run(arguments) == 0
    told = json.loads(capsys.readouterr().out)
    assert told.pop("out") == str(tmp_path)
    document = json.loads((tmp_path / "stress.json").read_text(encoding="utf-8"))
    assert told == document
    assert document["schema_version"] == 1
    assert len(document["rows"]) == WAYS - 1 - PARTS - SHARES
    falls = [row["fall"] for row in document["rows"]]
    assert falls == sorted(falls, reverse=True)
    assert not document["holds"]
    assert {finding["severity"] for finding in document["findings"]} >= {"problem"}
    with (tmp_path / "stress.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    shortcuts = document["shortcuts"]
    assert [row["name"] for row in rows] == [
        row["name"] for row in (*document["rows"], *shortcuts["parts"], *shortcuts["framing"])
    ]
    assert [row["name"] for row in shortcuts["framing"]] == [
        "matched_63",
        "matched_71",
        "matched_79",
    ]
    assert shortcuts["heatmaps"]["n"] > 0
    assert {path.stem for path in (tmp_path / "figures").glob("*.svg")} == {
        "shortcuts",
        *(f"sweep-{sweep.name}" for sweep in SWEEPS),
    }
    page = (tmp_path / "stress.html").read_text(encoding="utf-8")
    assert document["seen"] == {
        **{"images": 20, "known": False, "identical": 0, "alike": 0, "chosen_on": 0},
        "trained_on": 0,
    }
    assert "It is not known whether the model was trained on some of these images" in page
    assert page.count("data:image/png;base64,") == WAYS
    assert "With the lungs painted black, the AUC is still" in page
    assert (
        "With the outer ring taken from an image of the other class instead of one of the same"
        in page
    )
    assert [row["name"] for row in document["shortcuts"]["exchanges"]] == [
        "ring_of",
        "around_box_of",
        "around_lungs_of",
    ]


def test_withheld_predictions_are_counted_by_change(
    xrays: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: tuple[StressContent, Path]
) -> None:
    band = Abstention("band", 0.2, 0.9, "for the test", "")
    with_model(monkeypatch, Predictor(replace(MANIFEST, abstention=band), Reader("ring")))
    content = stress(xrays, tmp_path, config=StressConfig(shortcuts=False), interval=QUICK)
    document = json.loads((tmp_path / "stress.json").read_text())
    wanted: dict[str, int] = {row.name: 0 for row in content.rows} | {"plain": 0}
    for (_, change), probability in scores_of(tmp_path).items():
        if change and probability and 0.2 <= float(probability) < 0.9:
            wanted[change] += 1
    assert document["uncertain"] == wanted
    assert max(wanted.values()) > 0
    assert (
        '<th scope="col" class="num">Indeterminate</th>' in (tmp_path / "stress.html").read_text()
    )
    # Without a band nothing is said of it.
    assert whole[0].uncertain is None
    assert "Indeterminate" not in (whole[1] / "stress.html").read_text()


def test_a_stopped_run_goes_on_and_asks_nothing_twice(
    xrays: Path,
    whole: tuple[StressContent, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Stopped(Reader):
        def run(self, batch: np.ndarray) -> Outputs:
            if self.runs == 20:
                raise KeyboardInterrupt
            return super().run(batch)

    out = tmp_path / "out"
    with_model(monkeypatch, Predictor(MANIFEST, Stopped()))
    with pytest.raises(KeyboardInterrupt):
        stress(xrays, out, interval=QUICK)
    journal = out / "answers.jsonl"
    done = len(journal.read_bytes().splitlines()) - 1
    assert 3 <= done <= 6
    assert not (out / "stress.json").exists()
    with journal.open("ab") as stream:
        stream.write(b'{"outputs": [0.1, ')  # what a kill leaves
    rest = Reader()
    with_model(monkeypatch, Predictor(MANIFEST, rest))
    resumed = stress(xrays, out, interval=QUICK, resume=True)
    assert resumed.rows == whole[0].rows
    assert resumed.shortcuts == whole[0].shortcuts
    assert scores_of(out) == scores_of(whole[1])
    assert rest.runs <= (20 - done) * WAYS // 16 + 1


def test_results_of_something_else_are_not_gone_on_with(
    xrays: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_model(monkeypatch, Predictor(MANIFEST, Reader()))
    few = StressConfig(limit=6, shortcuts=False)
    stress(xrays, tmp_path, config=few, interval=QUICK)
    again = Reader()
    with_model(monkeypatch, Predictor(MANIFEST, again))
    limits = StressConfig(limit=6, shortcuts=False, largest_fall=0.5)  # needs no new results
    assert stress(xrays, tmp_path, config=limits, interval=QUICK, resume=True).config == limits
    assert again.runs == 0
    with pytest.raises(UsageError, match="another model, version, settings or list"):
        stress(xrays, tmp_path, config=StressConfig(limit=8, shortcuts=False), resume=True)


def test_a_limit_draws_patients_and_without_shortcuts_no_lung_is_looked_for(
    xrays: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_model(monkeypatch, Predictor(MANIFEST, Reader()))
    content = stress(xrays, tmp_path, config=StressConfig(limit=8, shortcuts=False), interval=QUICK)
    assert (content.images, content.drawn_from, content.positives) == (8, 20, 4)
    assert content.shortcuts is None
    assert "8 X-rays of 20" in (tmp_path / "stress.html").read_text(encoding="utf-8")
    assert len(scores_of(tmp_path)) == 8 * (WAYS - PARTS - SHARES)
    assert not (tmp_path / "figures" / "shortcuts.svg").exists()


def test_rejections_are_counted_apart_and_unreadable_images_left_out(
    xrays: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_model(monkeypatch, Rejecting(MANIFEST, Reader()))
    folder = tmp_path / "images"
    folder.mkdir()
    rows = xrays.read_text(encoding="utf-8").splitlines()[:9]
    for row in rows[1:]:
        name = row.split(",")[0]
        (folder / name).write_bytes((xrays.parent / name).read_bytes())
    (folder / "bad.png").write_bytes(b"no image")
    (folder / "split.csv").write_text("\n".join([*rows, "bad.png,1,bad,test"]), encoding="utf-8")
    config = StressConfig(shortcuts=False)
    content = stress(folder / "split.csv", tmp_path / "out", config=config, interval=QUICK)
    assert content.images == 8
    assert content.refused == {"not_an_image": 1}
    negative = next(row for row in content.rows if row.name == "inversion_1")
    assert negative.found.refused == 4  # the negatives of dark tops are white
    assert negative.found.images == 4
    assert negative.found.changed["specificity"].value is None
    bright = json.loads((tmp_path / "out" / "stress.json").read_text(encoding="utf-8"))
    assert "rejected that are accepted unchanged" in json.dumps(bright["findings"])
    assert scores_of(tmp_path / "out")["bad.png", "plain"] == ""


def test_own_masks_take_the_place_of_the_segmentation(
    xrays: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_model(monkeypatch, Predictor(MANIFEST, Reader("ring")))
    masks = tmp_path / "masks"
    masks.mkdir()
    top = np.zeros((96, 96), np.uint8)
    top[:10] = 255
    for k in range(18):
        Image.fromarray(top).save(masks / f"{k}.png")
    content = stress(xrays, tmp_path / "out", interval=QUICK, masks=masks)
    shortcuts = known(content.shortcuts)
    assert (shortcuts.lungs_from, shortcuts.with_lungs, shortcuts.without_lungs) == (
        "masks",
        18,
        2,
    )
    parts = {row.name: row.found.changed["auc"].value for row in shortcuts.rows}
    assert parts["lungs_removed"] == 0.5  # by these masks, the ring is the lungs
    assert parts["lungs_only"] == 1.0
    assert known(shortcuts.energy.value) > 0.9
    assert shortcuts.localisation.peak.value == 1.0
    gain = known(shortcuts.localisation.gain.value)
    assert gain > 8  # of a tenth of the image
    assert known(shortcuts.localisation.gain.low) <= gain
    with pytest.raises(UsageError, match=r"holds no mask for any of 20 images.*such as"):
        stress(xrays, tmp_path / "out", masks=tmp_path)
    with pytest.raises(UsageError, match="Drop one"):
        stress(xrays, tmp_path / "out", config=StressConfig(shortcuts=False), masks=masks)


def test_settings_out_of_range_are_rejected_before_anything_is_done(
    xrays: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for option, value in (("--limit", "1"), ("--largest-fall", "1.5"), ("--resamples", "0")):
        assert run(["stress", str(xrays), "--out", str(tmp_path / "out"), option, value]) == 2
        assert option.strip("-").replace("-", "_") in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_one_class_and_a_missing_split_are_rejected(
    xrays: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_model(monkeypatch, Predictor(MANIFEST, Reader()))
    with pytest.raises(DataError, match="has no val split"):
        stress(xrays, tmp_path, split="val")
    rows = xrays.read_text(encoding="utf-8").splitlines()
    alone = xrays.parent / "alone.csv"
    alone.write_text("\n".join(row for row in rows if ",1," not in row), encoding="utf-8")
    with pytest.raises(DataError, match="wanted both"):
        stress(alone, tmp_path)


def test_titles_are_words_and_fit_beside_the_figure() -> None:
    titles = {each.title for each in shortcut_conditions(StressConfig())}
    assert "lungs only, all else grey" in titles
    assert "outside the lungs, from the other class" in titles
    for title in titles:
        assert "_" not in title
        assert len(title) <= 42, title
