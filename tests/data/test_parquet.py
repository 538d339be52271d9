"""Export of images from Parquet shards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pneumoscope.data import folders
from pneumoscope.data.folders import export_parquet, split_of_shard
from pneumoscope.errors import DataError

SCHEMA: dict[str, Any] = {
    "image": pl.Struct({"bytes": pl.Binary, "path": pl.String}),
    "label": pl.Int64,
}


def jpeg(number: int) -> bytes:
    return b"\xff\xd8\xff\xe0" + number.to_bytes(4, "big") + bytes(40)


def png(number: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + number.to_bytes(4, "big") + bytes(40)


def shard(
    path: Path, rows: list[tuple[bytes | None, int | None]], names: list[str] | None = None
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": content, "path": None} for content, _ in rows]
    table = pl.DataFrame({"image": images, "label": [label for _, label in rows]}, schema=SCHEMA)
    metadata: Any = None
    if names is not None:
        note = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        metadata = {"huggingface": json.dumps(note)}
    table.write_parquet(path, metadata=metadata)
    return path


def files(out: Path) -> dict[str, bytes]:
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*") if p.is_file()}


def test_every_row_becomes_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "BATCH_ROWS", 2)
    shards = [
        shard(tmp_path / "train-00001-of-00002.parquet", [(jpeg(9), 1)]),
        shard(
            tmp_path / "train-00000-of-00002.parquet",
            [(jpeg(0), 0), (png(1), 1), (jpeg(2), 1), (jpeg(3), 0), (jpeg(4), 1)],
        ),
        shard(tmp_path / "validation-00000-of-00001.parquet", [(jpeg(5), 0)]),
        shard(tmp_path / "test-00000-of-00001.parquet", [(jpeg(6), 1)]),
    ]
    out = tmp_path / "out"
    written = export_parquet(shards, out)
    assert files(out) == {
        "train/NORMAL/train-00000-00000.jpeg": jpeg(0),
        "train/PNEUMONIA/train-00000-00001.png": png(1),
        "train/PNEUMONIA/train-00000-00002.jpeg": jpeg(2),
        "train/NORMAL/train-00000-00003.jpeg": jpeg(3),
        "train/PNEUMONIA/train-00000-00004.jpeg": jpeg(4),
        "train/PNEUMONIA/train-00001-00000.jpeg": jpeg(9),
        "val/NORMAL/val-00000-00000.jpeg": jpeg(5),
        "test/PNEUMONIA/test-00000-00000.jpeg": jpeg(6),
    }
    assert written == sum(len(content) for content in files(out).values())


def test_label_names_in_the_footer_decide(tmp_path: Path) -> None:
    rows: list[tuple[bytes | None, int | None]] = [(jpeg(0), 0), (jpeg(1), 1)]
    export_parquet(
        [shard(tmp_path / "test-0.parquet", rows, ["Pneumonia", "Normal"])], tmp_path / "out"
    )
    assert files(tmp_path / "out") == {
        "test/PNEUMONIA/test-00000-00000.jpeg": jpeg(0),
        "test/NORMAL/test-00000-00001.jpeg": jpeg(1),
    }
    with pytest.raises(DataError, match="COVID"):
        export_parquet(
            [shard(tmp_path / "test-1.parquet", rows, ["NORMAL", "COVID"])], tmp_path / "out2"
        )


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("data/train-00000-of-00007.parquet", "train"),
        ("data/validation-00000-of-00001.parquet", "val"),
        ("default/test/0000.parquet", "test"),
        ("data/Val.parquet", "val"),
    ],
)
def test_split_by_name(name: str, split: str) -> None:
    assert split_of_shard(Path(name)) == split


def test_split_unknown() -> None:
    with pytest.raises(DataError, match="names a split"):
        split_of_shard(Path("data/trainees-0.parquet"))


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ((jpeg(0), 2), "label 2"),
        ((jpeg(0), -1), "label -1"),
        ((jpeg(0), None), "label None"),
        ((None, 1), "no image"),
        ((b"hello", 1), "not an image"),
        ((b"", 1), "not an image"),
    ],
)
def test_bad_rows_are_named(
    tmp_path: Path, row: tuple[bytes | None, int | None], fault: str
) -> None:
    path = shard(tmp_path / "train-0.parquet", [(jpeg(0), 0), row])
    with pytest.raises(DataError, match=fault) as caught:
        export_parquet([path], tmp_path / "out")
    assert "row 1" in str(caught.value)
    assert str(path) in str(caught.value)


def test_other_tables_are_rejected(tmp_path: Path) -> None:
    path = tmp_path / "train-0.parquet"
    pl.DataFrame({"image": [b"a"], "label": [0]}).write_parquet(path)
    with pytest.raises(DataError, match="image, label"):
        export_parquet([path], tmp_path / "out")
    path.write_bytes(b"PAR1 not really PAR1")
    with pytest.raises(DataError, match="not a Parquet file"):
        export_parquet([path], tmp_path / "out")


def test_a_damaged_shard_is_rejected(tmp_path: Path) -> None:
    path = shard(tmp_path / "train-0.parquet", [(jpeg(n) * 50, n % 2) for n in range(50)])
    content = bytearray(path.read_bytes())
    content[100:400] = bytes(300)
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match="damaged"):
        export_parquet([path], tmp_path / "out")
