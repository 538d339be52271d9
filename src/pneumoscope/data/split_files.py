"""Splits of a data set: dealt by patient, checked, made usable for training, written and read.

Comes in: an indexed data set, or a `split.csv`. Goes out: the same records, each with a split; or
the file. Knows nothing of pixels or models. All randomness comes from `SplitConfig.seed`.
"""

from __future__ import annotations

from collections import Counter

from pneumoscope.config import SplitConfig
from pneumoscope.data.manifest import write_split
from pneumoscope.data.masks import with_usable_validation
from pneumoscope.data.splitting import assign_splits, check_no_leak, check_shares
from pneumoscope.errors import DataError
from pneumoscope.records import SPLITS, Dataset

__all__ = ["check_no_leak", "refuse_empty", "split", "with_usable_validation", "write_split"]


def split(dataset: Dataset, config: SplitConfig) -> Dataset:
    """Give every record a split, by patient, stratified by class and subtype.

    A test split that the data set itself gives stays (with whatever shares a patient or a
    byte-equal image with it) unless `config.test` asks for another: an official test set must not
    slip into training unseen. A given train and val are dealt anew.

    Args:
        dataset: indexed; with hashes, byte-equal images of two patients stay on one side.
        config: shares of patients, how to choose them, seed.

    Returns:
        The records in their order, each with a split, and the warnings of the deal.

    Raises:
        UsageError: the shares are no shares.

    Example:
        >>> parts = split(index(xrays), SplitConfig(val=0.2, test=0.2))
        >>> train_patients = {record.patient for record in parts.subset("train")}
        >>> test_patients = {record.patient for record in parts.subset("test")}
        >>> train_patients & test_patients
        set()
    """
    check_shares(config)
    keep_test = not config.test
    held = frozenset(r.patient for r in dataset.records if r.split == "test" and keep_test)
    dealt, warnings = assign_splits(dataset.records, config, held_for_test=held)
    notes = list(warnings)
    given = Counter(record.split for record in dataset.records)
    if held:
        moved = sum(record.split == "test" for record in dealt) - given["test"]
        more = f", joined by {moved} more of the same patients" if moved else ""
        notes.append(
            f"The {given['test']} images of the given test stay there{more}. "
            "To deal all patients anew, give --test SHARE."
        )
    anew = [name for name in SPLITS if given[name] and not (name == "test" and held)]
    if anew and anew != ["train"]:
        counts = " and ".join(f"{name} ({given[name]} images)" for name in anew)
        notes.append(f"The given {counts} were pooled and dealt anew.")
    return Dataset(dataset.root, dealt, (*dataset.warnings, *notes))


def refuse_empty(dataset: Dataset, config: SplitConfig) -> None:
    """See that every split that was asked for, and train, has an image.

    Args:
        dataset: what `split` made.
        config: the shares that were asked for.

    Raises:
        DataError: one has none; names the patient with most images.
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
        f"{images}), none of whom may be parted; wanted at least one patient for each split. "
        "Correct the patient ids (a CSV manifest with a column 'patient'), add patients, or ask "
        "for fewer splits."
    )
