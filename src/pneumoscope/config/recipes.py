"""The recipes: one whole `TrainConfig` each, that a file and the command line can override.

Comes in: a recipe's name, a file. Goes out: the configuration. What was tried on the way to these
numbers, and what came of it, is in `docs/experiments.md`.
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
        recipe: its name; `None` takes the file's, or `frozen`.
        file: settings that differ from the recipe's.

    Raises:
        UsageError: the file can't be read, names an unknown setting or a bad value.
    """
    document = read_toml(file) if file else {}
    if recipe is not None:
        document = {**document, "recipe": recipe}
    # A name that is no recipe's, or no text, is refused where all values are checked.
    base = RECIPES.get(str(document.get("recipe")), _FROZEN)
    config = from_dict(TrainConfig, document, str(file or "--recipe"), base=base)
    return replace(config, recipe=base.recipe)
