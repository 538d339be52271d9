"""Unpacking untrusted archives."""

from __future__ import annotations

import stat
import struct
import zipfile
from pathlib import Path

import pytest

from pneumoscope.data.archive import ArchiveLimits, extract_zip, image_suffix
from pneumoscope.errors import DataError, UnsafeArchiveError

JPEG = b"\xff\xd8\xff\xe0" + bytes(range(256)) * 4
PNG = b"\x89PNG\r\n\x1a\n" + bytes(64)


def make_zip(path: Path, members: dict[str, bytes], packing: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", packing) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content, packing)
    return path


def folder(tmp_path: Path) -> Path:
    out = tmp_path / "out"
    out.mkdir()
    return out


def test_keeps_images_of_class_folders_and_counts_the_rest(tmp_path: Path) -> None:
    members = {
        "set/train/NORMAL/a.jpeg": JPEG,
        "set/train/pneumonia/deep/b.txt": PNG,  # detected by content, not by name
        "set/train/NORMAL/notes.jpeg": b"not an image at all",
        "set/train/NORMAL/.DS_Store": JPEG,
        "set/readme.txt": b"hello",
        "set/OTHER/c.jpeg": JPEG,
        "__MACOSX/set/train/NORMAL/a.jpeg": JPEG,
        "set/train/NORMAL/empty.jpeg": b"",
    }
    out = folder(tmp_path)
    report = extract_zip(make_zip(tmp_path / "a.zip", members), out)
    found = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert found == {"set/train/NORMAL/a.jpeg", "set/train/pneumonia/deep/b.txt"}
    assert (out / "set/train/NORMAL/a.jpeg").read_bytes() == JPEG
    assert (report.kept, report.skipped, report.bytes) == (2, 6, len(JPEG) + len(PNG))


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("../NORMAL/a.jpeg", r"'\.\.'"),
        ("set/NORMAL/../../../a.jpeg", r"'\.\.'"),
        ("/NORMAL/a.jpeg", "absolute"),
        ("C:/NORMAL/a.jpeg", "drive"),
        ("NORMAL/c:a.jpeg", "drive"),
        ("NORMAL\\..\\a.jpeg", "backslash"),
        ("NORMAL/CON", "device"),
        ("NORMAL/nul.jpeg", "device"),
        ("com1/NORMAL/a.jpeg", "device"),
        ("NORMAL/a\n.jpeg", "control"),
        ("NORMAL/" + "a" * 300 + ".jpeg", "longer"),
        ("a/" * 40 + "NORMAL/a.jpeg", "deep"),
        ("../readme.txt", r"'\.\.'"),
    ],
)
def test_rejects_names_that_leave_the_folder(tmp_path: Path, name: str, fault: str) -> None:
    archive = make_zip(tmp_path / "evil.zip", {"NORMAL/first.jpeg": JPEG, name: JPEG})
    out = folder(tmp_path)
    with pytest.raises(UnsafeArchiveError, match=fault) as caught:
        extract_zip(archive, out)
    assert repr(name[:200]) in str(caught.value)
    assert not list(out.iterdir())
    assert not (tmp_path / "a.jpeg").exists()


def test_rejects_a_nul_that_hides_the_rest_of_a_name(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "evil.zip", {"NORMAL/aXb.jpeg": JPEG})
    archive.write_bytes(archive.read_bytes().replace(b"aXb.jpeg", b"a\x00b.jpeg"))
    with pytest.raises(UnsafeArchiveError, match="control"):
        extract_zip(archive, folder(tmp_path))


@pytest.mark.parametrize(
    ("kind", "fault"), [(stat.S_IFLNK, "symbolic link"), (stat.S_IFIFO, "pipe")]
)
def test_rejects_links_and_pipes(tmp_path: Path, kind: int, fault: str) -> None:
    path = tmp_path / "link.zip"
    with zipfile.ZipFile(path, "w") as archive:
        info = zipfile.ZipInfo("NORMAL/a.jpeg")
        info.create_system = 3
        info.external_attr = (kind | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(UnsafeArchiveError, match=fault):
        extract_zip(path, folder(tmp_path))


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("second", ["NORMAL/a.jpeg", "NORMAL/./a.jpeg", "NORMAL/a.jpeg/b.jpeg"])
def test_rejects_two_entries_in_one_place(tmp_path: Path, second: str) -> None:
    path = tmp_path / "twice.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("NORMAL/a.jpeg", JPEG)
        archive.writestr(second, PNG)
    with pytest.raises(UnsafeArchiveError, match="two entries"):
        extract_zip(path, folder(tmp_path))


@pytest.mark.parametrize(
    ("limits", "fault"),
    [
        (ArchiveLimits(max_members=1), "entries"),
        (ArchiveLimits(max_member_bytes=500), "more than 500"),
        (ArchiveLimits(max_total_bytes=len(JPEG) + 100), "total over"),
    ],
)
def test_limits_on_number_and_size(tmp_path: Path, limits: ArchiveLimits, fault: str) -> None:
    archive = make_zip(tmp_path / "a.zip", {"NORMAL/a.jpeg": JPEG, "NORMAL/b.jpeg": JPEG})
    with pytest.raises(UnsafeArchiveError, match=fault):
        extract_zip(archive, folder(tmp_path), limits)


def test_rejects_one_image_that_inflates(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "bomb.zip", {"NORMAL/a.jpeg": JPEG + bytes(6 << 20)})
    with pytest.raises(UnsafeArchiveError, match="100 times its packed size"):
        extract_zip(archive, folder(tmp_path))


def test_rejects_many_images_that_inflate_together(tmp_path: Path) -> None:
    members = {f"NORMAL/{n}.jpeg": JPEG + bytes(1 << 20) for n in range(8)}
    with pytest.raises(UnsafeArchiveError, match="100 times the archive"):
        extract_zip(make_zip(tmp_path / "bomb.zip", members), folder(tmp_path))


def test_believes_no_size_in_the_header(tmp_path: Path) -> None:
    content = JPEG + bytes(1 << 20)
    archive = make_zip(tmp_path / "liar.zip", {"NORMAL/a.jpeg": content})
    lie = archive.read_bytes().replace(struct.pack("<L", len(content)), struct.pack("<L", 2000))
    archive.write_bytes(lie)
    out = folder(tmp_path)
    with pytest.raises(DataError):
        extract_zip(archive, out)
    assert sum(path.stat().st_size for path in out.rglob("*.jpeg")) <= 2000


@pytest.mark.parametrize("packing", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_packings_that_unpack_without_a_limit_are_rejected(tmp_path: Path, packing: int) -> None:
    archive = make_zip(tmp_path / "a.zip", {"NORMAL/a.jpeg": JPEG * 40}, packing)
    with pytest.raises(DataError, match=r"a\.jpeg.*packed by method.*unpack it yourself"):
        extract_zip(archive, folder(tmp_path))


@pytest.mark.parametrize("packing", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_damage_is_noticed_in_every_packing(tmp_path: Path, packing: int) -> None:
    archive = make_zip(tmp_path / "a.zip", {"NORMAL/a.jpeg": JPEG * 40}, packing)
    content = bytearray(archive.read_bytes())
    with zipfile.ZipFile(archive) as opened:
        size = opened.infolist()[0].compress_size
    content[43 + size // 2] ^= 0xFF  # 30 bytes of header, 13 of name
    archive.write_bytes(bytes(content))
    with pytest.raises(DataError, match="damaged") as caught:
        extract_zip(archive, folder(tmp_path))
    assert "NORMAL/a.jpeg" in str(caught.value)


def test_encrypted_entries_are_named(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", {"NORMAL/a.jpeg": JPEG})
    content = bytearray(archive.read_bytes())
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    archive.write_bytes(bytes(content))
    with pytest.raises(DataError, match="Unpack the archive yourself"):
        extract_zip(archive, folder(tmp_path))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 but no more", b"<html>not found</html>"])
def test_not_a_zip_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(content)
    with pytest.raises(DataError, match="not a zip file"):
        extract_zip(path, folder(tmp_path))


def test_a_cut_archive_is_rejected(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", {"NORMAL/a.jpeg": JPEG})
    archive.write_bytes(archive.read_bytes()[:-30])
    with pytest.raises(DataError, match="not a zip file"):
        extract_zip(archive, folder(tmp_path))


def test_suffixes() -> None:
    assert image_suffix(JPEG) == ".jpeg"
    assert image_suffix(PNG) == ".png"
    assert image_suffix(bytes(128) + b"DICM") == ".dcm"
    assert image_suffix(b"GIF89a" + bytes(20)) is None
    assert image_suffix(b"") is None


def test_entries_are_counted_before_an_object_is_made_of_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_zip(tmp_path / "a.zip", {f"NORMAL/{k}.png": b"" for k in range(30)})
    whole = bytearray(path.read_bytes())
    place = whole.rindex(b"PK\x05\x06")
    whole[place + 8 : place + 12] = b"\x01\0\x01\0"  # states one entry
    path.write_bytes(whole)

    def never(*_: object) -> None:
        raise AssertionError("opened")

    monkeypatch.setattr(zipfile, "ZipFile", never)
    with pytest.raises(UnsafeArchiveError, match="more than 20 entries"):
        extract_zip(path, tmp_path / "out", ArchiveLimits(max_members=20))
