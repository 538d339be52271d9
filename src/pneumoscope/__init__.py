"""pneumoscope: tell pneumonia from normal on children's chest X-rays, with measured uncertainty.

Research software, not a medical device.

    import pneumoscope

    run = pneumoscope.train("xrays", "runs/a", recipe="frozen", weights="imagenet")
    predictor = pneumoscope.Predictor.load("runs/a")
    predictor.predict("xrays/test").to_frame()

Importing this package loads nothing heavy: each name is imported when it is first used.
"""

import importlib as _importlib
import typing as _typing

if _typing.TYPE_CHECKING:
    from pneumoscope.config import (
        RECIPES,
        AdoptConfig,
        AugmentConfig,
        BatchConfig,
        CompareConfig,
        CrossValidationConfig,
        DistortConfig,
        FetchConfig,
        FinetuneConfig,
        FitConfig,
        FramingConfig,
        GuidanceConfig,
        IntervalConfig,
        LimitsConfig,
        NodeConfig,
        PlanConfig,
        PlanTarget,
        PreprocessConfig,
        ProvenanceConfig,
        ScoresConfig,
        ScratchConfig,
        ServeConfig,
        SplitConfig,
        StressConfig,
        ThresholdConfig,
        TrainConfig,
        training_config,
    )
    from pneumoscope.data.audit import audit
    from pneumoscope.data.audit_record import Audit
    from pneumoscope.data.index import ClassCounts, class_counts, index, load_dataset
    from pneumoscope.data.splits import split, write_split
    from pneumoscope.errors import (
        BundleError,
        DataError,
        ExtraMissingError,
        ImageRefusedError,
        InputError,
        InterruptedRunError,
        ManifestError,
        MissingError,
        NetworkError,
        PneumoscopeError,
        Reason,
        SplitLeakError,
        UnsafeArchiveError,
        UsageError,
        WeightsMissingError,
    )
    from pneumoscope.evaluation.evaluate import Evaluation, evaluate
    from pneumoscope.evaluation.metrics import ConfusionMatrix
    from pneumoscope.evaluation.paired import McNemar, PairedAuc, mcnemar, paired_auc
    from pneumoscope.images.grey import GreyImage
    from pneumoscope.images.phantom import write_phantoms
    from pneumoscope.images.read import read_image
    from pneumoscope.inference.bundle import Bundle, BundleManifest, load_bundle
    from pneumoscope.inference.engine import load_model
    from pneumoscope.inference.predictor import Predictor
    from pneumoscope.inference.results import Result, Results
    from pneumoscope.progress import Progress, TerminalProgress
    from pneumoscope.records import Dataset, Estimate, ImageRecord, Prediction
    from pneumoscope.report.stress_findings import StressContent
    from pneumoscope.training.recipes import StageEpoch
    from pneumoscope.workflows.crossvalidate import CrossValidated, crossvalidate
    from pneumoscope.workflows.evaluate import Evaluated, evaluate_model
    from pneumoscope.workflows.stress import stress
    from pneumoscope.workflows.tracking import MLflow, TensorBoard
    from pneumoscope.workflows.train import TrainedRun, train

__all__ = [
    "RECIPES",
    "AdoptConfig",
    "Audit",
    "AugmentConfig",
    "BatchConfig",
    "Bundle",
    "BundleError",
    "BundleManifest",
    "ClassCounts",
    "CompareConfig",
    "ConfusionMatrix",
    "CrossValidated",
    "CrossValidationConfig",
    "DataError",
    "Dataset",
    "DistortConfig",
    "Estimate",
    "Evaluated",
    "Evaluation",
    "ExtraMissingError",
    "FetchConfig",
    "FinetuneConfig",
    "FitConfig",
    "FramingConfig",
    "GreyImage",
    "GuidanceConfig",
    "ImageRecord",
    "ImageRefusedError",
    "InputError",
    "InterruptedRunError",
    "IntervalConfig",
    "LimitsConfig",
    "MLflow",
    "ManifestError",
    "McNemar",
    "MissingError",
    "NetworkError",
    "NodeConfig",
    "PairedAuc",
    "PlanConfig",
    "PlanTarget",
    "PneumoscopeError",
    "Prediction",
    "Predictor",
    "PreprocessConfig",
    "Progress",
    "ProvenanceConfig",
    "Reason",
    "Result",
    "Results",
    "ScoresConfig",
    "ScratchConfig",
    "ServeConfig",
    "SplitConfig",
    "SplitLeakError",
    "StageEpoch",
    "StressConfig",
    "StressContent",
    "TensorBoard",
    "TerminalProgress",
    "ThresholdConfig",
    "TrainConfig",
    "TrainedRun",
    "UnsafeArchiveError",
    "UsageError",
    "WeightsMissingError",
    "__version__",
    "audit",
    "class_counts",
    "crossvalidate",
    "evaluate",
    "evaluate_model",
    "index",
    "load_bundle",
    "load_dataset",
    "load_model",
    "mcnemar",
    "paired_auc",
    "read_image",
    "split",
    "stress",
    "train",
    "training_config",
    "write_phantoms",
    "write_split",
]

_HOMES = {
    "config": (
        "AdoptConfig",
        "AugmentConfig",
        "BatchConfig",
        "CompareConfig",
        "CrossValidationConfig",
        "DistortConfig",
        "FetchConfig",
        "FinetuneConfig",
        "FitConfig",
        "FramingConfig",
        "GuidanceConfig",
        "IntervalConfig",
        "LimitsConfig",
        "NodeConfig",
        "PlanConfig",
        "PlanTarget",
        "PreprocessConfig",
        "ProvenanceConfig",
        "RECIPES",
        "ScoresConfig",
        "ScratchConfig",
        "ServeConfig",
        "SplitConfig",
        "StressConfig",
        "ThresholdConfig",
        "TrainConfig",
        "training_config",
    ),
    "data.audit": ("audit",),
    "data.audit_record": ("Audit",),
    "data.index": (
        "ClassCounts",
        "class_counts",
        "index",
        "load_dataset",
    ),
    "data.splits": (
        "split",
        "write_split",
    ),
    "errors": (
        "BundleError",
        "DataError",
        "ExtraMissingError",
        "ImageRefusedError",
        "InputError",
        "InterruptedRunError",
        "ManifestError",
        "MissingError",
        "NetworkError",
        "PneumoscopeError",
        "Reason",
        "SplitLeakError",
        "UnsafeArchiveError",
        "UsageError",
        "WeightsMissingError",
    ),
    "evaluation.evaluate": (
        "Evaluation",
        "evaluate",
    ),
    "evaluation.metrics": ("ConfusionMatrix",),
    "evaluation.paired": (
        "McNemar",
        "PairedAuc",
        "mcnemar",
        "paired_auc",
    ),
    "images.grey": ("GreyImage",),
    "images.phantom": ("write_phantoms",),
    "images.read": ("read_image",),
    "inference.bundle": (
        "Bundle",
        "BundleManifest",
        "load_bundle",
    ),
    "inference.engine": ("load_model",),
    "inference.predictor": ("Predictor",),
    "inference.results": (
        "Result",
        "Results",
    ),
    "progress": (
        "Progress",
        "TerminalProgress",
    ),
    "records": (
        "Dataset",
        "Estimate",
        "ImageRecord",
        "Prediction",
    ),
    "report.stress_findings": ("StressContent",),
    "training.recipes": ("StageEpoch",),
    "workflows.crossvalidate": (
        "CrossValidated",
        "crossvalidate",
    ),
    "workflows.evaluate": (
        "Evaluated",
        "evaluate_model",
    ),
    "workflows.stress": ("stress",),
    "workflows.tracking": (
        "MLflow",
        "TensorBoard",
    ),
    "workflows.train": (
        "TrainedRun",
        "train",
    ),
}
"""The names of each module, relative to this package."""

_MODULES = {_name: _module for _module, _names in _HOMES.items() for _name in _names}


def __getattr__(name: str) -> _typing.Any:
    if name == "__version__":
        from importlib import metadata

        return metadata.version("pneumoscope")
    if name == "Answer":  # the name of `Result` before it had properties of its own
        name = "Result"
    if name not in _MODULES:
        raise AttributeError(f"module 'pneumoscope' has no attribute {name!r}")
    found = getattr(_importlib.import_module(f"pneumoscope.{_MODULES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return list(__all__)
