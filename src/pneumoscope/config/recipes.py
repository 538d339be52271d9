"""The recipes: one complete `TrainConfig` each; a file and the command line can override them.

`docs/experiments.md` records the trials behind these numbers and their results.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from pneumoscope.config.reading import from_dict, read_toml
from pneumoscope.config.stages import FitConfig, PreprocessConfig, TrainConfig

_FROZEN = TrainConfig()

_FINETUNE = TrainConfig(
    recipe="finetune",
    fit=FitConfig(
        epochs=20,
        learning_rate=1e-3,
        schedule="cosine",
        warmup=0.1,
        stop_patience=6,
        label_smoothing=0.05,
        weight_decay=0.01,
        ema=0.99,
    ),
)

_SCRATCH = TrainConfig(
    recipe="scratch",
    weights="none",
    views=1,
    preprocess=PreprocessConfig(size=128, normalisation="standardise"),
    fit=FitConfig(
        epochs=50,
        learning_rate=2.5e-3,
        schedule="one-cycle",
        warmup=0.25,
        min_learning_rate=2.5e-6,
        stop_patience=50,
        keep="last",
        label_smoothing=0.06,
        weight_decay=0.02,
        ema=0.995,
        precision="auto",
    ),
)

RECIPES = MappingProxyType({"frozen": _FROZEN, "finetune": _FINETUNE, "scratch": _SCRATCH})


def training_config(recipe: str | None = None, file: Path | None = None) -> TrainConfig:
    """The configuration of a recipe, overridden by a TOML file.

    Args:
        recipe: name of the recipe; `None` means the one in the file, or `frozen`.
        file: TOML file with the settings that differ from the recipe.

    Raises:
        UsageError: the file can't be read, or holds an unknown setting or a bad value.
    """
    document = read_toml(file) if file else {}
    if recipe is not None:
        document = {**document, "recipe": recipe}
    # An unknown recipe name is rejected below, where all values are checked.
    base = RECIPES.get(str(document.get("recipe")), _FROZEN)
    config = from_dict(TrainConfig, document, str(file or "--recipe"), base=base)
    return replace(config, recipe=base.recipe)
