"""Import of Keras on first use, without its start-up messages and with a clear error if missing.

All code that needs Keras calls `load_keras()` inside a function, so that importing pneumoscope
stays fast.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pneumoscope.errors import ExtraMissingError, UsageError


def load_keras() -> Any:
    """Import Keras.

    Raises:
        ExtraMissingError: Keras or its backend is not installed.
        UsageError: `KERAS_BACKEND` is not a known backend.
    """
    if (loaded := sys.modules.get("keras")) is not None:
        return loaded
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        with _native_stderr_hidden():
            return importlib.import_module("keras")
    except ImportError as error:
        raise ExtraMissingError("running or training a Keras model", "train") from error
    except ValueError as error:
        named = os.environ.get("KERAS_BACKEND")
        if named is None:
            raise
        raise UsageError(
            f"KERAS_BACKEND: found {named!r}, wanted tensorflow, torch or jax ({error})."
        ) from error


@contextmanager
def _native_stderr_hidden() -> Iterator[None]:
    """Hide TensorFlow's start-up messages on stderr.

    Its C++ code writes them directly to file descriptor 2, before any log level takes effect.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:  # noqa: PTH123 - a device, not a path
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
