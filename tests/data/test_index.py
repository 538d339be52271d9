from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pneumoscope import storage
from pneumoscope.data.index import (
    ClassCounts,
    class_counts,
    index,
    load_dataset,
    require_both_classes,
)
from pneumoscope.data.manifest import write_split
from pneumoscope.errors import DataError, ManifestError, SplitLeakError
from pneumoscope.progress import Task
from pneumoscope.records import Dataset, ImageRecord
from support.bad_data import write_image, write_images, write_manifest

KERMANY = (
    "train/NORMAL/IM-0001-0001.jpeg",
    "train/PNEUMONIA/person1_bacteria_1.jpeg",
    "train/PNEUMONIA/person1_virus_2.jpeg",
    "val/NORMAL/IM-0002-0001.jpeg",
    "val/PNEUMONIA/person2_virus_3.jpeg",
    "test/NORMAL/NORMAL2-IM-0001-0001.jpeg",
    "test/PNEUMONIA/person3_bacteria_4.jpeg",
)


def names(dataset: Dataset) -> list[str]:
    return [record.path.relative_to(dataset.root).as_posix() for record in dataset.records]


def test_a_folder_of_splits(tmp_path: Path) -> None:
    write_images(tmp_path, KERMANY)
    dataset = index(tmp_path)
    assert dataset.root == tmp_path
    assert names(dataset) == list(KERMANY)
    assert [record.split for record in dataset.records] == ["train"] * 3 + ["val"] * 2 + [
        "test"
    ] * 2
    assert [record.label for record in dataset.records] == [0, 1, 1, 0, 1, 0, 1]
    assert [record.patient for record in dataset.records][:3] == [
        "IM-0001",
        "bacteria-1",
        "virus-1",
    ]
    assert [record.subtype for record in dataset.records][:3] == ["", "bacteria", "virus"]
    assert all(record.path.is_absolute() for record in dataset.records)
    assert dataset.warnings == ()
    first = dataset.records[0]
    assert first.sha256 == hashlib.sha256(first.path.read_bytes()).hexdigest()


def test_letter_case_does_not_matter(tmp_path: Path) -> None:
    write_images(tmp_path, ["Train/normal/a.png", "Train/Pneumonia/b.png", "TEST/NORMAL/c.png"])
    assert [(r.split, r.label) for r in index(tmp_path).records] == [
        ("train", 0),
        ("train", 1),
        ("test", 0),
    ]


def test_a_folder_of_classes(tmp_path: Path) -> None:
    write_images(tmp_path, ["normal/a.png", "PNEUMONIA/b.png", "PNEUMONIA/deep/er/c.png"])
    dataset = index(tmp_path, hash_files=False)
    assert names(dataset) == ["normal/a.png", "PNEUMONIA/b.png", "PNEUMONIA/deep/er/c.png"]
    assert {record.split for record in dataset.records} == {None}
    assert {record.sha256 for record in dataset.records} == {""}
    assert dataset.warnings[0].startswith("3 of 3 images name no patient")
    assert len(dataset.warnings) == 1


def test_hidden_files_and_leftovers_are_skipped_and_the_unreadable_stay(tmp_path: Path) -> None:
    write_images(
        tmp_path,
        [
            "NORMAL/IM-1-1.png",
            "NORMAL/.DS_Store",
            "NORMAL/._IM-1-1.png",
            "NORMAL/Thumbs.db",
            "NORMAL/__MACOSX/x.png",
            "NORMAL/.hidden/x.png",
            "PNEUMONIA/person1_virus_1.png",
            "__MACOSX/NORMAL/x.png",
        ],
    )
    (tmp_path / "NORMAL" / "IM-2-1.jpeg").write_bytes(b"")
    (tmp_path / "NORMAL" / "IM-3-1.jpeg").write_text("no image")
    assert [Path(name).name for name in names(index(tmp_path))] == [
        "IM-1-1.png",
        "IM-2-1.jpeg",
        "IM-3-1.jpeg",
        "person1_virus_1.png",
    ]


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    write_images(tmp_path, ["data/NORMAL/IM-1-1.png", "away/person1_virus_1.png"])
    normal = tmp_path / "data" / "NORMAL"
    (tmp_path / "data" / "PNEUMONIA").symlink_to(tmp_path / "away")
    (normal / "IM-2-1.png").symlink_to(normal / "IM-1-1.png")
    (normal / "loop").symlink_to(normal)
    (normal / "itself").symlink_to(normal / "itself")
    (normal / "nowhere").symlink_to(tmp_path / "gone")
    assert names(index(tmp_path / "data")) == [
        "NORMAL/IM-1-1.png",
        "NORMAL/IM-2-1.png",
        "PNEUMONIA/person1_virus_1.png",
    ]


def test_a_pipe_among_the_images_is_skipped(tmp_path: Path) -> None:
    write_images(tmp_path, ["NORMAL/IM-1-1.png", "PNEUMONIA/person1_virus_1.png"])
    os.mkfifo(tmp_path / "NORMAL" / "pipe.png")
    assert len(index(tmp_path).records) == 2


def test_ignored_folders_and_absent_classes_are_reported(tmp_path: Path) -> None:
    write_images(
        tmp_path, [*KERMANY[:3], "val/NORMAL/IM-9-1.png", "extra/x.png", "train/COVID/y.png"]
    )
    warnings = index(tmp_path).warnings
    assert any("ignored extra/" in text for text in warnings)
    assert any("ignored COVID/" in text for text in warnings)
    assert "val has no PNEUMONIA image." in warnings


def test_a_folder_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"can't be listed \(Permission denied\)"):
        index(tmp_path)


def test_a_file_without_permission_stays_without_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path, KERMANY)
    real = storage.sha256_of_file

    def sometimes(path: Path) -> str:
        if path.name == "IM-0001-0001.jpeg":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(storage, "sha256_of_file", sometimes)
    dataset = index(tmp_path)
    assert [record.sha256 == "" for record in dataset.records] == [True] + [False] * 6
    assert "1 files can't be read" in dataset.warnings[0]


def test_leaks_are_allowed_for_the_audit(tmp_path: Path) -> None:
    write_images(tmp_path, [*KERMANY, "test/NORMAL/IM-0001-0002.jpeg"])
    with pytest.raises(SplitLeakError, match="patient 'IM-0001' is in train"):
        index(tmp_path)
    assert len(index(tmp_path, refuse_leaks=False).records) == 8


def test_progress_counts_each_image(tmp_path: Path) -> None:
    counts: list[int] = []

    class Watching:
        @contextmanager
        def task(self, title: str, total: int, unit: str) -> Iterator[Task]:
            assert (total, unit) == (7, "images")

            class Counting:
                def advance(self, count: int = 1, note: str = "") -> None:
                    counts.append(count)

            yield Counting()

    write_images(tmp_path, KERMANY)
    index(tmp_path, progress=Watching())
    assert sum(counts) == 7


def test_a_manifest(tmp_path: Path) -> None:
    csv = write_manifest(
        tmp_path,
        '\ufeffPath,Label,patient,split,age,Sex\r\n"b, c.png",pneumonia,P1,Train,3,f\r\n\r\n'
        f"sub/../a.png,0,P2,,4,m\r\n{tmp_path}/d.png,1,,TEST,,\r\n",
        ["b, c.png", "a.png", "d.png", "sub/e.png"],
    )
    dataset = index(csv)
    assert dataset.root == tmp_path
    assert names(dataset) == ["b, c.png", "a.png", "d.png"]
    assert [record.label for record in dataset.records] == [1, 0, 1]
    assert [record.patient for record in dataset.records] == ["P1", "P2", "d.png"]
    assert [record.split for record in dataset.records] == ["train", None, "test"]
    assert dataset.records[0].extra == {"age": "3", "sex": "f"}


def test_a_relative_manifest_is_found_from_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_manifest(tmp_path, "path,label\na.png,0\nb.png,1\n")
    monkeypatch.chdir(tmp_path)
    assert [record.path for record in index(Path("data.csv")).records] == [
        tmp_path / "a.png",
        tmp_path / "b.png",
    ]


def test_paths_outside_are_rejected(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    csv = write_manifest(tmp_path / "run", "path,label\n../a.png,0\n", [])
    with pytest.raises(ManifestError, match="leaves the folder"):
        index(csv)


def test_a_split_without_images_is_an_error(tmp_path: Path) -> None:
    write_images(tmp_path, ["train/NORMAL/a.png", "train/PNEUMONIA/b.png"])
    for split in ("valid", "test"):
        words = rf"split '{split}', only of train \(2\); wanted .+'val'"
        with pytest.raises(DataError, match=words):
            load_dataset(tmp_path, split)  # type: ignore[arg-type]


def test_a_data_set_has_a_short_form_and_records_name_their_label(tmp_path: Path) -> None:
    write_images(tmp_path, ["train/NORMAL/a.png", "train/PNEUMONIA/b.png"])
    dataset = load_dataset(tmp_path)
    assert repr(dataset) == f"<Dataset: 2 images of 2 patients in {tmp_path}>"
    assert [(r.label, r.label_name) for r in dataset] == [(0, "NORMAL"), (1, "PNEUMONIA")]


def test_class_counts(tmp_path: Path) -> None:
    write_images(tmp_path, [*KERMANY, "train/PNEUMONIA/person1_virus_9.jpeg"])
    counts = class_counts(index(tmp_path))
    assert counts == (
        ClassCounts("train", 1, 3, 3),
        ClassCounts("val", 1, 1, 2),
        ClassCounts("test", 1, 1, 2),
    )
    assert counts[0].images == 4


def test_require_both_classes() -> None:
    normal, sick = (ImageRecord(Path(f"/{n}"), n, str(n)) for n in (0, 1))
    require_both_classes([normal, sick], "here")
    with pytest.raises(DataError, match="here: found 1 PNEUMONIA and no NORMAL"):
        require_both_classes([sick], "here")
    with pytest.raises(DataError, match="found 0"):
        require_both_classes([], "here")


@pytest.mark.parametrize("path", ["sub\\a.png", ".\\sub\\a.png", "sub/a.png", "./sub/a.png"])
def test_windows_paths_in_a_manifest(tmp_path: Path, path: str) -> None:
    write_image(tmp_path / "sub" / "a.png")
    (tmp_path / "m.csv").write_text(f"path,label\n{path},1\n")
    assert index(tmp_path / "m.csv").records[0].path == tmp_path / "sub" / "a.png"


def test_escaped_formulas_read_back_unchanged(tmp_path: Path) -> None:
    for seed, name in enumerate(("=a.png", "@b.png")):
        write_image(tmp_path / name, seed)
    records = (
        ImageRecord(tmp_path / "=a.png", 0, "=HYPERLINK(1)", "train", extra={"site": "@x"}),
        ImageRecord(tmp_path / "@b.png", 1, "-5", "val", extra={"site": "+y"}),
    )
    write_split(str(tmp_path / "s.csv"), Dataset(tmp_path, records))
    lines = (tmp_path / "s.csv").read_text().splitlines()
    assert lines[1:] == [
        "./=a.png,NORMAL,'=HYPERLINK(1),train,'@x",
        "./@b.png,PNEUMONIA,-5,val,'+y",
    ]
    back = index(tmp_path / "s.csv").records
    assert [(r.path, r.patient, r.extra) for r in back] == [
        (r.path, r.patient, r.extra) for r in records
    ]
