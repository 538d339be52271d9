"""Files that a PATH refers to."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import pytest

from pneumoscope.errors import ManifestError
from pneumoscope.inference import inputs
from pneumoscope.inference.inputs import FileList


def expand(paths: list[Path]) -> list[Path]:
    """The names, as paths again, all at once."""
    return [Path(name) for name in inputs.expand(paths)]


def test_folders_are_searched_in_order_without_hidden_files(tmp_path: Path) -> None:
    for name in ("b.png", "a/c.png", ".hidden", "a/.DS_Store", "readme.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    found = [path.relative_to(tmp_path).as_posix() for path in expand([tmp_path])]
    assert found == ["a/c.png", "b.png", "readme.txt"]


def test_csv_paths_are_relative_to_it_and_missing_files_stay(tmp_path: Path) -> None:
    table = tmp_path / "list.csv"
    table.write_text("\ufeffpath,label\nx.png,1\nsub/y.png,0\n", encoding="utf-8")
    assert expand([table, tmp_path / "none.png"]) == [
        tmp_path / "x.png",
        tmp_path / "sub/y.png",
        tmp_path / "none.png",
    ]


@pytest.mark.parametrize(
    "content",
    [
        b"file\nx.png\n",
        b"file\n",
        b"\xff\xfepath",
        b"label,path\n1\n",
        b"path,label\n ,1\n",
        b'path\n"x.png\n',
    ],
)
def test_bad_csv_is_rejected(tmp_path: Path, content: bytes) -> None:
    table = tmp_path / "list.csv"
    table.write_bytes(content)
    with pytest.raises(ManifestError, match=r"list\.csv"):
        expand([table])


def test_csv_columns_and_lines_are_read_leniently(tmp_path: Path) -> None:
    table = tmp_path / "LIST.CSV"
    table.write_bytes(b'Label, Path \r\n\r\n1,"a, b.png"\r\n0, c.png\r\n')
    assert expand([table]) == [tmp_path / "a, b.png", tmp_path / "c.png"]
    table.write_bytes(b"path\ns3://images/a.png\n")
    assert list(inputs.expand([table])) == ["s3://images/a.png"]
    table.write_bytes(b"")
    assert expand([table]) == []


def test_each_folder_is_read_once_but_a_path_given_twice_stays_twice(tmp_path: Path) -> None:
    """Links between folders must not list the same files repeatedly."""
    for k in range(8):
        folder = tmp_path / f"d{k}"
        folder.mkdir()
        (folder / "x.png").touch()
        for other in range(8):
            (folder / f"to-{other}").symlink_to(tmp_path / f"d{other}")
    once = expand([tmp_path])
    assert len(once) == 8
    assert expand([tmp_path, tmp_path]) == once * 2


def test_what_cant_be_looked_at_stays_in_the_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long, null = Path("x" * 5000), Path("a\0b.png")
    assert expand([long, null]) == [long, null]
    (tmp_path / "closed").mkdir()
    (tmp_path / "open.png").touch()
    real = os.listdir

    def listdir(path: Path) -> list[str]:
        if path.name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "listdir", listdir)
    assert expand([tmp_path]) == [tmp_path / "closed", tmp_path / "open.png"]


def test_an_image_named_csv_is_an_image(tmp_path: Path) -> None:
    picture = tmp_path / "picture.csv"
    picture.write_bytes(b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR")
    assert expand([picture]) == [picture]


PATTERNS = [
    ("*.png", ["a.png", "b.png"]),
    ("?.jpeg", ["a.jpeg"]),
    ("[!a].png", ["b.png"]),
    ("*/*.png", ["sub/c.png"]),
    ("s*", ["sub/c.png", "sub/deep/d.png"]),
    ("**/*.png", ["a.png", "b.png", "sub/c.png", "sub/deep/d.png"]),
    ("**/deep/*", ["sub/deep/d.png"]),
    ("sub/**", ["sub/c.png", "sub/deep/d.png"]),
    ("s*/**/d.png", ["sub/deep/d.png"]),
]


@pytest.mark.parametrize(("pattern", "wanted"), PATTERNS)
def test_a_pattern_means_the_files_that_fit(
    tmp_path: Path, pattern: str, wanted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.png", "a.jpeg", "b.png", ".c.png", "sub/c.png", "sub/deep/d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "sub" / "deep" / "loop").symlink_to(tmp_path / "sub")
    found = expand([tmp_path / pattern])
    assert [path.relative_to(tmp_path).as_posix() for path in found] == wanted
    monkeypatch.chdir(tmp_path)
    assert [path.as_posix() for path in expand([Path(pattern)])] == wanted


def test_a_pattern_that_fits_nothing_is_named_itself(tmp_path: Path) -> None:
    patterns = [tmp_path / "*.png", tmp_path / "none" / "**" / "x?", Path("a\0*.png")]
    assert expand(patterns) == patterns


def test_a_file_whose_name_has_brackets_is_that_file(tmp_path: Path) -> None:
    for name in ("image[1].png", "image1.png"):
        (tmp_path / name).touch()
    assert expand([tmp_path / "image[1].png"]) == [tmp_path / "image[1].png"]


def test_a_list_gives_its_names_again_and_from_any_on(tmp_path: Path) -> None:
    odd = Path(os.fsdecode(b"caf\xe9.png"))
    paths = [Path("a\nb.png"), Path("n\0l.png"), odd, tmp_path / "journal", Path("a\nb.png")]
    with FileList(map(str, paths), without=[tmp_path / "journal"]) as files:
        wanted = [str(path) for path in paths if path.name != "journal"]
        assert len(files) == 4
        assert list(files) == list(files) == wanted
        assert list(files.after(3)) == wanted[3:]
        assert list(files.after(4)) == []
        digest = files.digest
    with FileList(map(str, paths[:3] + paths[4:])) as same, FileList(map(str, paths[1:])) as other:
        assert digest == same.digest != other.digest


def test_folders_can_be_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["maps/a.png", "b/../maps/c/d.png", "maps2/e.png", str(tmp_path / "maps" / "f.png")]
    with FileList(names, folders=[Path("maps")]) as files:
        assert list(files) == ["maps2/e.png"]
        assert files.in_folders == 3


def test_a_list_is_of_what_was_there_when_it_was_made(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    with FileList(inputs.expand([tmp_path])) as files:
        (tmp_path / "b.png").touch()
        assert list(files) == [str(tmp_path / "a.png")]


def test_memory_does_not_grow_with_the_names() -> None:
    count = 60_000
    tracemalloc.start()
    with FileList(f"images/{k:060}.png" for k in range(count)) as files:
        assert sum(1 for _ in files) == count
        peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50 * count  # the names alone have 70 bytes each, as strings 120


def test_names_come_one_by_one(tmp_path: Path) -> None:
    table = tmp_path / "list.csv"
    table.write_text("path,label\nx.png,1\n ,1\n")
    names = inputs.expand([table])
    assert next(names) == str(tmp_path / "x.png")
    with pytest.raises(ManifestError, match="row 3"):
        next(names)


def test_paths_of_windows_in_a_table(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("sub/x.png", "odd\\name.png", "=1.png"):
        (tmp_path / name).touch()
    table = tmp_path / "list.csv"
    table.write_text("path\nsub\\x.png\nodd\\name.png\n./=1.png\n'=1.png\n", encoding="utf-8")
    assert expand([table]) == [
        tmp_path / "sub/x.png",
        tmp_path / "odd\\name.png",  # a file of exactly that name has priority
        tmp_path / "=1.png",
        tmp_path / "=1.png",
    ]
