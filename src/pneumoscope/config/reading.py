"""Configurations to and from TOML, with every name, type and range checked.

`from_toml` and `from_dict` build a configuration dataclass from a file or from nested dicts;
`to_toml` writes text that reads back to the same configuration.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import sys
import tomllib
import types
import typing
from dataclasses import field
from pathlib import Path
from typing import Any, Literal, TypeVar

from pneumoscope.errors import UsageError
from pneumoscope.reading import open_regular

ConfigT = TypeVar("ConfigT")

_MOST_BYTES = 1 << 20
"""Limit of a TOML file; all settings take 10 KB."""

_MOST_DOTS = 300


def option(default: Any, help_text: str, least: float = -math.inf, most: float = math.inf) -> Any:
    """A dataclass field with a default, a help text (for command line and docs) and a range."""
    return field(default=default, metadata={"help": help_text, "range": (least, most)})


def to_dict(config: Any) -> dict[str, Any]:
    """A configuration as nested plain dicts, for TOML or JSON."""
    return dataclasses.asdict(config)


def to_toml(config: Any) -> str:
    """A configuration as TOML text that `from_toml` reads back."""
    import tomli_w

    return tomli_w.dumps(to_dict(config))


def from_toml(kind: type[ConfigT], path: Path, base: ConfigT | None = None) -> ConfigT:
    """Read a configuration; settings that the file leaves out keep their default or `base` value.

    Args:
        kind: the dataclass to build.
        path: a TOML file.
        base: values of the settings that the file leaves out; `None` means the defaults.

    Raises:
        UsageError: the file is missing, is not valid TOML, or holds an unknown key or a bad value.
    """
    return from_dict(kind, read_toml(path), str(path), base=base)


def read_toml(path: Path) -> dict[str, Any]:
    """Read the tables of a TOML file without checking them.

    Raises:
        UsageError: the file is missing, is too long, is nested too deeply or is not valid TOML.
    """
    try:
        with open_regular(path) as stream:
            content = stream.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise UsageError(f"{path}: found more than {_MOST_BYTES:,} bytes. Give a TOML file.")
        # tomllib notes every part of a dotted key with all parts before it.
        if any(line.count(b".") > _MOST_DOTS for line in content.splitlines()):
            raise UsageError(
                f"{path}: found a line of more than {_MOST_DOTS} dots, wanted names and values of "
                "settings. Give a TOML file."
            )
        return tomllib.loads(content.decode("utf-8"))
    except OSError as error:
        raise UsageError(
            f"{path}: can't be read ({error.strerror}). Give an existing TOML file."
        ) from error
    except (ValueError, RecursionError) as error:  # also of an integer with thousands of digits
        raise UsageError(f"{path}: is not valid TOML: {error}") from error


def named_in(path: Path) -> set[str]:
    """Dotted names (`views`, `fit.epochs`) of the settings that a TOML file contains.

    Raises:
        UsageError: as `read_toml`.
    """
    found: set[str] = set()
    waiting = [("", read_toml(path))]
    while waiting:
        prefix, table = waiting.pop()
        for name, value in table.items():
            if isinstance(value, dict):
                waiting.append((f"{prefix}{name}.", value))
            else:
                found.add(prefix + name)
    return {name for name in found if not name.startswith("provenance.")}


def from_dict(
    kind: type[ConfigT],
    document: dict[str, Any],
    source: str,
    *,
    complete: bool = False,
    base: ConfigT | None = None,
) -> ConfigT:
    """Build a configuration from nested dicts, checking names and types.

    Args:
        kind: the dataclass to build.
        document: its values; nested dataclasses are dicts.
        source: name of the file, for error messages.
        complete: reject a document that leaves out a value, instead of using the default.
        base: values of the settings that are left out, instead of the defaults.

    Raises:
        UsageError: a key is unknown, or missing where it must be given, or a value has a wrong type
            or is out of range. The message names the key, the value found and the value wanted.
    """
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(document) - set(hints))
    if unknown:
        raise UsageError(f"{source}: unknown setting {unknown[0]!r}. {_nearest(unknown[0], hints)}")
    missing = sorted(set(hints) - set(document))
    if complete and missing:
        raise UsageError(f"{source}: {missing[0]!r} is missing, wanted a value for it")
    values = {
        name: _checked(hints[name], value, f"{source}: {name}", complete, getattr(base, name, None))
        for name, value in document.items()
    }
    config = kind(**values) if base is None else dataclasses.replace(base, **values)  # type: ignore[type-var]
    check_ranges(config, source)
    return config


def _nearest(name: str, hints: dict[str, Any]) -> str:
    """A setting with a name like an unknown one, of this table or of one inside it."""
    of_table: dict[str, str] = {}
    for table, kind in hints.items():
        if dataclasses.is_dataclass(kind):
            for setting in dataclasses.fields(kind):
                of_table.setdefault(setting.name, table)
    for names, tables in ((hints, {}), (of_table, of_table)):
        near = difflib.get_close_matches(name, names, n=1)
        if near:
            table = f" (of {tables[near[0]]!r})" if tables else ""
            return f"Did you mean {near[0]!r}{table}?"
    return f"Known: {', '.join(sorted(hints))}."


def check_ranges(config: Any, source: str = "") -> None:
    """Check that every number of a configuration, including nested ones, is in its range.

    Raises:
        UsageError: one is not; names the setting, the value found and the range.
    """
    for setting in dataclasses.fields(config):
        value = getattr(config, setting.name)
        where = f"{source}: {setting.name}" if source else setting.name
        if dataclasses.is_dataclass(value):
            check_ranges(value, where)
        least, most = setting.metadata.get("range", (-math.inf, math.inf))
        for number in value if isinstance(value, tuple) else (value,):
            if not isinstance(number, int | float):
                continue
            if not (least <= number <= most and -math.inf < number < math.inf):
                raise UsageError(f"{where}: found {number}, wanted {_in_words(least, most)}")


def _in_words(least: float, most: float) -> str:
    if math.isinf(most):
        return "a finite number" if math.isinf(least) else f"{least:g} or more"
    return f"{least:g} to {most:g}"


def _checked(hint: Any, value: Any, where: str, complete: bool, base: Any = None) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, dict):
            raise UsageError(f"{where}: found {value!r}, wanted a table of settings")
        return from_dict(hint, value, where, complete=complete, base=base)
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
        # TOML's integers may have any length; one that does not fit a float is out of range.
        return float(value) if abs(value) < sys.float_info.max else math.inf
    if (bool not in allowed and isinstance(value, bool)) or not isinstance(value, allowed):
        # TOML has no tuples: a tuple here is a list there.
        wanted = " or ".join("list" if kind is tuple else kind.__name__ for kind in allowed)
        raise UsageError(f"{where}: found {value!r}, wanted {wanted}")
    return value


def replace_from(config: ConfigT, **values: Any) -> ConfigT:
    """A copy of `config` with the `values` that are not `None`."""
    given = {name: value for name, value in values.items() if value is not None}
    return dataclasses.replace(config, **given)  # type: ignore[type-var]
