"""Split a data set by patient, and check, prepare, write and read splits.

The records keep their order; each gets a split. All randomness comes from `SplitConfig.seed`. The
functions of `splitting`, `masks` and `manifest` that commands need are exported here too.
"""

from __future__ import annotations

from collections import Counter

from pneumoscope.config import SplitConfig
from pneumoscope.data.manifest import write_split
from pneumoscope.data.splitting import assign_splits, check_no_leak, check_shares
from pneumoscope.data.validation import with_usable_validation
from pneumoscope.errors import DataError
from pneumoscope.records import SPLITS, Dataset

__all__ = ["check_no_leak", "refuse_empty", "split", "with_usable_validation", "write_split"]


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
        notes.append(f"The given {counts} were pooled and split again.")
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
