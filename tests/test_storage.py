"""Files are written completely or not at all, with the permissions of any other file."""

from __future__ import annotations

import csv
import io
import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO

import pytest

from pneumoscope import storage
from pneumoscope.errors import MissingError, UsageError
from pneumoscope.reading import json_lines
from pneumoscope.storage import (
    LineFile,
    alone_in,
    atomic_writer,
    cache_folder,
    claim_cache,
    claim_folder,
    csv_text,
    folder_writer,
    home_folder,
    leftovers,
    path_text,
    plain_cell,
    remove_leftovers,
    safe_cell,
    safe_path,
    temporary_beside,
    terminal_text,
    write_json,
    write_text,
)


def test_a_failure_keeps_the_old_file_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    write_text(path, "old")

    def failing() -> None:
        with atomic_writer(path) as stream:
            stream.write(b"new, and then")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        failing()
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_line_is_appended_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, write = tmp_path / "lines", os.write
    path.write_bytes(b"first\ncut sho")
    with LineFile(path, 0o600) as file:
        file.append(b"second\n", sync=True)
        with monkeypatch.context() as full:
            full.setattr(os, "write", lambda number, line: write(number, line[:4]))
            with pytest.raises(OSError, match="No space left"):
                file.append(b"third\n")
        file.append(b"fourth\n")
    assert path.read_bytes() == b"first\ncut sho\nsecond\nfourth\n"


def test_a_cell_with_control_characters_stays_one_cell() -> None:
    names = ["P-2\r=1+1", "\0", "two\nlines", "=1", "-2.5", "é"]
    text = csv_text(["name", "n"], [[name, None] for name in names])
    rows = list(csv.reader(io.StringIO(text, newline="")))
    cells = [r"P-2\r=1+1", r"\x00", "two\nlines", "'=1", "-2.5", "é"]
    assert rows == [["name", "n"], *([cell, ""] for cell in cells)]


@pytest.mark.parametrize("there", ["nothing", "empty", "marked"])
def test_a_folder_is_replaced_whole(tmp_path: Path, there: str) -> None:
    folder = tmp_path / "made"
    if there != "nothing":
        folder.mkdir()
    if there == "marked":
        write_text(folder / "mark", "old")
        write_text(folder / "left", "old")
    with folder_writer(folder, "mark", "a thing") as made:
        write_text(made / "mark", "new")
    assert [path.name for path in folder.iterdir()] == ["mark"]
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("there", ["thesis/chapter.txt", "thesis"])
def test_a_folder_of_something_else_is_not_replaced(tmp_path: Path, there: str) -> None:
    write_text(tmp_path / there, "mine")
    with (
        pytest.raises(UsageError, match="thesis: found content that is not a thing"),
        folder_writer(tmp_path / "thesis", "mark", "a thing"),
    ):
        raise AssertionError("nothing may be made")
    assert (tmp_path / there).read_text(encoding="utf-8") == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["thesis"]


def test_lines_that_an_interruption_cut_short_have_no_document(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n{"b"\n[2]\n\xff\n{"c": 3}\n{"d": 4}')
    found = list(json_lines(path))
    assert [document for document, _ in found] == [{"a": 1}, None, None, None, {"c": 3}, None]
    assert [end for _, end in found] == [9, 14, 18, 20, 29, 37]


def test_nan_is_not_written_as_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "x.json", {"auc": float("nan")})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("umask", "mode"), [(0o077, 0o600), (0o022, 0o644), (0o002, 0o664)])
def test_permissions_are_what_the_umask_leaves(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        write_text(tmp_path / "x.txt", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x.txt").stat().st_mode) == mode


@pytest.mark.parametrize("name", ["x" * 255, "肺" * 85])
def test_the_longest_names_can_be_written(tmp_path: Path, name: str) -> None:
    write_text(tmp_path / name, "x")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_leftovers_are_found_and_nothing_else(tmp_path: Path) -> None:
    for name in (".hidden", "x.tmp", "config.toml"):
        (tmp_path / name).touch()
    file, folder = temporary_beside(tmp_path / "a.csv"), temporary_beside(tmp_path / "model")
    file.touch()
    folder.mkdir()
    (folder / "weights").touch()
    assert leftovers(tmp_path) == sorted([file, folder])
    remove_leftovers(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".hidden", "config.toml", "x.tmp"]


def test_claiming_makes_the_folder_and_leaves_it_empty(tmp_path: Path) -> None:
    claim_folder(tmp_path / "a" / "b")
    claim_folder(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []


@pytest.mark.parametrize("inside", [".", "deeper"])
def test_a_file_in_place_of_the_folder_is_wrong_usage(tmp_path: Path, inside: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="wanted a folder"):
        claim_folder(tmp_path / "file" / inside)


def test_a_folder_that_cant_be_written_is_found_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path))

    monkeypatch.setattr(Path, "touch", denied)
    with pytest.raises(PermissionError):
        claim_folder(tmp_path)


def test_any_path_becomes_text_that_utf8_holds() -> None:
    assert path_text(Path("ü/肺.png")) == str(Path("ü/肺.png"))
    odd = os.fsdecode(b"caf\xe9.png")
    assert path_text(odd) == "caf\\udce9.png"
    path_text(odd).encode("utf-8")
    assert path_text("a\rb.png") == "a\\rb.png"


def test_a_file_that_its_holder_removed_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its owner may remove the file between opening and locking it."""
    path, real = tmp_path / "journal", storage._lock
    locked: list[IO[bytes]] = []

    def lock(stream: IO[bytes]) -> None:
        if not locked:
            path.unlink()
        locked.append(stream)
        real(stream)

    monkeypatch.setattr(storage, "_lock", lock)
    with storage.open_alone(path) as stream:
        stream.write(b"mine")
        assert path.read_bytes() == b"mine"
        with pytest.raises(BlockingIOError):
            storage.open_alone(path)
    assert len(locked) == 3
    assert locked[0].closed


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("=HYPERLINK(1)", "'=HYPERLINK(1)"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("+cmd", "'+cmd"),
        ("-cmd", "'-cmd"),
        ("\tx", "'\tx"),
        ("-0.5", "-0.5"),
        ("+1e-3", "+1e-3"),
        ("P1", "P1"),
        ("'quoted'", "'quoted'"),
        ("'", "'"),
        ("", ""),
    ],
)
def test_cells_that_a_spreadsheet_would_calculate(text: str, written: str) -> None:
    assert safe_cell(text) == written
    assert plain_cell(written) == text


def test_paths_that_a_spreadsheet_would_calculate_stay_paths() -> None:
    assert safe_path("=1+1.png") == "./=1+1.png"
    assert Path(safe_path("@a/b.png")) == Path("@a/b.png")
    assert safe_path("/abs/=x.png") == "/abs/=x.png"
    assert safe_path("a.png") == "a.png"


@pytest.fixture
def no_cache_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No variable names a cache, temporary files lie in the folder that is returned."""
    for name in ("PNEUMOSCOPE_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    storage._temporary_cache.cache_clear()
    storage._may_be_made.cache_clear()
    return tmp_path


def test_a_user_without_home(
    no_cache_named: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A container's user has no entry in the list of users: Python finds no home."""

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    assert home_folder() is None
    found = claim_cache()
    assert found.parent == no_cache_named
    assert stat.S_IMODE(found.stat().st_mode) == 0o700
    assert "PNEUMOSCOPE_CACHE=DIR" in caplog.text
    assert cache_folder() == found  # one warning only


@pytest.mark.parametrize("home", ["a file", "under a file", "/proc"])
def test_a_home_that_can_not_be_written(
    no_cache_named: Path, monkeypatch: pytest.MonkeyPatch, home: str
) -> None:
    (no_cache_named / "file").write_text("")
    place = {"a file": no_cache_named / "file", "under a file": no_cache_named / "file" / "h"}
    monkeypatch.setenv("HOME", str(place.get(home, home)))
    assert claim_cache().parent == no_cache_named


def test_a_home_is_used_where_there_is_one(
    no_cache_named: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(no_cache_named / "home"))
    assert cache_folder() == no_cache_named / "home" / ".cache" / "pneumoscope"


def test_a_cache_that_was_named_and_can_not_be_written(
    no_cache_named: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (no_cache_named / "file").write_text("")
    monkeypatch.setenv("PNEUMOSCOPE_CACHE", str(no_cache_named / "file" / "cache"))
    with pytest.raises(MissingError, match="PNEUMOSCOPE_CACHE=DIR"):
        claim_cache()


def test_the_temporary_cache_of_somebody_else_is_not_taken(
    no_cache_named: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(no_cache_named / "file" / "h"))
    (no_cache_named / "file").write_text("")
    (no_cache_named / "theirs").mkdir()
    (no_cache_named / f"pneumoscope-{os.getuid()}").symlink_to(no_cache_named / "theirs")
    assert cache_folder().name.startswith("pneumoscope-")
    assert not cache_folder().is_symlink()


HOLDING = """
import sys, time
from pathlib import Path
from pneumoscope.storage import alone_in
with alone_in(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_folder_is_written_by_one_process_at_a_time(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-c", HOLDING, str(out)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(UsageError, match="another process is writing there"), alone_in(out):
            pass
        other.kill()
    with alone_in(out):  # a lock ends with its process
        (out / "file").touch()
    assert [path.name for path in out.iterdir()] == ["file"]
    with alone_in(tmp_path / "empty"):
        pass
    assert not (tmp_path / "empty").exists()


def test_nothing_commands_the_terminal() -> None:
    assert terminal_text("a\tb\nc – ü\u00a0d") == "a\tb\nc – ü\u00a0d"
    assert terminal_text("\x1b[2Jx\r\x9b31m\u202e\x07") == r"\x1b[2Jx\r\x9b31m\u202e\x07"
