"""What the commands of evidence have in common: one document, silence when asked, exit codes."""

from __future__ import annotations

import json
from collections.abc import Iterator
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
from pneumoscope.inference.bundle import Abstention, OperatingPoint, load_bundle, write_revised
from pneumoscope.workflows import certify, input_check
from support.small_bundle import small_bundle
from support.small_network import small_network

COMMANDS = ("evaluate", "stress", "plan", "compare", "audit", "certify", "input-check")


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """Small networks, an int8 that needs no NNCF, a check that is content with few images."""

    def measured(networks: Any, size: int, images: np.ndarray, *, flip: bool) -> Ranges:
        count = len(convolutions_of(build_model(networks, size, 1, flip=flip)))
        low, high = np.zeros(count, np.float32), np.full(count, 8.0, np.float32)
        low[0] = high[0] = np.nan
        return Ranges(low, high)

    with small_network(), pytest.MonkeyPatch.context() as patch:
        for module in (certify, engine):
            patch.setattr(module, "fast_precisions", lambda: ("f32", "int8"))
        patch.setattr(certify, "measure_ranges", measured)
        patch.setattr(input_check, "LEAST_IMAGES", 20)
        patch.setattr(input_check, "LEAST_PATIENTS", 4)
        patch.setattr(input_check, "WHOLE", input_check.Effort(40, 4))
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, images in three splits, an evaluation of the first on the last."""
    folder = tmp_path_factory.mktemp("evidence")
    dealt = split(
        index(write_phantoms(folder / "images", 64, 1, size=64)), SplitConfig(val=0.25, test=0.25)
    )
    write_split(folder / "split.csv", dealt)
    small_bundle(folder / "model", size=48)
    asked = [str(folder / "split.csv"), "--model", str(folder / "model"), "--no-input-check"]
    assert run(["evaluate", *asked, "--out", str(folder / "seen"), "--resamples", "20", "-q"]) == 0
    return folder


def arguments(command: str, place: Path, out: Path) -> list[str]:
    data, model = str(place / "split.csv"), ["--model", str(place / "model")]
    few, to = ["--resamples", "20"], ["--out", str(out)]
    return {
        "evaluate": ["evaluate", data, *model, *to, *few],
        "stress": ["stress", data, *model, *to, *few, "--limit", "6", "--no-shortcuts"],
        "plan": ["plan", str(place / "seen"), *to, *few],
        "compare": ["compare", str(place / "model"), str(place / "model"), data, *to, *few],
        "audit": ["data", "audit", data, *to, "--no-pictures"],
        "certify": ["certify", data, *model, *to],
        "input-check": ["input-check", data, *model, *to],
    }[command]


@pytest.mark.parametrize("command", COMMANDS)
def test_one_document_and_silence(
    command: str, place: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code = run([*arguments(command, place, tmp_path / "out"), "--json", "-q"])
    told = capfd.readouterr()
    assert code in (0, 3)  # 3: too few images for a verdict of `compare` and `certify`
    document = json.loads(told.out)  # raises if there is more than one
    assert "error" not in document
    assert told.out.count("\n") == 1
    assert told.err == ""


@pytest.mark.parametrize("command", COMMANDS)
def test_data_that_is_not_there_is_an_error_with_its_code(
    command: str, place: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    asked = arguments(command, place, tmp_path / "out")
    asked = [
        str(tmp_path / "none") if word in (str(place / "split.csv"), str(place / "seen")) else word
        for word in asked
    ]
    code = run([*asked, "--json", "-q"])
    told = capfd.readouterr()
    error = json.loads(told.out)["error"]
    # A folder that is no evaluation is a wrong argument, as a model is; data are input.
    assert code == error["exit_code"] == (2 if command == "plan" else 3)
    assert str(tmp_path / "none") in error["message"]
    assert told.err.startswith(error["type"])
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize("command", [c for c in COMMANDS if c not in ("plan", "audit", "compare")])
def test_a_model_that_is_not_there_is_wrong_usage(
    command: str, place: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    asked = arguments(command, place, tmp_path / "out")
    asked[asked.index("--model") + 1] = str(tmp_path / "none")
    assert run([*asked, "--json", "-q"]) == 2
    assert json.loads(capfd.readouterr().out)["error"]["exit_code"] == 2


def test_what_one_command_adds_to_a_bundle_the_others_keep(place: Path, tmp_path: Path) -> None:
    """Certificates are of decisions at a threshold; the tables are of weights."""
    data, first, second, third = (
        str(place / "split.csv"),
        *(tmp_path / name for name in ("checked", "certified", "planned")),
    )
    model = load_bundle(place / "model")
    threshold = OperatingPoint(0.5, "for the test", "nothing")
    band = Abstention("band", 0.4, 0.6, "for the test", "nothing")
    given = write_revised(
        tmp_path / "given",
        model,
        replace(model.manifest, threshold=threshold, abstention=band),
        "A card.\n",
    )
    assert run(["input-check", data, "--model", str(given.folder), "--out", str(first), "-q"]) == 0
    assert run(["certify", data, "--model", str(first), "--out", str(second), "-q"]) in (0, 3)
    checked, certified = load_bundle(first), load_bundle(second)
    assert certified.manifest.input_check == checked.manifest.input_check
    assert certified.manifest.input_check.method != "none"
    assert same(checked.table("input_check"), certified.table("input_check"))
    assert [c.precision for c in certified.manifest.certificates] == ["int8"]
    assert certified.manifest.abstention == band

    # The other way round: a new input check leaves what was certified.
    again = tmp_path / "again"
    assert run(["input-check", data, "--model", str(second), "--out", str(again), "-q"]) == 0
    assert load_bundle(again).manifest.certificates == certified.manifest.certificates
    assert set(load_bundle(again).tables()) == set(certified.tables())

    # A plan moves the threshold: certificates go, tables stay, since weights are as they were.
    seen = tmp_path / "seen"
    asked = ["--model", str(second), "--no-input-check", "--resamples", "20", "-q"]
    assert run(["evaluate", data, "--out", str(seen), *asked]) == 0
    plan = ["plan", str(seen), "--model", str(second), "--threshold", "0.45", "--resamples", "20"]
    assert run([*plan, "--apply", str(third), "-q"]) == 0
    planned = load_bundle(third)
    assert planned.manifest.threshold.value == 0.45
    assert planned.manifest.certificates == ()
    assert planned.manifest.input_check == checked.manifest.input_check
    assert set(planned.tables()) == set(certified.tables())
    assert same(planned.table("input_check"), checked.table("input_check"))


def same(first: Any, second: Any) -> bool:
    return set(first) == set(second) and all((first[k] == second[k]).all() for k in first)
