"""A bundle is what its manifest says, or is refused with a reason; nothing in it can hurt."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from pneumoscope.config import PreprocessConfig
from pneumoscope.errors import BundleError, MissingError, UsageError
from pneumoscope.graph.architecture import Architecture
from pneumoscope.inference import bundle as bundles
from pneumoscope.inference.bundle import (
    Bundle,
    BundleManifest,
    load_bundle,
    load_networks,
    write_bundle,
    write_revised,
)
from pneumoscope.inference.bundle_tables import read_table
from pneumoscope.storage import sha256_of_file
from pneumoscope.training import bundle_files
from pneumoscope.workflows.inspect import run_info

MANIFEST = BundleManifest(
    architecture=Architecture(size=64),
    preprocessing=PreprocessConfig(size=64),
    validation={"metrics": {"auc": {"value": 0.9, "low": None, "high": None}}},
)


class FakeNetwork:
    """Its weights are one number."""

    def __init__(self, value: float = 1.0) -> None:
        self._value = value

    def save_weights(self, path: Path) -> None:
        with h5py.File(path, "w") as file:
            file["layers/dense/vars/0"] = np.full((1, 1), self._value, np.float32)


def stored(*paths: Path) -> list[float]:
    """The numbers of fake networks, as they are on disk."""
    values = []
    for path in paths:
        with h5py.File(path, "r") as file:
            values.append(float(file["layers/dense/vars/0"][0, 0]))
    return values


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_bundle(tmp_path / "run" / "model", FakeNetwork(), MANIFEST, "card")


@pytest.fixture
def ensemble(tmp_path: Path) -> Bundle:
    members = [FakeNetwork(value) for value in (1.0, 2.0, 3.0)]
    return write_bundle(tmp_path / "many" / "model", members, MANIFEST, "card")


def changed(bundle: Bundle, change: dict[str, Any]) -> Path:
    path = bundle.folder / "bundle.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    for name, value in change.items():
        *above, last = name.split(".")
        table = document
        for part in above:
            table = table[part]
        table[last] = value
    path.write_text(json.dumps(document), encoding="utf-8")
    return bundle.folder


def test_written_bundle_reads_back_by_its_folder_and_its_run(bundle: Bundle) -> None:
    for place in (bundle.folder, bundle.folder.parent, str(bundle.folder)):
        found = load_bundle(place).manifest
        assert dataclasses.replace(found, files={}) == MANIFEST
    assert sorted(path.name for path in bundle.folder.parent.iterdir()) == ["model"]


def test_loading_tells_which_model_when_asked_to_say_more(
    bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("DEBUG", logger="pneumoscope"):
        load_bundle(bundle.folder)
    assert str(bundle.folder) in caplog.text


def test_a_bundle_is_replaced_whole(bundle: Bundle) -> None:
    again = write_bundle(bundle.folder, FakeNetwork(2.0), MANIFEST, "card")
    assert stored(*again.weights) == [2.0]
    assert sorted(path.name for path in bundle.folder.parent.iterdir()) == ["model"]


def test_a_bundle_that_cant_be_written_leaves_the_old_one(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(FakeNetwork):
        def save_weights(self, path: Path) -> None:
            path.write_text("half")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_bundle(bundle.folder, Full(), MANIFEST, "card")
    real = Path.rename

    def rename(path: Path, target: Path) -> Path:
        if target == bundle.folder and (path / "MODEL_CARD.md").read_text() == "new card":
            raise OSError(5, "Input/output error")
        return real(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(OSError, match="Input/output"):
        write_bundle(bundle.folder, FakeNetwork(2.0), MANIFEST, "new card")
    assert stored(*load_bundle(bundle.folder).weights) == [1.0]
    assert [path.name for path in bundle.folder.parent.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("change", "fragment"),
    [
        ({"threshold": 3}, "wanted a table"),
        ({"threshold.value": "0.5"}, "wanted float"),
        ({"threshold.value": 1.5}, "wanted 0 to 1"),
        ({"threshold.value": float("nan")}, "found nan"),
        ({"labels": "NORMAL"}, "wanted list"),
        ({"labels": ["PNEUMONIA", "NORMAL"]}, "NORMAL, PNEUMONIA"),
        ({"labels": [0, 1]}, "wanted str"),
        ({"architecture.name": "resnet"}, "wanted densenet121"),
        ({"architecture.size": 224}, "same size"),
        ({"architecture.size": 16, "preprocessing.size": 16}, "found Architecture"),
        ({"architecture.hidden_units": 10**12}, "65536 hidden units"),
        ({"architecture.hidden_units": 0}, "hidden units"),
        ({"architecture.dropout": 1.0}, "found Architecture"),
        ({"preprocessing.size": 10**9}, "wanted 0 to 4096"),
        ({"preprocessing.fit": "crop"}, "wanted one of 'stretch', 'pad'"),
        ({"calibration.slope": -1.0}, "a number above 0"),
        ({"calibration.slope": float("inf")}, "found inf"),
        ({"calibration.method": "magic"}, "wanted one of"),
        ({"members": 0}, "wanted 1 to 32"),
        ({"members": 33}, "wanted 1 to 32"),
        ({"members": 2}, r"model-0\.weights\.h5, model-1\.weights\.h5"),
        ({"flip": 1}, "wanted bool"),
        ({"store": "int8"}, "wanted one of 'float32', 'float16'"),
        ({"files": []}, "wanted dict"),
        ({"files": {}}, "says None"),
        ({"schema_version": "1"}, "found schema version '1'"),
        ({"schema_version": True}, "found schema version True"),
        ({"schema_version": 4}, "found schema version 4"),
        ({"input_check.refused": 1.5}, "wanted 0 to 1"),
        ({"input_check": {"method": "none"}}, "'images' is missing"),
        ({"schema_version": 0}, "found schema version 0"),
        ({"code": "import os"}, "unknown setting 'code'"),
    ],
)
def test_a_manifest_of_wrong_types_or_values_is_refused(
    bundle: Bundle, change: dict[str, Any], fragment: str
) -> None:
    with pytest.raises(BundleError, match=fragment):
        load_bundle(changed(bundle, change))


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"3", b"\xff\xfe", b"[" * 100_000, b'{"schema_version": 1'], ids=repr
)
def test_a_manifest_that_is_no_json_object_is_refused(bundle: Bundle, content: bytes) -> None:
    (bundle.folder / "bundle.json").write_bytes(content)
    with pytest.raises(BundleError, match=r"bundle\.json"):
        load_bundle(bundle.folder)


def test_files_that_are_missing_or_too_large_are_refused(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundles, "_MAX_WEIGHTS_BYTES", 3)
    with pytest.raises(BundleError, match=r"\d bytes are more"):
        load_bundle(bundle.folder)
    bundle.weights[0].unlink()
    bundle.weights[0].mkdir()
    with pytest.raises(BundleError, match="is missing from the bundle"):
        load_bundle(bundle.folder)


def test_there_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        load_bundle(tmp_path / "none")
    with pytest.raises(BundleError, match=r"holds no bundle\.json"):
        load_bundle(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(BundleError, match=r"holds no bundle\.json"):
        load_bundle(tmp_path / "file")


@pytest.mark.parametrize(
    "validation", [{}, {"metrics": 3}, {"metrics": {"auc": 3, "f1": {}, "ppv": {"value": "x"}}}]
)
def test_info_survives_any_validation_table(bundle: Bundle, validation: dict[str, Any]) -> None:
    document, text = run_info(str(changed(bundle, {"validation": validation})))
    assert document["validation"] == validation
    assert "SHA-256" in text


class Loading:
    """Stands for a Keras network: takes any file, and has the weights it was told to have."""

    def __init__(self, *arrays: np.ndarray) -> None:
        self._arrays = arrays

    def load_weights(self, path: Path) -> None:
        pass

    def get_weights(self) -> tuple[np.ndarray, ...]:
        return self._arrays


def with_weights(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, **data: Any) -> Bundle:
    """The bundle around an HDF5 file of one array; its hash is right."""
    (weights,) = bundle.weights
    with h5py.File(weights, "w") as file:
        group = file.create_group("layers/dense/vars")
        group.attrs["name"] = "dense"
        group.create_dataset("0", **data)
    monkeypatch.setattr(bundles, "build_backbone", lambda size: None)
    value = np.float32(data.get("fillvalue", 0))
    monkeypatch.setattr(bundles, "build_network", lambda *_: Loading(np.full(3, value)))
    digest = sha256_of_file(weights)
    return load_bundle(
        changed(
            bundle,
            {"files": {"MODEL_CARD.md": sha256_of_file(bundle.card), "model.weights.h5": digest}},
        )
    )


def test_weights_that_unpack_to_far_more_are_refused_unread(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    bomb = with_weights(
        bundle, monkeypatch, shape=(10**12,), dtype="f4", chunks=(1024,), compression="gzip"
    )
    assert bomb.weights[0].stat().st_size < 10_000
    with pytest.raises(BundleError, match="bytes of memory"):
        load_networks(bomb)


def test_weights_that_are_no_numbers_are_refused(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = with_weights(bundle, monkeypatch, shape=(3,), dtype="f4", fillvalue=np.nan)
    with pytest.raises(BundleError, match="not finite"):
        load_networks(broken)


def test_weights_that_are_no_hdf5_are_refused(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundles, "build_backbone", lambda size: None)
    monkeypatch.setattr(bundles, "build_network", lambda *_: Loading())
    bundle.weights[0].write_text("weights")
    with pytest.raises(BundleError, match="not an HDF5 file"):
        load_networks(bundle)


@pytest.mark.parametrize(
    "path",
    [
        ("threshold",),
        ("threshold", "value"),
        ("calibration", "slope"),
        ("preprocessing", "fit"),
        ("architecture",),
        ("labels",),
        ("training_data",),
        ("members",),
        ("flip",),
    ],
)
def test_nothing_that_an_answer_depends_on_is_filled_in_by_default(
    bundle: Bundle, path: tuple[str, ...]
) -> None:
    manifest = bundle.folder / "bundle.json"
    document = json.loads(manifest.read_text())
    inner = document
    for name in path[:-1]:
        inner = inner[name]
    del inner[path[-1]]
    manifest.write_text(json.dumps(document))
    with pytest.raises(BundleError, match=f"{path[-1]!r} is missing"):
        load_bundle(bundle.folder)


def test_every_listed_file_is_checked_and_no_other_may_be_there(bundle: Bundle) -> None:
    load_bundle(bundle.folder / "bundle.json")
    (bundle.folder / ".DS_Store").touch()
    load_bundle(bundle.folder)
    manifest = bundle.folder / "bundle.json"
    document = json.loads(manifest.read_text())
    extra = bundle.folder / "extra.pkl"
    extra.write_bytes(b"code")
    with pytest.raises(BundleError, match=r"'extra\.pkl' is in the bundle"):
        load_bundle(bundle.folder)
    document["files"]["extra.pkl"] = "0" * 64
    manifest.write_text(json.dumps(document))
    with pytest.raises(BundleError, match=r"extra\.pkl: SHA-256 is"):
        load_bundle(bundle.folder)
    extra.unlink()
    with pytest.raises(BundleError, match=r"'extra\.pkl' is listed in bundle\.json and not"):
        load_bundle(bundle.folder)
    document["files"] = {"../elsewhere": "0" * 64}
    manifest.write_text(json.dumps(document))
    with pytest.raises(BundleError, match=r"'\.\./elsewhere' is listed"):
        load_bundle(bundle.folder)


def test_an_ensemble_has_a_weights_file_per_member(ensemble: Bundle) -> None:
    assert ensemble.manifest.members == 3
    assert [path.name for path in ensemble.weights] == [f"model-{k}.weights.h5" for k in range(3)]
    assert stored(*ensemble.weights) == [1.0, 2.0, 3.0]
    assert set(ensemble.manifest.files) == {
        "MODEL_CARD.md",
        *(path.name for path in ensemble.weights),
    }
    assert load_bundle(ensemble.folder) == ensemble


def test_an_ensemble_is_loaded_in_order(ensemble: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    class Reading(Loading):
        def load_weights(self, path: Path) -> None:
            self._arrays = (np.array(stored(path)),)

    with_names = ensemble.weights
    for path in with_names:
        with h5py.File(path, "r+") as file:
            file["layers/dense/vars"].attrs["name"] = "dense"
    monkeypatch.setattr(bundles, "build_backbone", lambda size: None)
    monkeypatch.setattr(bundles, "build_network", lambda *_: Reading())
    found = [network.get_weights()[0][0] for network in load_networks(ensemble)]
    assert found == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("member", [0, 2])
def test_an_ensemble_without_a_member_is_refused(ensemble: Bundle, member: int) -> None:
    path = ensemble.weights[member]
    content = path.read_bytes()
    path.write_bytes(ensemble.weights[1].read_bytes())
    with pytest.raises(BundleError, match=rf"model-{member}\.weights\.h5: SHA-256 is"):
        load_bundle(ensemble.folder)
    path.unlink()
    with pytest.raises(BundleError, match=rf"model-{member}\.weights\.h5: is missing"):
        load_bundle(ensemble.folder)
    path.write_bytes(content)
    load_bundle(ensemble.folder)


def test_members_that_would_not_be_asked_are_refused(ensemble: Bundle) -> None:
    with pytest.raises(BundleError, match=r"'model-2\.weights\.h5' and 2 members"):
        load_bundle(changed(ensemble, {"members": 2}))


@pytest.mark.parametrize("count", [0, 33])
def test_no_network_or_too_many_leave_the_old_bundle(bundle: Bundle, count: int) -> None:
    with pytest.raises(UsageError, match=f"found {count} networks"):
        write_bundle(bundle.folder, [FakeNetwork(2.0)] * count, MANIFEST, "card")
    assert stored(*load_bundle(bundle.folder).weights) == [1.0]


def test_an_ensemble_replaces_a_single_network_whole(bundle: Bundle) -> None:
    members = (FakeNetwork(2.0), FakeNetwork(3.0))
    again = write_bundle(bundle.folder, members, bundle.manifest, "card")
    assert stored(*again.weights) == [2.0, 3.0]
    assert not (bundle.folder / "model.weights.h5").exists()
    alone = write_bundle(bundle.folder, FakeNetwork(4.0), again.manifest, "card")
    assert alone.manifest.members == 1
    assert sorted(path.name for path in bundle.folder.iterdir()) == [
        "MODEL_CARD.md",
        "bundle.json",
        "model.weights.h5",
    ]


def test_the_manifest_says_how_weights_are_stored(tmp_path: Path) -> None:
    manifest = dataclasses.replace(MANIFEST, store="float16", flip=True)
    found = write_bundle(tmp_path / "model", FakeNetwork(1.00001), manifest, "card")
    assert found.manifest.store == "float16"
    assert found.manifest.flip
    assert stored(*found.weights) == [1.0]


def test_bundles_of_schema_1_are_read(bundle: Bundle) -> None:
    path = bundle.folder / "bundle.json"
    document = json.loads(path.read_text())
    for name in ("members", "flip", "store"):
        del document[name]
    path.write_text(json.dumps(document | {"schema_version": 1}))
    assert load_bundle(bundle.folder).manifest == bundle.manifest


@pytest.mark.parametrize("version", [1, 2])
def test_bundles_that_knew_no_input_check_are_read(bundle: Bundle, version: int) -> None:
    path = bundle.folder / "bundle.json"
    older = {"schema_version": version, "input_check": {"method": "none"}}
    path.write_text(json.dumps(json.loads(path.read_text()) | older))
    assert load_bundle(bundle.folder).manifest == bundle.manifest


def test_tables_lie_beside_the_weights_and_stay_when_a_bundle_is_revised(tmp_path: Path) -> None:
    numbers = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([1, 2])}
    first = write_bundle(tmp_path / "a", FakeNetwork(), MANIFEST, "card", {"numbers": numbers})
    assert set(first.manifest.files) == {"model.weights.h5", "MODEL_CARD.md", "numbers.npz"}
    revised = write_revised(tmp_path / "b", first, MANIFEST, "other", {"more": {"c": np.ones(1)}})
    assert set(revised.tables()) == {"numbers", "more"}
    found = revised.table("numbers")
    assert found is not None
    assert {name: array.tolist() for name, array in found.items()} == {
        name: array.tolist() for name, array in numbers.items()
    }
    assert revised.table("absent") is None


def test_a_table_that_was_changed_is_found_out(tmp_path: Path) -> None:
    found = write_bundle(tmp_path / "a", FakeNetwork(), MANIFEST, "c", {"t": {"x": np.ones(2)}})
    np.savez(found.folder / "t.npz", x=np.zeros(2))
    with pytest.raises(BundleError, match=r"t\.npz: SHA-256 is"):
        load_bundle(found.folder)


def test_a_table_of_objects_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.npz"
    np.savez(path, x=np.array([{"code": "runs"}], dtype=object))
    with pytest.raises(BundleError, match="wanted arrays of numbers"):
        read_table(path)


def test_a_table_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.npz"
    np.savez_compressed(path, x=np.zeros(70 << 20, np.uint8))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(BundleError, match="more than any table of ours"):
        read_table(path)


def test_default_is_the_bundle_in_the_package(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle_files, "default_folder", lambda: bundle.folder)
    assert load_bundle("default") == bundle
    monkeypatch.setattr(bundle_files, "default_folder", lambda: tmp_path / "none")
    with pytest.raises(MissingError, match="ships no default model"):
        load_bundle("default")


def test_the_default_bundle_belongs_in_the_package() -> None:
    package = Path(bundles.__file__).parent.parent
    assert bundle_files.default_folder() == package / "models" / "default"
