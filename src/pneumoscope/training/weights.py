"""Initial weights of the backbone: where they come from, and how they get into the model.

Comes in: the choice `imagenet`, `bundled`, `none`, a bundle or a file. Goes out: a `WeightsSource`
that says what was chosen, and a backbone that holds it. ImageNet weights are fetched by Keras' own
loader into Keras' own cache. Files are read layer by layer; no model description in them is run.
Does not know images or heads.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pneumoscope.errors import BundleError, InputError, WeightsMissingError
from pneumoscope.graph.weight_file import open_weight_file, read_array
from pneumoscope.storage import cache_folder, sha256_of_file
from pneumoscope.training import bundle_files
from pneumoscope.training.runtime import load_keras

# As in keras.applications.densenet; a test compares them with the installed Keras.
IMAGENET_BASE_URL = "https://storage.googleapis.com/tensorflow/keras-applications/densenet/"
IMAGENET_FILE = "densenet121_weights_tf_dim_ordering_tf_kernels_notop.h5"
IMAGENET_MD5 = "30ee3e1110167f948a6b9946edeeb738"

_SILENCE_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class WeightsSource:
    """Initial weights that are there.

    Attributes:
        kind: `none` leaves the backbone as it is.
        path: the file; `None` for `none`.
        sha256: hex digest of the file; `""` for `none`.
        origin: where they come from, in words for a bundle or a report.
    """

    kind: Literal["none", "imagenet", "bundle", "file"]
    path: Path | None
    sha256: str
    origin: str


WEIGHTS_BY_NAME = ("none", "imagenet", "bundled")
"""What `--weights` knows by name; anything else is a file, a bundle or a run."""

_CHOICES = (
    "Give --weights imagenet, --weights none, --weights FILE.h5, or --weights with the folder of "
    "a bundle or a run"
)


def resolve_weights(choice: str, cache: Path | None = None) -> WeightsSource:
    """Find the initial weights, and fetch those of ImageNet if they are not on this machine.

    Args:
        choice: `imagenet`; `bundled`, the backbone of the model that ships; `none`; or the path
            of an HDF5 file (`.h5`, `.weights.h5`), of a bundle, or of a run. Of an ensemble the
            first network's backbone is taken.
        cache: Keras' folder; `None`: `$KERAS_HOME`, else `~/.keras`.

    Raises:
        WeightsMissingError: the file is not there, ImageNet's can't be downloaded, or this
            installation ships no model.
        InputError: the file is not HDF5, damaged, or would fill the memory.
        BundleError: the bundle's weights are not those that its manifest names.
        ExtraMissingError: Keras is needed and not installed.
    """
    if choice == "none":
        return WeightsSource("none", None, "", "random initialisation")
    if choice == "imagenet":
        path = _imagenet_file(cache or _keras_home())
        origin = f"ImageNet, Keras Applications, {IMAGENET_BASE_URL}{IMAGENET_FILE}"
        return WeightsSource("imagenet", path, sha256_of_file(path), origin)
    if choice == "bundled":
        folder = bundle_files.default_folder()
        if not (folder / bundle_files.MANIFEST).exists():
            raise WeightsMissingError(
                f"this installation ships no bundled weights: {folder} is not there. {_CHOICES}"
            )
        return _of_bundle(folder, "default")
    path = Path(choice)
    if path.is_dir() and (found := bundle_files.bundle_in(path)) is not None:
        return _of_bundle(found, path.resolve().name)
    if not path.is_file():
        raise WeightsMissingError(
            f"the weights {choice!r} are neither {', '.join(map(repr, WEIGHTS_BY_NAME))} nor a "
            f"file, bundle or run that is there. {_CHOICES}"
        )
    with open_weight_file(path):
        pass  # opening it is the check
    return WeightsSource("file", path.resolve(), sha256_of_file(path), f"file {path.name}")


def preprocessing_of(choice: str) -> dict[str, Any] | None:
    """The preprocessing that the weights `choice` were trained with, if a bundle says so.

    Raises:
        BundleError: the bundle's manifest can't be read.
    """
    named = bundle_files.default_folder() if choice == "bundled" else Path(choice)
    if choice in ("none", "imagenet") or (folder := bundle_files.bundle_in(named)) is None:
        return None
    manifest = bundle_files.read_manifest(folder)
    found = manifest.get("preprocessing") if isinstance(manifest, dict) else None
    return found if isinstance(found, dict) else None


def _of_bundle(folder: Path, name: str) -> WeightsSource:
    """The weights of the first network of a bundle, seen to be those that its manifest names."""
    manifest = bundle_files.read_manifest(folder)
    files = manifest.get("files") if isinstance(manifest, dict) else None
    files = files if isinstance(files, dict) else {}
    first = [bundle_files.weight_names(members)[0] for members in (1, 2)]
    listed = next((entry for entry in first if entry in files), None)
    if listed is None or not (folder / listed).is_file():
        raise BundleError(
            f"{folder}: holds no weights: wanted {' or '.join(first)}, listed in its "
            f"{bundle_files.MANIFEST}. Copy the bundle again or choose other --weights."
        )
    path = folder / listed
    with open_weight_file(path):
        digest = sha256_of_file(path)
    if digest != files[listed]:
        raise BundleError(
            f"{path}: SHA-256 is {digest[:16]}…, bundle.json says {str(files[listed])[:16]}…. The "
            "file was changed or damaged; copy the bundle again or choose other --weights."
        )
    origin = f"backbone of the bundle {name!r}, {listed}, SHA-256 {digest}"
    return WeightsSource("bundle", path.resolve(), digest, origin)


def load_backbone_weights(backbone: Any, source: WeightsSource) -> None:
    """Put `source` into a `keras.applications.DenseNet121(include_top=False)`, whole or not at all.

    Layers are matched by name, so the file may hold more: a top, a head, an optimiser. All layers
    of the backbone must be in it, with the same shapes.

    Raises:
        InputError: the file is damaged, lacks layers, or has others' shapes or numbers.
        WeightsMissingError: the file is gone.
    """
    if source.path is None:
        return
    if not source.path.is_file():
        raise WeightsMissingError(f"{source.path} is gone. Give --weights again")
    path = source.path
    layers = {layer.name: layer for layer in backbone.layers if layer.weights}
    arrays: dict[str, list[Any]] = {}
    with open_weight_file(path, layers) as stored:
        assigned = stored.assign(layers)
        missing = [name for name in layers if name not in assigned]
        if missing:
            raise InputError(
                f"{path} lacks {len(missing)} of the backbone's {len(layers)} layers, the first is "
                f"{missing[0]!r}; found {len(stored.by_name)} layers. "
                "Wanted weights of DenseNet121."
            )
        for name, layer in layers.items():
            found = [tuple(dataset.shape) for dataset in assigned[name]]
            wanted = [tuple(weight.shape) for weight in layer.weights]
            if found != wanted:
                raise InputError(
                    f"{path}: layer {name!r} has the shapes {found}, wanted {wanted}. "
                    "Wanted weights of DenseNet121."
                )
            arrays[name] = [read_array(path, name, dataset) for dataset in assigned[name]]
    for name, layer in layers.items():
        layer.set_weights(arrays[name])


def _keras_home() -> Path:
    chosen = os.environ.get("KERAS_HOME")
    if chosen:
        return Path(chosen)
    try:
        return Path.home() / ".keras"
    except RuntimeError:  # a user without a home
        return cache_folder() / "keras"


def _imagenet_file(home: Path) -> Path:
    """The ImageNet file in Keras' cache, downloaded if it is absent or damaged."""
    path = home / "models" / IMAGENET_FILE
    if path.is_file() and _md5_of_file(path) == IMAGENET_MD5:
        return path
    url = IMAGENET_BASE_URL + IMAGENET_FILE
    cause = _download(url, home)
    if cause is None:
        return path
    raise WeightsMissingError(
        f"DenseNet121's ImageNet weights are not at {path} and can't be downloaded ({cause}). "
        f"Get {url} (MD5 {IMAGENET_MD5}) on a computer with a network and put it there: {path}. "
        "Or choose --weights none, or --weights FILE.h5 for a file of your own."
    )


def _download(url: str, home: Path) -> str | None:
    """Let Keras fetch `url` into its cache below `home`; why that failed, `None` if it did not."""
    keras = load_keras()
    target = home / "models" / IMAGENET_FILE
    try:
        # Keras turns to a shared folder for temporary files if its own is not there.
        target.parent.mkdir(parents=True, exist_ok=True)
        # Stdout is kept for our own answer.
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
        # For an HTTP or URL error Keras raises Exception itself; all else is not ours to catch.
        if type(error) is not Exception:
            raise
        return str(error)
    return None if Path(fetched) == target else f"{home} can't be written to"


@contextlib.contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """A time-out for Keras' download, which sets none: a dead network would hold it for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _md5_of_file(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
