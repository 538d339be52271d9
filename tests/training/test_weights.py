"""Initial weights: found, downloaded, rejected, and loaded into the backbone."""

from __future__ import annotations

import hashlib
import http.server
import inspect
import json
import socket
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pneumoscope.errors import BundleError, InputError, WeightsMissingError
from pneumoscope.graph import archive, bundle_files
from pneumoscope.training import weights
from pneumoscope.training.backbones import build_backbone
from pneumoscope.training.weights import load_backbone_weights, resolve_weights
from support.archives import changed_weights

keras = pytest.importorskip("keras")
h5py = pytest.importorskip("h5py")

# Keras 3.15 on TensorFlow 2.21 warns in its own saving code with NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def build() -> Any:
    return keras.applications.DenseNet121(include_top=False, weights=None, input_shape=(32, 32, 3))


@pytest.fixture(scope="module")
def backbone() -> Any:
    """A DenseNet121 with all numbers different, so that swapped arrays are detected."""
    model = build()
    generator = np.random.default_rng(0)
    model.set_weights(
        [generator.uniform(0.5, 1.5, array.shape).astype("f4") for array in model.get_weights()]
    )
    model.trainable = False
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("weights")


def stored_order(layer: Any) -> list[Any]:
    """The old layout's order, which Keras keeps: trainable weights first."""
    return [variable.numpy() for variable in layer.weights]


def names_attribute(names: list[str]) -> Any:
    """As Keras 2 stored a list of names: fixed-width bytes, or an empty list of numbers."""
    return np.array(names, dtype="S") if names else np.array([])


def write_legacy(
    path: Path, model: Any, *, slashes: bool = False, inside: str = "", root: str = ""
) -> Path:
    """The old layout by hand: as Keras 2 wrote it, below a model's name, or in a whole model."""
    with h5py.File(path, "w") as file:
        group = file.create_group(root) if root else file
        if root:
            file.attrs["model_config"] = '{"class_name": "Lambda", "config": {}}'
        names = []
        for layer in model.layers:
            name = layer.name.replace("conv1_", "conv1/") if slashes else layer.name
            names.append(name)
            sub = group.create_group(name)
            weight_names = []
            for variable, array in zip(layer.weights, stored_order(layer), strict=True):
                weight_name = f"{name}/{variable.name}:0"
                weight_names.append(weight_name)
                sub.create_dataset(weight_name, data=array)
            sub.attrs["weight_names"] = names_attribute(weight_names)
        if inside:
            move_inside(group, names, inside)
            names = [inside]
        group.attrs["layer_names"] = names_attribute(names)
    return path


def move_inside(group: Any, names: list[str], inside: str) -> None:
    """Put all layers into one group, as a backbone that is a layer of another model."""
    outer = group.create_group(inside)
    weight_names: list[str] = []
    for name in names:
        for weight_name in map(bytes.decode, group[name].attrs["weight_names"]):
            weight_names.append(weight_name)
            outer[weight_name] = np.asarray(group[name][weight_name])
        del group[name]
    half = len(weight_names) // 2
    outer.attrs["weight_names0"] = names_attribute(weight_names[:half])
    outer.attrs["weight_names1"] = names_attribute(weight_names[half:])


@pytest.fixture(scope="module")
def legacy(backbone: Any, folder: Path) -> Path:
    return write_legacy(folder / "legacy.h5", backbone, slashes=True)


@pytest.fixture(scope="module")
def keras3(backbone: Any, folder: Path) -> Path:
    path = folder / "keras3.weights.h5"
    backbone.save_weights(path)
    return path


@pytest.fixture(scope="module")
def target() -> Any:
    return build()


def same(left: Any, right: Any) -> bool:
    return all(
        np.array_equal(a, b) for a, b in zip(left.get_weights(), right.get_weights(), strict=True)
    )


def load(model: Any, path: Path) -> None:
    """Overwrite the model's weights, then load."""
    model.set_weights([np.zeros_like(array) for array in model.get_weights()])
    load_backbone_weights(model, resolve_weights(str(path)))


def attempt(model: Any, path: Path) -> None:
    """Load without overwriting first, where loading must fail."""
    load_backbone_weights(model, resolve_weights(str(path)))


def test_none_leaves_the_backbone_alone(target: Any) -> None:
    before = target.get_weights()[0].copy()
    source = resolve_weights("none")
    load_backbone_weights(target, source)
    assert np.array_equal(target.get_weights()[0], before)
    assert (source.kind, source.path, source.sha256) == ("none", None, "")


def test_legacy_layout_with_slashes_in_names(target: Any, backbone: Any, legacy: Path) -> None:
    source = resolve_weights(str(legacy))
    assert source.sha256 == hashlib.sha256(legacy.read_bytes()).hexdigest()
    assert source.kind == "file"
    load(target, legacy)
    assert same(target, backbone)


def test_keras_reads_our_legacy_files_alike(target: Any, backbone: Any, legacy: Path) -> None:
    target.set_weights([np.zeros_like(array) for array in target.get_weights()])
    target.load_weights(legacy)
    assert same(target, backbone)


def test_keras_3_layout(target: Any, backbone: Any, keras3: Path) -> None:
    load(target, keras3)
    assert same(target, backbone)


@pytest.mark.parametrize("how", [{"inside": "densenet121"}, {"root": "model_weights"}])
def test_legacy_model_around_the_backbone(
    target: Any, backbone: Any, tmp_path: Path, how: dict[str, Any]
) -> None:
    load(target, write_legacy(tmp_path / "model.h5", backbone, **how))
    assert same(target, backbone)


@pytest.mark.parametrize("nested", [True, False])
def test_keras_3_model_with_a_head(
    target: Any, backbone: Any, tmp_path: Path, nested: bool
) -> None:
    inputs = keras.layers.Input((32, 32, 3)) if nested else backbone.input
    maps = backbone(inputs) if nested else backbone.output
    pooled = keras.layers.GlobalAveragePooling2D()(maps)
    model = keras.Model(inputs, keras.layers.Dense(1, name="head_probability")(pooled))
    model.save_weights(tmp_path / "model.weights.h5")
    load(target, tmp_path / "model.weights.h5")
    assert same(target, backbone)


def test_legacy_layers_under_other_names_go_by_position(
    target: Any, backbone: Any, legacy: Path, tmp_path: Path
) -> None:
    path = tmp_path / "renamed.h5"
    path.write_bytes(legacy.read_bytes())
    with h5py.File(path, "r+") as file:
        file.move("bn", "other")
        file["other"].attrs["weight_names"] = [
            name.replace(b"bn/", b"other/") for name in file["other"].attrs["weight_names"]
        ]
        file["other"].move("bn", "other")
        names = [b"other" if name == b"bn" else name for name in file.attrs["layer_names"]]
        file.attrs["layer_names"] = names
    load(target, path)
    assert same(target, backbone)


def test_missing_layers_are_named(target: Any, keras3: Path, legacy: Path, tmp_path: Path) -> None:
    path = tmp_path / "part.weights.h5"
    path.write_bytes(keras3.read_bytes())
    with h5py.File(path, "r+") as file:
        del file["layers/conv2d_7"]
    with pytest.raises(InputError, match=r"lacks 1 of the backbone's 241 layers.*'conv2_block4_1"):
        attempt(target, path)
    path = tmp_path / "part.h5"
    path.write_bytes(legacy.read_bytes())
    with h5py.File(path, "r+") as file:
        file.attrs["layer_names"] = [n for n in file.attrs["layer_names"] if n != b"pool2_conv"]
    with pytest.raises(InputError, match=r"lacks 1 of .*'pool2_conv'"):
        attempt(target, path)


def test_other_shapes_are_named_and_nothing_is_loaded(
    target: Any, keras3: Path, tmp_path: Path
) -> None:
    path = tmp_path / "shape.weights.h5"
    path.write_bytes(keras3.read_bytes())
    with h5py.File(path, "r+") as file:
        del file["layers/conv2d/vars/0"]
        file["layers/conv2d/vars/0"] = np.zeros((3, 3, 3, 64), "f4")
    with pytest.raises(InputError) as caught:
        load(target, path)
    for words in ("'conv1_conv'", "(3, 3, 3, 64)", "(7, 7, 3, 64)", str(path)):
        assert words in str(caught.value)
    assert all(not array.any() for array in target.get_weights())


@pytest.mark.parametrize(
    ("array", "fault"),
    [
        (np.full((7, 7, 3, 64), np.nan, "f4"), "non-finite"),
        (np.zeros((7, 7, 3, 64), "i4"), "wanted floating point"),
    ],
)
def test_other_numbers_are_rejected(
    target: Any, keras3: Path, tmp_path: Path, array: Any, fault: str
) -> None:
    path = tmp_path / "numbers.weights.h5"
    path.write_bytes(keras3.read_bytes())
    with h5py.File(path, "r+") as file:
        del file["layers/conv2d/vars/0"]
        file["layers/conv2d/vars/0"] = array
    with pytest.raises(InputError, match=fault):
        attempt(target, path)


def test_a_name_that_occurs_twice(target: Any, keras3: Path, tmp_path: Path) -> None:
    path = tmp_path / "twice.weights.h5"
    path.write_bytes(keras3.read_bytes())
    with h5py.File(path, "r+") as file:
        file["layers/conv2d_7/vars"].attrs["name"] = "conv1_conv"
    with pytest.raises(InputError, match="two layers named 'conv1_conv'"):
        attempt(target, path)


def test_a_damaged_file_is_rejected(target: Any, keras3: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.weights.h5"
    path.write_bytes(keras3.read_bytes()[:1_000_000])
    with pytest.raises(InputError, match="damaged"):
        resolve_weights(str(path))


def write_bundle(folder: Path, model: Any, name: str = "model.keras") -> Path:
    """The parts of a bundle that initial weights need: a network and the manifest."""
    folder.mkdir(parents=True)
    pooled = keras.layers.GlobalAveragePooling2D()(model.output)
    network = keras.Model(model.input, keras.layers.Dense(1, name="head_probability")(pooled))
    # Before schema 4 a bundle held weights alone: training begins from such a one too.
    network.save_weights(folder / name) if name.endswith(".h5") else network.save(folder / name)
    digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    (folder / "bundle.json").write_text(json.dumps({"files": {name: digest}}))
    return folder


@pytest.fixture
def shipped(backbone: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A simulated bundled model."""
    folder = write_bundle(tmp_path / "models" / "default", backbone)
    monkeypatch.setattr(bundle_files, "default_folder", lambda: folder)
    return folder


def test_the_bundled_backbone_fits_any_size(shipped: Path, backbone: Any) -> None:
    source = resolve_weights("bundled")
    path = shipped / "model.keras"
    assert source.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (source.kind, source.path) == ("bundle", path)
    for words in ("'default'", "model.keras", source.sha256):
        assert words in source.origin
    larger = build_backbone(64)
    load_backbone_weights(larger, source)
    assert same(larger, backbone)


@pytest.mark.parametrize("name", ["model-0.keras", "model-0.weights.h5", "model.weights.h5"])
def test_a_bundle_or_a_run_gives_its_backbone(
    target: Any, backbone: Any, tmp_path: Path, name: str
) -> None:
    run = tmp_path / "run"
    write_bundle(run / "model", backbone, name)
    for place in (run, run / "model"):
        source = resolve_weights(str(place))
        assert source.kind == "bundle"
        assert f"{place.name!r}, {name}" in source.origin
        target.set_weights([np.zeros_like(array) for array in target.get_weights()])
        load_backbone_weights(target, source)
        assert same(target, backbone)


def test_half_precision_starts_a_training_too(target: Any, backbone: Any, shipped: Path) -> None:
    path = shipped / "model.keras"
    with changed_weights(path) as file:
        kernel = file["layers/conv2d/vars/0"][()]
        del file["layers/conv2d/vars/0"]
        file["layers/conv2d/vars/0"] = kernel.astype("f2")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    (shipped / "bundle.json").write_text(json.dumps({"files": {path.name: digest}}))
    load_backbone_weights(target, resolve_weights("bundled"))
    first = target.get_layer("conv1_conv").get_weights()[0]
    np.testing.assert_array_equal(first, kernel.astype("f2").astype("f4"))


def test_no_bundle_ships(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_files, "default_folder", lambda: tmp_path / "none")
    with pytest.raises(WeightsMissingError, match="has no bundled weights") as caught:
        resolve_weights("bundled")
    for words in ("--weights imagenet", "--weights none", "--weights FILE.h5"):
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("manifest", "fault"),
    [
        ("{", "can't be read as JSON"),
        ("[]", "holds no weights"),
        ('{"files": 3}', "holds no weights"),
        ('{"files": {"model-1.keras": "0"}}', "holds no weights"),
        ('{"files": {"model-0.keras": "0"}}', "holds no weights"),
        ('{"files": {"model.keras": "0"}}', "SHA-256 is"),
        ('{"files": {"model.keras": 3}}', "SHA-256 is"),
    ],
)
def test_a_broken_bundle_starts_no_training(shipped: Path, manifest: str, fault: str) -> None:
    (shipped / "bundle.json").write_text(manifest)
    with pytest.raises(BundleError, match=fault):
        resolve_weights("bundled")


def test_files_that_are_not_hdf5(tmp_path: Path) -> None:
    path = tmp_path / "model.h5"
    path.write_bytes(b"PK\x03\x04 a .keras file")
    with pytest.raises(InputError, match="neither an HDF5 file"):
        resolve_weights(str(path))
    with pytest.raises(WeightsMissingError, match=r"--weights FILE\.h5") as caught:
        resolve_weights(str(tmp_path / "nowhere.h5"))
    assert caught.value.exit_code == 4
    with pytest.raises(WeightsMissingError):
        resolve_weights(str(tmp_path))


def many_bombs(file: Any) -> None:
    for n in range(40):
        file.create_dataset(f"a{n}", shape=(1 << 24,), dtype="f4", compression="gzip")


def virtual(file: Any) -> None:
    layout = h5py.VirtualLayout((8,), "f4")
    layout[:] = h5py.VirtualSource("/etc/passwd", "a", shape=(8,))
    file.create_virtual_dataset("a", layout)


def array_for_group(file: Any) -> None:
    file.attrs["layer_names"] = ["a"]
    file["a"] = np.zeros(3, "f4")


HOSTILE: dict[str, Callable[[Any], Any]] = {
    "bomb": lambda f: f.create_dataset("a", (20_000, 20_000), "f4", compression="gzip"),
    "bombs": many_bombs,
    "chunk": lambda f: f.create_dataset("a", (64,), "f4", maxshape=(None,), chunks=(1 << 29,)),
    "external link": lambda f: f.update(a=h5py.ExternalLink("/etc/passwd", "/")),
    "soft link": lambda f: f.update(a=h5py.SoftLink("/b")),
    "external data": lambda f: f.create_dataset("a", (8,), "f4", external=[("/etc/passwd", 0, 32)]),
    "virtual": virtual,
    "cycle": lambda f: f.create_group("a").update(again=f["/"]),
    "deep": lambda f: f.create_group("/".join(["a"] * 40)),
    "array for group": array_for_group,
    "unnamed": lambda f: f.create_dataset("layers/conv2d/vars/0", (3,), "f4"),
}


@pytest.mark.parametrize(
    ("kind", "fault"),
    [
        ("bomb", "1,600,000,000 bytes of memory"),
        ("bombs", "bytes of memory"),
        ("chunk", "bytes of memory"),
        ("external link", "link to another place"),
        ("soft link", "link to another place"),
        ("external data", "in another file"),
        ("virtual", "in another file"),
        ("cycle", "occurs twice"),
        ("deep", "nested too deeply"),
        ("array for group", "not a group"),
        ("unnamed", "does not name its layers"),
    ],
)
def test_hostile_files(tmp_path: Path, kind: str, fault: str) -> None:
    path = tmp_path / "hostile.h5"
    with h5py.File(path, "w") as file:
        HOSTILE[kind](file)
    assert path.stat().st_size < 1_000_000
    with pytest.raises(InputError, match=fault):
        resolve_weights(str(path))


def test_long_lists_of_names_are_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, legacy: Path
) -> None:
    monkeypatch.setattr(archive, "_MAX_ATTRIBUTE_BYTES", 100)
    with pytest.raises(InputError, match="too long"):
        resolve_weights(str(legacy))


def test_large_files_are_rejected_unread(tmp_path: Path) -> None:
    path = tmp_path / "large.h5"
    with path.open("wb") as stream:
        stream.write(b"\x89HDF\r\n\x1a\n")
        stream.truncate((1 << 30) + 1)
    with pytest.raises(InputError, match="bytes of memory"):
        resolve_weights(str(path))


def test_a_file_that_went_away(target: Any, legacy: Path, tmp_path: Path) -> None:
    path = tmp_path / "gone.h5"
    path.write_bytes(legacy.read_bytes())
    source = resolve_weights(str(path))
    path.unlink()
    with pytest.raises(WeightsMissingError, match="no longer exists"):
        load_backbone_weights(target, source)


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.fixture
def mirror(
    legacy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[http.server.ThreadingHTTPServer]:
    """A local server instead of Keras', with a test file under ImageNet's name."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    web = tmp_path / "web"
    web.mkdir()
    (web / weights.IMAGENET_FILE).write_bytes(legacy.read_bytes())
    handler = partial(QuietHandler, directory=web)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        base = f"http://127.0.0.1:{server.server_address[1]}/"
        monkeypatch.setattr(weights, "IMAGENET_BASE_URL", base)
        digest = hashlib.md5(legacy.read_bytes(), usedforsecurity=False).hexdigest()
        monkeypatch.setattr(weights, "IMAGENET_MD5", digest)
        yield server
        server.shutdown()
        thread.join()


def test_constants_are_keras_own() -> None:
    densenet = pytest.importorskip("keras.src.applications.densenet")
    url = weights.IMAGENET_BASE_URL + weights.IMAGENET_FILE
    assert url == densenet.DENSENET121_WEIGHT_PATH_NO_TOP
    assert weights.IMAGENET_MD5 in inspect.getsource(densenet.DenseNet)


def test_imagenet_is_fetched_once(
    mirror: Any,
    target: Any,
    backbone: Any,
    legacy: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    home = tmp_path / "home"
    before = socket.getdefaulttimeout()
    source = resolve_weights("imagenet", home)
    assert source.path == home / "models" / weights.IMAGENET_FILE
    assert source.sha256 == hashlib.sha256(legacy.read_bytes()).hexdigest()
    assert source.origin.startswith("ImageNet")
    assert capsys.readouterr().out == ""
    assert socket.getdefaulttimeout() == before
    load_backbone_weights(target, source)
    assert same(target, backbone)
    mirror.RequestHandlerClass = None  # a second request would fail
    assert resolve_weights("imagenet", home) == source


def test_imagenet_in_the_folder_that_the_environment_names(
    mirror: Any, legacy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "keras" / "models" / weights.IMAGENET_FILE
    path.parent.mkdir(parents=True)
    path.write_bytes(legacy.read_bytes())
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    for backbone in ("densenet121", "densenet121-stride16"):
        assert resolve_weights("imagenet", backbone=backbone).path == path


def test_a_damaged_cached_file_is_fetched_again(mirror: Any, tmp_path: Path) -> None:
    path = tmp_path / "models" / weights.IMAGENET_FILE
    path.parent.mkdir(parents=True)
    path.write_bytes(b"cut off")
    assert resolve_weights("imagenet", tmp_path).path == path
    assert path.stat().st_size > 1_000_000


def check_message(error: WeightsMissingError, path: Path) -> None:
    url = weights.IMAGENET_BASE_URL + weights.IMAGENET_FILE
    for words in (url, f"copy it to {path}", "--weights none", "--weights FILE.h5"):
        assert words in str(error)
    assert error.exit_code == 4
    assert not path.exists()


@pytest.mark.parametrize("case", ["wrong digest", "404", "offline"])
def test_imagenet_failures_say_what_to_put_where(
    mirror: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    fault = {"wrong digest": "hash", "404": "404", "offline": "refused"}[case]
    if case == "wrong digest":
        monkeypatch.setattr(weights, "IMAGENET_MD5", "0" * 32)
    elif case == "404":
        (tmp_path / "web" / weights.IMAGENET_FILE).unlink()
    else:
        monkeypatch.setattr(weights, "IMAGENET_BASE_URL", "http://127.0.0.1:9/")
    with pytest.raises(WeightsMissingError, match=fault) as caught:
        resolve_weights("imagenet", tmp_path / "home")
    check_message(caught.value, tmp_path / "home" / "models" / weights.IMAGENET_FILE)


def test_a_folder_that_cannot_be_made(mirror: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(WeightsMissingError, match="--weights none"):
        resolve_weights("imagenet", tmp_path / "file")


def test_another_backbones_weights_come_from_keras_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(**_: Any) -> None:
        raise Exception("URL fetch failure on https://example.org/x.h5: None")  # as Keras does

    monkeypatch.setattr(keras.applications, "MobileNetV2", fetch)
    with pytest.raises(WeightsMissingError, match=r"of MobileNetV2 .*x\.h5.*--weights none"):
        resolve_weights("imagenet", backbone="mobilenetv2")
    with pytest.raises(WeightsMissingError, match="has no ImageNet weights"):
        resolve_weights("imagenet", backbone="mine:build")


def test_weights_of_a_model_of_keras_get_into_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """EfficientNet with ImageNet weights scales twice in Keras; here once, by the same factors."""
    build = keras.applications.EfficientNetB0
    scale = [1 / 0.3, 1 / 0.5, 1 / 0.6]

    def fetched(include_top: bool, weights: str, input_shape: tuple[int, ...]) -> Any:
        assert (include_top, weights) == (False, "imagenet")
        images = keras.Input((64, 64, 3))
        plain = build(include_top=False, weights=None, input_tensor=images)
        layers = list(plain.layers)
        normalise = next(each for each in layers if type(each).__name__ == "Normalization")
        normalise.set_weights([np.array([0.5, 0.4, 0.3]), np.array([0.2, 0.3, 0.4]), np.array(3)])
        normalise.finalize_state()
        twice = keras.layers.Rescaling(scale)(normalise.output)
        return keras.Model(images, [plain.output, twice], name="efficientnetb0")

    monkeypatch.setattr(keras.applications, "EfficientNetB0", fetched)
    source = resolve_weights("imagenet", backbone="efficientnetb0")
    monkeypatch.setattr(keras.applications, "EfficientNetB0", build)
    assert source.kind == "imagenet"
    assert source.arrays is not None
    backbone = build_backbone(64, "efficientnetb0")
    load_backbone_weights(backbone, source)
    layer = next(each for each in backbone.layers if type(each).__name__ == "Normalization")
    grey = np.full((1, 4, 4, 3), 0.7, np.float32)
    wanted = (0.7 - np.array([0.5, 0.4, 0.3])) / np.sqrt([0.2, 0.3, 0.4]) * scale
    np.testing.assert_allclose(np.asarray(layer(grey))[0, 0, 0], wanted, rtol=1e-5)
    np.testing.assert_array_equal(
        backbone.get_layer("stem_conv").get_weights()[0], source.arrays["stem_conv"][0]
    )
