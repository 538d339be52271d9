"""Every setting has a help text, and every default passes its own checks."""

from __future__ import annotations

import dataclasses
import math
from types import ModuleType
from typing import Any

import pytest

from pneumoscope.config import (
    FramingConfig,
    LimitsConfig,
    TrainConfig,
    check_ranges,
    commands,
    stages,
)


def configs_of(module: ModuleType) -> list[type[Any]]:
    """The configurations that a module defines."""
    kinds = [kind for kind in vars(module).values() if isinstance(kind, type)]
    own = [kind for kind in kinds if kind.__module__ == module.__name__]
    return [kind for kind in own if dataclasses.is_dataclass(kind)]


CONFIGS = [*configs_of(stages), *configs_of(commands)]


@pytest.mark.parametrize("kind", CONFIGS, ids=lambda kind: kind.__name__)
def test_every_setting_has_a_help_text_and_an_allowed_default(kind: type[Any]) -> None:
    for setting in dataclasses.fields(kind):
        if setting.default is dataclasses.MISSING:  # a table of settings
            continue
        assert setting.metadata["help"]
        assert not setting.metadata["help"].endswith(".")
        least, most = setting.metadata["range"]
        assert least < most
    check_ranges(kind())


@pytest.mark.parametrize("kind", CONFIGS, ids=lambda kind: kind.__name__)
def test_settings_cant_be_changed_under_way(kind: type[Any]) -> None:
    config = kind()
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, dataclasses.fields(kind)[0].name, None)
    assert hash(config) == hash(kind())


def test_a_run_can_be_made_again_from_its_settings_alone() -> None:
    """A run records every setting of training, but none of inference."""
    inside = {type(getattr(TrainConfig(), field.name)) for field in dataclasses.fields(TrainConfig)}
    assert len(configs_of(stages)) > 10
    assert set(configs_of(stages)) - inside == {TrainConfig, LimitsConfig, FramingConfig}
    assert not inside & set(configs_of(commands))


@pytest.mark.parametrize("share", ["flip", "blur", "jpeg", "frame", "marker", "erasing"])
def test_chances_lie_between_never_and_always(share: str) -> None:
    found = {field.name: field for field in dataclasses.fields(stages.DistortConfig)}
    assert found[share].metadata["range"] == (0, 1)
    default = found[share].default
    assert isinstance(default, int | float)
    assert not math.isinf(default)
