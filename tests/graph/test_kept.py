"""Compiled graphs that were changed on disk are not used, and the result is the same."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pneumoscope.graph.openvino import GraphCache, SharedFolderError


def test_what_was_changed_exchanged_or_added_is_removed(tmp_path: Path) -> None:
    kept = GraphCache(tmp_path)
    place = kept.place({"a": 1})
    for name in ("good", "changed", "other"):
        (place / f"{name}.blob").write_bytes(name.encode() * 100)
    kept.sign(place)
    assert kept.remove_unsigned(place) == []
    changed = place / "changed.blob"
    changed.write_bytes(changed.read_bytes()[:-1] + b"x")
    (place / "added.blob").write_bytes(b"added")
    (place / "other.blob").write_bytes((place / "good.blob").read_bytes())
    (place / "other.hmac").write_bytes((place / "good.hmac").read_bytes())
    again = GraphCache(tmp_path)
    assert [path.stem for path in again.remove_unsigned(place)] == ["added", "changed", "other"]
    assert {path.name for path in place.iterdir()} == {"good.blob", "good.hmac"}


def test_the_key_is_the_user_s_alone(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    GraphCache(tmp_path)
    key = tmp_path / "key"
    first = key.read_bytes()
    assert (len(first), key.stat().st_mode & 0o777, tmp_path.stat().st_mode & 0o777) == (
        *(32, 0o600),
        0o700,
    )
    GraphCache(tmp_path)
    assert key.read_bytes() == first
    key.chmod(0o644)  # others have read it
    GraphCache(tmp_path)
    assert key.read_bytes() != first


def test_a_folder_of_somebody_else_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getuid", lambda: tmp_path.stat().st_uid + 1)
    with pytest.raises(SharedFolderError, match="another user"):
        GraphCache(tmp_path)
