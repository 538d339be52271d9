"""What a request may cost: rooms, time, memory, rate, keys. And what is reported of it."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.testclient import TestClient

from pneumoscope.config import ServeConfig
from pneumoscope.delivery.rest import logs
from pneumoscope.delivery.rest.documents import Wanted
from pneumoscope.delivery.rest.guard import ClientGoneError, RateLimit, RequestError
from pneumoscope.delivery.rest.logs import Metrics, stability_index
from pneumoscope.delivery.rest.server import api_keys, bind, check_tls
from pneumoscope.delivery.rest.service import Service, WorkQueue
from pneumoscope.delivery.rest.upload import Memory, Upload
from pneumoscope.errors import UsageError
from pneumoscope.inference.predictor import Predictor
from pneumoscope.records import Prediction
from support.fake_service import LIMITS, MeanBackend, fake_app, fake_predictor, xray_png

ONE = "/v1/predictions"
FILES = {"file": ("secret-name.png", xray_png())}


def asked(app: Any, ask: Callable[[httpx.AsyncClient], Awaitable[None]]) -> None:
    """Several requests at once to an application in this very loop."""

    async def run() -> None:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            await asyncio.wait_for(ask(client), 30)

    asyncio.run(run())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def test_more_than_there_is_room_for_is_turned_away_and_the_rest_scored() -> None:
    backend = MeanBackend()
    backend.gate.clear()
    app = fake_app(backend, readers=1, requests=3, longest_wait=1e6)

    async def ask(client: httpx.AsyncClient) -> None:
        taken = [asyncio.create_task(client.post(ONE, files=FILES)) for _ in range(3)]
        await until(lambda: backend.begun == 1)
        late = await client.post(ONE, files=FILES)
        assert late.status_code == 503
        assert late.json()["reason"] == "overloaded"
        assert int(late.headers["Retry-After"]) >= 1
        assert (await client.get("/healthz")).status_code == 200
        backend.gate.set()
        assert [(await task).status_code for task in taken] == [200] * 3
        assert (await client.post(ONE, files=FILES)).status_code == 200

    asked(app, ask)


def test_who_would_wait_too_long_is_turned_away_at_once() -> None:
    async def run() -> None:
        queue = WorkQueue(ServeConfig(requests=1000, longest_wait=1.0))
        queue.cost = 0.25
        with ExitStack() as held:
            for _ in range(4):
                held.enter_context(queue.taken_on())
            queue.cost = 0.5
            with pytest.raises(RequestError) as rejected, queue.taken_on():
                pytest.fail("was taken on")
            assert rejected.value.status == 503
            assert rejected.value.headers["Retry-After"] == "2"  # 2.5 s less the allowed one
        queue.cost = 30.0
        with queue.taken_on():  # a slow machine scores one at a time
            assert queue.requests == 1

    asyncio.run(run())


async def never() -> None:
    await asyncio.Event().wait()


def test_cost_is_that_of_the_machine_and_follows_the_images() -> None:
    """Ten images at once that take 0.2 s together cost it 0.02 s each."""

    async def run() -> None:
        queue = WorkQueue(ServeConfig())
        queue.cost = 100.0
        with ThreadPoolExecutor(1) as pool:
            assert await queue.result(pool.submit(lambda: 42), never()) == 42
            assert queue.cost == pytest.approx(90, abs=0.1)
            with pytest.raises(ZeroDivisionError):
                await queue.result(pool.submit(lambda: 1 // 0), never())
            await until(lambda: queue.images == 0)
            queue.cost = 0.1
            for _ in range(8):
                jobs = [queue.result(pool.submit(time.sleep, 0.02), never()) for _ in range(10)]
                await asyncio.gather(*jobs)
                await until(lambda: queue.images == 0)
        assert 0.01 < queue.cost < 0.05

    asyncio.run(run())


def test_what_nobody_waits_for_is_not_begun() -> None:
    backend = MeanBackend()
    backend.gate.clear()

    async def run() -> None:
        queue = WorkQueue(ServeConfig())
        left = asyncio.Event()
        done: list[int] = []

        async def gone() -> None:
            await left.wait()

        with ThreadPoolExecutor(1) as pool:
            jobs: list[Future[Any]] = [
                pool.submit(backend.gate.wait),
                pool.submit(done.append, 1),
            ]
            waiting = [asyncio.create_task(queue.result(job, gone())) for job in jobs]
            await until(lambda: queue.images == 2)
            left.set()
            for task in waiting:
                with pytest.raises(ClientGoneError):
                    await task
            await until(lambda: queue.images == 1)  # a thread can't be stopped
            backend.gate.set()
            await until(lambda: queue.images == 0)
        assert done == []

    asyncio.run(run())


def test_who_leaves_a_batch_ends_all_its_images_and_nobody_complains() -> None:
    backend = MeanBackend()
    complaints: list[dict[str, Any]] = []

    async def run() -> None:
        loop, left = asyncio.get_running_loop(), asyncio.Event()
        loop.set_exception_handler(lambda _, told: complaints.append(told))

        async def receive() -> dict[str, str]:
            await left.wait()
            return {"type": "http.disconnect"}

        service = Service(fake_predictor(backend), ServeConfig(readers=1), LIMITS)
        request = Request({"type": "http", "headers": []}, receive)
        uploads = [Upload(f"{k}.png", xray_png(), 1) for k in range(100)]
        backend.gate.clear()
        lines = service.lines(request, uploads, Wanted())
        asking = asyncio.create_task(anext(lines, None))
        await until(lambda: backend.begun == 1)
        left.set()
        assert await asking is None
        backend.gate.set()
        await until(lambda: service.queue.images == 0)
        assert backend.begun < 10  # of a hundred
        gc.collect()  # tasks whose end nobody heard of would be told now
        await asyncio.sleep(0)

    asyncio.run(run())
    assert complaints == []


def test_images_that_take_too_long_are_given_up() -> None:
    backend = MeanBackend()
    backend.gate.clear()
    app = fake_app(backend, readers=1, timeout=0.1, longest_wait=100.0)

    async def ask(client: httpx.AsyncClient) -> None:
        response = await client.post(ONE, files=FILES)
        assert response.status_code == 503
        assert "Retry-After" in response.headers
        batch = await client.post(ONE + "/batch", files=[("file", xray_png())])
        (line,) = map(json.loads, batch.text.splitlines())
        assert (line["status"], line["reason"]) == ("error", "internal_error")
        assert "no result within" in line["detail"]
        backend.gate.set()

    asked(app, ask)


def test_bodies_that_dawdle_are_given_up() -> None:
    app = fake_app(timeout=0.1)

    async def body() -> AsyncIterator[bytes]:
        yield b"--x\r\n"
        await asyncio.sleep(5)

    async def ask(client: httpx.AsyncClient) -> None:
        kind = {"Content-Type": "multipart/form-data; boundary=x"}
        response = await client.post(ONE, content=body(), headers=kind)
        assert (response.status_code, response.json()["reason"]) == (408, "timed_out")

    asked(app, ask)


def test_files_too_large_are_rejected_before_they_are_whole() -> None:
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    sent: list[int] = []

    async def endless() -> AsyncIterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\n'
        for number in range(100):
            sent.append(number)
            yield bytes(1 << 16)

    async def ask(client: httpx.AsyncClient) -> None:
        response = await client.post(ONE, content=endless(), headers=kind)
        assert (response.status_code, response.json()["reason"]) == (413, "file_too_large")
        assert len(sent) == 5
        stated = await client.post(ONE, content=b"", headers=kind | {"Content-Length": "9" * 12})
        assert stated.status_code == 413

    asked(fake_app(max_upload=1 << 18), ask)


def test_memory_of_all_bodies_is_bounded_and_given_back() -> None:
    backend = MeanBackend()
    backend.gate.clear()
    app = fake_app(backend, max_held=3000, max_upload=3000, longest_wait=100.0)
    large = {"file": ("a.png", xray_png() + bytes(1500))}

    async def ask(client: httpx.AsyncClient) -> None:
        first = asyncio.create_task(client.post(ONE, files=large))
        await until(lambda: backend.begun == 1)
        second = await client.post(ONE, files=large)
        assert (second.status_code, second.json()["reason"]) == (503, "overloaded")
        backend.gate.set()
        assert (await first).status_code in {200, 422}
        assert (await client.post(ONE, files=large)).status_code == (await first).status_code
        assert "pneumoscope_bytes_held 0.0" in (await client.get("/metrics")).text

    asked(app, ask)


def test_memory_counts() -> None:
    memory = Memory(10)
    with ExitStack() as held:
        memory.take(6, held)
        memory.take(4, held)
        with pytest.raises(RequestError):
            memory.take(1, held)
        assert memory.held == 10
    assert memory.held == 0


def test_rate_is_per_address_and_forgives() -> None:
    rate = RateLimit(2.0, 3)
    assert [rate.wait("a", 0.0) for _ in range(4)] == [0, 0, 0, 0.5]
    assert rate.wait("b", 0.0) == 0
    assert rate.wait("a", 0.25) == pytest.approx(0.25)
    assert rate.wait("a", 0.5) == 0
    assert rate.wait("a", 100.0) == 0
    assert [RateLimit(0.0, 1).wait("a", 0.0) for _ in range(9)] == [0] * 9


def test_client_that_asks_too_often_learns_when_to_come_back() -> None:
    with TestClient(fake_app(rate=0.01, burst=2)) as client:
        found = [client.post(ONE, files=FILES) for _ in range(3)]
        assert [response.status_code for response in found] == [200, 200, 429]
        assert int(found[2].headers["Retry-After"]) > 50
        assert client.get("/v1/model").status_code == 200


def test_key_is_wanted_where_there_is_one() -> None:
    keys = ("a" * 20, "b" * 20)
    with TestClient(fake_app(keys=keys)) as client:
        for path in ("/", "/docs", "/healthz", "/readyz", "/app.js"):
            assert client.get(path).status_code == 200
        for path in ("/v1/model", "/metrics"):
            rejected = client.get(path)
            assert (rejected.status_code, rejected.json()["reason"]) == (401, "no_key")
        for given in ("", "a" * 19, "a" * 21, "ü" * 10):
            headers = {b"X-API-Key": given.encode()}
            assert client.post(ONE, files=FILES, headers=headers).status_code == 401
        for key in keys:
            assert client.post(ONE, files=FILES, headers={"X-API-Key": key}).status_code == 200


def test_keys_come_from_file_and_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "keys"
    path.write_text(f"{'k' * 16}\n\n {'l' * 16} \n")
    assert api_keys(ServeConfig()) == ()
    monkeypatch.setenv("PNEUMOSCOPE_API_KEY", "m" * 16)
    assert set(api_keys(ServeConfig(api_key_file=str(path)))) == {letter * 16 for letter in "klm"}
    path.write_text("short\n")
    with pytest.raises(UsageError, match="5 characters"):
        api_keys(ServeConfig(api_key_file=str(path)))
    path.write_text("\n")
    with pytest.raises(UsageError, match="holds no key"):
        api_keys(ServeConfig(api_key_file=str(path)))
    with pytest.raises(UsageError, match="can't be read"):
        api_keys(ServeConfig(api_key_file=str(tmp_path / "none")))


@pytest.mark.parametrize(
    ("host", "reached"),
    [
        *(("127.0.0.1", False), ("127.8.9.1", False), ("::1", False), ("LocalHost", False)),
        *(("0.0.0.0", True), ("::", True), ("10.0.0.7", True), ("", True)),  # noqa: S104
        *(("127.0.0.1.example", True), ("localhost.example", True)),
    ],
)
def test_beyond_loopback_a_key_is_required(
    host: str, reached: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reached:
        with pytest.raises(UsageError, match=r"PNEUMOSCOPE_API_KEY.*--no-api-key"):
            api_keys(ServeConfig(host=host))
    else:
        assert api_keys(ServeConfig(host=host)) == ()
    assert api_keys(ServeConfig(host=host, no_api_key=True)) == ()
    monkeypatch.setenv("PNEUMOSCOPE_API_KEY", "m" * 16)
    for allowed in (False, True):
        assert api_keys(ServeConfig(host=host, no_api_key=allowed)) == ("m" * 16,)


def test_port_that_is_taken_and_files_that_are_not_there() -> None:
    with bind(ServeConfig(port=0)).socket as taken:
        port = taken.getsockname()[1]
        assert taken.getsockname()[0] == "127.0.0.1"
        with pytest.raises(UsageError, match="can't listen there"):
            bind(ServeConfig(port=port))
    with pytest.raises(UsageError, match="Give both"):
        check_tls(ServeConfig(tls_certificate=__file__))


def told_of(app: Any, *contents: bytes) -> list[dict[str, Any]]:
    """The log while images are scored."""
    stream = io.StringIO()
    logs.write_json_lines(logging.DEBUG, stream)
    with TestClient(app, raise_server_exceptions=False) as client:
        for content in contents:
            client.post(ONE + "?path=secret", files={"file": ("secret.png", content)})
        client.get("/secret/SMITH^JOHN")
    return [json.loads(line) for line in stream.getvalue().splitlines()]


@pytest.fixture
def own_loggers() -> Any:
    before = {
        name: (logger.handlers[:], logger.level, logger.propagate)
        for name in ("pneumoscope", "uvicorn")
        if (logger := logging.getLogger(name))
    }
    yield
    for name, (handlers, level, propagate) in before.items():
        logger = logging.getLogger(name)
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(level)


@pytest.mark.usefixtures("own_loggers")
def test_log_reports_what_happened_and_of_nobody() -> None:
    lines = told_of(fake_app(), xray_png(), b"text")
    images = [line for line in lines if line["event"] == "film"]
    assert [(line["status"], line["reason"]) for line in images] == [
        *(("ok", None), ("refused", "not_an_image"))
    ]
    codes = [(line["route"], line["code"]) for line in lines if line["event"] == "request"]
    assert codes == [(ONE, 200), (ONE, 415), ("other", 404)]
    text = json.dumps(lines)
    assert "secret" not in text
    assert "SMITH" not in text
    assert "probability" not in text


@pytest.mark.usefixtures("own_loggers")
def test_defect_is_reported_without_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    read = Predictor.prepare_bytes

    def fails(self: Predictor, content: bytes, name: str, **how: Any) -> Any:
        if name != "nothing":  # of the start
            raise KeyError("SMITH^JOHN")
        return read(self, content, name, **how)

    app = fake_app()
    monkeypatch.setattr(Predictor, "prepare_bytes", fails)
    with TestClient(app, raise_server_exceptions=False) as client:
        response = client.post(ONE, files=FILES)
        assert (response.status_code, response.json()["reason"]) == (500, "internal_error")
        assert "SMITH" not in response.text
        assert "pneumoscope_requests_under_way 0.0" in client.get("/metrics").text
    lines = told_of(fake_app(), xray_png())
    (defect,) = (line for line in lines if line["event"] == "defect")
    assert defect["exception"] == "KeyError"
    assert any("fails" in frame for frame in defect["where"])
    assert "SMITH" not in json.dumps(lines)


def test_metrics_count_images_and_scores() -> None:
    with TestClient(fake_app()) as client:
        for content in (xray_png(30), xray_png(220), b"text"):
            client.post(ONE, files={"file": content})
        lines = client.get("/metrics").text.splitlines()
    numbers = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    rejected = 'pneumoscope_films_total{prediction="",reason="not_an_image",status="refused"}'
    assert numbers[rejected] == "1.0"
    assert numbers["pneumoscope_probability_count"] == "2.0"
    assert numbers['pneumoscope_requests_total{code="415",route="/v1/predictions"}'] == "1.0"
    assert numbers['pneumoscope_request_seconds_count{route="/v1/predictions"}'] == "3.0"
    assert numbers["pneumoscope_input_score_mean"] == "NaN"  # this model does not measure it
    assert numbers["pneumoscope_probability_shift"] == "NaN"  # of two images


def test_the_shift_of_probabilities_is_reported_from_200_images_on() -> None:
    validation = {"curves": {"histogram": {"normal": [100, 0], "pneumonia": [0, 100]}}}
    metrics = Metrics(validation)

    def shift() -> float:
        lines = metrics.text().decode().splitlines()
        (line,) = (x for x in lines if x.startswith("pneumoscope_probability_shift "))
        return float(line.split()[1])

    for k in range(199):
        metrics.count_image(Prediction("x", "ok", probability=(0.1, 0.9)[k % 2]))
    assert math.isnan(shift())
    metrics.count_image(Prediction("x", "ok", probability=0.9))
    assert shift() == pytest.approx(0)
    for _ in range(300):
        metrics.count_image(Prediction("x", "ok", probability=0.9))
    assert shift() > 0.25


def test_stability_index_is_that_of_the_book() -> None:
    p, q = (10.5 / 21, 10.5 / 21), (0.5 / 5, 4.5 / 5)
    by_hand = sum((a - b) * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert stability_index([10, 10], [0.9, 0.8, 1.0, 0.5]) == pytest.approx(by_hand)
    assert stability_index([2, 2], [0.1, 0.2, 0.7, 0.8]) == pytest.approx(0)
    assert math.isnan(stability_index([], [0.5]))
    assert math.isnan(stability_index([1, 1], []))
