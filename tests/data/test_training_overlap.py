"""Training overlap is detected by hashes: of bytes, and of the content of an image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from imagehash import phash
from PIL import Image

from pneumoscope.data.index import index
from pneumoscope.data.training_overlap import (
    TrainingOverlap,
    count_overlap,
    perceptual_bits,
    training_hashes,
)
from pneumoscope.images.phantom.folder import write_phantoms
from pneumoscope.images.read import read_image
from pneumoscope.records import ImageRecord


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> tuple[ImageRecord, ...]:
    folder = tmp_path_factory.mktemp("phantoms")
    write_phantoms(folder, 24, 3, "png")
    return index(folder).records


def _saved_again(record: ImageRecord, folder: Path, how: str) -> ImageRecord:
    image = Image.open(record.path).convert("L")
    path = folder / f"{record.path.stem}-{how}.{'png' if how != 'jpeg' else 'jpg'}"
    if how == "half":
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS)
    if how == "colour":
        image = image.convert("RGB")
    options: dict[str, Any] = {"quality": 70} if how == "jpeg" else {}
    image.save(path, **options)
    (found,) = [r for r in _indexed(path) if r.path == path]
    return found


def _indexed(path: Path) -> tuple[ImageRecord, ...]:
    manifest = path.parent / "m.csv"
    manifest.write_text(f"path,label\n{path.name},0\n")
    return index(manifest).records


def test_the_hash_is_the_perceptual_one(phantoms: tuple[ImageRecord, ...]) -> None:
    pixels = read_image(phantoms[0].path).pixels
    bits, distances = perceptual_bits(pixels)
    small = Image.fromarray(np.rint(pixels * 255).astype(np.uint8)).resize(
        (32, 32), Image.Resampling.LANCZOS
    )
    assert (bits == phash(small, hash_size=8).hash.ravel()).all()
    assert distances.min() >= 0


def test_equal_bytes_and_equal_content_are_counted_separately(
    phantoms: tuple[ImageRecord, ...], tmp_path: Path
) -> None:
    train, val, others = phantoms[:8], phantoms[8:12], phantoms[12:]
    table = training_hashes({"train": train, "val": val})
    assert count_overlap(table, train) == TrainingOverlap(8, True, identical=8)
    assert count_overlap(table, val) == TrainingOverlap(4, True, chosen_on=4)
    assert count_overlap(table, others) == TrainingOverlap(len(others), True)
    again = [_saved_again(r, tmp_path, how) for r, how in zip(
        train, ("jpeg", "half", "colour", "jpeg"), strict=False
    )]  # fmt: skip
    assert count_overlap(table, again) == TrainingOverlap(4, True, alike=4)
    assert count_overlap(None, train) == TrainingOverlap(8, known=False)


def test_the_table_is_small_sorted_and_reproducible(phantoms: tuple[ImageRecord, ...]) -> None:
    train = phantoms[:10]
    table, again = (training_hashes({"train": each, "val": ()}) for each in (train, train[::-1]))
    assert {name: column.tolist() for name, column in table.items()} == {
        name: column.tolist() for name, column in again.items()
    }
    assert {name: column.nbytes for name, column in table.items()} == {
        "0_salt": 16,
        "0_train_bytes": 80,
        "0_train_look": 80,
        "0_val_bytes": 0,
        "0_val_look": 0,
    }
    for name in ("0_train_bytes", "0_train_look"):
        assert (np.diff(table[name].astype(object)) > 0).all()
    other = training_hashes({"train": train[:9], "val": ()})
    assert not set(other["0_train_bytes"].tolist()) & set(table["0_train_bytes"].tolist())  # salt


def test_images_of_the_initial_model_are_kept(phantoms: tuple[ImageRecord, ...]) -> None:
    before = training_hashes({"train": phantoms[:6], "val": phantoms[6:8]})
    table = training_hashes({"train": phantoms[8:12], "val": ()}, before=before)
    assert count_overlap(table, phantoms[:14]) == TrainingOverlap(
        14, True, identical=10, chosen_on=2
    )
    same = training_hashes({"train": phantoms[:6], "val": ()}, before=before)
    assert "1_salt" not in same  # a later stage on the same images


def test_files_that_can_not_be_read(phantoms: tuple[ImageRecord, ...], tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"no image")
    broken = ImageRecord(tmp_path / "x.png", 0, "p")
    gone = ImageRecord(tmp_path / "gone.png", 0, "p")
    table = training_hashes({"train": [*phantoms[:3], broken, gone], "val": ()})
    assert len(table["0_train_look"]) == 3
    assert count_overlap(table, [broken, gone, phantoms[0]]) == TrainingOverlap(
        3, True, identical=1
    )


def test_in_words() -> None:
    unknown = TrainingOverlap(9, False).in_words()
    assert unknown.startswith("It is not known whether the model was trained")
    assert TrainingOverlap(9, True).in_words() == (
        "None of these 9 images is among the model's training images."
    )
    assert "was trained on 3 of these 1,000 images: the results are too optimistic" in (
        TrainingOverlap(1000, True, 2, 1).in_words()
    )
    both = TrainingOverlap(10, True, 2, 1, 4)
    assert "and had its threshold chosen on 4 of them" in both.in_words()
    assert both.to_dict()["trained_on"] == 3
    assert both.is_optimistic
