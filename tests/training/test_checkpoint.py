"""A checkpoint reads back to what was saved; one that is damaged is ignored as a whole."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import IO

import numpy as np
import pytest

from pneumoscope.errors import UsageError
from pneumoscope.training.loop import Arrays, Epoch, restore, save

HISTORY = [Epoch(0, 0.1, 0.7, 0.6, 0.81, 2.5), Epoch(1, 0.05, 1 / 3, 0.5, 0.9, 2.25)]
ARRAYS: Arrays = {
    "state": [np.arange(6, dtype=np.float32).reshape(2, 3), np.array(7, np.int32), np.zeros(0)],
    "best": [np.full((4,), -0.0, np.float32)],
    "average": [],
}
SHAPES = {name: [array.shape for array in each] for name, each in ARRAYS.items()}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "checkpoint.npz"


def test_reads_back_bit_by_bit(path: Path) -> None:
    save(path, "origin", HISTORY, ARRAYS)
    history, arrays = restore(path, "origin", SHAPES) or pytest.fail("checkpoint ignored")
    assert history == HISTORY
    assert arrays.keys() == ARRAYS.keys()
    for name, each in ARRAYS.items():
        assert [a.tobytes() for a in arrays[name]] == [a.tobytes() for a in each]
        assert [a.dtype for a in arrays[name]] == [a.dtype for a in each]


def test_none_is_there(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert restore(path, "origin", SHAPES) is None
    assert not caplog.records  # no warning: every training begins without a checkpoint


def test_of_another_origin_stops_training_which_would_overwrite_it(path: Path) -> None:
    save(path, "origin", HISTORY, ARRAYS)
    with pytest.raises(UsageError, match=r"checkpoint\.npz: belongs to other data or settings"):
        restore(path, "other", SHAPES)


@pytest.mark.parametrize(
    "shapes",
    [
        {**SHAPES, "best": [(5,)]},
        {**SHAPES, "best": [(4,), (4,)]},
        {**SHAPES, "state": [(3, 2), (), (0,)]},
        {**SHAPES, "more": [(1,)]},
    ],
    ids=["longer", "one more", "transposed", "another list"],
)
def test_of_another_model_is_left_aside(
    path: Path, caplog: pytest.LogCaptureFixture, shapes: dict[str, list[tuple[int, ...]]]
) -> None:
    save(path, "origin", HISTORY, ARRAYS)
    assert restore(path, "origin", shapes) is None
    assert "checkpoint ignored" in caplog.text


@pytest.mark.parametrize("about", ["[]", "{}", '"text"', "{", '{"origin": "origin"}'])
def test_a_text_of_something_else_is_left_aside(path: Path, about: str) -> None:
    path.parent.mkdir()
    np.savez(path, about=np.array(about))
    assert restore(path, "origin", {}) is None


def test_rows_of_another_version_are_left_aside(path: Path) -> None:
    path.parent.mkdir()
    about = {"origin": "origin", "history": [{"epoch": 0, "accuracy": 0.5}]}
    np.savez(path, about=np.array(json.dumps(about)))
    assert restore(path, "origin", {}) is None


def test_no_pickle_is_ever_loaded(path: Path) -> None:
    """An array of objects is a pickle, and a pickle is a program."""
    save(path, "origin", HISTORY, {})
    with np.load(path) as saved:
        about = saved["about"]
    np.savez(path, about=about, best0=np.array([print], object), allow_pickle=True)
    assert restore(path, "origin", {"best": [(1,)]}) is None


def test_whatever_is_damaged_is_left_aside(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Truncated anywhere or with any bit flipped: restores nothing, or exactly what was saved."""
    caplog.set_level(logging.CRITICAL)
    save(path, "origin", HISTORY, ARRAYS)
    content = path.read_bytes()
    cuts = [content[:length] for length in range(0, len(content), 100)]
    flips, directory = [], content.index(b"PK\x01\x02")  # which a ZIP file ends with
    for position in [*range(0, directory, 9), *range(directory, len(content))]:
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 8
        flips.append(bytes(flipped))
    left_aside = 0
    for damaged in [*cuts, *flips]:
        path.write_bytes(damaged)
        found = restore(path, "origin", SHAPES)
        left_aside += found is None
        if found is not None:
            assert found[0] == HISTORY
            for name, each in ARRAYS.items():
                for mine, theirs in zip(found[1][name], each, strict=True):
                    np.testing.assert_array_equal(mine, theirs)
    assert left_aside > len(cuts)


def test_a_full_disk_leaves_the_one_before(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(path, "origin", HISTORY[:1], ARRAYS)

    def full(stream: IO[bytes], **_: object) -> None:
        stream.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space left"):
        save(path, "origin", HISTORY, ARRAYS)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    history, _ = restore(path, "origin", SHAPES) or pytest.fail("checkpoint ignored")
    assert history == HISTORY[:1]


def test_the_next_one_replaces_it(path: Path) -> None:
    save(path, "origin", HISTORY[:1], ARRAYS)
    save(path, "origin", HISTORY, {**ARRAYS, "best": [np.ones(4, np.float32)]})
    history, arrays = restore(path, "origin", SHAPES) or pytest.fail("checkpoint ignored")
    assert history == HISTORY
    assert arrays["best"][0].tolist() == [1, 1, 1, 1]
