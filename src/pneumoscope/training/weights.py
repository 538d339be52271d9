"""Initial weights of the backbone: where they come from, and how they get into the model.

Comes in: the choice `imagenet`, `none` or a file. Goes out: a `WeightsSource` that says what was
chosen, and a backbone that holds it. ImageNet weights are fetched by Keras' own loader into
Keras' own cache. Files are read layer by layer; no model description in them is run.
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

from pneumoscope.errors import InputError, WeightsMissingError
from pneumoscope.storage import sha256_of_file
from pneumoscope.training.runtime import load_keras
from pneumoscope.training.weight_file import open_weight_file, read_array

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

    kind: Literal["none", "imagenet", "file"]
    path: Path | None
    sha256: str
    origin: str


WEIGHTS_BY_NAME = ("none", "imagenet", "bundled")
"""What `--weights` knows by name; anything else is a file."""


def resolve_weights(choice: str, cache: Path | None = None) -> WeightsSource:
    """Find the initial weights, and fetch those of ImageNet if they are not on this machine.

    Args:
        choice: `imagenet`, `none`, or the path of an HDF5 file (`.h5`, `.weights.h5`).
        cache: Keras' folder; `None`: `$KERAS_HOME`, else `~/.keras`.

    Raises:
        WeightsMissingError: the file is not there, or ImageNet's can't be downloaded.
        InputError: the file is not HDF5, damaged, or would fill the memory.
        ExtraMissingError: Keras is needed and not installed.
    """
    if choice == "none":
        return WeightsSource("none", None, "", "random initialisation")
    if choice == "imagenet":
        path = _imagenet_file(cache or _keras_home())
        origin = f"ImageNet, Keras Applications, {IMAGENET_BASE_URL}{IMAGENET_FILE}"
        return WeightsSource("imagenet", path, sha256_of_file(path), origin)
    if choice == "bundled":
        raise WeightsMissingError(
            "this version of pneumoscope ships no bundled weights. Give --weights imagenet, "
            "--weights none or --weights FILE.h5"
        )
    path = Path(choice)
    if not path.is_file():
        raise WeightsMissingError(
            f"the weights {choice!r} are neither 'imagenet' nor 'none' nor a file that is there. "
            "Give --weights imagenet, --weights none or --weights FILE.h5"
        )
    with open_weight_file(path):
        pass  # opening it is the check
    return WeightsSource("file", path.resolve(), sha256_of_file(path), f"file {path.name}")


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
    return Path(chosen) if chosen else Path.home() / ".keras"


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
