"""The table of threshold rules: which copies each rule reads, its rates, and what it stores."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from support.scripts import load_script


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("benchmarks/threshold_rules.py")


def part(script: ModuleType, matched: float, changed: float = 0.0, moved: float = 0.0) -> Any:
    """40 images, separable at 0 as they are; copies are moved by so many logits."""
    labels = np.repeat([0, 1], 20)
    plain = np.r_[np.linspace(-3, -1, 20), np.linspace(1, 3, 20)] + moved
    shifts = np.array([0.0, *[matched] * len(script.MATCHED), changed])
    return script.Part(labels, [f"p{k}" for k in range(40)], plain[:, np.newaxis] + shifts)


def test_each_rule_reads_the_copies_that_it_names(script: ModuleType) -> None:
    val = part(script, matched=4.0, changed=8.0)
    chosen = {name: rule(val) for name, rule in script.rules(5).items()}
    assert chosen["balanced accuracy, as they are"] == pytest.approx(0.0, abs=1e-6)
    assert 3.0 < chosen["balanced accuracy, matched (ships)"] < 5.0
    assert 3.0 < chosen["worst case, matched"] < 5.0
    assert chosen["the network's own 0.5"] == 0.0


def test_rates_of_held_out_images_at_the_threshold_of_their_fold(script: ModuleType) -> None:
    # The second fold's images score 2 higher, in both of its parts: the fixed 0.5 is too low there.
    val, held_out = (part(script, matched=0.0) for _ in range(2))
    val_2, held_out_2 = (part(script, matched=0.0, moved=2.0) for _ in range(2))
    names = ["as they are", "a", "b", "c", "d"]
    rows = script.rule_table([(val, held_out), (val_2, held_out_2)], names)[2:]
    cells = {row.split(" | ")[0].strip("| "): row.split(" | ")[1:] for row in rows}
    assert cells["balanced accuracy, as they are"][1] == "1.000 / 1.000"
    right = np.mean(np.linspace(-1, 1, 20) < 0)
    assert cells["the network's own 0.5"][1] == f"1.000 / {(1 + right) / 2:.3f}"
    assert cells["the network's own 0.5"][-1].startswith(f"{-(1 - right) / 4:+.2f}")


def test_calibration_is_fitted_to_the_copies_of_its_row(script: ModuleType) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, 400)
    labels = (rng.random(400) < 1 / (1 + np.exp(-logits))).astype(int)
    shifts = np.array([0.0, 3.0, 3.0, 3.0, 0.0])
    fold = script.Part(labels, [str(k) for k in range(400)], logits[:, np.newaxis] + shifts)
    rows = script.calibration_table([(fold, fold)], ["plain", "a", "b", "c", "d"])[2:]
    found = {row.split(" | ")[0].strip("| "): row.strip("| ").split(" | ")[1:] for row in rows}
    plain, matched = found["as they are"], found["matched (ships)"]
    assert float(plain[0]) < 0.05 < float(plain[1])
    assert float(matched[1]) < 0.05 < float(matched[0])


def test_stored_logits_are_read_again(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folds = [(part(script, 0.5), part(script, 1.5))]
    names = ["as they are", "a", "b", "c", "d"]
    monkeypatch.setattr(script, "scored", lambda folder: (folds, names))
    script.stored(tmp_path / "scores.npz", tmp_path)
    monkeypatch.delattr(script, "scored")  # the second call reads the file
    [(val, held_out)], found = script.stored(tmp_path / "scores.npz", tmp_path)
    assert found == names
    np.testing.assert_array_equal(val.logits, folds[0][0].logits)
    assert held_out.patients == folds[0][1].patients
