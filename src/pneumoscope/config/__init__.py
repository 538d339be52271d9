"""Settings: every default, the recipes made of them, and how they are read and checked.

stages.py    one frozen dataclass per stage: every setting, its default, range and help
recipes.py   frozen, finetune, scratch: one whole `TrainConfig` each
reading.py   from and to TOML
"""

from __future__ import annotations

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
from pneumoscope.config.recipes import RECIPES, training_config
from pneumoscope.config.stages import (
    AugmentConfig,
    DistortConfig,
    FinetuneConfig,
    FitConfig,
    IntervalConfig,
    LimitsConfig,
    PreprocessConfig,
    ProvenanceConfig,
    ScratchConfig,
    ServeConfig,
    SplitConfig,
    ThresholdConfig,
    TrainConfig,
)

__all__ = [
    "RECIPES",
    "AugmentConfig",
    "DistortConfig",
    "FinetuneConfig",
    "FitConfig",
    "IntervalConfig",
    "LimitsConfig",
    "PreprocessConfig",
    "ProvenanceConfig",
    "ScratchConfig",
    "ServeConfig",
    "SplitConfig",
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
]
