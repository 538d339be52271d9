"""Names, sites and prefixes: who may ask, what other sites may read, where the page lies."""

from __future__ import annotations

import re
from typing import Any

import pytest
from starlette.testclient import TestClient

from pneumoscope.config import ServeConfig
from pneumoscope.delivery.rest.app import build_app
from pneumoscope.delivery.rest.server import allowed_hosts
from pneumoscope.errors import UsageError
from support.fake_service import LIMITS, fake_predictor, xray_png

FILES = {"file": ("a.png", xray_png())}


def client(hosts: tuple[str, ...] | None = None, keys: tuple[str, ...] = (), **how: Any) -> Any:
    return TestClient(build_app(fake_predictor(), ServeConfig(**how), LIMITS, keys, hosts))


def test_hosts_are_those_of_this_machine_and_those_added() -> None:
    assert allowed_hosts(ServeConfig()) == ("localhost", "127.0.0.1", "[::1]", "127.0.0.1")
    config = ServeConfig(host="::", allowed_host=("pneumo.example",))
    assert allowed_hosts(config)[-2:] == ("[::]", "pneumo.example")
    with pytest.raises(UsageError, match="without scheme or port"):
        allowed_hosts(ServeConfig(allowed_host=("http://x",)))


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("pneumo.example", 200),
        ("PNEUMO.example:8443", 200),
        ("evil.example", 421),
        ("pneumo.example.evil.example", 421),
        ("pneumo.example@evil.example", 421),
        ("[::1]:8000", 421),
    ],
)
def test_the_name_counts_and_not_the_port(host: str, status: int) -> None:
    with client(("pneumo.example",)) as asking:
        got = asking.get("/v1/model", headers={"Host": host})
    assert got.status_code == status
    if status == 421:
        assert got.json()["reason"] == "wrong_host"
        assert "--allowed-host" in got.json()["detail"]


@pytest.mark.parametrize(
    ("host", "origin", "status"),
    [
        ("a.example", "http://a.example", 200),
        ("a.example", "https://a.example", 200),  # TLS may end before
        ("a.example:8443", "https://a.example:8443", 200),
        ("a.example:443", "https://a.example", 200),
        ("a.example", "https://a.example:8443", 403),
        ("a.example", "http://b.example", 403),
        ("a.example", "file://", 403),
        ("a.example", "null", 403),
        ("a.example", "", 403),
    ],
)
def test_only_its_own_page_may_write(host: str, origin: str, status: int) -> None:
    with client() as asking:
        headers = {"Host": host, "Origin": origin}
        got = asking.post("/v1/predictions", files=FILES, headers=headers)
        assert got.status_code == status
        assert asking.get("/healthz", headers=headers).status_code == 200


def test_other_sites_may_read_by_option_alone() -> None:
    viewer = {"Origin": "https://viewer.example"}
    asked = viewer | {"Access-Control-Request-Method": "POST"}
    with client() as asking:
        assert "access-control-allow-origin" not in asking.get("/v1/model", headers=viewer).headers
        assert asking.options("/v1/predictions", headers=asked).status_code == 403
    with client(allowed_origin=("https://viewer.example",), keys=("k" * 20,)) as asking:
        before = asking.options("/v1/predictions", headers=asked)  # which brings no key
        assert before.status_code == 204
        assert before.headers["access-control-allow-origin"] == "https://viewer.example"
        assert "X-API-Key" in before.headers["access-control-allow-headers"]
        got = asking.post("/v1/predictions", files=FILES, headers=viewer | {"X-API-Key": "k" * 20})
        assert got.status_code == 200
        assert got.headers["access-control-allow-origin"] == "https://viewer.example"
        evil = {"Origin": "https://evil.example"}
        assert asking.post("/v1/predictions", files=FILES, headers=evil).status_code == 403
        assert "access-control-allow-origin" not in asking.get("/healthz", headers=evil).headers


@pytest.mark.parametrize("path", ["/pneumo/v1/model", "/v1/model"])
def test_a_prefix_is_left_out_or_taken_off_by_the_proxy(path: str) -> None:
    with client(root_path="/pneumo", keys=("k" * 20,)) as asking:
        assert asking.get(path).status_code == 401  # a prefix is no way around the key
        assert asking.get(path, headers={"X-API-Key": "k" * 20}).status_code == 200
        for page in ("/pneumo/", "/"):
            assert asking.get(page).status_code == 200
        # Without the slash the page's relative addresses would lead beside it.
        moved = asking.get("/pneumo", follow_redirects=False)
        assert (moved.status_code, moved.headers["location"]) == (308, "/pneumo/")
        assert asking.get("/pneumoscope/").status_code == 404


def test_pages_name_nothing_by_an_absolute_path() -> None:
    with client() as asking:
        names = re.findall(r'src="([^"]+)"', asking.get("/").text)
        assert "app.js" in names
        for path in ("/", "/docs", *(f"/{n}" for n in names if n.endswith(".js"))):
            text = asking.get(path).text
            assert not re.findall(r'(?:href|src|from|fetch\()[ =]*"/', text), path


def test_head_has_the_response_of_get_without_a_body() -> None:
    with client() as asking:
        for path in ("/healthz", "/readyz", "/", "/metrics", "/v1/model"):
            got = asking.head(path)
            assert (got.status_code, got.content) == (200, b"")
        assert asking.head("/none").status_code == 404
        assert asking.head("/v1/predictions").status_code == 405
