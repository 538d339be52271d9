"""Words for splits, masks and unknown patients."""

from __future__ import annotations

import pytest

from pneumoscope.data.patients import is_mask_folder, parse_split, placeholder_ids


@pytest.mark.parametrize(
    ("word", "split"),
    [
        ("train", "train"), ("Training", "train"), ("TRAIN", "train"), ("train_set", "train"),
        ("val", "val"), ("valid", "val"), ("Validation", "val"), ("dev", "val"),
        ("test", "test"), ("Testing", "test"), ("test-set", "test"), (" test ", "test"),
        ("holdout", None), ("extra", None), ("fold1", None), ("", None), ("trains", None),
    ],
)  # fmt: skip
def test_splits(word: str, split: str | None) -> None:
    assert parse_split(word) == split


@pytest.mark.parametrize(
    ("name", "is_mask"),
    [
        ("masks", True), ("Mask", True), ("lung_masks", True), ("ManualMask", True),
        ("segmentations", True), ("segs", True), ("annotations", True), ("heatmaps", True),
        ("images", False), ("unmasked", False), ("gtx", False), ("series", False), ("2019", False),
    ],
)  # fmt: skip
def test_folders_of_masks(name: str, is_mask: bool) -> None:
    assert is_mask_folder(name) == is_mask


@pytest.mark.parametrize(
    "text",
    [
        "ANONYMOUS", "anon", "Anonymous^Patient", "ANON^ANON", "nan", "NaN", "None", "NULL", "N/A",
        "na", "unknown", "Unknown Patient", "no name", "DEIDENTIFIED", "de-identified", "removed",
        "-", "--", "?", "???", "xxxx", "XXX", "***", "0", "000000", "0.0", "-1", "99999", ".",
    ],
)  # fmt: skip
def test_placeholder_ids(text: str) -> None:
    """Alone, and among true ids that are not numbers."""
    assert placeholder_ids([text] * 40) == {text}
    assert placeholder_ids([text] * 4 + ["P17", "P18"]) == {text}


@pytest.mark.parametrize(
    "text", ["P1", "ANON001", "anon-17", "IM-0001", "bacteria-3", "Nan Goldin", "x1", "X", "17", ""]
)
def test_true_ids(text: str) -> None:
    assert placeholder_ids([text] * 40) == frozenset()


def test_zero_in_a_series_of_numbers_is_a_patient() -> None:
    assert placeholder_ids([str(k) for k in range(20)]) == frozenset()
    assert placeholder_ids([f"{k}.0" for k in range(20)]) == frozenset()  # as pandas writes them
    assert placeholder_ids(["0"] * 15 + ["7", "8", "9"]) == {"0"}  # on most images
