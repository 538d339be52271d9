"""A model of an older schema predicts after its conversion as it did before."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from pneumoscope.errors import UsageError
from pneumoscope.graph.archive import WEIGHTS_MEMBER
from pneumoscope.inference.bundle import Bundle, load_bundle
from pneumoscope.inference.engine import OpenVinoBackend
from pneumoscope.storage import sha256_of_file
from pneumoscope.workflows.export import run_upgrade
from support.small_bundle import small_bundle
from support.small_network import small_network


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return small_bundle(tmp_path_factory.mktemp("new") / "model", members=2, store="float16")


@pytest.fixture
def older(bundle: Bundle, tmp_path: Path) -> Path:
    """The same model as schema 3 had it: its weights alone."""
    folder = tmp_path / "old"
    shutil.copytree(bundle.folder, folder)
    document = json.loads((folder / "bundle.json").read_text())
    for network in sorted(folder.glob("*.keras")):
        weights = network.with_name(f"{network.stem}.weights.h5")
        with zipfile.ZipFile(network) as archive:
            weights.write_bytes(archive.read(WEIGHTS_MEMBER))
        del document["files"][network.name]
        document["files"][weights.name] = sha256_of_file(weights)
        network.unlink()
    (folder / "bundle.json").write_text(json.dumps(document | {"schema_version": 3}))
    return folder


def test_predictions_stay_the_same(bundle: Bundle, older: Path, tmp_path: Path) -> None:
    with small_network():
        document, text = run_upgrade(str(older), tmp_path / "made")
    made = load_bundle(tmp_path / "made")
    assert document["schema_version"] == {"from": 3, "to": 4}
    assert str(made.folder) in text
    images = np.random.default_rng(0).standard_normal((3, 64, 64, 3)).astype(np.float32)
    found, wanted = (OpenVinoBackend.load(each).run(images) for each in (made, bundle))
    np.testing.assert_array_equal(found.logits, wanted.logits)
    np.testing.assert_array_equal(found.cams, wanted.cams)
    assert [made.manifest.files[p.name] for p in made.weights] == [
        bundle.manifest.files[p.name] for p in bundle.weights
    ]


def test_what_is_of_the_present_schema_is_left_alone(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="current schema version 4"):
        run_upgrade(str(bundle.folder), tmp_path / "made")


def test_a_folder_of_something_else_is_kept(older: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").touch()
    with pytest.raises(UsageError, match="content that is not a bundle"):
        run_upgrade(str(older), tmp_path / "taken")
