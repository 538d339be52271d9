"""`download`, from every source, without a network."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pneumoscope.data import sources
from pneumoscope.data.download import HUGGINGFACE_NAME, KAGGLE_NAME, Hubs
from pneumoscope.data.folders import SplitCount, find_data_folder
from pneumoscope.data.sources import KERMANY_COUNTS, download
from pneumoscope.errors import (
    DataError,
    ExtraMissingError,
    MissingError,
    NetworkError,
    UnsafeArchiveError,
    UsageError,
)

SMALL_COUNTS = (SplitCount("train", 3, 5), SplitCount("val", 1, 1), SplitCount("test", 2, 2))
SCHEMA: dict[str, Any] = {
    "image": pl.Struct({"bytes": pl.Binary, "path": pl.String}),
    "label": pl.Int64,
}


def jpeg(text: str) -> bytes:
    return b"\xff\xd8\xff\xe0" + text.encode() + bytes(40)


def members(root: str, counts: tuple[SplitCount, ...] = SMALL_COUNTS) -> dict[str, bytes]:
    names = [
        f"{root}{count.split}/{name}/{name}-{n}.jpeg"
        for count in counts
        for name, number in (("NORMAL", count.normal), ("PNEUMONIA", count.pneumonia))
        for n in range(number)
    ]
    return {name: jpeg(name.removeprefix(root)) for name in names}


def make_zip(path: Path, content: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


def make_tree(root: Path, content: dict[str, bytes]) -> Path:
    for name, data in content.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def make_shards(folder: Path, counts: tuple[SplitCount, ...] = SMALL_COUNTS) -> Path:
    folder.mkdir(parents=True)
    for count in counts:
        labels = [0] * count.normal + [1] * count.pneumonia
        rows = [{"bytes": jpeg(f"{count.split}{n}"), "path": None} for n, _ in enumerate(labels)]
        name = "validation" if count.split == "val" else count.split
        table = pl.DataFrame({"image": rows, "label": labels}, schema=SCHEMA)
        table.write_parquet(folder / f"{name}-00000-of-00001.parquet")
    return folder


def files(out: Path) -> dict[str, bytes]:
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*") if p.is_file()}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PNEUMOSCOPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path / "cache"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that the Kermany set has 14 images."""
    monkeypatch.setattr(sources, "KERMANY_COUNTS", SMALL_COUNTS)


Handler = Callable[..., http.server.BaseHTTPRequestHandler]


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.fixture
def serve() -> Iterator[Callable[[Handler], str]]:
    running: list[tuple[http.server.ThreadingHTTPServer, threading.Thread]] = []

    def start(handler: Handler) -> str:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        running.append((server, thread))
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield start
    for server, thread in running:
        server.shutdown()
        thread.join()
        server.server_close()


def test_kermany_counts_are_the_published_ones() -> None:
    assert sum(c.normal + c.pneumonia for c in KERMANY_COUNTS) == 5856
    assert [(c.normal, c.pneumonia) for c in KERMANY_COUNTS] == [(1341, 3875), (8, 8), (234, 390)]


def test_local_zip(tmp_path: Path) -> None:
    content = members("a/chest_xray/")
    archive = make_zip(tmp_path / "set.zip", content | {"a/readme.txt": b"x"})
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    out = tmp_path / "deep" / "out"
    report = download(str(archive), out, sha256=digest)
    found = files(out)
    attribution = found.pop("ATTRIBUTION.md").decode()
    assert found == members("")
    assert report.out == out
    assert report.images == SMALL_COUNTS
    assert report.bytes == sum(len(data) for data in content.values())
    assert report.skipped == 1
    assert dict(report.sha256) == {"set.zip": digest}
    assert "not known" in report.licence
    for words in (digest, "set.zip", "train 3/5, val 1/1, test 2/2", "doi:10.17632/rscbjbr9sj.2"):
        assert words in attribution
    assert archive.exists()
    assert {path.name for path in out.parent.iterdir()} == {"out"}
    assert {path.name for path in out.iterdir()} == {"train", "val", "test", "ATTRIBUTION.md"}


def test_the_folder_may_exist_if_empty(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "set.zip", members(""))
    out = tmp_path / "out"
    out.mkdir()
    download(str(archive), out)
    assert (out / "test" / "NORMAL").is_dir()


def test_kermany_numbers_in_a_zip_give_its_licence(tmp_path: Path, small: None) -> None:
    report = download(str(make_zip(tmp_path / "set.zip", members(""))), tmp_path / "out")
    assert report.licence.startswith("CC BY 4.0")


def test_classes_without_splits_in_any_letter_case(tmp_path: Path) -> None:
    content = {"x/normal/a.jpeg": jpeg("a"), "x/Pneumonia/b.jpeg": jpeg("b")}
    report = download(str(make_zip(tmp_path / "set.zip", content)), tmp_path / "out")
    assert report.images == (SplitCount(None, 1, 1),)
    assert set(files(tmp_path / "out")) == {
        "NORMAL/a.jpeg",
        "PNEUMONIA/b.jpeg",
        "ATTRIBUTION.md",
    }


def test_the_outer_of_two_nested_sets_is_taken_once(tmp_path: Path) -> None:
    content = members("chest_xray/") | members("chest_xray/chest_xray/")
    content |= {f"chest_xray/__MACOSX/{name}": data for name, data in members("").items()}
    report = download(str(make_zip(tmp_path / "set.zip", content)), tmp_path / "out")
    assert report.images == SMALL_COUNTS
    assert report.skipped == 28
    assert {n for n in files(tmp_path / "out") if n != "ATTRIBUTION.md"} == set(members(""))


def test_another_set_with_a_normal_folder_does_not_mislead(tmp_path: Path) -> None:
    content = members("CellData/chest_xray/")
    content |= {"CellData/OCT/train/NORMAL/o.jpeg": jpeg("o")}
    content |= {"CellData/OCT/train/DRUSEN/d.jpeg": jpeg("d")}
    assert download(str(make_zip(tmp_path / "s.zip", content)), tmp_path / "out").images == (
        SMALL_COUNTS
    )


def test_a_split_with_one_class_is_kept(tmp_path: Path) -> None:
    content = {
        "train/NORMAL/a.jpeg": jpeg("a"),
        "train/PNEUMONIA/b.jpeg": jpeg("b"),
        "test/NORMAL/c.jpeg": jpeg("c"),
    }
    report = download(str(make_zip(tmp_path / "s.zip", content)), tmp_path / "out")
    assert report.images == (SplitCount("train", 1, 1), SplitCount("test", 1, 0))


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ({"a/NORMAL/a.jpeg": jpeg("a")}, "both NORMAL/ and PNEUMONIA/"),
        ({"readme.txt": b"hello"}, "both NORMAL/ and PNEUMONIA/"),
        ({}, "both NORMAL/ and PNEUMONIA/"),
        (members("a/") | members("b/"), "several data sets beside each other: a, b"),
        (
            {f"{name}/x.jpeg": jpeg(name) for name in ("NORMAL", "normal", "PNEUMONIA")},
            "NORMAL/x.jpeg exists twice",
        ),
        ({"NORMAL/a.jpeg": b"text", "PNEUMONIA/b.jpeg": b"text"}, "no folder with images"),
    ],
)
def test_archives_without_a_data_set(tmp_path: Path, content: dict[str, bytes], fault: str) -> None:
    archive = make_zip(tmp_path / "set.zip", content)
    with pytest.raises(DataError, match=fault):
        download(str(archive), tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"set.zip"}


def test_an_unsafe_archive_leaves_nothing(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "set.zip", members("") | {"../NORMAL/evil.jpeg": jpeg("e")})
    with pytest.raises(UnsafeArchiveError, match="evil"):
        download(str(archive), tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"set.zip"}


def test_wrong_digest_of_a_local_zip(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "set.zip", members(""))
    with pytest.raises(DataError, match="wanted 0000"):
        download(str(archive), tmp_path / "out", sha256="0" * 64)
    assert archive.exists()


@pytest.mark.parametrize(
    ("source", "sha256", "fault"),
    [
        ("nowhere.zip", None, "does not exist"),
        (".", None, "is already a folder"),
        ("ftp://host.example/a.zip", None, "not an address"),
        ("set.zip", "abc", "64 hexadecimal"),
        ("kaggle", "0" * 64, "zip file only"),
        ("huggingface", "0" * 64, "zip file only"),
    ],
)
def test_wrong_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, sha256: str | None, fault: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=fault):
        download(source, tmp_path / "out", sha256=sha256)
    assert not list(tmp_path.iterdir())


def test_out_that_is_not_empty(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "set.zip", members(""))
    with pytest.raises(UsageError, match="is a file"):
        download(str(archive), archive)
    taken = make_tree(tmp_path / "out", {"mine.txt": b"mine"})
    with pytest.raises(UsageError, match="not empty"):
        download(str(archive), taken)
    assert files(taken) == {"mine.txt": b"mine"}
    with pytest.raises(UsageError, match="can't be made"):
        download(str(archive), archive / "out")


def test_a_full_disk_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sources, "publish", full)
    archive = make_zip(tmp_path / "set.zip", members(""))
    with pytest.raises(MissingError, match="no space left"):
        download(str(archive), tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"set.zip"}


def test_url(tmp_path: Path, cache: Path, serve: Callable[[Handler], str]) -> None:
    web = tmp_path / "web"
    web.mkdir()
    archive = make_zip(web / "set.zip", members("chest_xray/"))
    url = serve(partial(QuietHandler, directory=web)) + "/set.zip"
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    report = download(url + "?token=secret", tmp_path / "out", sha256=digest)
    assert report.images == SMALL_COUNTS
    assert report.source == url
    assert dict(report.sha256) == {url: digest}
    assert b"secret" not in (tmp_path / "out" / "ATTRIBUTION.md").read_bytes()
    assert not list((cache / "downloads").iterdir())


def test_url_of_a_broken_archive_is_not_kept(
    tmp_path: Path, cache: Path, serve: Callable[[Handler], str]
) -> None:
    web = make_tree(tmp_path / "web", {"set.zip": b"<html>please log in</html>"})
    url = serve(partial(QuietHandler, directory=web)) + "/set.zip"
    with pytest.raises(DataError, match=f"{url} is not a zip file"):
        download(url, tmp_path / "out")
    assert not list((cache / "downloads").iterdir())
    assert not (tmp_path / "out").exists()


def test_huggingface(tmp_path: Path, small: None) -> None:
    revision = "0123456789" * 4
    asked: list[tuple[object, ...]] = []

    def snapshot_download(name: str, *, repo_type: str, allow_patterns: list[str]) -> str:
        asked.append((name, repo_type, *allow_patterns))
        make_shards(tmp_path / revision / "data")
        return str(tmp_path / revision)

    report = download("huggingface", tmp_path / "out", hubs=Hubs(snapshot_download))
    assert asked == [(HUGGINGFACE_NAME, "dataset", "**/*.parquet", "*.parquet")]
    assert report.images == SMALL_COUNTS
    assert revision in report.source
    assert "patients are unknown" in report.warnings[0]
    assert report.licence.startswith("CC BY 4.0")
    assert set(report.sha256) == {
        f"data/{name}-00000-of-00001.parquet" for name in ("train", "validation", "test")
    }
    found = files(tmp_path / "out")
    assert found["val/PNEUMONIA/val-00000-00001.jpeg"] == jpeg("val1")
    assert len(found) == 15


def test_kaggle(tmp_path: Path, small: None) -> None:
    tree = make_tree(tmp_path / "kaggle", members("chest_xray/"))
    make_tree(tree, members("chest_xray/chest_xray/"))
    make_tree(tree, {"chest_xray/__MACOSX/chest_xray/train/NORMAL/._a.jpeg": b"\x00\x05"})
    make_tree(tree, {"chest_xray/train/NORMAL/.DS_Store": b"x"})
    make_tree(tree, members("__MACOSX/"))
    asked: list[str] = []

    def dataset_download(name: str) -> str:
        asked.append(name)
        return str(tree)

    report = download("kaggle", tmp_path / "out", hubs=Hubs(None, dataset_download))
    assert asked == [KAGGLE_NAME]
    assert report.images == SMALL_COUNTS
    assert report.skipped == 30
    assert set(report.sha256) == {"images"}
    assert (tree / "chest_xray/train/NORMAL/NORMAL-0.jpeg").exists()
    again = download("kaggle", tmp_path / "again", hubs=Hubs(None, dataset_download))
    assert again.sha256 == report.sha256


def test_other_counts_than_those_of_the_kermany_set_are_rejected(tmp_path: Path) -> None:
    def snapshot_download(*_: object, **__: object) -> str:
        return str(tmp_path / "shards")

    make_shards(tmp_path / "shards")
    with pytest.raises(DataError, match="found train 3/5, val 1/1, test 2/2") as caught:
        download("huggingface", tmp_path / "out", hubs=Hubs(snapshot_download))
    assert "wanted train 1,341/3,875, val 8/8, test 234/390" in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "error",
    [ConnectionError("no route to host"), FileNotFoundError("not cached"), OSError("HTTP 503")],
)
@pytest.mark.parametrize("source", ["huggingface", "kaggle"])
def test_network_failures(tmp_path: Path, source: str, error: OSError) -> None:
    def fail(*_: object, **__: object) -> str:
        raise error

    with pytest.raises(NetworkError, match=str(error)) as caught:
        download(source, tmp_path / "out", hubs=Hubs(fail, fail))
    for words in ("doi:10.17632/rscbjbr9sj.2", KAGGLE_NAME, "--source FILE.zip --out DIR"):
        assert words in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_output_of_a_client_stays_off_stdout(
    tmp_path: Path, small: None, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = make_tree(tmp_path / "kaggle", members(""))

    def dataset_download(_: str) -> str:
        sys.stdout.write("Downloading…")
        return str(tree)

    download("kaggle", tmp_path / "out", hubs=Hubs(None, dataset_download))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Downloading" in captured.err


@pytest.mark.parametrize(
    ("source", "package"), [("huggingface", "huggingface_hub"), ("kaggle", "kagglehub")]
)
def test_missing_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ExtraMissingError, match=r"pneumoscope\[download\]"):
        download(source, tmp_path / "out")


def test_links_in_a_tree_are_skipped(tmp_path: Path) -> None:
    secret = make_tree(tmp_path / "secret", {"s.jpeg": jpeg("s")})
    tree = make_tree(tmp_path / "tree", members("set/"))
    (tree / "set/train/NORMAL/link.jpeg").symlink_to(secret / "s.jpeg")
    (tree / "set/train/more").symlink_to(secret)
    (tree / "again").symlink_to(tree / "set")
    assert find_data_folder(tree) == tree / "set"

    def dataset_download(_: str) -> str:
        return str(tree)

    with pytest.raises(DataError, match="found train 3/5"):
        download("kaggle", tmp_path / "out", hubs=Hubs(None, dataset_download))


class HubHandler(QuietHandler):
    """The four responses of a Hugging Face hub that `snapshot_download` requests."""

    revision = "0123456789abcdef" * 2 + "01234567"

    def __init__(self, *args: object, shards: Path) -> None:
        self.shards = shards
        super().__init__(*args)  # type: ignore[arg-type]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        api = f"/api/datasets/{HUGGINGFACE_NAME}"
        if path == f"{api}/revision/main":
            self._respond(json.dumps({"id": HUGGINGFACE_NAME, "sha": self.revision}).encode())
        elif path == f"{api}/tree/{self.revision}":
            listed = [
                {
                    "type": "file",
                    "path": f"data/{p.name}",
                    "size": p.stat().st_size,
                    "oid": "1" * 40,
                }
                for p in sorted(self.shards.iterdir())
            ]
            readme = {"type": "file", "path": "README.md", "size": 1, "oid": "2" * 40}
            self._respond(json.dumps([*listed, readme]).encode())
        elif path.startswith(f"/datasets/{HUGGINGFACE_NAME}/resolve/{self.revision}/data/"):
            self._respond((self.shards / Path(path).name).read_bytes())
        else:
            self.send_error(404)

    def _respond(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", self.revision)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


_REAL_CLIENT = """
import sys
from pathlib import Path
from pneumoscope.data import sources
from pneumoscope.data.folders import SplitCount
from pneumoscope.errors import PneumoscopeError
sources.KERMANY_COUNTS = (
    SplitCount("train", 3, 5), SplitCount("val", 1, 1), SplitCount("test", 2, 2)
)
try:
    report = sources.download("huggingface", Path(sys.argv[1]))
except PneumoscopeError as error:
    sys.exit(f"{type(error).__name__}: {error}")
print(report.source)
"""


def real_client(out: Path, endpoint: str) -> subprocess.CompletedProcess[str]:
    """Run the real huggingface_hub in a separate process, since it reads HF_ENDPOINT on import."""
    environment = os.environ | {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(out.parent / "hf"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
    }
    command = [sys.executable, "-c", _REAL_CLIENT, str(out)]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_real_huggingface_client(tmp_path: Path, serve: Callable[[Handler], str]) -> None:
    pytest.importorskip("huggingface_hub")
    shards = make_shards(tmp_path / "shards")
    done = real_client(tmp_path / "out", serve(partial(HubHandler, shards=shards)))
    assert done.returncode == 0, done.stderr
    assert HubHandler.revision in done.stdout
    assert len(files(tmp_path / "out")) == 15
    assert "README.md" not in files(tmp_path / "hf")


def test_real_huggingface_client_without_a_network(tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    done = real_client(tmp_path / "out", "http://127.0.0.1:9")
    assert done.returncode == 1
    assert "NetworkError: Hugging Face's" in done.stderr
    assert "Traceback" not in done.stderr
    assert "FILE.zip" in done.stderr
