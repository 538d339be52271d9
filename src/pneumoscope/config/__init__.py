"""Settings: every default, the training recipes, and how configurations are read and checked.

stages.py    preprocessing and training
commands.py  every other command: prediction, evidence, public data sets, REST, PACS, DICOM node
recipes.py   frozen, finetune, scratch: one complete `TrainConfig` each
reading.py   from and to TOML
"""

from __future__ import annotations

from pneumoscope.config.commands import (
    AdoptConfig,
    BatchConfig,
    CompareConfig,
    CrossValidationConfig,
    DeviceChoice,
    FetchConfig,
    NodeConfig,
    PlanConfig,
    PlanTarget,
    ScoresConfig,
    ServeConfig,
    StressConfig,
)
from pneumoscope.config.reading import (
    check_ranges,
    from_dict,
    from_toml,
    named_in,
    option,
    replace_from,
    to_dict,
    to_toml,
)
from pneumoscope.config.recipes import RECIPES, training_config, with_settings
from pneumoscope.config.stages import (
    AugmentConfig,
    DistortConfig,
    FinetuneConfig,
    FitConfig,
    FramingConfig,
    GuidanceConfig,
    IntervalConfig,
    LimitsConfig,
    PreprocessConfig,
    ProvenanceConfig,
    ScratchConfig,
    SplitConfig,
    ThresholdConfig,
    TrainConfig,
)

__all__ = [
    "RECIPES",
    "AdoptConfig",
    "AugmentConfig",
    "BatchConfig",
    "CompareConfig",
    "CrossValidationConfig",
    "DeviceChoice",
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
    "ScoresConfig",
    "ScratchConfig",
    "ServeConfig",
    "SplitConfig",
    "StressConfig",
    "ThresholdConfig",
    "TrainConfig",
    "check_ranges",
    "from_dict",
    "from_toml",
    "named_in",
    "option",
    "replace_from",
    "to_dict",
    "to_toml",
    "training_config",
    "with_settings",
]
