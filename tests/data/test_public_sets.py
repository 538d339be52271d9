from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest

from pneumoscope.config import AdoptConfig
from pneumoscope.data.adopt import Adopted, adopt
from pneumoscope.data.public_sets import SOURCES
from pneumoscope.data.public_tables import age_in_years, sex_of, view_of
from pneumoscope.errors import DataError, UsageError
from support import public_data_sets as owners


def adopted(name: str, folder: Path, **settings: Any) -> Adopted:
    return adopt(SOURCES[name], folder, AdoptConfig(**settings))


def kept(found: Adopted) -> dict[str, int | None]:
    return {case.path.stem: case.label for case in found.cases if case.path}


def test_rsna(tmp_path: Path) -> None:
    found = adopted("rsna", owners.rsna(tmp_path))
    assert kept(found) == {"aaa": 1, "bbb": 0}
    assert dict(found.left_out) == {
        "other finding than normal or pneumonia": 1,
        "the two tables disagree": 1,
        "image file not found": 1,
    }
    child, adult = found.cases
    assert (child.age, child.sex, child.view, child.patient) == (4.0, "F", "AP", "aaa")
    assert (adult.age, adult.view, adult.finding) == (51.0, "PA", "Normal")
    assert kept(adopted("rsna", tmp_path, others="normal")) == {"aaa": 1, "bbb": 0, "ccc": 0}


def test_rsna_patients_come_from_the_mapping(tmp_path: Path) -> None:
    found = adopted("rsna", owners.rsna(tmp_path, mapping=True))
    assert [case.patient for case in found.cases] == ["00000013", "00000013"]
    (tmp_path / "pneumonia-challenge-dataset-mappings_2018.json").write_text('[{"a": 1}]')
    with pytest.raises(DataError, match="img_id and subset_img_id"):
        adopted("rsna", tmp_path)


@pytest.mark.parametrize("edition", [2017, 2020])
def test_nih(tmp_path: Path, edition: int) -> None:
    found = adopted("nih", owners.nih(tmp_path, edition=edition))
    assert kept(found) == {
        "00000001_000": 0,
        "00000001_001": 1,
        "00000002_000": 1,
        "00000004_000": 0,
    }
    assert dict(found.left_out) == {
        "other finding than normal or pneumonia": 1,
        "image file not found": 1,
    }
    assert [case.age for case in found.cases] == [4.0, 5.0, 81.0, None]  # 414 is no age
    assert [case.sex for case in found.cases] == ["F", "F", "M", "M"]
    assert [case.split for case in found.cases] == ["train", "train", "test", "test"]
    assert found.cases[0].patient == found.cases[1].patient == "1"


def test_ages_and_views_filter_and_are_counted(tmp_path: Path) -> None:
    children = adopted("nih", owners.nih(tmp_path), min_age=1.0, max_age=5.0)
    assert kept(children) == {"00000001_000": 0, "00000001_001": 1}
    assert dict(children.left_out)["age outside the range"] == 1
    assert dict(children.left_out)["age not known"] == 1
    frontal = adopted("nih", tmp_path, view="PA")
    assert dict(frontal.left_out)["view not PA"] == 2
    with pytest.raises(DataError, match=r"none of 6 images can be kept: .*age outside the range"):
        adopted("nih", tmp_path, min_age=100.0)
    with pytest.raises(UsageError, match="--min-age 9 is above --max-age 3"):
        adopted("nih", tmp_path, min_age=9.0, max_age=3.0)


def test_chexpert(tmp_path: Path) -> None:
    found = adopted("chexpert", owners.chexpert(tmp_path))
    assert [(case.patient, case.label, case.split) for case in found.cases] == [
        ("patient00001", 1, "train"),
        ("patient00002", 0, "train"),
        ("patient64541", 0, "val"),
    ]
    assert dict(found.left_out) == {
        "lateral view": 1,
        "uncertain label": 1,
        "other finding than normal or pneumonia": 1,
        "no label": 1,
    }
    assert [case.labelled_by for case in found.cases][-1] == "radiologists"
    assert (found.cases[0].age, found.cases[0].sex, found.cases[0].view) == (68.0, "F", "AP")


@pytest.mark.parametrize(("policy", "label"), [("pneumonia", 1), ("normal", 0)])
def test_uncertain_pneumonia_by_option(tmp_path: Path, policy: str, label: int) -> None:
    found = adopted("chexpert", owners.chexpert(tmp_path), uncertain=policy)
    uncertain = next(case for case in found.cases if case.patient == "patient00003")
    assert uncertain.label == label
    assert uncertain.finding == "Edema|Pneumonia uncertain"


def test_chexpert_without_laterals_left_out(tmp_path: Path) -> None:
    found = adopted("chexpert", owners.chexpert(tmp_path), view="all")
    assert [case.view for case in found.cases].count("lateral") == 1


def test_chexpert_paths_do_not_leave_the_folder(tmp_path: Path) -> None:
    owners.png(tmp_path / "outside.jpg")
    folder = tmp_path / "set"
    rows = (
        f"../outside.jpg,Male,3,Frontal,AP,1.0{',' * 13}",
        f"{tmp_path}/outside.jpg,M,3,Frontal,AP,1.0{',' * 13}",
    )
    owners.lines(folder / "train.csv", owners.CHEXPERT_HEADER, *rows)
    with pytest.raises(DataError, match=r"image file not found \(2\)"):
        adopted("chexpert", folder)


def test_vindr(tmp_path: Path) -> None:
    found = adopted("vindr-pcxr", owners.vindr(tmp_path))
    assert kept(found) == {"a1": 0, "a2": 1, "a4": 1, "b1": 1, "b2": 0}
    assert dict(found.left_out) == {
        "other finding than normal or pneumonia": 1,
        "readers disagree": 1,
    }
    ages = {case.path.stem: case.age for case in found.cases if case.path}
    assert ages["a2"] == pytest.approx(10 / 12)
    assert ages["a4"] is None
    assert {case.split for case in found.cases} == {"train", "test"}
    assert {case.patient for case in found.cases} == {""}


def test_padchest(tmp_path: Path) -> None:
    found = adopted("padchest", owners.padchest(tmp_path))
    assert kept(found) == {"p1": 0, "p2": 1}
    assert dict(found.left_out) == {
        "lateral view": 1,
        "other finding than normal or pneumonia": 1,
        "image marked unusable by its owner": 1,
        "no label": 1,
        "image file not found": 1,
    }
    adult, child = found.cases
    assert (adult.age, adult.view, adult.labelled_by) == (84.0, "PA", "physicians")
    assert (child.age, child.view, child.labelled_by) == (4.0, "AP", "network on reports")
    assert child.finding == "infiltrates|pneumonia"


def test_padchest_compressed(tmp_path: Path) -> None:
    table = owners.padchest(tmp_path) / owners.PADCHEST
    table.with_suffix(".csv.gz").write_bytes(gzip.compress(table.read_bytes()))
    table.unlink()
    assert kept(adopted("padchest", tmp_path)) == {"p1": 0, "p2": 1}
    damaged = bytearray(gzip.compress(b"x" + bytes(range(256)) * 40))
    damaged[20:40] = b"\xff" * 20  # what zlib has an error of its own for
    for content in (b"no gzip", bytes(damaged)):
        table.with_suffix(".csv.gz").write_bytes(content)
        with pytest.raises(DataError, match="can't be read as CSV"):
            adopted("padchest", tmp_path)


def own_table(root: Path) -> Path:
    owners.lines(
        root / "images.csv",
        "Image_Path,dx,who,Age,sex",
        "a/1.png,Bacterial,p1,3,female",
        "a/2.png,clear,p2,4,m",
        "2.png,Clear,p2,4,m",
        "3.png,fracture,p4,5,m",
        "../../etc/passwd,clear,p5,5,m",
        ",clear,p6,5,m",
    )
    for name in ("a/1.png", "a/2.png"):
        owners.png(root / name)
    return root


def test_a_custom_table(tmp_path: Path) -> None:
    settings = {
        "columns": "label=dx,patient=who",
        "pneumonia": "bacterial, viral",
        "normal": "clear",
    }
    found = adopted("csv", own_table(tmp_path), **settings)
    assert [(case.path, case.label, case.patient) for case in found.cases] == [
        (tmp_path / "a/1.png", 1, "p1"),
        (tmp_path / "a/2.png", 0, "p2"),
    ]
    assert dict(found.left_out) == {
        "image file not found": 2,
        "image file named again": 1,
        "other finding than normal or pneumonia": 1,
    }
    assert [case.sex for case in found.cases] == ["F", "M"]


def test_a_custom_table_never_takes_another_patients_file(tmp_path: Path) -> None:
    """p1/1.png is missing: another 1.png is not its image, nor is one of two of a bare name."""
    owners.lines(
        tmp_path / "t.csv",
        "path,label",
        "p1/1.png,normal",
        "1.png,normal",
        f"{tmp_path / 'set/p3/1.png'},pneumonia",
        "p2/1.png,normal",
        "/elsewhere/p3/1.png,normal",
        "2.png,normal",
        "/of/another/machine/set/p4/3.png,normal",
    )
    for name in ("set/p2/1.png", "set/p3/1.png", "set/p3/2.png", "set/p4/3.png"):
        owners.png(tmp_path / name)
    found = adopted("csv", tmp_path)
    assert [case.path and case.path.relative_to(tmp_path / "set") for case in found.cases] == [
        Path("p3/1.png"),
        Path("p2/1.png"),
        Path("p3/2.png"),
        Path("p4/3.png"),
    ]
    assert dict(found.left_out) == {"image file not found": 3}


@pytest.mark.parametrize("others", ["normal", "exclude"])
def test_rows_of_one_image_that_contradict_each_other(tmp_path: Path, others: str) -> None:
    """No order of the rows may decide; each image counts once, its other rows as named again."""
    owners.lines(
        tmp_path / "t.csv",
        "path,label",
        *("0.png,Effusion", "0.png,Pneumonia"),
        *("1.png,normal", "1.png,pneumonia", "1.png,normal"),
        *("2.png,", "2.png,normal"),
        *("3.png,pneumonia", "3.png,pneumonia"),
        *("4.png,Effusion", "4.png,normal"),
    )
    for number in range(5):
        owners.png(tmp_path / f"{number}.png")
    found = adopted("csv", tmp_path, others=others)
    agree = others == "normal"
    assert kept(found) == ({"3": 1, "4": 0} if agree else {"3": 1})
    assert dict(found.left_out) == {
        "rows of the image contradict each other": 3 if agree else 4,
        "image file named again": 6,
    }


def test_rows_of_one_image_of_different_patients_or_splits(tmp_path: Path) -> None:
    """The first row would decide whose image it is, or let a held-out image be trained on."""
    owners.lines(
        tmp_path / "t.csv",
        "path,label,patient,split",
        *("0.png,normal,a,train", "0.png,normal,b,train"),
        *("1.png,normal,a,train", "1.png,normal,a,test"),
        *("2.png,normal,a,train", "2.png,normal,a,train"),
    )
    for number in range(3):
        owners.png(tmp_path / f"{number}.png")
    found = adopted("csv", tmp_path)
    assert kept(found) == {"2": 0}
    assert dict(found.left_out) == {
        "rows of the image contradict each other": 2,
        "image file named again": 3,
    }


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ("", "none of which is known as the label"),
        ("label=diagnosis", "COLUMN one of Image_Path, dx, who, Age, sex"),
        ("lable=dx", "WHAT one of path, label"),
    ],
)
def test_columns_that_are_not_there(tmp_path: Path, columns: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        adopted("csv", own_table(tmp_path), columns=columns)


@pytest.mark.parametrize(
    "words",
    [{"pneumonia": "Viral, bacterial", "normal": "clear,viral"}, {"pneumonia": "pneumonia,0"}],
)
def test_a_word_for_both_classes(tmp_path: Path, words: dict[str, str]) -> None:
    with pytest.raises(UsageError, match=r"found '(viral|0)' in both, wanted each word for one"):
        adopted("csv", own_table(tmp_path), columns="label=dx", **words)


def test_two_tables_need_a_name(tmp_path: Path) -> None:
    owners.lines(own_table(tmp_path) / "more.csv", "path,label", "a/1.png,pneumonia")
    with pytest.raises(DataError, match=r"found the tables images.csv, more.csv; wanted one CSV"):
        adopted("csv", tmp_path)
    assert kept(adopted("csv", tmp_path, table="more.csv")) == {"1": 1}


@pytest.mark.parametrize("name", list(SOURCES))
def test_a_folder_without_the_tables(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"wanted|found the tables none"):
        adopted(name, tmp_path)


@pytest.mark.parametrize(
    ("name", "table", "told"),
    [
        ("nih", "Data_Entry_2017.csv", "wanted also Finding Labels"),
        ("chexpert", "train.csv", "wanted also Sex"),
        ("padchest", owners.PADCHEST, "wanted also PatientID"),
    ],
)
def test_a_table_without_its_columns(tmp_path: Path, name: str, table: str, told: str) -> None:
    owners.lines(tmp_path / table, "Image Index,Path,ImageID", "1,2,3")
    with pytest.raises(DataError, match=told):
        adopted(name, tmp_path)


def test_every_source_states_its_files_and_paper() -> None:
    for name, source in SOURCES.items():
        assert source.name == name
        assert source.layout
        assert "PNEUMONIA" in source.labels
        assert "NORMAL" in source.labels
        assert name == "csv" or "doi:" in source.paper or "arXiv:" in source.paper


@pytest.mark.parametrize(
    ("text", "years"),
    [
        ("58", 58),
        ("058Y", 58),
        ("018M", 1.5),
        ("026W", 0.498),
        ("073D", 0.2),
        ("1.5", 1.5),
        ("1.5y", 1.5),
        ("120Y", 120),
        ("121Y", None),
        ("414", None),
        ("", None),
        ("Y", None),
        ("-3", None),
    ],
)
def test_ages(text: str, years: float | None) -> None:
    found = age_in_years(text)
    assert found == years if years is None else found == pytest.approx(years, abs=0.005)


def test_sexes_and_views() -> None:
    assert [sex_of(word) for word in ("Female", "m", "MALE ", "woman", "O", "")] == [
        *("F", "M", "M", "F"),
        *("", ""),
    ]
    assert {sex_of(word) for word in ("Missing", "missing", "n/a", "false", "Mixed")} == {""}
    words = ("AP", "PA", "AP_horizontal", "LL", "Lateral", "COSTAL", "")
    assert [view_of(word) for word in words] == [
        "AP",
        "PA",
        "AP",
        "lateral",
        "lateral",
        "other",
        "",
    ]


def test_tables_have_the_views_of_the_image_reader() -> None:
    words = ("LLAT", "rlat", "Postero-Anterior", "ANTERO-POSTERIOR")
    assert [view_of(word) for word in words] == ["lateral", "lateral", "PA", "AP"]
