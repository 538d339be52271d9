"""Downloading one file, from a server on this machine that can be made to fail."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pneumoscope.data.download import TransferLimits, fetch, shown_url
from pneumoscope.errors import DataError, NetworkError, UsageError
from pneumoscope.progress import Task

CONTENT = b"".join(hashlib.sha256(bytes([n % 256, n // 256])).digest() for n in range(40_000))
DIGEST = hashlib.sha256(CONTENT).hexdigest()
LIMITS = TransferLimits(connect_seconds=2, silence_seconds=2)


class Server(ThreadingHTTPServer):
    """Serves `content`; each request takes one entry of `cuts` and one of `statuses`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.etag = '"first"'
        self.modified = ""
        self.ranges = True
        self.length = True
        self.obeys_if_range = True
        self.cuts: list[int] = []
        self.statuses: list[int] = []
        self.location = ""
        self.drips = False
        self.requests: list[dict[str, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/set.zip"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        server.requests.append(dict(self.headers))
        if self.path == "/set.zip" and server.location:
            return self._head(302, {"Location": server.location})
        if server.statuses and (status := server.statuses.pop(0)) != 200:
            return self._head(status, {"Content-Length": "0"})
        start = self._start()
        if start is not None and start >= len(server.content):
            return self._head(416, {"Content-Range": f"bytes */{len(server.content)}"})
        body = server.content[start or 0 :]
        headers = {"ETag": server.etag, "Last-Modified": server.modified}
        if server.length:
            headers["Content-Length"] = str(len(body))
        if start is not None:
            end = len(server.content) - 1
            headers["Content-Range"] = f"bytes {start}-{end}/{len(server.content)}"
        self._head(200 if start is None else 206, {k: v for k, v in headers.items() if v})
        if server.drips:
            with contextlib.suppress(OSError):
                for place in range(len(body)):
                    self.wfile.write(body[place : place + 1])
                    time.sleep(0.02)
            return None
        self.wfile.write(body[: server.cuts.pop(0)] if server.cuts else body)
        return None

    def _start(self) -> int | None:
        """The first requested byte, if the file is still the version of the client."""
        wanted = self.headers.get("Range")
        if not self.server.ranges or wanted is None:
            return None
        same = self.headers.get("If-Range") in (self.server.etag, self.server.modified)
        if self.server.obeys_if_range and not same:
            return None
        return int(wanted.removeprefix("bytes=").removesuffix("-"))

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


class Naps:
    """Replaces `time.sleep`."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)


class Megabytes:
    """A `Progress` that records its calls."""

    def __init__(self) -> None:
        self.tasks: list[tuple[int, str]] = []
        self.done = 0

    def advance(self, count: int = 1, note: str = "") -> None:
        self.done += count

    @contextmanager
    def task(self, title: str, total: int, unit: str) -> Iterator[Task]:
        self.tasks.append((total, unit))
        self.done = 0
        yield self


def left_in(folder: Path) -> set[str]:
    return {path.suffix for path in folder.iterdir()}


def test_whole_file(server: Server, tmp_path: Path) -> None:
    progress = Megabytes()
    path = fetch(server.url, tmp_path, progress, sha256=DIGEST.upper(), limits=LIMITS)
    assert path.read_bytes() == CONTENT
    assert left_in(tmp_path) == {".zip"}
    assert progress.tasks == [(2, "MB")]
    assert progress.done == 1  # whole megabytes of 1.28
    assert server.requests[0]["Accept-Encoding"] == "identity"


def test_complete_file_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    fetch(server.url, tmp_path, limits=LIMITS)
    fetch(server.url, tmp_path, limits=LIMITS)
    assert len(server.requests) == 1


def test_resumes_where_the_connection_broke(server: Server, tmp_path: Path) -> None:
    server.cuts = [700_000, 300_000]
    naps = Naps()
    path = fetch(server.url, tmp_path, limits=LIMITS, sleep=naps)
    assert path.read_bytes() == CONTENT
    starts = [request.get("Range") for request in server.requests]
    assert starts == [None, "bytes=700000-", "bytes=1000000-"]
    assert server.requests[1]["If-Range"] == '"first"'
    assert naps.seconds == [1.0, 1.0]  # both tries gained bytes


def test_resumes_in_a_later_call(server: Server, tmp_path: Path) -> None:
    server.cuts = [500_000, 0, 0, 0, 0]
    naps = Naps()
    with pytest.raises(NetworkError, match="resumes the download"):
        fetch(server.url, tmp_path, limits=LIMITS, sleep=naps)
    assert naps.seconds == [1.0, 1.0, 2.0, 4.0]
    (note,) = tmp_path.glob("*.json")
    assert json.loads(note.read_text())["etag"] == '"first"'
    server.cuts = []
    assert fetch(server.url, tmp_path, limits=LIMITS).read_bytes() == CONTENT
    assert server.requests[-1]["Range"] == "bytes=500000-"


def test_a_stop_by_the_user_keeps_the_received_bytes(server: Server, tmp_path: Path) -> None:
    class Stop(Megabytes):
        def advance(self, count: int = 1, note: str = "") -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(server.url, tmp_path, Stop(), limits=LIMITS)
    assert fetch(server.url, tmp_path, limits=LIMITS).read_bytes() == CONTENT
    assert int(server.requests[-1]["Range"][6:-1]) >= 900_000


def test_server_without_ranges_starts_again(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    server.cuts = [700_000]
    path = fetch(server.url, tmp_path, limits=LIMITS, sleep=Naps())
    assert path.read_bytes() == CONTENT


def test_attempts_are_limited_without_ranges(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    server.cuts = [700_000] * 50
    with pytest.raises(NetworkError, match="after 4 tries"):
        fetch(server.url, tmp_path, limits=LIMITS, sleep=Naps())
    assert len(server.requests) <= 5


@pytest.mark.parametrize("obeys", [True, False])
def test_another_version_starts_again(server: Server, tmp_path: Path, obeys: bool) -> None:
    server.cuts = [700_000, 0, 0, 0, 0]
    with pytest.raises(NetworkError):
        fetch(server.url, tmp_path, limits=LIMITS, sleep=Naps())
    server.content, server.etag = CONTENT[::-1], '"second"'
    server.obeys_if_range = obeys
    server.cuts = []
    path = fetch(server.url, tmp_path, limits=LIMITS, sleep=Naps())
    assert path.read_bytes() == CONTENT[::-1]


def test_a_shorter_version_starts_again(server: Server, tmp_path: Path) -> None:
    server.cuts = [700_000, 0, 0, 0, 0]
    with pytest.raises(NetworkError):
        fetch(server.url, tmp_path, limits=LIMITS, sleep=Naps())
    server.content, server.obeys_if_range, server.cuts = CONTENT[:1000], False, []
    path = fetch(server.url, tmp_path, limits=LIMITS, sleep=Naps())
    assert path.read_bytes() == CONTENT[:1000]


def test_a_part_that_is_already_whole(server: Server, tmp_path: Path) -> None:
    path = fetch(server.url, tmp_path, limits=LIMITS)
    path.rename(path.with_suffix(".part"))
    path.with_suffix(".json").write_text('{"etag": "\\"first\\"", "last_modified": ""}')
    assert fetch(server.url, tmp_path, limits=LIMITS).read_bytes() == CONTENT
    assert server.requests[-1]["Range"] == f"bytes={len(CONTENT)}-"


@pytest.mark.parametrize(
    ("etag", "modified", "resumes"),
    [('W/"weak"', "", False), ("", "", False), ('W/"weak"', formatdate(0, usegmt=True), True)],
)
def test_only_a_strong_validator_resumes(
    server: Server, tmp_path: Path, etag: str, modified: str, resumes: bool
) -> None:
    server.etag, server.modified = etag, modified
    server.cuts = [700_000]
    path = fetch(server.url, tmp_path, limits=LIMITS, sleep=Naps())
    assert path.read_bytes() == CONTENT
    assert ("Range" in server.requests[-1]) is resumes


@pytest.mark.parametrize("note", ["", "[]", "{}", "not JSON", '{"etag": "x"}'])
def test_a_broken_note_starts_again(server: Server, tmp_path: Path, note: str) -> None:
    path = fetch(server.url, tmp_path, limits=LIMITS)
    path.rename(path.with_suffix(".part"))
    path.with_suffix(".json").write_text(note)
    assert fetch(server.url, tmp_path, limits=LIMITS).read_bytes() == CONTENT
    assert "Range" not in server.requests[-1]


def test_500_then_ok(server: Server, tmp_path: Path) -> None:
    server.statuses = [500, 503, 429]
    naps = Naps()
    assert fetch(server.url, tmp_path, limits=LIMITS, sleep=naps).read_bytes() == CONTENT
    assert naps.seconds == [1.0, 2.0, 4.0]


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_refusals_are_not_repeated(server: Server, tmp_path: Path, status: int) -> None:
    server.statuses = [status]
    with pytest.raises(NetworkError, match=str(status)) as caught:
        fetch(server.url, tmp_path, limits=LIMITS, sleep=Naps())
    assert len(server.requests) == 1
    for words in ("doi:10.17632/rscbjbr9sj.2", "--source FILE.zip"):
        assert words in str(caught.value)


def test_no_server_responds(server: Server, tmp_path: Path) -> None:
    url = server.url
    server.shutdown()
    server.server_close()
    with pytest.raises(NetworkError, match=r"FILE\.zip") as caught:
        fetch(url, tmp_path, limits=LIMITS, sleep=Naps())
    assert caught.value.exit_code == 4


def test_wrong_digest_removes_the_file(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=DIGEST) as caught:
        fetch(server.url, tmp_path, sha256="0" * 64, limits=LIMITS)
    assert "0" * 64 in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("length", [True, False])
def test_size_limit(server: Server, tmp_path: Path, length: bool) -> None:
    server.length = length
    limits = TransferLimits(max_bytes=1_000_000)
    with pytest.raises(DataError, match="1,000,000"):
        fetch(server.url, tmp_path, limits=limits)
    assert not list(tmp_path.iterdir())


def test_unknown_length(server: Server, tmp_path: Path) -> None:
    server.length = False
    assert fetch(server.url, tmp_path, limits=LIMITS).read_bytes() == CONTENT


def test_redirects(server: Server, tmp_path: Path) -> None:
    server.location = "/elsewhere"
    assert fetch(server.url, tmp_path / "a", limits=LIMITS).read_bytes() == CONTENT
    for bad in ("/set.zip", "ftp://127.0.0.1/set.zip"):
        server.location = bad
        with pytest.raises(NetworkError, match="redirects"):
            fetch(server.url, tmp_path / "b", limits=LIMITS, sleep=Naps())


@pytest.mark.parametrize(
    "url", ["ftp://a/b.zip", "file:///etc/passwd", "http://", "http://a:b/", "x"]
)
def test_other_addresses_are_usage_errors(tmp_path: Path, url: str) -> None:
    with pytest.raises(UsageError):
        fetch(url, tmp_path)


def test_shown_url_has_no_secret() -> None:
    shown = shown_url("https://user:secret@host.example/a.zip?token=secret#secret")
    assert shown == "https://host.example/a.zip"


def test_a_slow_server_is_given_up_though_each_try_gains_a_byte(
    server: Server, tmp_path: Path
) -> None:
    server.drips = True
    limits = TransferLimits(silence_seconds=0.1, attempts=2)
    with pytest.raises(NetworkError, match=r"only [0-9]+ bytes were received"):
        fetch(server.url, tmp_path, limits=limits, sleep=Naps())
    assert len(server.requests) == 2
