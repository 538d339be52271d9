"""Settings: every default, the recipes made of them, and how they are read and checked.

node.py      settings of the DICOM node
stages.py    one frozen dataclass per stage: every setting, its default, range and help
evidence.py  how operating points are planned and models compared
recipes.py   frozen, finetune, scratch: one whole `TrainConfig` each
fetching.py  how images are had from a PACS
adopting.py  which films of a public data set are kept
reading.py   from and to TOML
"""

from __future__ import annotations

from pneumoscope.config.evidence import (
    AdoptConfig,
    CompareConfig,
    CrossValidationConfig,
    FetchConfig,
    NodeConfig,
    PlanConfig,
    PlanTarget,
    ScoresConfig,
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
    BatchConfig,
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
    ServeConfig,
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
