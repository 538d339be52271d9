"""The one door to Keras: imported on first use, quietly, with a clear error where it is missing.

Comes in: nothing. Goes out: the `keras` module. Everything in pneumoscope that needs Keras calls
`load_keras()` inside a function, so that importing pneumoscope stays light. Any Keras backend
serves (`KERAS_BACKEND`); TensorFlow is the default and the one that the `train` extra installs.
"""

from __future__ import annotations

import os
from typing import Any

from pneumoscope.errors import ExtraMissingError


def load_keras() -> Any:
    """Import Keras.

    Raises:
        ExtraMissingError: Keras or its backend is not installed.
    """
    # TensorFlow writes its start-up notes to stderr unless told before the import.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        import keras
    except ImportError as error:
        raise ExtraMissingError("running or training a Keras model", "train") from error
    return keras


def describe_runtime() -> str:
    """Keras, its backend and their versions, as text for reports and cache keys."""
    keras = load_keras()
    backend = keras.backend.backend()
    module = __import__({"torch": "torch", "jax": "jax"}.get(backend, "tensorflow"))
    return f"keras {keras.__version__} on {backend} {module.__version__}"
