"""A bundle matches its manifest, or is rejected with a reason; nothing in it is executed."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from pneumoscope.config import PreprocessConfig
from pneumoscope.delivery.dicom_report.source import Author
from pneumoscope.errors import BundleError, MissingError, UsageError
from pneumoscope.graph import bundle_files
from pneumoscope.graph.archive import read_network
from pneumoscope.graph.bundle_files import Architecture
from pneumoscope.inference import bundle as bundles
from pneumoscope.inference.bundle import (
    Bundle,
    BundleManifest,
    load_bundle,
    load_networks,
    write_bundle,
    write_revised,
)
from pneumoscope.inference.engine import OpenVinoBackend
from pneumoscope.inference.weights_store import read_table
from pneumoscope.storage import sha256_of_file
from pneumoscope.workflows.inspect import run_info
from support.archives import changed_weights, put_member, stored_weights
from support.small_bundle import small_bundle

MANIFEST = BundleManifest(
    architecture=Architecture(size=64),
    preprocessing=PreprocessConfig(size=64),
    validation={"metrics": {"auc": {"value": 0.9, "low": None, "high": None}}},
)


class FakeNetwork:
    """Its weights are one number."""

    def __init__(self, value: float = 1.0) -> None:
        self._value = value

    def to_json(self) -> str:
        return "{}"

    def save_weights(self, path: Path) -> None:
        with h5py.File(path, "w") as file:
            file["layers/dense/vars/0"] = np.full((1, 1), self._value, np.float32)


def stored(*paths: Path) -> list[float]:
    """The numbers of fake networks, as they are on disk."""
    values = []
    for path in paths:
        with stored_weights(path) as file:
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


def test_loading_reports_which_model_if_verbose(
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
        (
            {"threshold.value": float("nan")},
            r"bundle\.json.*found the number NaN, expected a finite",
        ),
        ({"labels": "NORMAL"}, "wanted list"),
        ({"labels": ["PNEUMONIA", "NORMAL"]}, "NORMAL, PNEUMONIA"),
        ({"labels": [0, 1]}, "wanted str"),
        ({"architecture.name": ""}, "wanted a backbone"),
        ({"architecture.size": 224}, "same size"),
        ({"architecture.size": 16, "preprocessing.size": 16}, "found Architecture"),
        ({"architecture.hidden_units": 10**12}, "65536 hidden units"),
        ({"architecture.hidden_units": 0}, "hidden units"),
        ({"architecture.dropout": 1.0}, "found Architecture"),
        ({"preprocessing.size": 10**9}, "wanted 0 to 4096"),
        ({"preprocessing.fit": "crop"}, "wanted one of 'stretch', 'pad'"),
        ({"calibration.slope": -1.0}, r"bundle\.json.*a number above 0"),
        ({"calibration.slope": float("inf")}, r"bundle\.json.*found the number Infinity"),
        ({"calibration.method": "magic"}, "wanted one of"),
        ({"members": 0}, "wanted 1 to 32"),
        ({"members": 33}, "wanted 1 to 32"),
        ({"members": 2}, r"model-0\.keras, model-1\.keras"),
        ({"flip": 1}, "wanted bool"),
        ({"store": "int8"}, "wanted one of 'float32', 'float16'"),
        ({"files": []}, "wanted dict"),
        ({"files": {}}, "states None"),
        ({"schema_version": "1"}, "found schema version '1'"),
        ({"schema_version": True}, "found schema version True"),
        ({"schema_version": 5}, "found schema version 5"),
        ({"input_check.refused": 1.5}, "wanted 0 to 1"),
        ({"input_check": {"method": "none"}}, "'images' is missing"),
        ({"input_check.method": "magic"}, "wanted one of 'none', 'gaussians'"),
        ({"abstention.method": "magic"}, "wanted one of 'none', 'band', 'conformal'"),
        ({"schema_version": 0}, "found schema version 0"),
        ({"code": "import os"}, "unknown setting 'code'"),
    ],
)
def test_a_manifest_of_wrong_types_or_values_is_rejected(
    bundle: Bundle, change: dict[str, Any], fragment: str
) -> None:
    with pytest.raises(BundleError, match=fragment):
        load_bundle(changed(bundle, change))


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"3", b"\xff\xfe", b"[" * 100_000, b'{"schema_version": 1'], ids=repr
)
def test_a_manifest_that_is_no_json_object_is_rejected(bundle: Bundle, content: bytes) -> None:
    (bundle.folder / "bundle.json").write_bytes(content)
    with pytest.raises(BundleError, match=r"bundle\.json"):
        load_bundle(bundle.folder)


@pytest.mark.parametrize(
    ("before", "after", "fragment"),
    [
        ('"value": 0.5', '"value": 0.9, "value": 0.5', "found the key 'value' more than once"),
        ('"labels"', '"files": {}, "labels"', "found the key 'files' more than once"),
        ('"value": 0.5', '"value": 1e999', "found the number 1e999, expected a finite one"),
        ('"value": 0.9', '"value": -Infinity', "found the number -Infinity"),
    ],
)
def test_a_manifest_that_parsers_read_differently_is_rejected_by_name(
    bundle: Bundle, before: str, after: str, fragment: str
) -> None:
    path = bundle.folder / "bundle.json"
    text = path.read_text(encoding="utf-8")
    assert before in text
    path.write_text(text.replace(before, after, 1), encoding="utf-8")
    with pytest.raises(BundleError, match=fragment) as rejected:
        load_bundle(bundle.folder)
    assert str(path) in str(rejected.value)


def test_files_that_are_missing_or_too_large_are_rejected(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundles, "_MAX_WEIGHTS_BYTES", 3)
    with pytest.raises(BundleError, match=r"found \d+ bytes, wanted at most"):
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


def test_info_states_the_fingerprint_that_reports_hold(bundle: Bundle) -> None:
    document, text = run_info(str(bundle.folder))
    assert document["fingerprint"] == Author.of(bundle.manifest).fingerprint
    assert f"fingerprint   {document['fingerprint']}" in text


@pytest.mark.parametrize(
    ("value", "shown"), [(0.573, "0.5730"), (0.00002, "0.00002"), (0.99999, "0.99999")]
)
def test_info_does_not_round_a_threshold_to_0_or_1(
    bundle: Bundle, value: float, shown: str
) -> None:
    text = run_info(str(changed(bundle, {"threshold.value": value})))[1]
    assert f"threshold     {shown} (" in text


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle of real networks."""
    return small_bundle(tmp_path_factory.mktemp("whole") / "model", members=2)


def copied(bundle: Bundle, folder: Path) -> Bundle:
    shutil.copytree(bundle.folder, folder)
    return Bundle(folder, bundle.manifest)


def hashed(bundle: Bundle) -> Bundle:
    """The bundle with the hashes of its current files."""
    files = {name: sha256_of_file(bundle.folder / name) for name in bundle.manifest.files}
    return load_bundle(changed(bundle, {"files": files}))


def rejected(bundle: Bundle, fragment: str) -> None:
    """Such a network is rejected, with Keras and without."""
    for load in (load_networks, OpenVinoBackend.load):
        with pytest.raises(BundleError, match=fragment):
            load(bundle)


def test_weights_that_unpack_to_far_more_are_rejected_unread(whole: Bundle, tmp_path: Path) -> None:
    bundle = copied(whole, tmp_path / "model")
    size = bundle.weights[0].stat().st_size
    with changed_weights(bundle.weights[0]) as file:
        file.create_dataset("more", (10**12,), "f4", chunks=(1024,), compression="gzip")
    assert bundle.weights[0].stat().st_size < size + 100_000
    rejected(hashed(bundle), "bytes of memory")


def test_weights_that_are_no_numbers_are_rejected(whole: Bundle, tmp_path: Path) -> None:
    bundle = copied(whole, tmp_path / "model")
    with changed_weights(bundle.weights[1]) as file:
        arrays = []
        file.visititems(lambda _, item: arrays.append(item) if hasattr(item, "dtype") else None)
        arrays[0][...] = np.nan
    rejected(hashed(bundle), "non-finite")


@pytest.mark.parametrize(
    ("name", "content", "fragment"),
    [
        ("config.json", b"{", "read as JSON"),
        ("config.json", b"[" * 100_000, "read as JSON"),
        ("config.json", b"{}", "description can't be read"),
        ("config.json", b'{"module": "os", "class_name": "system"}', "names code of 'os'"),
        ("config.json", b" " * (33 << 20), "are allowed"),
        ("model.weights.h5", b"weights", "damaged"),
    ],
)
def test_networks_that_are_no_networks_are_rejected(
    whole: Bundle, tmp_path: Path, name: str, content: bytes, fragment: str
) -> None:
    bundle = copied(whole, tmp_path / "model")
    put_member(bundle.weights[0], name, content)
    rejected(hashed(bundle), fragment)


def test_what_is_no_archive_is_rejected(whole: Bundle, tmp_path: Path) -> None:
    bundle = copied(whole, tmp_path / "model")
    bundle.weights[0].write_bytes(b"PK\x03\x04 and no more")
    rejected(hashed(bundle), "nor an archive written by Keras")


def test_a_lambda_is_rejected(whole: Bundle, tmp_path: Path) -> None:
    bundle = copied(whole, tmp_path / "model")
    with zipfile.ZipFile(bundle.weights[0]) as archive:
        text = archive.read("config.json").decode()
    put_member(
        bundle.weights[0],
        "config.json",
        text.replace("ReLU", "Lambda")
        .replace('"class_name": "Activation"', '"class_name": "Lambda"')
        .encode(),
    )
    rejected(hashed(bundle), "Lambda")


def test_a_network_of_another_size_is_rejected(whole: Bundle, tmp_path: Path) -> None:
    bundle = copied(whole, tmp_path / "model")
    changed(bundle, {"architecture.size": 96, "preprocessing.size": 96})
    rejected(hashed(bundle), "does not fit")


def test_an_ensemble_is_loaded_in_order(whole: Bundle) -> None:
    arrays = [read_network(path, whole.manifest.architecture) for path in whole.weights]
    for network, read in zip(load_networks(whole), arrays, strict=True):
        (found, _), (wanted, _) = (
            network.get_layer("head_hidden").get_weights(),
            read.of("head_hidden"),
        )
        np.testing.assert_array_equal(found, wanted)
    one, other = (each.of("head_hidden")[0] for each in arrays)
    assert not np.array_equal(one, other)


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
def test_nothing_that_a_prediction_depends_on_is_filled_in_by_default(
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
    with pytest.raises(BundleError, match=r"'extra\.pkl' is listed in bundle\.json but not"):
        load_bundle(bundle.folder)
    document["files"] = {"../elsewhere": "0" * 64}
    manifest.write_text(json.dumps(document))
    with pytest.raises(BundleError, match=r"'\.\./elsewhere' is listed"):
        load_bundle(bundle.folder)


def test_an_ensemble_has_a_weights_file_per_member(ensemble: Bundle) -> None:
    assert ensemble.manifest.members == 3
    assert [path.name for path in ensemble.weights] == [f"model-{k}.keras" for k in range(3)]
    assert stored(*ensemble.weights) == [1.0, 2.0, 3.0]
    assert set(ensemble.manifest.files) == {
        "MODEL_CARD.md",
        *(path.name for path in ensemble.weights),
    }
    assert load_bundle(ensemble.folder) == ensemble


@pytest.mark.parametrize("member", [0, 2])
def test_an_ensemble_without_a_member_is_rejected(ensemble: Bundle, member: int) -> None:
    path = ensemble.weights[member]
    content = path.read_bytes()
    path.write_bytes(ensemble.weights[1].read_bytes())
    with pytest.raises(BundleError, match=rf"model-{member}\.keras: SHA-256 is"):
        load_bundle(ensemble.folder)
    path.unlink()
    with pytest.raises(BundleError, match=rf"model-{member}\.keras: is missing"):
        load_bundle(ensemble.folder)
    path.write_bytes(content)
    load_bundle(ensemble.folder)


def test_members_that_would_not_be_asked_are_rejected(ensemble: Bundle) -> None:
    with pytest.raises(BundleError, match=r"'model-2\.keras' and 2 members"):
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
    assert not (bundle.folder / "model.keras").exists()
    alone = write_bundle(bundle.folder, FakeNetwork(4.0), again.manifest, "card")
    assert alone.manifest.members == 1
    assert sorted(path.name for path in bundle.folder.iterdir()) == [
        "MODEL_CARD.md",
        "bundle.json",
        "model.keras",
    ]


def test_the_manifest_states_how_weights_are_stored(tmp_path: Path) -> None:
    manifest = dataclasses.replace(MANIFEST, store="float16", flip=True)
    found = write_bundle(tmp_path / "model", FakeNetwork(1.00001), manifest, "card")
    assert found.manifest.store == "float16"
    assert found.manifest.flip
    assert stored(*found.weights) == [1.0]


def aged(bundle: Bundle, version: int) -> Path:
    """The bundle in an older schema."""
    path = bundle.folder / "bundle.json"
    document = json.loads(path.read_text()) | {"schema_version": version}
    document["files"]["model.weights.h5"] = document["files"].pop("model.keras")
    if version < 3:
        document["input_check"] = {"method": "none"}
        document["abstention"] = {"method": "band"}  # unknown then: withholds nothing
    if version < 2:
        for name in ("members", "flip", "store"):
            del document[name]
    path.write_text(json.dumps(document))
    bundle.weights[0].rename(bundle.folder / "model.weights.h5")
    return bundle.folder


@pytest.mark.parametrize("version", [1, 2, 3])
def test_bundles_of_older_schemas_are_read_to_be_converted(bundle: Bundle, version: int) -> None:
    folder = aged(bundle, version)
    with pytest.raises(BundleError, match="pneumoscope upgrade --model"):
        load_bundle(folder)
    found = load_bundle(folder, oldest=1)
    assert [path.name for path in found.weights] == ["model.weights.h5"]
    files = found.manifest.files
    assert dataclasses.replace(found.manifest, files={}, schema_version=4) == MANIFEST
    assert set(files) == {"model.weights.h5", "MODEL_CARD.md"}


def test_tables_lie_beside_the_weights_and_stay_when_a_bundle_is_revised(tmp_path: Path) -> None:
    numbers = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([1, 2])}
    first = write_bundle(tmp_path / "a", FakeNetwork(), MANIFEST, "card", {"numbers": numbers})
    assert set(first.manifest.files) == {"model.keras", "MODEL_CARD.md", "numbers.npz"}
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


def test_a_table_of_objects_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "t.npz"
    np.savez(path, x=np.array([{"code": "runs"}], dtype=object))
    with pytest.raises(BundleError, match="wanted arrays of numbers"):
        read_table(path)


def test_a_table_that_would_fill_the_memory_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "t.npz"
    np.savez_compressed(path, x=np.zeros(70 << 20, np.uint8))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(BundleError, match="are allowed"):
        read_table(path)


def npy(array: Any, **changed: Any) -> bytes:
    """A `.npy` file whose header may state another shape or type than its array has."""
    stream = io.BytesIO()
    header = {**np.lib.format.header_data_from_array_1_0(array), **changed}
    np.lib.format.write_array_header_1_0(stream, header)
    return bytes(stream.getvalue() + array.tobytes())


def npz(
    path: Path, content: bytes, method: int = zipfile.ZIP_DEFLATED, name: str = "x.npy"
) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr(name, content)
    return path


def patched(path: Path, at: bytes, offset: int, value: bytes) -> Path:
    """Overwrite bytes after each occurrence of a signature."""
    content = bytearray(path.read_bytes())
    start = content.find(at)
    while start >= 0:
        content[start + offset : start + offset + len(value)] = value
        start = content.find(at, start + 1)
    path.write_bytes(bytes(content))
    return path


LOCAL, CENTRAL = b"PK\x03\x04", b"PK\x01\x02"


@pytest.mark.parametrize(
    "made",
    [
        pytest.param(lambda p: p.write_bytes(b"no archive"), id="no archive"),
        pytest.param(lambda p: npz(p, b"text", name="x.txt"), id="no array"),
        pytest.param(lambda p: npz(p, b""), id="an empty member"),
        pytest.param(lambda p: npz(p, pickle.dumps([1])), id="a raw pickle"),
        pytest.param(lambda p: npz(p, npy(np.ones(3), shape=(1 << 40,))), id="a giant shape"),
        pytest.param(lambda p: npz(p, npy(np.ones(3), shape=(-3,))), id="a negative shape"),
        pytest.param(lambda p: npz(p, npy(np.ones(3), shape=(2,))), id="bytes to spare"),
        pytest.param(lambda p: npz(p, npy(np.ones(3), descr="|O8")), id="objects"),
        pytest.param(lambda p: npz(p, npy(np.ones(3), descr="[('a','<f8')]")), id="fields"),
        pytest.param(lambda p: npz(p, npy(np.array(["a"]))), id="texts"),
        pytest.param(lambda p: npz(p, b"\x93NUMPY\x09\x00" + b"x" * 99), id="another version"),
        pytest.param(
            lambda p: patched(npz(p, npy(np.arange(99))), b"x.npy", 9, b"\xff" * 20), id="deflate"
        ),
        pytest.param(
            lambda p: [
                patched(npz(p, npy(np.ones(3))), LOCAL, 6, b"\1"),
                patched(p, CENTRAL, 8, b"\1"),
            ],
            id="encrypted",
        ),
        pytest.param(
            lambda p: [
                patched(npz(p, npy(np.ones(3))), LOCAL, 8, b"\x63"),
                patched(p, CENTRAL, 10, b"\x63"),
            ],
            id="an unknown method",
        ),
    ],
)
def test_a_malformed_table_is_rejected(made: Callable[[Path], Any], tmp_path: Path) -> None:
    made(tmp_path / "t.npz")
    with pytest.raises(BundleError, match=r"t\.npz: can't be read .*wanted arrays of numbers"):
        read_table(tmp_path / "t.npz")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_named_pipe_is_no_table(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "t.npz")
    with pytest.raises(BundleError, match="not a regular file"):
        read_table(tmp_path / "t.npz")


def test_default_is_the_bundle_in_the_package(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle_files, "default_folder", lambda: bundle.folder)
    assert load_bundle("default") == bundle
    monkeypatch.setattr(bundle_files, "default_folder", lambda: tmp_path / "none")
    with pytest.raises(MissingError, match="has no default model"):
        load_bundle("default")


def test_the_default_bundle_belongs_in_the_package() -> None:
    package = Path(bundles.__file__).parent.parent
    assert bundle_files.default_folder() == package / "models" / "default"
