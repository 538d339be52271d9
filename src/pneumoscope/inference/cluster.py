"""Batch prediction on a Ray cluster, with one `Predictor` per node, and files on remote storage.

`predicted_on_cluster` sends names to the nodes in blocks; a block is one task of an actor that
holds the compiled graph. Ray Data keeps the order. If a node is lost, its blocks and its actor move
to other nodes. Blocks begin at batch boundaries, so on processors of the same kind the predictions
are bit-identical to those of one machine.

`expand_anywhere` and `read_anywhere` list and read files on any storage that fsspec supports
(`s3://`, `https://`, `file://`, …), mixed with local paths. Needs the extra `ray`. Some storages
need a further package, which the error names.
"""

from __future__ import annotations

import io
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import redirect_stdout
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

from pneumoscope.config import LimitsConfig
from pneumoscope.errors import (
    ExtraMissingError,
    ImageRefusedError,
    ManifestError,
    MissingError,
    Reason,
    UsageError,
)
from pneumoscope.images.read import GreyImage, read_bytes, read_image
from pneumoscope.inference.inputs import expand, is_url, listed
from pneumoscope.inference.predictor import BATCH, Predictor, mark_of
from pneumoscope.records import Prediction

_WAITS = (0.5, 2.0, 8.0)
"""Seconds to wait before each further attempt to read a file from storage."""

_MOST_PER_BLOCK = 64 * BATCH
_BLOCKS_PER_NODE = 16
"""Least number of blocks per node for many files, so that nodes finish at about the same time."""

_SEGMENT = 1024 * _MOST_PER_BLOCK
"""Names sent to the cluster at once; the graphs are loaded again for each such segment."""


def expand_anywhere(paths: Iterable[Path | str]) -> Iterator[str]:
    """List the files that paths and URLs refer to, in a stable order.

    A URL may be a folder (all its files in sorted order, without hidden ones; for HTTP, which has
    no folders, a URL that ends in `/` and returns a list of links), a pattern with `*`, a CSV with
    a `path` column (relative to the CSV, or URLs), or a file.

    Raises:
        ManifestError: a CSV can't be read or parsed.
        MissingError: the package for a storage is not installed, or the storage does not respond.
    """
    for path in paths:
        if is_url(str(path)):
            yield from _expand_url(str(path))
        else:
            yield from expand([Path(path)])


def read_anywhere(name: str, limits: LimitsConfig) -> GreyImage:
    """Read one image from a URL or a path; the bytes of a URL are downloaded completely.

    Raises:
        ImageRefusedError: for every failure of the file and of the storage.
    """
    if not is_url(name):
        return read_image(name, limits)
    storage, place = _storage(name)
    if "file" in storage.protocol:  # local reading also handles pipes and devices
        return read_image(place, limits)
    return read_bytes(_fetched(storage, place, name, limits), name, limits)


def _storage(url: str) -> tuple[Any, str]:
    try:
        import fsspec
    except ImportError as error:
        raise ExtraMissingError(f"reading {url}", "ray") from error
    try:
        storage, place = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:  # missing package, or unknown protocol
        raise MissingError(
            f"{url}: {error}. Give a URL that fsspec supports, and install the package it needs."
        ) from error
    return storage, str(place)


def _failures() -> tuple[type[Exception], ...]:
    """Exceptions of storages: mostly OSError; HTTP has its own."""
    try:
        from aiohttp import ClientError
    except ImportError:
        return (OSError, ValueError)
    return (OSError, ValueError, ClientError)


def _fetched(storage: Any, place: str, name: str, limits: LimitsConfig) -> bytes:
    words = ""
    for wait in (*_WAITS, None):
        try:
            return bytes(storage.cat_file(place, end=limits.max_bytes + 1))
        except FileNotFoundError as error:
            raise ImageRefusedError(
                name, Reason.NOT_FOUND, "the storage has no such file"
            ) from error
        except IsADirectoryError as error:
            raise ImageRefusedError(
                name, Reason.NOT_A_FILE, "it is a folder; wanted an image file"
            ) from error
        except PermissionError as error:
            raise ImageRefusedError(
                name, Reason.PERMISSION_DENIED, f"the storage denies access to it ({error})"
            ) from error
        except _failures() as error:
            words = " ".join(str(error).split())[:300] or type(error).__name__
        if wait is not None:
            time.sleep(wait)
    raise ImageRefusedError(
        name, Reason.CORRUPT, f"the storage failed to return it {len(_WAITS) + 1} times ({words})"
    )


def _expand_url(url: str) -> Iterator[str]:
    storage, place = _storage(url)
    try:
        if "*" in place:
            found = storage.glob(place, detail=True)
            names = sorted(n for n, about in found.items() if about["type"] != "directory")
        elif _is_folder(storage, place, url):
            names = sorted(n for n in storage.find(place) if not _hidden(n, place))
        elif place.lower().endswith(".csv"):
            yield from _listed_at(storage, place, url)
            return
        else:
            names = []
    except _failures() as error:
        raise MissingError(
            f"{url}: the storage does not respond ({error}). Give a URL that you may list."
        ) from error
    yield from [storage.unstrip_protocol(name) for name in names] or [url]


def _is_folder(storage: Any, place: str, url: str) -> bool:
    if url.startswith(("http://", "https://")):
        return url.endswith("/")
    return bool(storage.isdir(place))


def _hidden(name: str, top: str) -> bool:
    return any(part.startswith(".") for part in name.removeprefix(top).split("/"))


def _listed_at(storage: Any, place: str, url: str) -> Iterator[str]:
    try:
        content = storage.cat_file(place)
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ManifestError(f"{url}: is not a CSV in UTF-8: {error}. Save it as such.") from error
    for name in listed(io.StringIO(text, newline=""), url):
        yield name if is_url(name) else f"{url.rsplit('/', 1)[0]}/{name}"


Load = Callable[[], Predictor]


def predicted_on_cluster(
    names: Iterable[str], count: int, load: Load, mark: str, workers: int = 0
) -> Generator[Prediction]:
    """Predict for every name, in order, on a Ray cluster.

    The cluster is that of `RAY_ADDRESS` (`auto`: one running on this machine), else a new one on
    this machine alone. Every node must have this version of the package and access to the model.

    Args:
        names: URLs, or paths that every node can read.
        count: number of names.
        load: loads the model; called once on every node.
        mark: `mark_of` the model, which must be the same on every node.
        workers: reader processes on every node; 0 for threads.

    Raises:
        ExtraMissingError: Ray is not installed.
        MissingError: the cluster failed, or a node has another model or version.
    """
    # Prevents usage statistics from leaving this machine; Ray checks it on import.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ExtraMissingError("--engine ray", "ray") from error
    ours = not ray.is_initialized()
    with redirect_stdout(sys.stderr):  # Ray prints messages about lost nodes
        try:
            if ours:
                _begin(ray)
            alive = [node for node in ray.nodes() if node["Alive"] and "CPU" in node["Resources"]]
            nodes = max(len(alive), 1)
            arguments = (load, mark, os.getcwd(), workers)  # noqa: PTH109 - may hold any bytes
            size = min(_MOST_PER_BLOCK, count // (nodes * _BLOCKS_PER_NODE)) // BATCH * BATCH
            remaining = iter(names)
            while segment := list(_blocks(islice(remaining, _SEGMENT), max(size, BATCH))):
                yield from _rows(ray, segment, min(nodes, len(segment)), arguments)
        except (ray.exceptions.RayError, ConnectionError) as error:
            raise _cluster_error(error) from error
        finally:
            if ours:
                ray.shutdown()


def _begin(ray: Any) -> None:
    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
    if "RAY_ADDRESS" in os.environ:
        ray.init(**quiet)
    else:
        ray.init(address="local", _node_ip_address="127.0.0.1", **quiet)


def _blocks(names: Iterator[str], size: int) -> Iterator[Any]:
    import pyarrow

    while block := list(islice(names, size)):
        yield pyarrow.table({"name": [json.dumps(name) for name in block]})


def _rows(
    ray: Any, blocks: list[Any], actors: int, arguments: tuple[Any, ...]
) -> Iterator[Prediction]:
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False  # the progress bar of the command is used
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    data = ray.data.from_arrow(blocks).map_batches(
        _Scorer,
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=actors),
        fn_constructor_args=arguments,
        # Ray Data spreads actors over the nodes and restarts them. Each actor uses all processors
        # of its node but claims one, so that the actors of a lost node fit on another node.
        num_cpus=1,
    )
    for batch in data.iter_batches(batch_size=None, batch_format="pyarrow"):
        yield from map(_as_prediction, batch["row"].to_pylist())


class _Scorer:
    """The actor that runs on every node.

    Args:
        load: loads the model.
        mark: expected `mark_of` the model.
        folder: base of relative paths.
        workers: reader processes.

    Raises:
        UsageError: the node has another model or version.
    """

    def __init__(self, load: Load, mark: str, folder: str, workers: int) -> None:
        self._predictor = load()
        if mark_of(self._predictor) != mark:
            raise UsageError(
                "a node has another version of pneumoscope or of the model than this machine; "
                "wanted the same on all. Install the same version, and copy the bundle again."
            )
        self._read = _FromFolder(folder)
        self._workers = workers

    def __call__(self, block: Any) -> Any:
        """Rows for names: from a table with one column to another, both as JSON."""
        import pyarrow

        names = map(json.loads, block["name"].to_pylist())
        results = self._predictor.predict_files(names, workers=self._workers, read=self._read)
        rows = [json.dumps(asdict(result.prediction)) for result in results]
        return pyarrow.table({"row": rows})


class _FromFolder:
    """Reads names relative to a folder, and keeps the names as given."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def __call__(self, name: str, limits: LimitsConfig) -> GreyImage:
        place = name if is_url(name) else os.path.join(self._folder, name)  # noqa: PTH118
        return replace(read_anywhere(place, limits), source=name)


def _as_prediction(row: str) -> Prediction:
    values = json.loads(row)
    if values["reason"] is not None:
        values["reason"] = Reason(values["reason"])
    values["warnings"] = tuple(values["warnings"])
    return Prediction(**values)


def _cluster_error(error: Exception) -> MissingError:
    """The cluster's error in one sentence; of a traceback, the error itself."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    words = next((line for line in reversed(lines) if "Error" in line), lines[-1] if lines else "")
    return MissingError(
        f"the cluster ended the run ({words.rstrip('.') or type(error).__name__}). The rows so "
        "far are kept: solve the problem and repeat the command with --resume."
    )
