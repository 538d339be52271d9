"""Settings: every default, the recipes made of them, and how they are read and checked.

stages.py    one frozen dataclass per stage: every setting, its default, range and help
recipes.py   frozen, finetune, scratch: one whole `TrainConfig` each
adopting.py  which films of a public data set are kept
reading.py   from and to TOML
"""

from __future__ import annotations

from pneumoscope.config.adopting import AdoptConfig
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
    BatchConfig,
    DistortConfig,
    FinetuneConfig,
    FitConfig,
    IntervalConfig,
    LimitsConfig,
    PreprocessConfig,
    ProvenanceConfig,
    ScratchConfig,
    SplitConfig,
    StressConfig,
    ThresholdConfig,
    TrainConfig,
)

__all__ = [
    "RECIPES",
    "AdoptConfig",
    "AugmentConfig",
    "BatchConfig",
    "DistortConfig",
    "FinetuneConfig",
    "FitConfig",
    "IntervalConfig",
    "LimitsConfig",
    "PreprocessConfig",
    "ProvenanceConfig",
    "ScratchConfig",
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
]
