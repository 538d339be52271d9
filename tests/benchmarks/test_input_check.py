"""The benchmark counts rightly, and its other images are what their names say."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from pneumoscope.errors import Reason
from pneumoscope.images.phantom import write_phantoms
from pneumoscope.inference.predictor import Predictor
from pneumoscope.records import Prediction
from support.known_images import KNOWN, CoarseBackend, known_images
from support.scripts import load_script


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("benchmarks/input_check.py")


@pytest.fixture(scope="module")
def pictures() -> ModuleType:
    return load_script("benchmarks/other_images.py")


def test_drawn_images_are_alike_by_seed_and_differ_by_number(pictures: ModuleType) -> None:
    drawn = list(pictures.drawn(2, seed=3))
    again = list(pictures.drawn(2, seed=3))
    assert len(drawn) == 2 * len(pictures.DRAWN)
    for first, second in zip(drawn, again, strict=True):
        assert first.category == second.category
        assert np.array_equal(first.content, second.content)
        assert first.content.dtype == np.uint8
        assert min(first.content.shape[:2]) >= 200
        assert first.content.std() > 2
    for k in range(0, len(drawn), 2):
        assert drawn[k].category == drawn[k + 1].category
        assert not np.array_equal(drawn[k].content, drawn[k + 1].content)


def test_hands_and_skulls_lie_on_black_and_are_brighter_where_bone_is(pictures: ModuleType) -> None:
    for draw in (pictures.hand, pictures.skull):
        for seed in range(3):
            image = draw(np.random.default_rng(seed)) / 255
            corners = image[:10, :10].mean(), image[:10, -10:].mean()
            assert max(corners) < 0.35
            assert np.quantile(image, 0.98) > max(corners) + 0.2


def test_photographs_and_slices_are_found_in_packages(pictures: ModuleType) -> None:
    photographs = list(pictures.photographs(4))
    assert [p.content.ndim for p in photographs] == [3, 2, 3, 2]
    slices = list(pictures.slices())
    files = [s for s in slices if isinstance(s.content, Path)]
    assert len(files) >= 5
    assert len(slices) == 2 * len(files)
    assert {s.right for s in files} == {Reason.WRONG_MODALITY}


def test_shares_are_counted_by_code(script: ModuleType) -> None:
    rejected = Prediction("a", "refused", Reason.ROTATED)
    wrong = Prediction("b", "refused", Reason.INVERTED)
    results = [(rejected, Reason.ROTATED), (wrong, Reason.ROTATED), (Prediction("c", "ok"), None)]
    row = script.counted("some", results)
    assert (row.images, row.refused, row.right) == (3, 2, 1)
    assert row.reasons == {"rotated": 1, "inverted": 1}
    holds = script.Row("x", 100, 2, 98, {})
    assert [v.startswith("**Holds") for v in script.verdicts(holds, holds, holds)] == [True] * 3
    fails = script.Row("x", 100, 4, 97, {})
    assert [v.startswith("**Fails") for v in script.verdicts(fails, fails, fails)] == [True] * 3


def test_it_measures_a_model_on_images_copies_and_others(
    script: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    predictor = Predictor(KNOWN, CoarseBackend(), statistics=known_images())
    monkeypatch.setattr(Predictor, "load", lambda model, *_, **__: predictor)
    data = write_phantoms(tmp_path / "images", 30, 3, size=64)
    mine = tmp_path / "mine"
    mine.mkdir()
    Image.fromarray(np.eye(64, dtype=np.uint8) * 255).save(mine / "line.png")
    out = tmp_path / "table.md"
    words = ["--split", "train", "--each", "1", "--turned", "3", "--changed", "2"]
    words += ["--others", str(mine), "--out", str(out), "--json"]
    assert script.main([str(data), *words]) == 0
    found = json.loads(capsys.readouterr().out)
    rows = {row["title"]: row for row in found["others"]}
    assert rows["images turned by 180°"]["images"] == 3
    assert rows["white noise"]["right"] == 1
    assert rows["mine/"] == {
        "title": "mine/",
        "images": 1,
        "refused": 1,
        "right": 1,
        "reasons": {"not_a_chest_xray": 1},
    }
    assert rows["CT and MR, DICOM"]["right"] == rows["CT and MR, DICOM"]["images"]
    everything = [row["images"] for title, row in rows.items() if title != "all"]
    assert rows["all"]["images"] == sum(everything)
    images = {row["title"]: row["images"] for row in found["images"]}
    assert images["all"] == images["NORMAL"] + images["PNEUMONIA"]
    assert len(found["changed"]) == 1 + len(list(script.changes()))
    text = out.read_text(encoding="utf-8")
    assert text.count("| --- |") >= 3
    assert all(verdict in text for verdict in found["verdicts"])
