"""Split a data set by patient, with a validation split that is large enough to choose a model.

`split` gives each record a split; the records keep their order, and all randomness comes from
`SplitConfig.seed`. `with_usable_validation` enlarges a validation split that is too small. The
functions of `splitting` and `manifest` that commands need are exported here too.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence

from pneumoscope.config import SplitConfig
from pneumoscope.data.index import require_both_classes
from pneumoscope.data.manifest import write_split
from pneumoscope.data.splitting import assign_splits, check_no_leak, check_shares
from pneumoscope.errors import DataError, UsageError
from pneumoscope.records import CLASS_NAMES, SPLITS, Dataset, ImageRecord

__all__ = ["check_no_leak", "refuse_empty", "split", "with_usable_validation", "write_split"]

_Z95 = 1.959964
MIN_VAL_IMAGES_PER_CLASS = 100
"""With fewer images, a sensitivity of 0.90 is known only to about ±0.06 or worse."""

_EXAMPLE_SENSITIVITY = 0.90

_STALE = ": the old test now holds training images. Evaluate with the new splits, not with it."


def with_usable_validation(
    dataset: Dataset, config: SplitConfig, keep_val: bool, *, from_manifest: bool = False
) -> tuple[Dataset, tuple[str, ...]]:
    """Prepare a data set for training: every record has a split, and val can choose a model.

    If the data set has no val, or one with fewer than 100 images of either class (and not
    `keep_val`), train and val are pooled and split by patient. A val of both classes that a
    manifest names was chosen on purpose, for example by `data split`, and is kept. Images without a
    split count as train. A given test is kept; without one, `config.test` makes one.

    Args:
        dataset: indexed.
        config: the shares of patients, the method of splitting, and the seed.
        keep_val: use the given val, however small.
        from_manifest: the splits come from a manifest, not from folders.

    Returns:
        The data set with its records in their order, and messages for the user.

    Raises:
        DataError: there is nothing to train on, or train or val lacks a class.
        SplitLeakError: a patient is in two splits.
        UsageError: the shares are invalid, or val is needed and its share is 0.
    """
    check_shares(config)
    records = tuple(
        r if r.split else dataclasses.replace(r, split="train") for r in dataset.records
    )
    sizes = Counter((record.split, record.label) for record in records)
    val = (sizes["val", 0], sizes["val", 1])
    chosen = from_manifest and min(val) > 0
    keep = any(val) and (keep_val or chosen or min(val) >= MIN_VAL_IMAGES_PER_CLASS)
    if not keep and config.val == 0.0:
        raise UsageError(
            "split: found val = 0 and no usable validation split in the data; wanted a share of "
            "patients for choosing the model, such as --val 0.15."
        )
    has_test = bool(sizes["test", 0] + sizes["test", 1])
    shares = dataclasses.replace(
        config, val=0.0 if keep else config.val, test=0.0 if has_test else config.test
    )
    pool = [
        place
        for place, record in enumerate(records)
        if record.split == "train" or (record.split == "val" and not keep)
    ]
    if not pool:
        raise DataError(
            f"{dataset.root}: found only images of {'test' if has_test else 'val'}, so there is "
            "nothing to train on; wanted train/ too, or a folder of NORMAL/ and PNEUMONIA/."
        )
    messages: list[str] = []
    if shares.val or shares.test:
        assigned, messages[:] = _assigned_pool(records, pool, shares)
    else:
        assigned = records
    check_no_leak(assigned, str(dataset.root))
    for name in ("train", "val"):
        require_both_classes((r for r in assigned if r.split == name), f"{dataset.root}: {name}")
    asked = "as --keep-val asks" if keep_val else "since the manifest names it"
    explained = _explanation(val, keep, asked, assigned)
    messages = [*explained, *messages, *_copies_across(assigned)]
    return dataclasses.replace(dataset, records=assigned), tuple(messages)


def _assigned_pool(
    records: Sequence[ImageRecord], pool: Sequence[int], shares: SplitConfig
) -> tuple[tuple[ImageRecord, ...], list[str]]:
    assigned, warnings = assign_splits([records[place] for place in pool], shares)
    merged = list(records)
    for place, record in zip(pool, assigned, strict=True):
        merged[place] = record
    return tuple(merged), list(warnings)


def _explanation(
    given: tuple[int, int], keep: bool, asked: str, assigned: Sequence[ImageRecord]
) -> tuple[str, ...]:
    made = Counter(record.label for record in assigned if record.split == "val")
    patients = len({record.patient for record in assigned if record.split == "val"})
    new = (
        f"by patient: {made[0]} {CLASS_NAMES[0]} and {made[1]} {CLASS_NAMES[1]} images "
        f"of {patients} patients"
    )
    if min(made.values()) < MIN_VAL_IMAGES_PER_CLASS:
        low, high = wilson_interval(_EXAMPLE_SENSITIVITY, made[1])
        new += (
            f", still few: with {made[1]} cases the true value of a sensitivity of 0.90 may lie "
            f"anywhere between {low:.2f} and {high:.2f}"
        )
    if not any(given):
        return (f"The data have no val: made one from train {new}.",)
    if min(given) >= MIN_VAL_IMAGES_PER_CLASS:
        return ()
    small = f"val has {given[0]} {CLASS_NAMES[0]} and {given[1]} {CLASS_NAMES[1]} images: "
    if given[1]:
        low, high = wilson_interval(_EXAMPLE_SENSITIVITY, given[1])
        small += (
            f"the true value of a sensitivity of 0.90 measured on {given[1]} cases may lie between "
            f"{low:.2f} and {high:.2f} (95 %, ±{(high - low) / 2:.2f})"
        )
    else:
        small += "without cases no sensitivity can be measured"
    if keep:
        return (f"{small}. It is used nevertheless, {asked}.",)
    return (
        f"{small}; wanted at least {MIN_VAL_IMAGES_PER_CLASS} per class. Its images were added to "
        f"train, and a new val was made from train {new}. To use the given val, give --keep-val.",
    )


def _copies_across(records: Sequence[ImageRecord]) -> tuple[str, ...]:
    """A warning if byte-equal images of different patients are in different splits."""
    first: dict[str, ImageRecord] = {}
    copies = [
        (first[record.sha256], record)
        for record in records
        if record.sha256 and first.setdefault(record.sha256, record).split != record.split
    ]
    if not copies:
        return ()
    one, other = copies[0]
    return (
        f"{len(copies)} images of one split are byte-equal to one of another, such as {one.path} "
        f"({one.split}) and {other.path} ({other.split}): results there look better than they "
        "are. See: pneumoscope data audit DATA",
    )


def wilson_interval(share: float, n: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a proportion measured on `n` cases.

    Wilson 1927, doi:10.1080/01621459.1927.10502953.

    Args:
        share: the measured proportion in [0, 1]; need not be a multiple of 1/n.
        n: number of cases, at least 1.
    """
    z2 = _Z95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def split(dataset: Dataset, config: SplitConfig) -> Dataset:
    """Assign every record to a split, by patient, stratified by class and subtype.

    A given test split is kept, with all images that share a patient or are byte-equal to one of it,
    unless `config.test` asks for a new one: images of an official test set must not enter training
    by accident. A given train and val are split again.

    Args:
        dataset: indexed; with hashes, byte-equal images of two patients stay together.
        config: shares of patients, method of splitting, seed.

    Returns:
        The records in their order, each with a split, and warnings.

    Raises:
        UsageError: the shares are invalid.

    Examples:
        >>> parts = split(index(xrays), SplitConfig(val=0.2, test=0.2))
        >>> train_patients = {record.patient for record in parts.subset("train")}
        >>> test_patients = {record.patient for record in parts.subset("test")}
        >>> train_patients & test_patients
        set()
    """
    check_shares(config)
    keep_test = not config.test
    held = frozenset(r.patient for r in dataset.records if r.split == "test" and keep_test)
    assigned, warnings = assign_splits(dataset.records, config, held_for_test=held)
    notes = list(warnings)
    given = Counter(record.split for record in dataset.records)
    if held:
        moved = sum(record.split == "test" for record in assigned) - given["test"]
        more = f", joined by {moved} more of the same patients" if moved else ""
        notes.append(
            f"The {given['test']} images of the given test stay there{more}. "
            "To split all patients again, give --test SHARE."
        )
    pooled = [name for name in SPLITS if given[name] and not (name == "test" and held)]
    if pooled and pooled != ["train"]:
        counts = " and ".join(f"{name} ({given[name]} images)" for name in pooled)
        notes.append(
            f"The given {counts} were pooled and split again{_STALE if 'test' in pooled else '.'}"
        )
    return Dataset(dataset.root, assigned, (*dataset.warnings, *notes))


def refuse_empty(dataset: Dataset, config: SplitConfig) -> None:
    """Check that train and every requested split have an image.

    Args:
        dataset: result of `split`.
        config: the requested shares.

    Raises:
        DataError: a split is empty; the message names the patient with most images.
    """
    counts = Counter(record.split for record in dataset.records)
    shares = {"train": 1.0, "val": config.val, "test": config.test}
    empty = [name for name in SPLITS if shares[name] and not counts[name]]
    if not empty or not dataset.records:
        return
    patients = Counter(record.patient for record in dataset.records)
    most, images = patients.most_common(1)[0]
    raise DataError(
        f"{dataset.root}: {' and '.join(empty)} would be empty: the {len(dataset.records)} images "
        f"are of {len(patients)} patient{'' if len(patients) == 1 else 's'} ({most!r} has "
        f"{images}), whose images must stay together; wanted at least one patient for each split. "
        "Correct the patient ids (a CSV manifest with a column 'patient'), add patients, or ask "
        "for fewer splits."
    )
