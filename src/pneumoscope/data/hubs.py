"""Download the Kermany set from Hugging Face or Kaggle.

`Hubs` wraps the public clients, which tests can replace. It returns the folder in which a client
stores the set, and raises our errors instead of theirs. The clients read their own caches,
`HF_ENDPOINT` and proxies, and both resume by themselves.
"""

from __future__ import annotations

import contextlib
import errno
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from pneumoscope.data.download import WAY_OUT
from pneumoscope.errors import ExtraMissingError, NetworkError
from pneumoscope.progress import Progress, SilentProgress

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
