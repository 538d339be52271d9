"""The model that ships: small enough, described honestly, predicting right after the install."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest

from pneumoscope.config import training_config
from pneumoscope.images.lungs import MATCHED_SHARES
from pneumoscope.images.phantom import write_phantoms
from pneumoscope.inference.bundle import Bundle, load_bundle
from pneumoscope.training.weights import resolve_weights
from pneumoscope.workflows.documentation import _training

SETTINGS = Path(__file__).parents[1] / "models" / "default.toml"
MOST_BYTES = 16_000_000

WITHOUT_KERAS = """
import sys
for name in ("keras", "tensorflow", "torch", "jax"):
    sys.modules[name] = None
from pneumoscope.cli import main
main()
"""


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return load_bundle("default")


def test_it_is_small_enough_for_a_repository(bundle: Bundle) -> None:
    assert sum(path.stat().st_size for path in bundle.folder.iterdir()) <= MOST_BYTES
    assert bundle.manifest.store == "float16"


def test_it_is_what_its_settings_say(bundle: Bundle) -> None:
    settings = training_config(file=SETTINGS)
    assert bundle.manifest.preprocessing == settings.preprocess
    assert bundle.manifest.flip == settings.flip
    assert bundle.manifest.store == settings.store
    began = bundle.manifest.initial_weights  # of the trainings before it, none of them elsewhere
    assert len(began.sha256) == 64
    assert "ImageNet" not in began.origin
    shares = ", ".join(f"{share:g}" for share in MATCHED_SHARES)
    assert f"the lungs fill {shares} of the frame" in bundle.manifest.threshold.chosen_on
    assert settings.threshold.rule == "balanced_accuracy"
    assert bundle.manifest.threshold.rule == "highest balanced accuracy"


def test_its_card_states_what_it_scored_and_where_it_fails(bundle: Bundle) -> None:
    card = bundle.card.read_text(encoding="utf-8")
    for words in (
        "not a medical device",
        "Held-out test",
        "The same X-rays with matched framing",
        "The same X-rays, changed",
        "0.466",
        "children",
        _training(training_config(file=SETTINGS), 0)[0].replace("_", r"\_"),
        f"{bundle.manifest.training_data.patients:,}",
    ):
        assert words in card, words


def test_lists_of_models_show_what_it_scored_on_held_out_patients(bundle: Bundle) -> None:
    card = bundle.card.read_text(encoding="utf-8")
    front, tested = card.split("---")[1], card.split("## Held-out test")[1].split("\n### ")[0]
    rows = re.findall(r"\| (AUC|Sensitivity|Specificity|Accuracy) \| ([\d.]+) \|", tested)
    assert len(rows) == 4
    for name, value in rows:
        (shown,) = re.findall(rf'name: "{name}"\s+value: ([\d.]+)', front)
        assert float(shown) == pytest.approx(float(value), abs=0.00051)


@pytest.mark.parametrize("kind", ["png", "dicom"])
def test_it_predicts_offline_without_a_training_framework(
    kind: Literal["png", "dicom"], tmp_path: Path
) -> None:
    folder = write_phantoms(tmp_path / "images", 2, format=kind)
    image = next(path for path in sorted(folder.rglob("*")) if path.suffix in (".png", ".dcm"))
    command = ["predict", str(image), "--no-input-check", "--json"]  # it may know a drawing
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_KERAS, *command], capture_output=True, text=True, check=True
    )
    (row,) = json.loads(done.stdout)["predictions"]
    assert row["status"] == "ok"
    assert 0 <= row["probability"] <= 1


def test_trainings_can_start_from_it(bundle: Bundle) -> None:
    source = resolve_weights("bundled")
    assert source.path == bundle.weights[0]
    assert source.sha256 == bundle.manifest.files[bundle.weights[0].name]
