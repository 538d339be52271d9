"""Phantoms are reproducible, belong to patients, and show their class inside the lungs only."""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydicom
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from pneumoscope.errors import UsageError
from pneumoscope.images.phantom import Phantom, draw, write_phantoms
from pneumoscope.images.phantom.lesion import Subtype

SIZE = 96
COUNT = 200


@pytest.fixture(scope="module")
def cohort() -> list[Phantom]:
    return [draw(3, f"p{k}", 0, k % 2, SIZE) for k in range(COUNT)]


@pytest.fixture(scope="module")
def png_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantoms(tmp_path_factory.mktemp("png") / "data", n=60, seed=1, size=64)


@pytest.fixture(scope="module")
def dicom_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dicom") / "data"
    return write_phantoms(out, n=30, seed=1, size=64, format="dicom")


def auc(cohort: list[Phantom], scores: list[float]) -> float:
    return float(roc_auc_score([phantom.label for phantom in cohort], scores))


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def kermany_patient(path: Path) -> str:
    if found := re.fullmatch(r"person(\d+)_(bacteria|virus)_\d+", path.stem):
        return f"{found[2]}-{found[1]}"
    found = re.fullmatch(r"(IM-\d{4})-\d{4}", path.stem)
    assert found, path.name
    return found[1]


def normalised(mask: np.ndarray) -> np.ndarray:
    """A mask moved to its centroid, rotated upright and scaled to one area, without the pose."""
    rows, columns = np.nonzero(mask)
    x, y = columns.mean(), rows.mean()
    left, right = columns < x, columns >= x
    angle = np.arctan2(
        rows[right].mean() - rows[left].mean(), columns[right].mean() - columns[left].mean()
    )
    step = np.sqrt(mask.sum()) / 60
    a, b = np.cos(angle) * step, np.sin(angle) * step
    matrix = (a, -b, x - 48 * (a - b), b, a, y - 48 * (a + b))
    image = Image.fromarray(mask.astype(np.uint8))
    return np.asarray(image.transform((96, 96), Image.Transform.AFFINE, matrix)) > 0


def overlap(one: Phantom, other: Phantom) -> float:
    a, b = normalised(one.lungs), normalised(other.lungs)
    return float((a & b).sum() / (a | b).sum())


def test_shapes_types_and_ranges(cohort: list[Phantom]) -> None:
    for phantom in cohort[:40]:
        assert phantom.pixels.shape == phantom.lungs.shape == phantom.lesion.shape == (SIZE, SIZE)
        assert phantom.pixels.dtype == np.float32
        assert phantom.lungs.dtype == phantom.lesion.dtype == np.bool_
        assert phantom.pixels.min() >= 0
        assert phantom.pixels.max() <= 1
        assert 0.15 < phantom.lungs.mean() < 0.55
        assert 1 <= phantom.age_years <= 5


def test_lungs_are_darker_than_the_mediastinum(cohort: list[Phantom]) -> None:
    for phantom in cohort[:40:2]:
        middle = phantom.pixels[SIZE // 2 - 10 : SIZE // 2 + 20, SIZE // 2 - 4 : SIZE // 2 + 4]
        assert phantom.pixels[phantom.lungs].mean() < middle.mean() - 0.1


def test_same_arguments_same_pixels() -> None:
    for label in (0, 1):
        one, other = draw(0, "a", 1, label, 96), draw(0, "a", 1, label, 96)
        assert np.array_equal(one.pixels, other.pixels)
        assert np.array_equal(one.lesion, other.lesion)


def test_seed_patient_and_number_change_the_pixels() -> None:
    base = draw(0, "a", 1, 0, 96).pixels
    for other in (draw(1, "a", 1, 0, 96), draw(0, "b", 1, 0, 96), draw(0, "a", 2, 0, 96)):
        assert not np.array_equal(base, other.pixels)


def test_outside_the_lungs_the_class_changes_no_bit() -> None:
    for k in range(12):
        healthy = draw(2, f"p{k}", 0, 0, 160)
        sick = draw(2, f"p{k}", 0, 1, 160, ("bacteria", "virus")[k % 2])
        assert np.array_equal(healthy.lungs, sick.lungs)
        assert np.array_equal(healthy.pixels[~healthy.lungs], sick.pixels[~healthy.lungs])
        assert (sick.pixels - healthy.pixels)[sick.lungs].mean() > 0.002


def test_with_the_lungs_masked_out_statistics_do_not_separate(cohort: list[Phantom]) -> None:
    masked = [np.where(phantom.lungs, 0, phantom.pixels) for phantom in cohort]
    statistics = {
        "mean": [float(image.mean()) for image in masked],
        "deviation": [float(image.std()) for image in masked],
    }
    for row in (0, -1):
        for column in (0, -1):
            statistics[f"corner {row} {column}"] = [float(i[row, column]) for i in masked]
    for name, scores in statistics.items():
        assert 0.4 <= auc(cohort, scores) <= 0.6, name


def test_inside_the_lungs_statistics_separate_the_classes(cohort: list[Phantom]) -> None:
    """Greys of the lungs against their surroundings, and right against left."""
    scores = []
    for phantom in cohort:
        columns = np.arange(SIZE)[None, :] < SIZE // 2
        right = phantom.pixels[phantom.lungs & columns].mean()
        left = phantom.pixels[phantom.lungs & ~columns].mean()
        around = phantom.pixels[~phantom.lungs].mean()
        scores.append(float((right + left) / 2 - around + 2 * abs(right - left)))
    assert 0.65 < auc(cohort, scores) < 0.97


def test_lesions_lie_in_the_lungs_of_patients_with_pneumonia_only(cohort: list[Phantom]) -> None:
    for phantom in cohort:
        assert phantom.lesion.any() == bool(phantom.label)
        assert not (phantom.lesion & ~phantom.lungs).any()
        assert (phantom.subtype != "") == bool(phantom.label)
    assert {phantom.subtype for phantom in cohort} == {"", "bacteria", "virus"}


def test_consolidation_is_one_sided_and_interstitial_change_is_not() -> None:
    for k in range(12):
        kinds: tuple[tuple[Subtype, int], ...] = (("bacteria", 1), ("virus", 2))
        for subtype, sides in kinds:
            lesion = draw(4, f"s{k}", 0, 1, 128, subtype).lesion
            halves = lesion[:, :64].sum(), lesion[:, 64:].sum()
            share = min(halves) / max(halves)
            assert (share < 0.1) if sides == 1 else (share > 0.3), (k, subtype, halves)


def test_images_of_a_patient_share_the_anatomy() -> None:
    images = [[draw(5, f"p{k}", number, 0, 128) for number in (0, 1)] for k in range(16)]
    same = [overlap(one, other) for one, other in images]
    strangers = [
        overlap(images[k][0], images[j][1]) for k in range(16) for j in range(16) if j != k
    ]
    assert np.mean(same) > np.mean(strangers) + 0.04
    assert np.mean([s > t for s in same for t in strangers]) > 0.9
    assert images[0][0].age_years == images[0][1].age_years


def test_images_of_a_patient_share_the_disease() -> None:
    for k in range(6):
        one, other = draw(5, f"p{k}", 0, 1, 96), draw(5, f"p{k}", 1, 1, 96)
        assert one.subtype == other.subtype
        if one.subtype == "bacteria":
            sides = [
                phantom.lesion[:, :48].sum() > phantom.lesion[:, 48:].sum()
                for phantom in (one, other)
            ]
            assert sides[0] == sides[1]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"label": 2}, "label is 2"),
        ({"label": 0, "subtype": "virus"}, "'virus'"),
        ({"label": 1, "subtype": "fungus"}, "'fungus'"),
        ({"label": 0, "size": 20}, "size is 20"),
    ],
)
def test_invalid_arguments_are_rejected(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        draw(0, "a", 0, **arguments)


def test_the_folder_has_the_form_of_data(png_folder: Path) -> None:
    files = sorted(png_folder.rglob("*.png"))
    assert len(files) == 60
    places: defaultdict[tuple[str, str], int] = defaultdict(int)
    for path in files:
        split, name, _ = path.relative_to(png_folder).parts
        places[split, name] += 1
        assert ("person" in path.name) == (name == "PNEUMONIA")
        with Image.open(path) as image:
            assert (image.mode, image.size) == ("L", (64, 64))
    assert set(places) == {
        (split, name) for split in ("train", "val", "test") for name in ("NORMAL", "PNEUMONIA")
    }
    sick = sum(count for (_, name), count in places.items() if name == "PNEUMONIA")
    assert 27 <= sick <= 33
    assert 36 <= sum(count for (split, _), count in places.items() if split == "train") <= 48
    kinds = {path.name.split("_")[1] for path in files if "person" in path.name}
    assert kinds == {"bacteria", "virus"}
    assert len({path.name for path in files}) == 60


def test_splits_share_no_patient_and_some_have_several_images(png_folder: Path) -> None:
    splits_of: defaultdict[str, set[str]] = defaultdict(set)
    images_of: defaultdict[str, int] = defaultdict(int)
    for path in png_folder.rglob("*.png"):
        patient = kermany_patient(path)
        splits_of[patient].add(path.relative_to(png_folder).parts[0])
        images_of[patient] += 1
    assert all(len(splits) == 1 for splits in splits_of.values())
    assert set(images_of.values()) == {1, 2, 3}


def test_each_split_has_both_subtypes(tmp_path: Path) -> None:
    out = write_phantoms(tmp_path / "many", n=100, seed=0, size=64)
    for split in ("train", "val", "test"):
        names = [path.name for path in (out / split / "PNEUMONIA").iterdir()]
        assert any("bacteria" in name for name in names)
        assert any("virus" in name for name in names)


def test_without_splits_classes_are_top_folders(tmp_path: Path) -> None:
    out = write_phantoms(str(tmp_path / "flat"), n=3, size=64, splits=False)
    assert {path.name for path in out.iterdir()} == {"NORMAL", "PNEUMONIA", "phantoms.json"}


@pytest.mark.parametrize("n", [2, 3, 5])
def test_even_few_images_have_both_classes(tmp_path: Path, n: int) -> None:
    for seed in range(3):
        out = write_phantoms(tmp_path / f"{seed}", n=n, seed=seed, size=64)
        parents = [path.parent.name for path in out.rglob("*.png")]
        assert len(parents) == n
        assert set(parents) == {"NORMAL", "PNEUMONIA"}


@pytest.mark.parametrize("format", ["png", "dicom"])
def test_same_seed_same_bytes(tmp_path: Path, format: Literal["png", "dicom"]) -> None:
    one, other, third = (
        digests(write_phantoms(tmp_path / name, n=6, seed=seed, size=64, format=format))
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert one == other
    assert not set(one.values()) & set(third.values())


def test_png_shows_the_phantom(tmp_path: Path) -> None:
    out = write_phantoms(tmp_path / "a", n=4, seed=9, size=64, splits=False)
    with Image.open(out / "NORMAL" / "IM-0001-0001.png") as image:
        stored = np.asarray(image, dtype=np.float32) / 255
    assert np.abs(stored - draw(9, "IM-0001", 1, 0, 64).pixels).max() <= 0.5 / 255 + 1e-6


def test_dicom_reads_back_with_its_attributes(dicom_folder: Path) -> None:
    files = sorted(dicom_folder.rglob("*.dcm"))
    assert len(files) == 30
    uids = set()
    for path in files:
        dataset = pydicom.dcmread(path)
        uids.add(dataset.SOPInstanceUID)
        assert dataset.SOPClassUID.name.startswith("Digital X-Ray Image Storage")
        assert dataset.file_meta.MediaStorageSOPInstanceUID == dataset.SOPInstanceUID
        assert (dataset.Modality, dataset.BodyPartExamined, dataset.ViewPosition) == (
            "DX",
            "CHEST",
            "AP",
        )
        assert re.fullmatch(r"PHANTOM\^\d{4}", str(dataset.PatientName))
        assert re.fullmatch(r"00[1-5]Y", dataset.PatientAge)
        assert (dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit) == (16, 12, 11)
        assert dataset.pixel_array.shape == (64, 64)
        assert dataset.pixel_array.max() <= 4095
        for name in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
            assert pydicom.uid.UID(dataset[name].value).is_valid
    assert len(uids) == 30
    kinds = {pydicom.dcmread(path).PhotometricInterpretation for path in files}
    assert kinds == {"MONOCHROME1", "MONOCHROME2"}


def test_dicom_patients_are_those_of_the_names(dicom_folder: Path) -> None:
    pairs = {
        (kermany_patient(path), str(pydicom.dcmread(path, stop_before_pixels=True).PatientID))
        for path in dicom_folder.rglob("*.dcm")
    }
    assert len(pairs) == len({name for name, _ in pairs}) == len({own for _, own in pairs})


def test_dicom_through_its_window_is_the_phantom(tmp_path: Path) -> None:
    """The linear VOI function of PS3.3 C.11.2.1.2.1, then MONOCHROME1 inverted."""
    out = write_phantoms(tmp_path / "a", n=16, seed=2, size=64, format="dicom", splits=False)
    kinds = set()
    for path in (out / "NORMAL").iterdir():
        dataset = pydicom.dcmread(path)
        centre, width = float(dataset.WindowCenter), float(dataset.WindowWidth)
        shown = (dataset.pixel_array - (centre - 0.5)) / (width - 1) + 0.5
        assert shown.min() >= -1e-9
        assert shown.max() <= 1 + 1e-9
        if dataset.PhotometricInterpretation == "MONOCHROME1":
            shown = 1 - shown
        kinds.add(dataset.PhotometricInterpretation)
        expected = draw(2, kermany_patient(path), int(path.stem[-4:]), 0, 64).pixels
        assert np.abs(shown - expected).max() < 1 / 3000
    assert len(kinds) == 2


def test_a_folder_of_phantoms_is_replaced_completely(tmp_path: Path) -> None:
    out = write_phantoms(tmp_path / "a", n=6, seed=0, size=64)
    write_phantoms(out, n=4, seed=1, size=64)
    assert len(list(out.rglob("*.png"))) == 4
    assert json.loads((out / "phantoms.json").read_text())["seed"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_an_empty_folder_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    assert len(list(write_phantoms(tmp_path / "a", n=2, size=64).rglob("*.png"))) == 2


@pytest.mark.parametrize("own", [False, True])
def test_foreign_files_are_never_deleted(tmp_path: Path, own: bool) -> None:
    out = tmp_path / "a"
    if own:
        write_phantoms(out, n=2, size=64)
    (out / "train").mkdir(parents=True, exist_ok=True)
    (out / "train" / "mine.txt").write_text("keep")
    before = digests(tmp_path)
    with pytest.raises(UsageError, match="new or empty folder"):
        write_phantoms(out, n=2, size=64)
    assert digests(tmp_path) == before


def test_a_broken_list_of_files_protects_the_folder(tmp_path: Path) -> None:
    out = write_phantoms(tmp_path / "a", n=2, size=64)
    (out / "phantoms.json").write_text("{")
    with pytest.raises(UsageError, match="won't be replaced"):
        write_phantoms(out, n=2, size=64)


def test_a_file_in_the_way_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    with pytest.raises(UsageError, match="is a file"):
        write_phantoms(tmp_path / "a", n=2, size=64)
    with pytest.raises(UsageError, match="can't be written"):
        write_phantoms(tmp_path / "a" / "below", n=2, size=64)


@pytest.mark.parametrize("arguments", [{"n": 1}, {"size": 8}, {"format": "gif"}])
def test_invalid_folders_are_rejected(tmp_path: Path, arguments: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="expected"):
        write_phantoms(tmp_path / "a", **arguments)
    assert not list(tmp_path.iterdir())


class Stops:
    """Progress that counts, and stops the work after `limit` images as Ctrl-C would."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.done = 0
        self.total = 0

    @contextmanager
    def task(self, title: str, total: int, unit: str) -> Iterator[Stops]:
        self.total = total
        yield self

    def advance(self, count: int = 1, note: str = "") -> None:
        self.done += count
        if self.done >= self.limit:
            raise KeyboardInterrupt


def test_progress_counts_every_image(tmp_path: Path) -> None:
    progress = Stops(limit=100)
    write_phantoms(tmp_path / "a", n=4, size=64, progress=progress)
    assert (progress.done, progress.total) == (4, 4)


def test_an_interrupted_write_leaves_the_old_folder(tmp_path: Path) -> None:
    write_phantoms(tmp_path / "a", n=2, seed=0, size=64)
    before = digests(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        write_phantoms(tmp_path / "a", n=6, seed=1, size=64, progress=Stops(limit=3))
    assert digests(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
