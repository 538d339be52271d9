from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pneumoscope.config import LimitsConfig
from pneumoscope.data.audit import NearConfig, audit
from pneumoscope.data.audit_record import Audit
from pneumoscope.data.duplicates import (
    QUANTILE_LEVELS,
    QUANTITIES,
    connected_groups,
    near_pairs,
    roc_area,
)
from pneumoscope.data.index import index
from pneumoscope.records import Dataset
from support.bad_data import write_image


def write_blobs(
    path: Path, seed: int, level: float = 0.5, size: tuple[int, int] = (64, 64)
) -> Path:
    """A smooth image, so that scaling and compression leave it recognisable."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6), dtype=np.uint8))
    grey = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), np.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((grey * level).astype(np.uint8)).save(path, format="PNG")
    return path


def build(root: Path) -> Dataset:
    """Both splits with 25 images per class, and one of everything that an audit must find."""
    for place, (split, label) in enumerate(
        (s, c) for s in ("train", "test") for c in ("NORMAL", "PNEUMONIA")
    ):
        for n in range(25):
            number = 100 * place + n
            name = f"IM-{number}-1" if label == "NORMAL" else f"person{number}_virus_1"
            level = 0.9 if label == "NORMAL" else 0.4
            write_blobs(root / split / label / f"{name}.png", number, level)
    train, test = root / "train", root / "test"
    copies = [
        (train / "NORMAL/IM-0-1.png", train / "NORMAL/IM-0-2.png"),
        (train / "NORMAL/IM-1-1.png", train / "NORMAL/IM-901-1.png"),
        (train / "NORMAL/IM-2-1.png", test / "NORMAL/IM-902-1.png"),
        (train / "NORMAL/IM-3-1.png", train / "PNEUMONIA/person903_virus_1.png"),
    ]
    for source, target in copies:
        shutil.copyfile(source, target)
    with Image.open(test / "NORMAL/IM-201-1.png") as image:
        image.resize((48, 48)).save(train / "NORMAL/IM-904-1.jpeg", quality=70)
    (train / "NORMAL/IM-905-1.jpeg").write_bytes(b"")
    (test / "PNEUMONIA/person906_virus_1.jpeg").write_text("no image at all")
    write_blobs(test / "PNEUMONIA/person100_virus_2.png", 950)
    return index(root, refuse_leaks=False)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Audit:
    return audit(build(tmp_path_factory.mktemp("audit")))


def paths_of(found: Audit, kind: str) -> list[list[str]]:
    groups = found.identical if kind == "identical" else found.near
    return [[Path(member.path).name for member in group.members] for group in groups]


def test_counts_per_split_and_class(found: Audit) -> None:
    assert (found.images, found.patients) == (108, 106)
    counts = [(g.split, g.label, g.images, g.patients, g.unreadable) for g in found.groups]
    assert counts == [
        ("train", "NORMAL", 29, 28, 1),
        ("train", "PNEUMONIA", 26, 26, 0),
        ("test", "NORMAL", 26, 26, 0),
        ("test", "PNEUMONIA", 27, 27, 1),
    ]
    assert found.groups[0].formats == (("jpeg", 1), ("png", 27))
    assert found.groups[1].subtypes == (("virus", 26),)
    assert found.images_per_patient == ((1, 104), (2, 2))


def test_unreadable_files_with_their_reasons(found: Audit) -> None:
    assert [(Path(u.path).name, u.reason) for u in found.unreadable] == [
        ("IM-905-1.jpeg", "empty_file"),
        ("person906_virus_1.jpeg", "not_an_image"),
    ]


def test_identical_files(found: Audit) -> None:
    assert paths_of(found, "identical") == [
        ["IM-0-1.png", "IM-0-2.png"],
        ["IM-1-1.png", "IM-901-1.png"],
        ["IM-2-1.png", "IM-902-1.png"],
        ["IM-3-1.png", "person903_virus_1.png"],
    ]
    flags = [(g.across_splits, g.across_patients, g.label_conflict) for g in found.identical]
    assert flags == [
        (False, False, False),
        (False, True, False),
        (True, True, False),
        (False, True, True),
    ]


def test_near_duplicates_are_found_and_other_images_are_not(found: Audit) -> None:
    assert paths_of(found, "near") == [["IM-904-1.jpeg", "IM-201-1.png"]]
    group = found.near[0]
    assert group.across_splits
    assert group.distance <= 8
    assert 0.98 <= group.correlation <= 1.0
    assert not found.near_search_stopped


def test_shared_patients(found: Audit) -> None:
    assert [(s.patient, s.images) for s in found.shared_patients] == [
        ("virus-100", (("train", 1), ("test", 1)))
    ]


def test_findings_list_everything_problems_first(found: Audit) -> None:
    assert {(finding.severity, finding.code) for finding in found.findings} == {
        ("problem", "shared_patients"),
        ("problem", "identical_label_conflict"),
        ("problem", "identical_across_splits"),
        ("warning", "identical_across_patients"),
        ("warning", "near_across_splits"),
        ("warning", "unreadable"),
        ("warning", "shortcut"),
        ("note", "identical_same_patient"),
        ("note", "splits_unclear"),
        ("note", "labels_not_judged"),
        ("note", "class_balance"),
    }
    ranks = [["problem", "warning", "note"].index(f.severity) for f in found.findings]
    assert ranks == sorted(ranks)
    texts = " ".join(finding.text for finding in found.findings)
    assert "'virus-100' in train (1) and test (1)" in texts
    assert "2 of 108 images can't be used: empty_file (1), not_an_image (1)" in texts
    assert "Mean intensity alone separates NORMAL in train from PNEUMONIA in train" in texts
    assert len(found.with_severity("problem")) == 3


def test_distributions(found: Audit) -> None:
    assert len(found.distributions) == len(QUANTITIES) * 4
    edges = {each.quantity: each.edges for each in found.edges}
    for spread in found.distributions:
        assert sum(spread.counts) == spread.n
        assert len(edges[spread.quantity]) == len(spread.counts) + 1
        assert len(spread.quantiles) == len(QUANTILE_LEVELS)
        assert list(spread.quantiles) == sorted(spread.quantiles)
    widths = [d for d in found.distributions if d.quantity == "width" and d.split == "train"]
    assert (widths[0].quantiles[0], widths[0].quantiles[-1]) == (48.0, 64.0)
    assert widths[0].n == 28


def test_the_record_is_plain_json(found: Audit) -> None:
    text = json.dumps(found.to_dict(), allow_nan=False)
    assert json.loads(text)["images"] == 108


def test_an_image_beyond_the_limits_is_unreadable(tmp_path: Path) -> None:
    write_image(tmp_path / "NORMAL/IM-1-1.png", 1, side=64)
    write_image(tmp_path / "PNEUMONIA/person1_virus_1.png", 2, side=64)
    found = audit(index(tmp_path), LimitsConfig(max_pixels=1000))
    assert [u.reason for u in found.unreadable] == ["too_many_pixels"] * 2
    assert found.findings[0].code == "unreadable"
    assert found.findings[0].severity == "problem"
    assert found.distributions == ()
    assert found.edges == ()
    json.dumps(found.to_dict(), allow_nan=False)


def test_clean_data_has_no_problem_and_index_warnings_pass_through(tmp_path: Path) -> None:
    write_image(tmp_path / "NORMAL/one.png", 1)
    write_image(tmp_path / "PNEUMONIA/two.png", 2)
    found = audit(index(tmp_path))
    assert [(f.severity, f.code) for f in found.findings] == [
        ("warning", "index"),
        ("note", "class_balance"),
        ("note", "no_problem"),
    ]
    assert found.groups[0].split == "none"


def test_formats_by_class_and_small_val_and_lopsided_and_absent(tmp_path: Path) -> None:
    for n in range(12):
        write_image(tmp_path / f"val/PNEUMONIA/person{n}_virus_1.png", n)
    with Image.open(tmp_path / "val/PNEUMONIA/person1_virus_1.png") as image:
        (tmp_path / "val/NORMAL").mkdir()
        image.resize((40, 50)).save(tmp_path / "val/NORMAL/IM-1-1.jpeg")
    write_image(tmp_path / "train/NORMAL/IM-7-1.png", 77)
    found = audit(index(tmp_path))
    severity = {f.code: f.severity for f in found.findings}
    assert severity["format_by_class"] == "warning"
    assert severity["small_val"] == "warning"
    assert severity["class_balance"] == "warning"
    assert severity["class_absent"] == "problem"


def test_an_empty_data_set(tmp_path: Path) -> None:
    found = audit(Dataset(tmp_path, ()))
    assert [f.code for f in found.findings] == ["no_images"]
    json.dumps(found.to_dict(), allow_nan=False)


def test_near_pairs_by_brute_force() -> None:
    rng = np.random.default_rng(0)
    originals = rng.integers(0, 256, (300, 64)).astype(np.uint8)
    hashes = rng.integers(0, 2**63, 300).astype(np.uint64)
    thumbnails = np.concatenate([originals, originals[270:275], originals[5:10][:, ::-1]])
    flipped = hashes[270:275] ^ np.uint64(0b111)
    hashes = np.concatenate([hashes, flipped, hashes[5:10]])
    pairs, stopped = near_pairs(hashes, thumbnails, 3, 0.98, 100)
    assert [(p.first, p.second, p.distance) for p in pairs] == [
        (270 + n, 300 + n, 3) for n in range(5)
    ]
    assert all(pair.correlation == pytest.approx(1.0) for pair in pairs)
    assert not stopped
    assert near_pairs(hashes, thumbnails, 2, 0.98, 100) == ([], False)
    few, stopped = near_pairs(hashes, thumbnails, 3, 0.98, 3)
    assert few == pairs[:3]
    assert stopped


def test_look_alike_hashes_end_the_search() -> None:
    rng = np.random.default_rng(0)
    thumbnails = rng.integers(0, 256, (600, 64)).astype(np.uint8)
    assert near_pairs(np.zeros(600, np.uint64), thumbnails, 0, 0.98, 10) == ([], True)


def test_images_of_one_grey_correlate_with_nothing() -> None:
    grey = np.full((2, 64), 7, np.uint8)
    assert near_pairs(np.zeros(2, np.uint64), grey, 0, 0.5, 10) == ([], False)


def test_a_stopped_search_is_reported(tmp_path: Path) -> None:
    for n in range(4):
        path = write_blobs(tmp_path / f"NORMAL/IM-{n}-1.png", 1)
        with Image.open(path) as image:
            image.resize((64 + n, 64)).save(path)
    write_image(tmp_path / "PNEUMONIA/person1_virus_1.png", 5)
    found = audit(index(tmp_path), near=NearConfig(max_pairs=1))
    assert found.near_search_stopped
    assert "near_search_stopped" in {f.code for f in found.findings}


def test_connected_groups() -> None:
    assert connected_groups(6, [(4, 1), (1, 2), (5, 5)]) == [[0], [1, 2, 4], [3], [5]]


def test_roc_area_counts_ties_half() -> None:
    assert roc_area(np.array([0.0, 1.0]), np.array([2.0, 3.0])) == 1.0
    assert roc_area(np.array([1.0, 2.0]), np.array([1.0, 2.0])) == 0.5
    assert roc_area(np.array([2.0, 2.0]), np.array([1.0, 2.0, 3.0, 0.0])) == 0.375
