"""Assign whole patients to train, val and test or to folds, and check for patient leaks.

The functions return records with splits, or raise an error that names the patient. No files are
read, neither images nor a `split.csv`.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np

from pneumoscope.config import SplitConfig
from pneumoscope.data.duplicates import connected_groups
from pneumoscope.data.patients import id_series, natural_key
from pneumoscope.errors import DataError, SplitLeakError, UsageError
from pneumoscope.records import CLASS_NAMES, SPLITS, ImageRecord, Split


@dataclass(frozen=True, slots=True)
class _Unit:
    """Patients that must stay together: one, or several that share a byte-equal image."""

    members: tuple[int, ...]
    patients: tuple[str, ...]
    label: int
    subtype: str


def assign_splits(
    records: Sequence[ImageRecord],
    config: SplitConfig,
    held_for_test: frozenset[str] = frozenset(),
) -> tuple[tuple[ImageRecord, ...], tuple[str, ...]]:
    """Assign `records` to splits by patient; given splits are ignored.

    A unit is a patient, or several patients joined by a byte-equal image. The units of one stratum
    are put in a row (shuffled; or, with `by="block"`, the last id first) and measured in patients.
    The first share `config.test` of the row is test, the next share `config.val` is val, the rest
    is train. The middle of a unit decides, so each share is met as closely as whole units allow.
    Each class with enough patients gets at least one unit in every requested split.

    Args:
        records: any images.
        config: shares in [0, 1) with a sum below 1, `by`, seed.
        held_for_test: patients that go to test in any case.

    Returns:
        The records in their order with their splits, and warnings.
    """
    units, warnings = _units(records)
    splits: dict[int, Split] = {
        place: "test"
        for place, unit in enumerate(units)
        if not held_for_test.isdisjoint(unit.patients)
    }
    rows: dict[int, list[int]] = defaultdict(list)
    for label, row in _strata(units, config.by, config.seed, without=splits):
        _split_row(row, units, config, splits)
        rows[label] += row
    shares: dict[Split, float] = {"val": config.val, "test": config.test}
    wanted = [name for name, share in shares.items() if share]
    notes = [note for label in sorted(rows) for note in _fill(rows[label], label, wanted, splits)]
    chosen: list[Split] = ["train"] * len(records)
    for place, unit in enumerate(units):
        for member in unit.members:
            chosen[member] = splits[place]
    assigned = tuple(
        dataclasses.replace(record, split=name)
        for record, name in zip(records, chosen, strict=True)
    )
    return assigned, (*warnings, *notes)


def assign_folds(
    records: Sequence[ImageRecord], folds: int, by: Literal["random", "block"], seed: int
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Assign every record to one of `folds` folds with about as many patients of each class.

    Patients that share a byte-equal image stay together. Given splits are ignored.

    Args:
        records: any images.
        folds: number of folds, 2 or more.
        by: random patients; or blocks of consecutive ids of each series, which imitate another time
            or site.
        seed: of the random assignment.

    Returns:
        The fold of each record, 1 to `folds`, in their order, and warnings.

    Raises:
        DataError: a class has fewer patients than there are folds.
    """
    units, warnings = _units(records)
    of_unit: dict[int, int] = {}
    rows: dict[int, list[int]] = defaultdict(list)
    for label, row in _strata(units, by, seed):
        rows[label] += row
        total, before = sum(len(units[place].patients) for place in row), 0
        for place in row:
            middle = before + len(units[place].patients) / 2
            before += len(units[place].patients)
            of_unit[place] = int(folds * middle / total) + 1
    for label, name in enumerate(CLASS_NAMES):
        there = {of_unit[place] for place in rows[label]}
        if len(there) < folds:
            raise DataError(
                f"--folds {folds}: {name} has images in only {len(there)} folds, of "
                f"{sum(len(units[place].patients) for place in rows[label])} patients; wanted "
                "both classes in every fold. Use fewer folds."
            )
    chosen = [0] * len(records)
    for place, unit in enumerate(units):
        for member in unit.members:
            chosen[member] = of_unit[place]
    return tuple(chosen), warnings


def _strata(
    units: Sequence[_Unit],
    by: Literal["random", "block"],
    seed: int,
    without: Mapping[int, Split] = MappingProxyType({}),
) -> Iterator[tuple[int, list[int]]]:
    """The units of each stratum in the order of assignment, with the label of the class.

    Strata are subtypes, shuffled; or, by blocks, the series of ids, the last id first.
    """
    strata: dict[tuple[int, str], list[int]] = defaultdict(list)
    for place, unit in enumerate(units):
        if place not in without:
            name = unit.subtype if by == "random" else id_series(unit.patients[0])
            strata[unit.label, name].append(place)
    generator = np.random.default_rng(seed)
    for (label, _), places in sorted(strata.items()):
        if by == "random":
            yield label, [places[i] for i in generator.permutation(len(places))]
        else:
            yield label, places[::-1]


def check_shares(config: SplitConfig) -> None:
    """Check that `val` and `test` are valid shares that leave something for train.

    Raises:
        UsageError: names the value and what was expected.
    """
    shares = {"val": config.val, "test": config.test}
    for name, share in shares.items():
        if not 0.0 <= share < 1.0:
            raise UsageError(
                f"split: found {name} = {share}; wanted a share of patients from 0 to below 1, "
                "such as 0.15."
            )
    if config.val + config.test >= 1.0:
        raise UsageError(
            f"split: found val = {config.val} and test = {config.test}, which leaves nothing to "
            "train on; wanted a sum below 1. Lower one of them."
        )


def _units(records: Sequence[ImageRecord]) -> tuple[list[_Unit], tuple[str, ...]]:
    """The units in natural order of their first patient, independent of the file order."""
    members: dict[str, list[int]] = defaultdict(list)
    of_hash: dict[str, str] = {}
    pairs: list[tuple[str, str]] = []
    for place, record in enumerate(records):
        members[record.patient].append(place)
        if record.sha256:
            other = of_hash.setdefault(record.sha256, record.patient)
            if other != record.patient:
                pairs.append((other, record.patient))
    patients = sorted(members, key=natural_key)
    number = {patient: place for place, patient in enumerate(patients)}
    groups = connected_groups(len(patients), [(number[a], number[b]) for a, b in pairs])
    units = []
    for group in groups:
        names = tuple(patients[place] for place in group)
        images = tuple(image for name in names for image in members[name])
        counts = Counter((records[image].label, records[image].subtype) for image in images)
        label, subtype = max(counts, key=lambda stratum: (counts[stratum], stratum))
        units.append(_Unit(images, names, label, subtype))
    joined = [unit for unit in units if len(unit.patients) > 1]
    if not joined:
        return units, ()
    warning = (
        f"In {len(joined)} cases patients share a byte-equal image "
        f"(such as {joined[0].patients[0]!r} and {joined[0].patients[1]!r}): they stay together."
    )
    return units, (warning,)


def _split_row(
    row: Sequence[int], units: Sequence[_Unit], config: SplitConfig, splits: dict[int, Split]
) -> None:
    total = sum(len(units[place].patients) for place in row)
    before = 0
    for place in row:
        weight = len(units[place].patients)
        middle = (before + weight / 2) / total
        before += weight
        if middle < config.test:
            splits[place] = "test"
        elif middle < config.test + config.val:
            splits[place] = "val"
        else:
            splits[place] = "train"


def _fill(
    row: Sequence[int], label: int, wanted: Sequence[Split], splits: dict[int, Split]
) -> list[str]:
    """Move one unit of a class from train into each requested split that lacks the class."""
    notes = []
    for name in wanted:
        train = [place for place in row if splits[place] == "train"]
        if any(splits[place] == name for place in row):
            continue
        if len(train) > 1:
            splits[train[0]] = name
        else:
            notes.append(f"{name} has no {CLASS_NAMES[label]} image: it has too few patients.")
    return notes


def check_no_leak(records: Iterable[ImageRecord], where: str = "the data set") -> None:
    """Check that no patient is in two splits.

    Args:
        records: images; those without a split are ignored.
        where: named in the message: a folder or a `split.csv`.

    Raises:
        SplitLeakError: names the first such patient with its images per split.
    """
    given = [(record.patient, record.split) for record in records if record.split is not None]
    first: dict[str, Split] = {}
    leaking = {patient for patient, name in given if first.setdefault(patient, name) != name}
    if not leaking:
        return
    patient = min(leaking, key=natural_key)
    counts = Counter(name for other, name in given if other == patient)
    shown = [
        f"{name} ({counts[name]} image{'s' if counts[name] > 1 else ''})"
        for name in SPLITS
        if counts[name]
    ]
    others = f" Likewise {len(leaking) - 1} more." if len(leaking) > 1 else ""
    raise SplitLeakError(
        f"patient {patient!r} is in {', '.join(shown[:-1])} and {shown[-1]} of {where}."
        f"{others} Splits must not share patients. "
        "Make a new one: pneumoscope data split DATA --out split.csv"
    )
