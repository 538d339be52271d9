"""`certify` from the command line: what it writes, what it rejects, what `info` then prints."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pneumoscope.cli.app import run
from pneumoscope.config import SplitConfig
from pneumoscope.data.index import index
from pneumoscope.data.splits import split, write_split
from pneumoscope.graph.openvino import build_model, convolutions_of
from pneumoscope.graph.writer import Ranges
from pneumoscope.images.phantom.folder import write_phantoms
from pneumoscope.inference import engine
from pneumoscope.inference.bundle import load_bundle
from pneumoscope.inference.certificates import PrecisionLimits
from pneumoscope.records import ImageRecord, evenly_spread
from pneumoscope.workflows import certify, inspect
from support.small_bundle import small_bundle

Told = Callable[[], dict[str, Any]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    dealt = split(index(write_phantoms(folder / "xrays", 40)), SplitConfig(val=0.5))
    records = tuple(record for record in dealt.records if record.split != "test")
    write_split(folder / "split.csv", replace(dealt, records=records))
    return folder / "split.csv"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return small_bundle(tmp_path / "run" / "model").folder.parent


@pytest.fixture(autouse=True)
def processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that has int8 alone, whichever runs this; NNCF has a test of its own."""
    for module in (certify, engine, inspect):
        monkeypatch.setattr(module, "fast_precisions", lambda: ("f32", "int8"))

    def measured(networks: Any, size: int, images: np.ndarray, *, flip: bool) -> Ranges:
        assert images.shape[1:] == (size, size, 3)
        assert np.ptp(images) > 0
        count = len(convolutions_of(build_model(networks, size, 1, flip=flip)))
        low, high = np.zeros(count, np.float32), np.full(count, 8.0, np.float32)
        low[0] = high[0] = np.nan
        return Ranges(low, high)

    monkeypatch.setattr(certify, "measure_ranges", measured)


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Told:
    return lambda: dict(json.loads(capsys.readouterr().out))


def lenient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PrecisionLimits.__init__, "__defaults__", (1, 1000.0, 1.0))


def test_what_passes_is_taken_from_then_on(
    data: Path, model: Path, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    lenient(monkeypatch)
    assert run(["certify", str(data), "--model", str(model), "--json"]) == 0
    document = told()
    (certificate,) = document["certificates"]
    assert document["auto"] == "int8"
    assert document["skipped"] == ["bf16"]
    assert certificate["passed"]
    assert certificate["calibrated_on"] > 10
    assert certificate["images"] > 10
    assert certificate["largest_difference"] > 0
    assert run(["info", "--model", str(model), "--json"]) == 0
    assert told()["precision"] == {"auto": "int8", "processor_has": ["f32", "int8"]}
    image = str(data.parent / "xrays" / "train" / "NORMAL")
    found = {}
    for precision in ("auto", "int8", "f32"):
        command = ["predict", image, "--model", str(model), "--precision", precision, "--json"]
        assert run(command) == 0
        document = told()
        assert document["precision"] == {"auto": "int8"}.get(precision, precision)
        found[precision] = [row["probability"] for row in document["predictions"]]
    assert found["auto"] == found["int8"]
    assert found["int8"] != found["f32"]


def test_what_fails_is_reported_kept_and_not_taken(
    data: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["certify", str(data), "--model", str(model), "--precision", "int8"]) == 3
    assert "wanted at least 100" in capsys.readouterr().out
    bundle = load_bundle(model)
    assert [c.passed for c in bundle.manifest.certificates] == [False]
    assert bundle.table(engine.INT8_TABLE) is None
    assert run(["info", "--model", str(model)]) == 0
    text = capsys.readouterr().out
    assert "auto selects f32 on this processor" in text
    assert "FAILED" in text
    image = next((data.parent / "xrays").rglob("*.png"))
    assert run(["predict", str(image), "--model", str(model), "--precision", "int8"]) == 2
    rejection = capsys.readouterr().err
    assert "certificate failed (" in rejection
    assert "images: found" in rejection


def test_a_copy_leaves_the_model_as_it_is(
    data: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lenient(monkeypatch)
    command = ["certify", str(data), "--model", str(model), "--out", str(tmp_path / "fast")]
    assert run(command) == 0
    assert load_bundle(model).manifest.certificates == ()
    fast = load_bundle(tmp_path / "fast")
    assert fast.manifest.certificates[0].passed
    assert fast.weights[0].read_bytes() == load_bundle(model).weights[0].read_bytes()
    assert fast.table(engine.INT8_TABLE) is not None


@pytest.mark.parametrize(
    ("arguments", "code", "fragment"),
    [
        (["--precision", "f16"], 2, "wanted some of bf16, int8"),
        (["--precision", "bf16"], 4, "a processor with f32, int8"),
        (["--split", "test"], 3, "has no test images"),
        (["--out", "{here}"], 2, "content that is not a bundle"),
    ],
)
def test_what_cant_be_certified_is_rejected(
    data: Path,
    model: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    fragment: str,
) -> None:
    given = [a.format(here=data.parent) for a in arguments]
    assert run(["certify", str(data), "--model", str(model), *given]) == code
    assert fragment in capsys.readouterr().err
    assert load_bundle(model).manifest.certificates == ()


def test_the_model_that_ships_is_not_written_over(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["certify", str(data), "--model", "default"]) == 2
    assert "Give --out DIR" in capsys.readouterr().err


def test_calibration_images_are_spread_over_all_classes() -> None:
    """Records are sorted by class, so the first ones would be of one class."""
    records = [ImageRecord(Path(f"{k}.png"), int(k >= 200), f"p{k}") for k in range(450)]
    chosen = evenly_spread(records, 300)
    assert len({record.path for record in chosen}) == 300
    assert chosen[0] is records[0]
    assert sum(record.label for record in chosen) in (166, 167)
    assert evenly_spread(records, 450) == evenly_spread(records, 999) == records
