"""pneumoscope: tell pneumonia from normal on chest X-rays, and know how far to believe the answer.

Research software, not a medical device.

    predictor = pneumoscope.Predictor.load("runs/a")
    answer = predictor.predict_file("film.dcm")
    answer.prediction.probability

Importing this package loads nothing heavy: each name is fetched when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pneumoscope.config import (
        AugmentConfig,
        FitConfig,
        IntervalConfig,
        PreprocessConfig,
        SplitConfig,
        StressConfig,
        TrainConfig,
    )
    from pneumoscope.data.audit import audit
    from pneumoscope.data.index import class_counts, index
    from pneumoscope.data.split_files import split, write_split
    from pneumoscope.evaluation.evaluate import Evaluation, evaluate
    from pneumoscope.images.phantom import write_phantoms
    from pneumoscope.images.read import read_image
    from pneumoscope.inference.bundle import Bundle, load_bundle
    from pneumoscope.inference.predictor import Answer, Predictor
    from pneumoscope.records import Dataset, Prediction
    from pneumoscope.workflows.crossvalidate import crossvalidate
    from pneumoscope.workflows.evaluate import evaluate_model
    from pneumoscope.workflows.stress import stress
    from pneumoscope.workflows.train import train

__all__ = [
    "Answer",
    "AugmentConfig",
    "Bundle",
    "Dataset",
    "Evaluation",
    "FitConfig",
    "IntervalConfig",
    "Prediction",
    "Predictor",
    "PreprocessConfig",
    "SplitConfig",
    "StressConfig",
    "TrainConfig",
    "__version__",
    "audit",
    "class_counts",
    "crossvalidate",
    "evaluate",
    "evaluate_model",
    "index",
    "load_bundle",
    "read_image",
    "split",
    "stress",
    "train",
    "write_phantoms",
    "write_split",
]

_HOME = {
    "Answer": "inference.predictor",
    "AugmentConfig": "config",
    "Bundle": "inference.bundle",
    "Dataset": "records",
    "Evaluation": "evaluation.evaluate",
    "FitConfig": "config",
    "IntervalConfig": "config",
    "Prediction": "records",
    "Predictor": "inference.predictor",
    "PreprocessConfig": "config",
    "SplitConfig": "config",
    "StressConfig": "config",
    "TrainConfig": "config",
    "audit": "data.audit",
    "class_counts": "data.index",
    "crossvalidate": "workflows.crossvalidate",
    "evaluate": "evaluation.evaluate",
    "evaluate_model": "workflows.evaluate",
    "index": "data.index",
    "load_bundle": "inference.bundle",
    "read_image": "images.read",
    "split": "data.split",
    "stress": "workflows.stress",
    "train": "workflows.train",
    "write_phantoms": "images.phantom",
    "write_split": "data.split",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib import metadata

        return metadata.version("pneumoscope")
    if name not in _HOME:
        raise AttributeError(f"module 'pneumoscope' has no attribute {name!r}")
    return getattr(importlib.import_module(f"pneumoscope.{_HOME[name]}"), name)
