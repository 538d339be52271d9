"""The recipes: one complete `TrainConfig` each; a file and the command line can override them.

`docs/experiments.md` records the trials behind these numbers and their results.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pneumoscope.config.reading import check_ranges, from_dict, read_toml
from pneumoscope.config.stages import RECIPE_DEFAULTS, TrainConfig
from pneumoscope.errors import UsageError

RECIPES: Mapping[str, TrainConfig] = MappingProxyType(
    {name: TrainConfig(recipe=name) for name in RECIPE_DEFAULTS}  # type: ignore[arg-type]
)
"""The configuration of each recipe, by the name that `--recipe` takes."""


def training_config(
    recipe: str | None = None, file: Path | str | None = None, **settings: Any
) -> TrainConfig:
    """The configuration of a recipe, changed by a TOML file and by single settings.

    Args:
        recipe: `frozen`, `finetune` or `scratch`; `None` takes the file's, or `frozen`.
        file: settings that differ from the recipe's.
        settings: further ones by name, which override the file's: as in the file, those of a part
            are a table, `fit={"epochs": 3}`. `epochs` alone stands for that one.

    Raises:
        UsageError: the file can't be read, or a setting is unknown or has a bad value.

    Examples:
        >>> config = training_config("scratch", epochs=3, seed=1)
        >>> config.weights, config.preprocess.size, config.fit.epochs, config.fit.schedule
        ('none', 128, 3, 'one-cycle')
    """
    document = read_toml(Path(file)) if file else {}
    if recipe is not None:
        document = {**document, "recipe": recipe}
    # An unknown name, or one that is not a text, is rejected where all values are checked.
    base = RECIPES.get(str(document.get("recipe")), RECIPES["frozen"])
    config = from_dict(TrainConfig, document, str(file or "--recipe"), base=base)
    return with_settings(replace(config, recipe=base.recipe), settings)


def with_settings(config: TrainConfig, settings: Mapping[str, Any]) -> TrainConfig:
    """A copy of `config` with single settings changed, named as in `training_config`.

    Raises:
        UsageError: a setting is unknown or has a bad value.

    Examples:
        >>> with_settings(TrainConfig(), {"fit": {"batch_size": 8}}).fit.batch_size
        8
    """
    plain: dict[str, Any] = {n: value for n, value in settings.items() if not is_dataclass(value)}
    whole: dict[str, Any] = {n: value for n, value in settings.items() if is_dataclass(value)}
    if "epochs" in plain:
        plain["fit"] = {**plain.get("fit", {}), "epochs": plain.pop("epochs")}
    unknown = sorted(set(whole) - {each.name for each in fields(config)})
    if unknown:
        raise UsageError(f"unknown setting {unknown[0]!r}. Settings are the fields of TrainConfig.")
    listed = {k: list(v) if isinstance(v, tuple) else v for k, v in plain.items()}
    changed = from_dict(TrainConfig, listed, "settings", base=replace(config, **whole))
    check_ranges(changed)
    return changed
