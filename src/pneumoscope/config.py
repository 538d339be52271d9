"""Every default, in one frozen dataclass per stage; the command line is generated from these.

Comes in: nothing, or a TOML file. Goes out: checked configurations, and TOML that reads back to
the same ones. Each field carries its help text (`metadata["help"]`), range and units.
Knows nothing of how a stage uses its values, and imports no NumPy.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import sys
import tomllib
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from pneumoscope.errors import UsageError

ConfigT = TypeVar("ConfigT")


_MOST_SEED = 2**31 - 1


def option(default: Any, help_text: str, least: float = -math.inf, most: float = math.inf) -> Any:
    """A dataclass field with a default, a help text (for command line and docs) and a range."""
    return field(default=default, metadata={"help": help_text, "range": (least, most)})


@dataclass(frozen=True, slots=True)
class LimitsConfig:
    """What an image file may cost before a pixel of it is decoded."""

    max_bytes: int = option(256 << 20, "largest file, bytes")
    max_pixels: int = option(50_000_000, "most pixels, read from the header")
    max_side: int = option(16_384, "longest side, pixels")
    min_side: int = option(32, "shortest side, pixels")
    max_aspect: float = option(
        8.0, "longest side over shortest, at most (the most oblong Kermany film has 3.4)"
    )


@dataclass(frozen=True, slots=True)
class PreprocessConfig:
    """From a decoded image to the network's input. Goes with the model, inside its bundle."""

    version: int = option(1, "version of the preprocessing code that this was written for")
    size: int = option(224, "side of the square network input, pixels", 0, 4096)
    fit: Literal["stretch", "pad"] = option(
        "stretch", "stretch to the square, or pad the short side with black"
    )
    normalisation: Literal["imagenet", "standardise"] = option(
        "imagenet", "ImageNet mean and deviation per channel, or each image to mean 0, deviation 1"
    )


@dataclass(frozen=True, slots=True)
class AugmentConfig:
    """Ranges of the random changes that make further views of a training image. 0 turns one off."""

    rotation: float = option(10.0, "degrees, either way")
    shift: float = option(0.08, "share of the side, each axis, either way")
    zoom: float = option(0.15, "log-scale range: factors e^-zoom to e^zoom")
    crop: float = option(0.25, "share of the area that a random crop may take away, at most")
    flip: float = option(0.5, "chance of a left-right flip")
    brightness: float = option(0.12, "share of the grey range, either way")
    contrast: float = option(0.25, "log range: factors e^-contrast to e^contrast about the mean")
    gamma: float = option(0.25, "log range of the exponent")
    erasing: float = option(0.25, "chance that a random rectangle is painted in one grey")


@dataclass(frozen=True, slots=True)
class SplitConfig:
    """How patients are dealt to the splits."""

    val: float = option(0.15, "share of patients for validation")
    test: float = option(0.0, "share of patients for an internal test")
    by: Literal["random", "block"] = option(
        "random", "random patients, or the last ids of each kind"
    )
    seed: int = option(0, "seed of the random deal", 0, _MOST_SEED)


@dataclass(frozen=True, slots=True)
class FitConfig:
    """How the head is trained."""

    epochs: int = option(60, "most epochs", 1)
    batch_size: int = option(64, "images per step", 1)
    learning_rate: float = option(1e-3, "Adam's step size at the start", 0)
    schedule: Literal["plateau", "cosine", "constant"] = option(
        "plateau", "how the step size falls"
    )
    plateau_patience: int = option(4, "epochs without a better validation AUC before it falls", 1)
    plateau_factor: float = option(0.3, "what it is multiplied by then", 0, 1)
    min_learning_rate: float = option(1e-6, "it falls no further", 0)
    stop_patience: int = option(
        12, "epochs without a better validation AUC before training stops", 1
    )
    min_delta: float = option(1e-4, "a gain in validation AUC below this is none", 0)
    dropout: float = option(0.4, "share of pooled features dropped", 0, 0.99)
    hidden_units: int = option(256, "width of the hidden layer", 1, 65_536)
    class_weights: bool = option(True, "weigh the classes as if they were equally frequent")


@dataclass(frozen=True, slots=True)
class ThresholdConfig:
    """How the operating point is chosen, always on validation."""

    rule: Literal["balanced_accuracy", "sensitivity", "specificity", "fixed"] = option(
        "balanced_accuracy",
        "maximise balanced accuracy; or reach at least the target; or take the target itself",
    )
    target: float = option(
        0.5, "the wanted sensitivity or specificity, or the fixed threshold", 0, 1
    )


@dataclass(frozen=True, slots=True)
class IntervalConfig:
    """How uncertainty is stated."""

    level: float = option(0.95, "confidence level", 0.01, 0.9999)
    resamples: int = option(2000, "bootstrap resamples of patients", 1)
    seed: int = option(0, "seed of the bootstrap", 0, _MOST_SEED)


@dataclass(frozen=True, slots=True)
class ProvenanceConfig:
    """Which data a run was made from; filled in by `train`, checked by `--resume`."""

    data: str = option("", "the DATA that was given")
    fingerprint: str = option("", "SHA-256 over the content, label and patient of every image")
    pneumoscope: str = option("", "version that ran")


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """Everything needed to train again; written to `RUN/config.toml`."""

    recipe: Literal["frozen"] = option("frozen", "what is trained: the head on a frozen backbone")
    weights: str = option("imagenet", "initial backbone weights: imagenet, none, or a .h5 file")
    views: int = option(4, "views per training image, the first un-augmented; 1 is that alone", 1)
    seed: int = option(0, "seed of initialisation, views and order", 0, _MOST_SEED)
    keep_val: bool = option(False, "use the given val/ even if it is too small to choose by")
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    fit: FitConfig = field(default_factory=FitConfig)
    threshold: ThresholdConfig = field(default_factory=ThresholdConfig)
    interval: IntervalConfig = field(default_factory=IntervalConfig)
    provenance: ProvenanceConfig = field(default_factory=ProvenanceConfig)


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as nested plain dicts, for TOML or JSON."""
    return dataclasses.asdict(config)


def to_toml(config: Any) -> str:
    """A configuration as TOML text that `from_toml` reads back."""
    import tomli_w

    return tomli_w.dumps(to_dict(config))


def from_toml(kind: type[ConfigT], path: Path) -> ConfigT:
    """Read a configuration; what the file leaves out keeps its default.

    Raises:
        UsageError: the file is missing or no TOML, or holds an unknown key or a bad value.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            f"{path}: can't be read ({error.strerror}). Give an existing TOML file."
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: is no TOML: {error}") from error
    return from_dict(kind, document, str(path))


def named_in(path: Path) -> set[str]:
    """Dotted names (`views`, `fit.epochs`) of the settings in a TOML file that `from_toml` read."""
    return _names(tomllib.loads(path.read_text(encoding="utf-8")), "")


def _names(table: dict[str, Any], prefix: str) -> set[str]:
    found: set[str] = set()
    for name, value in table.items():
        found |= _names(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name}
    return {name for name in found if not name.startswith("provenance.")}


def from_dict(
    kind: type[ConfigT], document: dict[str, Any], source: str, *, complete: bool = False
) -> ConfigT:
    """Build a configuration from nested dicts, checking names and types.

    Args:
        kind: the dataclass to build.
        document: its values; dataclasses inside it are dicts.
        source: names the file in errors.
        complete: refuse a document that leaves out a value, instead of taking the default.

    Raises:
        UsageError: an unknown key, a missing one if it must be complete, or a value of another
            type or out of its range; names the key, what was found and what was wanted.
    """
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(document) - set(hints))
    if unknown:
        near = difflib.get_close_matches(unknown[0], hints, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else f" Known: {', '.join(sorted(hints))}."
        raise UsageError(f"{source}: unknown setting {unknown[0]!r}.{hint}")
    missing = sorted(set(hints) - set(document))
    if complete and missing:
        raise UsageError(f"{source}: {missing[0]!r} is missing, wanted a value for it")
    values = {
        name: _checked(hints[name], value, f"{source}: {name}", complete)
        for name, value in document.items()
    }
    config = kind(**values)
    check_ranges(config, source)
    return config


def check_ranges(config: Any, source: str = "") -> None:
    """See that every number of a configuration, and of those inside it, is in its range.

    Raises:
        UsageError: names the setting, what was found and what was wanted.
    """
    for setting in dataclasses.fields(config):
        value = getattr(config, setting.name)
        where = f"{source}: {setting.name}" if source else setting.name
        if dataclasses.is_dataclass(value):
            check_ranges(value, where)
        elif isinstance(value, int | float):
            least, most = setting.metadata.get("range", (-math.inf, math.inf))
            if not (least <= value <= most and -math.inf < value < math.inf):
                raise UsageError(f"{where}: found {value}, wanted {_in_words(least, most)}")


def _in_words(least: float, most: float) -> str:
    if math.isinf(most):
        return "a finite number" if math.isinf(least) else f"{least:g} or more"
    return f"{least:g} to {most:g}"


def _checked(hint: Any, value: Any, where: str, complete: bool) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, dict):
            raise UsageError(f"{where}: found {value!r}, wanted a table of settings")
        return from_dict(hint, value, where, complete=complete)
    if typing.get_origin(hint) is Literal:
        choices = typing.get_args(hint)
        if value not in choices:
            raise UsageError(
                f"{where}: found {value!r}, wanted one of {', '.join(map(repr, choices))}"
            )
        return value
    if typing.get_origin(hint) is tuple and isinstance(value, list):
        item = typing.get_args(hint)[0]
        return tuple(
            _checked(item, entry, f"{where}[{k}]", complete) for k, entry in enumerate(value)
        )
    choices = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    allowed = tuple(typing.get_origin(choice) or choice for choice in choices)
    if float in allowed and isinstance(value, int) and not isinstance(value, bool):
        # TOML's integers may have any length; what no float holds is out of any range.
        return float(value) if abs(value) < sys.float_info.max else math.inf
    if (bool not in allowed and isinstance(value, bool)) or not isinstance(value, allowed):
        wanted = " or ".join(kind.__name__ for kind in allowed)
        raise UsageError(f"{where}: found {value!r}, wanted {wanted}")
    return value


def replace_from(config: ConfigT, **values: Any) -> ConfigT:
    """A copy of `config` with those of `values` that are not `None`."""
    given = {name: value for name, value in values.items() if value is not None}
    return dataclasses.replace(config, **given)  # type: ignore[type-var]
