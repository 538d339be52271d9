"""Files on storage that fsspec supports: which a URL refers to, and how each is read."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pneumoscope.config import LimitsConfig
from pneumoscope.errors import ImageRefusedError, ManifestError, MissingError, Reason
from pneumoscope.images.read import read_image
from pneumoscope.inference import cluster
from pneumoscope.inference.cluster import expand_anywhere, read_anywhere

fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed (extra ray)")

LIMITS = LimitsConfig()


@pytest.fixture
def image_file(tmp_path: Path) -> Path:
    grey = np.full((40, 48), 90, np.uint8)
    grey[10:20] += 30
    Image.fromarray(grey).save(tmp_path / "image.png")
    return tmp_path / "image.png"


@pytest.fixture
def memory() -> Iterator[Any]:
    storage = fsspec.filesystem("memory")
    for name in ("b.png", "a/c.png", "a/d.jpeg", ".hidden", "a/.x/e.png"):
        storage.pipe(f"/images/{name}", b"no image")
    yield storage
    storage.rm("/images", recursive=True)


def test_a_url_means_a_folders_files_what_fits_a_pattern_or_itself(memory: Any) -> None:
    top = "memory://images"
    wanted = [f"{top}/a/c.png", f"{top}/a/d.jpeg", f"{top}/b.png"]
    found = [url.replace("memory:///", "memory://") for url in expand_anywhere([top])]
    assert found == wanted
    found = [url.replace("memory:///", "memory://") for url in expand_anywhere([f"{top}/a/*.png"])]
    assert found == wanted[:1]
    assert list(expand_anywhere([f"{top}/b.png", f"{top}/none.png"])) == [
        f"{top}/b.png",
        f"{top}/none.png",
    ]
    assert list(expand_anywhere([f"{top}/*.tiff"])) == [f"{top}/*.tiff"]


def test_a_csv_names_files_beside_it_or_anywhere(memory: Any, tmp_path: Path) -> None:
    memory.pipe("/images/list.csv", "\ufeffpath,label\na/c.png,1\ns3://x/y.png,0\n".encode())
    assert list(expand_anywhere(["memory://images/list.csv"])) == [
        "memory://images/a/c.png",
        "s3://x/y.png",
    ]
    (tmp_path / "here.csv").write_text("path\nmemory://images/b.png\nz.png\n")
    assert list(expand_anywhere([tmp_path / "here.csv"])) == [
        "memory://images/b.png",
        str(tmp_path / "z.png"),
    ]
    memory.pipe("/images/list.csv", b"file\nx.png\n")
    with pytest.raises(ManifestError, match="wanted one named 'path'"):
        list(expand_anywhere(["memory://images/list.csv"]))


def test_an_image_is_the_same_from_any_storage(memory: Any, image_file: Path) -> None:
    memory.pipe("/images/image.png", image_file.read_bytes())
    wanted = read_image(image_file)
    for name in (str(image_file), f"file://{image_file}", "memory://images/image.png"):
        found = read_anywhere(name, LIMITS)
        np.testing.assert_array_equal(found.pixels, wanted.pixels)
        assert found.sha256 == wanted.sha256


@pytest.mark.parametrize(
    ("name", "limits", "reason"),
    [
        ("memory://images/none.png", LIMITS, Reason.NOT_FOUND),
        ("memory://images/b.png", LIMITS, Reason.NOT_AN_IMAGE),
        ("memory://images/b.png", LimitsConfig(max_bytes=4), Reason.FILE_TOO_LARGE),
        ("file:///dev/zero", LIMITS, Reason.NOT_A_FILE),
    ],
)
def test_an_error_states_why_there_is_no_result(
    memory: Any, name: str, limits: LimitsConfig, reason: Reason
) -> None:
    with pytest.raises(ImageRefusedError) as caught:
        read_anywhere(name, limits)
    assert caught.value.reason == reason


def test_a_storage_is_asked_again_before_a_file_is_given_up(
    memory: Any, image_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "_WAITS", (0.0, 0.0))
    memory.pipe("/images/image.png", image_file.read_bytes())
    real, failures = type(memory).cat_file, [2]

    def unsteady(storage: Any, *given: Any, **named: Any) -> bytes:
        failures[0] -= 1
        if failures[0] >= 0:
            raise ConnectionResetError("connection reset")
        return bytes(real(storage, *given, **named))

    monkeypatch.setattr(type(memory), "cat_file", unsteady)
    assert read_anywhere("memory://images/image.png", LIMITS).pixels.shape == (40, 48)
    failures[0] = 3
    with pytest.raises(ImageRefusedError, match=r"3 times \(connection reset\)"):
        read_anywhere("memory://images/image.png", LIMITS)


def test_a_storage_that_nothing_knows_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="Give a URL that fsspec supports"):
        list(expand_anywhere(["nowhere://images/a.png"]))


@pytest.mark.engines
def test_http_a_list_of_links_is_a_folder(tmp_path: Path, image_file: Path) -> None:
    pytest.importorskip("aiohttp", reason="aiohttp is not installed (extra ray)")

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.png").write_bytes(image_file.read_bytes())
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    top = f"http://127.0.0.1:{server.server_port}"
    try:
        assert list(expand_anywhere([f"{top}/"])) == [f"{top}/image.png", f"{top}/sub/b.png"]
        found = read_anywhere(f"{top}/sub/b.png", LIMITS)
        np.testing.assert_array_equal(found.pixels, read_image(image_file).pixels)
        with pytest.raises(ImageRefusedError) as caught:
            read_anywhere(f"{top}/none.png", LIMITS)
        assert caught.value.reason == Reason.NOT_FOUND
    finally:
        server.shutdown()
        server.server_close()
