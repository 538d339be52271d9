from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pneumoscope.config import SplitConfig
from pneumoscope.data.index import index
from pneumoscope.data.splits import (
    check_no_leak,
    split,
    wilson_interval,
    with_usable_validation,
    write_split,
)
from pneumoscope.data.splitting import assign_folds
from pneumoscope.errors import DataError, ManifestError, SplitLeakError, UsageError
from pneumoscope.records import Dataset, ImageRecord, Split
from support.bad_data import write_image, write_images

ROOT = Path("/data")


def record(
    number: int,
    patient: str,
    label: int = 1,
    subtype: str = "",
    given: Split | None = None,
    sha256: str = "",
) -> ImageRecord:
    return ImageRecord(ROOT / f"{number}.png", label, patient, given, subtype, sha256)


def kermany(
    normal: int = 40,
    bacteria: int = 60,
    virus: int = 20,
    given: Split | None = None,
    start: int = 1,
) -> list[ImageRecord]:
    """Two images per patient."""
    kinds = [
        ("IM", 0, "", normal),
        ("bacteria", 1, "bacteria", bacteria),
        ("virus", 1, "virus", virus),
    ]
    patients = [
        (f"{kind}-{n}", label, subtype)
        for kind, label, subtype, count in kinds
        for n in range(start, start + count)
    ]
    return [
        record(2 * place + twin, patient, label, subtype, given, f"{start}-{2 * place + twin}")
        for place, (patient, label, subtype) in enumerate(patients)
        for twin in (0, 1)
    ]


def dataset_of(*parts: list[ImageRecord]) -> Dataset:
    joined = [image for part in parts for image in part]
    return Dataset(
        ROOT, tuple(dataclasses.replace(r, path=ROOT / f"{i}.png") for i, r in enumerate(joined))
    )


def patients_per(dataset: Dataset, name: str) -> Counter[tuple[int, str]]:
    pairs = {(r.patient, r.label, r.subtype) for r in dataset.records if r.split == name}
    return Counter((label, subtype) for _, label, subtype in pairs)


def test_shares_are_met_in_every_stratum() -> None:
    divided = split(dataset_of(kermany()), SplitConfig(val=0.15, test=0.10))
    assert patients_per(divided, "val") == {(0, ""): 6, (1, "bacteria"): 9, (1, "virus"): 3}
    assert patients_per(divided, "test") == {(0, ""): 4, (1, "bacteria"): 6, (1, "virus"): 2}
    assert patients_per(divided, "train") == {(0, ""): 30, (1, "bacteria"): 45, (1, "virus"): 15}
    check_no_leak(divided.records)


def test_same_seed_same_split_other_seed_another() -> None:
    data = dataset_of(kermany())
    assert split(data, SplitConfig(seed=3)) == split(data, SplitConfig(seed=3))
    assert split(data, SplitConfig(seed=3)) != split(data, SplitConfig(seed=4))


def test_splitting_ignores_the_order_of_files() -> None:
    data = dataset_of(kermany())
    turned = dataclasses.replace(data, records=data.records[::-1])
    one = {r.path: r.split for r in split(data, SplitConfig()).records}
    assert one == {r.path: r.split for r in split(turned, SplitConfig()).records}


def test_blocks_are_the_last_ids_by_number() -> None:
    divided = split(dataset_of(kermany(100, 20, 10)), SplitConfig(val=0.2, test=0.1, by="block"))
    of = {r.patient: r.split for r in divided.records}
    numbers = {
        name: sorted(int(p.split("-")[1]) for p, s in of.items() if s == name and p[:2] == "IM")
        for name in ("train", "val", "test")
    }
    assert numbers == {
        "train": list(range(1, 71)),
        "val": list(range(71, 91)),
        "test": list(range(91, 101)),
    }
    assert [of[f"bacteria-{n}"] for n in (16, 17, 18, 19, 20)] == [
        "val", "val", "val", "test", "test"
    ]  # fmt: skip
    assert of["virus-9"] == "val"
    assert of["virus-10"] == "test"


def test_blocks_of_other_ids_keep_both_classes() -> None:
    records = [record(n, f"case{n}", int(n > 50)) for n in range(1, 101)]
    divided = split(Dataset(ROOT, tuple(records)), SplitConfig(val=0.1, by="block"))
    val = [r.patient for r in divided.records if r.split == "val"]
    assert val == [f"case{n}" for n in (*range(46, 51), *range(96, 101))]


def test_a_patient_with_several_strata_goes_by_its_majority() -> None:
    mixed = [record(n, "M", 1, "virus") for n in range(3)] + [record(9, "M", 0)]
    others = [record(10 + n, f"V{n}", 1, "virus") for n in range(3)]
    divided = split(Dataset(ROOT, (*mixed, *others)), SplitConfig(val=0.25))
    assert patients_per(divided, "val").total() - patients_per(divided, "val")[(0, "")] == 1


def test_byte_equal_images_of_two_patients_stay_together() -> None:
    records = [record(n, f"P{n}", n % 2, sha256=str(n)) for n in range(40)]
    chained = [("A", "x"), ("B", "x"), ("B", "y"), ("C", "y")]
    records += [record(100 + n, p, 1, sha256=h) for n, (p, h) in enumerate(chained)]
    for seed in range(20):
        divided = split(Dataset(ROOT, tuple(records)), SplitConfig(val=0.4, seed=seed))
        assert len({r.split for r in divided.records if r.patient in "ABC"}) == 1
        assert any("'A' and 'B'" in text for text in divided.warnings)


def test_small_classes_still_reach_every_split() -> None:
    records = [record(n, f"P{n}", int(n >= 3)) for n in range(40)]
    divided = split(Dataset(ROOT, tuple(records)), SplitConfig(val=0.1, test=0.1))
    for name in ("train", "val", "test"):
        assert {r.label for r in divided.records if r.split == name} == {0, 1}


def test_too_few_patients_give_a_warning() -> None:
    records = [record(n, f"P{n}", int(n >= 1)) for n in range(40)]
    divided = split(Dataset(ROOT, tuple(records)), SplitConfig(val=0.1))
    assert divided.warnings == ("val has no NORMAL image: it has too few patients.",)


def test_a_given_test_keeps_all_images_of_its_patients() -> None:
    leaking = [record(900, "IM-501", 0, given="train")]
    data = dataset_of(
        kermany(given="train"), kermany(8, 8, 8, "val", 201), kermany(5, 5, 5, "test", 501), leaking
    )
    divided = split(data, SplitConfig())
    test = [r.patient for r in divided.records if r.split == "test"]
    assert sorted(set(test)) == sorted({r.patient for r in data.records if r.split == "test"})
    assert len(test) == 31
    assert any("30 images of the given test stay there, joined by 1" in w for w in divided.warnings)
    assert any("train (241 images) and val (48 images)" in w for w in divided.warnings)
    check_no_leak(divided.records)


def test_a_share_for_test_splits_the_given_test_again() -> None:
    data = dataset_of(kermany(given="train"), kermany(5, 5, 5, "test", 501))
    divided = split(data, SplitConfig(test=0.5, val=0.1))
    assert 100 < sum(r.split == "test" for r in divided.records) < 160
    assert divided.warnings[-1].endswith(
        "were pooled and split again: the old test now holds training images. Evaluate with the "
        "new splits, not with it."
    )
    kept = split(data, SplitConfig(val=0.1))
    assert not any("training images" in warning for warning in kept.warnings)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (SplitConfig(val=-0.1), "val = -0.1"),
        (SplitConfig(val=float("nan")), "val = nan"),
        (SplitConfig(test=1.0), "test = 1.0"),
        (SplitConfig(val=0.5, test=0.5), "sum below 1"),
    ],
)
def test_invalid_shares(config: SplitConfig, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        split(dataset_of(kermany()), config)
    with pytest.raises(UsageError, match=words):
        with_usable_validation(dataset_of(kermany()), config, False)


IMAGES = st.lists(
    st.tuples(
        st.text(max_size=3),
        st.integers(0, 1),
        st.sampled_from(["", "bacteria", "virus"]),
        st.sampled_from([None, "train", "val", "test"]),
        st.sampled_from(["", "a", "b", "c", "d"]),
    ),
    max_size=60,
)


@settings(deadline=None)
@given(
    IMAGES,
    st.floats(0.0, 0.49),
    st.floats(0.0, 0.49),
    st.sampled_from(["random", "block"]),
    st.integers(0, 2**32),
)
def test_splits_never_share_a_patient_or_a_byte_equal_image(
    images: list[tuple[str, int, str, Split | None, str]],
    val: float,
    test: float,
    by: Literal["random", "block"],
    seed: int,
) -> None:
    records = tuple(
        record(n, patient, label, subtype, given_split, sha256)
        for n, (patient, label, subtype, given_split, sha256) in enumerate(images)
    )
    config = SplitConfig(val=val, test=test, by=by, seed=seed)
    divided = split(Dataset(ROOT, records), config)
    check_no_leak(divided.records)
    assert [r.path for r in divided.records] == [r.path for r in records]
    assert all(r.split is not None for r in divided.records)
    for digest in "abcd":
        assert len({r.split for r in divided.records if r.sha256 == digest}) <= 1


def test_a_leak_is_named_with_its_counts() -> None:
    leaking = [record(n, "bacteria-417", given="train") for n in range(3)]
    leaking += [record(4, "bacteria-417", given="test"), record(5, "bacteria-5", given="test")]
    with pytest.raises(SplitLeakError) as caught:
        check_no_leak(leaking, "split.csv")
    assert str(caught.value) == (
        "patient 'bacteria-417' is in train (3 images) and test (1 image) of split.csv. "
        "Splits must not share patients. "
        "Make a new one: pneumoscope data split DATA --out split.csv"
    )
    leaking.append(record(6, "bacteria-5", given="val"))
    with pytest.raises(SplitLeakError, match=r"'bacteria-5' is in val .* Likewise 1 more\."):
        check_no_leak(leaking, "split.csv")


def test_without_splits_val_is_made_from_all() -> None:
    data, messages = with_usable_validation(
        dataset_of(kermany(400, 400, 400)), SplitConfig(), False
    )
    assert patients_per(data, "val") == {(0, ""): 60, (1, "bacteria"): 60, (1, "virus"): 60}
    assert messages == (
        "The data have no val: made one from train by patient: "
        "120 NORMAL and 240 PNEUMONIA images of 180 patients.",
    )


def test_a_small_given_val_is_replaced_and_the_reason_given() -> None:
    small = kermany(4, 2, 2, "val", 901)
    test = kermany(4, 2, 2, "test", 801)
    data, messages = with_usable_validation(
        dataset_of(kermany(400, 400, 400, "train"), small, test), SplitConfig(), False
    )
    assert sum(r.split == "val" for r in data.records) > 200
    assert [r.patient for r in data.records if r.split == "test"] == [r.patient for r in test]
    for words in (
        "val has 8 NORMAL and 8 PNEUMONIA images",
        "the true value of a sensitivity of 0.90 measured on 8 cases may lie between 0.56 and 0.98",
        "±0.21",
        "at least 100 per class",
        "--keep-val",
    ):
        assert words in messages[0]
    assert "still few" not in messages[0]


def test_keep_val_keeps_it() -> None:
    data = dataset_of(kermany(given="train"), kermany(4, 2, 2, "val", 901))
    kept, messages = with_usable_validation(data, SplitConfig(), True)
    assert kept.records == data.records
    assert "used nevertheless" in messages[0]


def test_a_new_test_beside_a_kept_val_comes_from_train_only() -> None:
    data = dataset_of(kermany(given="train"), kermany(4, 2, 2, "val", 901))
    cut = with_usable_validation(data, SplitConfig(test=0.5), True)[0]
    assert cut.subset("val").records == data.subset("val").records
    assert sum(r.split == "test" for r in cut.records) == 120


def test_a_val_without_cases_is_explained() -> None:
    data = dataset_of(kermany(given="train"), kermany(4, 0, 0, "val", 901))
    assert "no sensitivity" in with_usable_validation(data, SplitConfig(), False)[1][0]
    with pytest.raises(DataError, match="val: found 8 NORMAL and no PNEUMONIA"):
        with_usable_validation(data, SplitConfig(), True)


def test_a_large_given_val_is_used_without_a_message() -> None:
    data = dataset_of(kermany(given="train"), kermany(50, 25, 25, "val", 901))
    assert with_usable_validation(data, SplitConfig(), False) == (data, ())


def test_a_new_val_that_is_still_small_gives_a_message() -> None:
    messages = with_usable_validation(dataset_of(kermany()), SplitConfig(), False)[1]
    assert "still few: with 24 cases" in messages[0]


def test_a_share_for_test_makes_one_only_if_none_is_given() -> None:
    config = SplitConfig(test=0.1)
    data = with_usable_validation(dataset_of(kermany()), config, False)[0]
    assert patients_per(data, "test") == {(0, ""): 4, (1, "bacteria"): 6, (1, "virus"): 2}
    given_test = dataset_of(kermany(), kermany(1, 1, 0, "test", 901))
    data = with_usable_validation(given_test, config, False)[0]
    assert sum(r.split == "test" for r in data.records) == 4


def test_byte_equal_images_across_splits_are_mentioned() -> None:
    test = [dataclasses.replace(r, sha256="1-0") for r in kermany(1, 0, 0, "test", 901)]
    messages = with_usable_validation(dataset_of(kermany(), test), SplitConfig(), False)[1]
    assert "byte-equal" in messages[-1]
    assert "2 images" in messages[-1]


@pytest.mark.parametrize(
    ("records", "error", "words"),
    [
        (kermany(given="test"), DataError, "only images of test"),
        (kermany(20, 0, 0), DataError, "train: found .* no PNEUMONIA"),
        (kermany(1, 5, 5), DataError, "val: found .* no NORMAL"),
        (kermany(given="train") + kermany(given="test"), SplitLeakError, "'IM-1' is in"),
    ],
)
def test_nothing_to_train_on(
    records: list[ImageRecord], error: type[DataError], words: str
) -> None:
    with pytest.raises(error, match=words):
        with_usable_validation(dataset_of(records), SplitConfig(), False)


def test_a_needed_val_without_a_share() -> None:
    with pytest.raises(UsageError, match="no usable validation split"):
        with_usable_validation(dataset_of(kermany()), SplitConfig(val=0.0), False)


def test_wilson_agrees_with_scipy() -> None:
    from scipy.stats import binomtest

    expected = binomtest(9, 10).proportion_ci(method="wilson")
    assert wilson_interval(0.9, 10) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_a_split_file_reads_back(tmp_path: Path) -> None:
    names = ["d/NORMAL/IM-1-1.png", "d/PNEUMONIA/person1_virus_1.png", "d/PNEUMONIA/per,son.png"]
    write_images(tmp_path, names)
    divided = split(index(tmp_path / "d"), SplitConfig())
    beside, below = tmp_path / "d" / "split.csv", tmp_path / "run" / "split.csv"
    for path in (beside, below):
        write_split(path, divided)
        back = index(path)
        assert [(r.path, r.label, r.patient, r.split, r.subtype) for r in back.records] == [
            (r.path, r.label, r.patient, r.split, r.subtype) for r in divided.records
        ]
    lines = beside.read_text().splitlines()
    assert lines[0] == "path,label,patient,split"
    assert lines[1].startswith("NORMAL/IM-1-1.png,NORMAL,IM-1,")
    assert str(tmp_path) in below.read_text().splitlines()[1]
    assert index(beside).records == divided.records
    assert index(below).records == divided.records


def test_any_manifest_may_name_absolute_paths(tmp_path: Path) -> None:
    write_images(tmp_path, ["a.png"])
    row = f"{tmp_path / 'a.png'},NORMAL"
    manifest = tmp_path / "run" / "table.csv"
    manifest.parent.mkdir()
    manifest.write_text(f"path,label,patient,split\n{row},P,train\n")
    assert index(manifest).records[0].path == tmp_path / "a.png"
    manifest.write_text(f"path,label,patient,split,age\n{row},P,train,3\n")
    found = index(manifest).records[0]
    assert (found.path, found.extra) == (tmp_path / "a.png", {"age": "3"})
    manifest.write_text("path,label,patient,split\n../a.png,NORMAL,P,train\n")
    with pytest.raises(ManifestError, match="leaves the folder"):
        index(manifest)


def test_a_split_file_that_was_edited_into_a_leak_is_rejected(tmp_path: Path) -> None:
    for seed, name in enumerate(["a.png", "b.png"]):
        write_image(tmp_path / name, seed)
    text = "path,label,patient,split\na.png,NORMAL,P,train\nb.png,NORMAL,P,val\n"
    (tmp_path / "split.csv").write_text(text)
    with pytest.raises(SplitLeakError, match=r"'P' is in train .* and val .* of .*split.csv"):
        index(tmp_path / "split.csv")


def test_a_name_that_is_not_unicode_is_rejected(tmp_path: Path) -> None:
    odd = ImageRecord(tmp_path / "bad\udcff.png", 0, "P", "train")
    with pytest.raises(DataError, match="not valid Unicode"):
        write_split(tmp_path / "split.csv", Dataset(tmp_path, (odd,)))
    assert not (tmp_path / "split.csv").exists()


@pytest.mark.parametrize("by", ["random", "block"])
def test_folds_keep_patients_together_and_balance_every_stratum(
    by: Literal["random", "block"],
) -> None:
    records = list(dataset_of(kermany()).records)
    records[3] = dataclasses.replace(records[3], sha256=records[40].sha256)  # two patients joined
    numbers, warnings = assign_folds(records, 4, by, 1)
    assert len(warnings) == 1
    for fold in range(1, 5):
        inside = [r for r, n in zip(records, numbers, strict=True) if n == fold]
        others = {r.patient for r, n in zip(records, numbers, strict=True) if n != fold}
        assert not {r.patient for r in inside} & others
        found = Counter((r.label, r.subtype) for r in inside)
        assert found[0, ""] == pytest.approx(20, abs=4)
        assert found[1, "bacteria"] == pytest.approx(30, abs=2)
        assert found[1, "virus"] == pytest.approx(10, abs=2)
    assert numbers[3] == numbers[40]
    assert numbers == assign_folds(records, 4, by, 1)[0]
    changed = numbers != assign_folds(records, 4, by, 2)[0]
    assert changed == (by == "random")


def test_blocks_are_consecutive_ids() -> None:
    records = dataset_of(kermany(20, 20, 20)).records
    numbers, _ = assign_folds(records, 4, "block", 0)
    last = [r.patient for r, n in zip(records, numbers, strict=True) if n == 1 and r.label == 0]
    assert set(last) == {f"IM-{n}" for n in range(16, 21)}


def test_a_class_with_too_few_patients_is_named() -> None:
    records = dataset_of(kermany(2, 30, 30)).records
    with pytest.raises(DataError, match=r"--folds 5: NORMAL has images in only 2 folds"):
        assign_folds(records, 5, "random", 0)
