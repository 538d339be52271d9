"""Download the Kermany set from Hugging Face or Kaggle, and export Parquet shards to image files.

`Hubs` wraps the public clients, which tests can replace. It returns the folder in which a client
stores the set, and raises our errors instead of theirs. The clients read their own caches,
`HF_ENDPOINT` and proxies, and both resume by themselves.

`export_parquet` writes one file per image, in folders by split and class. The shards have the
columns `image` (a struct with `bytes`) and `label` (0 or 1), as in Hugging Face image data sets,
and the split in each shard's name. The files `SPLIT/CLASS/SPLIT-SHARD-ROW.SUFFIX` contain the bytes
of the table unchanged. The table has no file names, so patients are unknown.
"""

from __future__ import annotations

import contextlib
import errno
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from pneumoscope.data.archive import HEAD_BYTES, image_suffix
from pneumoscope.data.download import WAY_OUT
from pneumoscope.errors import DataError, ExtraMissingError, NetworkError
from pneumoscope.progress import SILENT, Progress, SilentProgress
from pneumoscope.records import CLASS_NAMES, Split

HUGGINGFACE_NAME = "hf-vision/chest-xray-pneumonia"
KAGGLE_NAME = "paultimothymooney/chest-xray-pneumonia"
_PARQUET_PATTERNS = ("**/*.parquet", "*.parquet")
# Errors that the clients pass on when the disk, not the network, is the cause.
_DISK_ERRORS = frozenset(
    (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)
)


@dataclass(frozen=True, slots=True)
class Hubs:
    """The two functions of the clients, replaceable for tests.

    Attributes:
        snapshot_download: as in huggingface_hub, which `None` selects.
        dataset_download: as in kagglehub, which `None` selects.
    """

    snapshot_download: Callable[..., str] | None = None
    dataset_download: Callable[..., str] | None = None

    def huggingface_folder(self, progress: Progress) -> Path:
        """Download the Parquet files of the Hugging Face copy that are not cached yet.

        Raises:
            ExtraMissingError: huggingface_hub is not installed.
            NetworkError: the hub can't be reached or refuses.
        """
        call = self.snapshot_download or _real_snapshot_download(progress)
        with _network_errors(f"Hugging Face's {HUGGINGFACE_NAME}"):
            return Path(
                call(HUGGINGFACE_NAME, repo_type="dataset", allow_patterns=list(_PARQUET_PATTERNS))
            )

    def kaggle_folder(self, progress: Progress) -> Path:
        """Download Kaggle's copy without an account, unless it is cached.

        Raises:
            ExtraMissingError: kagglehub is not installed.
            NetworkError: Kaggle can't be reached or refuses.
        """
        del progress  # kagglehub shows its own progress on stderr
        call = self.dataset_download or _real_dataset_download()
        with _network_errors(f"Kaggle's {KAGGLE_NAME}"):
            return Path(call(KAGGLE_NAME))


@contextlib.contextmanager
def _network_errors(what: str) -> Iterator[None]:
    """Turn the clients' errors (after translation: OSError) into NetworkError."""
    try:
        # Stdout is reserved for our own result; output of the clients goes to stderr.
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except OSError as error:
        if error.errno in _DISK_ERRORS:
            raise
        first_line = str(error).strip().partition("\n")[0].rstrip(".")
        cause = first_line or type(error).__name__
        raise NetworkError(f"{what} could not be downloaded: {cause}. {WAY_OUT}") from error


def _real_snapshot_download(progress: Progress) -> Callable[..., str]:
    try:
        client = import_module("huggingface_hub")
        errors = import_module("huggingface_hub.errors")
        utils = import_module("huggingface_hub.utils")
    except ImportError as error:
        raise ExtraMissingError("downloading from Hugging Face", "download") from error

    # The client has used requests, httpx and httpx2 in turn; its own HTTP error has always been
    # derived from the base error of the transport.
    # RuntimeError comes from the Xet transfer library.
    failures: tuple[type[Exception], ...] = (*errors.HfHubHTTPError.__bases__, RuntimeError)

    def call(name: str, *, repo_type: str, allow_patterns: list[str]) -> str:
        silence = isinstance(progress, SilentProgress) and not utils.are_progress_bars_disabled()
        if silence:
            utils.disable_progress_bars()
        try:
            return str(
                client.snapshot_download(name, repo_type=repo_type, allow_patterns=allow_patterns)
            )
        except OSError:
            raise
        except failures as error:
            raise ConnectionError(str(error) or type(error).__name__) from error
        finally:
            if silence:
                utils.enable_progress_bars()

    return call


def _real_dataset_download() -> Callable[..., str]:
    try:
        client = import_module("kagglehub")
        exceptions = import_module("kagglehub.exceptions")
    except ImportError as error:
        raise ExtraMissingError("downloading from Kaggle", "download") from error

    def call(name: str) -> str:
        try:
            return str(client.dataset_download(name))
        except (
            exceptions.BackendError,
            exceptions.CredentialError,
            exceptions.DataCorruptionError,
            exceptions.KaggleEnvironmentError,
            exceptions.NotFoundError,
            exceptions.UnauthenticatedError,
        ) as error:
            raise ConnectionError(str(error) or type(error).__name__) from error

    return call


BATCH_ROWS = 64
"""Rows held in memory at a time."""

_SPLIT_NAMES: Mapping[str, Split] = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
}
_WORD = re.compile(r"[A-Za-z]+")


@dataclass(frozen=True, slots=True)
class _Shard:
    path: Path
    split: Split
    number: int
    rows: int
    class_names: tuple[str, ...]


def split_of_shard(shard: Path) -> Split:
    """The split in a shard's name, else in its folder's (`train-00000-of-00007.parquet`).

    Raises:
        DataError: neither names a split.
    """
    for text in (shard.stem, shard.parent.name):
        for word in _WORD.findall(text):
            if split := _SPLIT_NAMES.get(word.casefold()):
                return split
    raise DataError(
        f"{shard}: neither the file's name nor its folder's names a split; "
        "wanted one of train, validation, test"
    )


def export_parquet(shards: Sequence[Path], out: Path, progress: Progress = SILENT) -> int:
    """Write every image of `shards` to a file below `out`.

    Shards are numbered from 0 per split in the order of their names. The class is the name that
    the table's feature description gives to a label (Hugging Face `ClassLabel`); without it, 0 is
    NORMAL and 1 is PNEUMONIA.

    Args:
        shards: Parquet files.
        out: a folder without these files.
        progress: reports images.

    Returns:
        The number of bytes written.

    Raises:
        DataError: a file is not Parquet, lacks a column, or has a row without an image or with
            a label other than 0 and 1.
    """
    known = _inspect(shards)
    written = 0
    with progress.task("writing images", sum(shard.rows for shard in known), "images") as task:
        for shard in known:
            for row, content, label in _rows_of(shard):
                suffix = image_suffix(content[:HEAD_BYTES])
                if suffix is None:
                    raise DataError(f"{shard.path}, row {row}: the bytes are not an image")
                folder = out / shard.split / shard.class_names[label]
                folder.mkdir(parents=True, exist_ok=True)
                name = f"{shard.split}-{shard.number:05d}-{row:05d}{suffix}"
                (folder / name).write_bytes(content)
                written += len(content)
                task.advance()
    return written


def _inspect(shards: Sequence[Path]) -> list[_Shard]:
    """Read each shard's header: its columns, its length, the names of its labels."""
    import polars as pl

    known: list[_Shard] = []
    numbers: dict[Split, int] = {}
    for path in sorted(shards):
        split = split_of_shard(path)
        try:
            schema = pl.read_parquet_schema(path)
            rows = int(pl.scan_parquet(path).select(pl.len()).collect().item())
            metadata = pl.read_parquet_metadata(path)
        except (pl.exceptions.PolarsError, OSError) as error:
            raise DataError(f"{path} is not a Parquet file that can be read: {error}") from error
        image = schema.get("image")
        fields = {field.name for field in image.fields} if isinstance(image, pl.Struct) else set()
        if "bytes" not in fields or "label" not in schema:
            raise DataError(
                f"{path} has the columns {', '.join(schema) or 'none'}; "
                "wanted image (a struct with bytes) and label"
            )
        number = numbers.get(split, 0)
        numbers[split] = number + 1
        known.append(_Shard(path, split, number, rows, _class_names(path, metadata)))
    return known


def _class_names(path: Path, metadata: Mapping[str, str]) -> tuple[str, ...]:
    """The names of label 0 and label 1, from the `huggingface` note in the file's footer."""
    try:
        note: Any = json.loads(metadata.get("huggingface", "{}"))
        names = note["info"]["features"]["label"]["names"]
    except (ValueError, KeyError, TypeError):
        return CLASS_NAMES
    found = tuple(str(name).upper() for name in names) if isinstance(names, list) else ()
    if sorted(found) != sorted(CLASS_NAMES):
        raise DataError(f"{path} names its labels {names}; wanted {', '.join(CLASS_NAMES)}")
    return found


def _rows_of(shard: _Shard) -> Iterator[tuple[int, bytes, int]]:
    """Row number, image bytes and label of each row; one batch is in memory at a time."""
    import polars as pl

    columns = (
        pl.col("image").struct.field("bytes").alias("content"),
        pl.col("label"),
    )
    table = pl.scan_parquet(shard.path).select(columns)
    for start in range(0, shard.rows, BATCH_ROWS):
        try:
            batch = table.slice(start, BATCH_ROWS).collect()
        except (pl.exceptions.PolarsError, OSError) as error:
            raise DataError(
                f"{shard.path}, from row {start}: the table is damaged ({error}). "
                "Remove the file and download again."
            ) from error
        for row, (content, label) in enumerate(batch.iter_rows(), start):
            if not isinstance(content, bytes) or label not in (0, 1):
                found = f"label {label!r}" if isinstance(content, bytes) else "no image"
                raise DataError(f"{shard.path}, row {row}: {found}; wanted an image, label 0 or 1")
            yield row, content, int(label)
