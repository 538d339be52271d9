"""The application: every route, and what it is made of.

Comes in: a `Predictor`, a configuration, keys. Goes out: an ASGI application. Every answer comes
from a `Predictor`, as everywhere. Knows nothing of sockets, signals or bundles' files.
"""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Collection
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from pneumoscope.config import LimitsConfig, ServeConfig
from pneumoscope.delivery.rest import pages, schemas
from pneumoscope.delivery.rest.documents import (
    Document,
    Wanted,
    http_status,
    model_document,
    model_id,
    pictures,
    prediction_document,
    too_large,
)
from pneumoscope.delivery.rest.guard import HELD, Guard, error_response
from pneumoscope.delivery.rest.logs import LOGGER, event
from pneumoscope.delivery.rest.metrics import CONTENT_TYPE, Metrics
from pneumoscope.delivery.rest.pipeline import PASSES, Pipeline
from pneumoscope.delivery.rest.problems import ClientGoneError, Problem, RequestError, overloaded
from pneumoscope.delivery.rest.upload import Memory, Upload, UploadLimits, receive_files
from pneumoscope.delivery.rest.work import WorkQueue
from pneumoscope.errors import Reason
from pneumoscope.images.memory import keep_freed_memory
from pneumoscope.inference.decoding import threads
from pneumoscope.inference.predictor import Answer, Predictor
from pneumoscope.records import Prediction

_NDJSON = "application/x-ndjson"
_NO_TELEMETRY: Any = dict.fromkeys(
    ("tracing", "metrics", "logs", "operation_spans", "auto_configure"), False
)
"""FastAPI would report requests and exceptions wherever the environment tells it to."""

_AHEAD = 2 * PASSES[-1]
"""Films of a request that are under way at once."""

_CLIENT_GONE = 499
"""nginx's code for a client that hung up; nobody receives it."""

DESCRIPTION = (
    "Tells pneumonia from normal on chest X-rays. Research software: not a medical device, not for "
    "decisions about patients. Images are held in memory while they are answered for, and nowhere "
    "else."
)


class Service:
    """What the routes share: the model, the queue before it, and the counters.

    Args:
        predictor: the model.
        config: what is taken on.
        limits: what a film may cost.
    """

    def __init__(self, predictor: Predictor, config: ServeConfig, limits: LimitsConfig) -> None:
        self.config = config
        self.predictor = predictor.adapted(limits, PASSES)
        # As many readers as `predict` has: their pixels stay in the processor's caches, and memory
        # is bounded, however many films wait for the engine.
        self.pipeline = Pipeline(self.predictor, config.readers or threads())
        self.model = model_id(predictor.manifest)
        self.model_document = model_document(predictor.manifest, predictor.precision)
        self.queue = WorkQueue(config)
        self.memory = Memory(config.max_held)
        self.metrics = Metrics(predictor.manifest.validation)
        self.metrics.gauge(
            "pneumoscope_requests_under_way", "requests", lambda: self.queue.requests
        )
        self.metrics.gauge(
            "pneumoscope_cost_seconds", "of the machine per film", lambda: self.queue.cost
        )
        self.metrics.gauge("pneumoscope_bytes_held", "of bodies", lambda: self.memory.held)
        self.state = "starting"

    def warm_up(self) -> None:
        """Make the engine ready, and see what a film costs: a drawn one of 2 megapixels."""
        keep_freed_memory(shared=True)
        self.predictor.warm_up()
        film = _nothing()
        self.pipeline.submit(film, "nothing").result()
        began = time.perf_counter()
        self.pipeline.submit(film, "nothing").result()
        self.queue.cost = time.perf_counter() - began
        self.state = "ok"

    async def receive(self, request: Request, files: int) -> list[Upload]:
        """The files of a request, held in memory until it is over.

        Raises:
            RequestError: the body is refused, or there is no room.
            ClientGoneError: it ended early.
        """
        held: ExitStack = request.scope[HELD]
        held.enter_context(self.queue.taken_on())

        async def body() -> AsyncIterator[bytes]:
            async for chunk in request.stream():
                self.memory.take(len(chunk), held)
                yield chunk

        limits = UploadLimits(files, self.config.max_upload, self.config.max_held)
        headers = request.headers
        try:
            async with asyncio.timeout(self.config.timeout):
                return await receive_files(
                    headers.get("content-type", ""),
                    headers.get("content-length", ""),
                    body(),
                    limits,
                )
        except TimeoutError as error:
            words = f"the body did not come in within {self.config.timeout:g} s"
            raise RequestError(408, Problem.TIMED_OUT, words) from error
        except ClientDisconnect as error:
            raise ClientGoneError("the client hung up while it sent") from error

    async def answer(self, upload: Upload, wanted: Wanted, gone: Awaitable[None]) -> Document:
        """The document for one film.

        Args:
            upload: the film.
            wanted: pictures beside the row.
            gone: ends when nobody waits for it any more.

        Raises:
            TimeoutError: it took too long.
            ClientGoneError: nobody waits for it.
        """
        async with asyncio.timeout(self.config.timeout):
            answer = await self._answer(upload, wanted, gone)
            body = prediction_document(answer.prediction, self.model) | {"heatmap": None}
            if wanted.pictures:
                draw = partial(pictures, answer, wanted, self.predictor.manifest.preprocessing)
                loop = asyncio.get_running_loop()
                body |= await loop.run_in_executor(self.pipeline.readers, draw)
        self.count(answer.prediction)
        return Document(http_status(answer.prediction), body, answer.prediction)

    async def _answer(self, upload: Upload, wanted: Wanted, gone: Awaitable[None]) -> Answer:
        if upload.too_large:
            return too_large(upload, self.config.max_upload)
        name, keep = upload.name, wanted.pictures
        return await self.queue.result(
            self.pipeline.submit(upload.content, name, keep_image=keep), gone
        )

    def count(self, prediction: Prediction) -> None:
        """Write down a film's answer: in metrics, and in the log without its score."""
        self.metrics.count_film(prediction)
        reason = prediction.reason.value if prediction.reason else None
        event("film", status=prediction.status, reason=reason)

    async def lines(
        self, request: Request, uploads: list[Upload], wanted: Wanted
    ) -> AsyncIterator[bytes]:
        """A line of JSON for every file, in order, each as soon as it is answered for.

        Others are read meanwhile, so many that the engine has whole passes.
        """
        gone = asyncio.ensure_future(_hung_up(request))
        remaining = iter(uploads)
        flying: deque[asyncio.Task[Document]] = deque()

        def begin(count: int) -> None:
            for upload in islice(remaining, count):
                work = self._row(upload, wanted, asyncio.shield(gone))
                flying.append(asyncio.create_task(work))

        try:
            begin(_AHEAD)
            for number in range(len(uploads)):
                try:
                    body = (await flying.popleft()).body
                except ClientGoneError:
                    return
                begin(1)
                body |= {"index": number, "done": number + 1, "total": len(uploads)}
                yield json.dumps(body, allow_nan=False).encode() + b"\n"
        finally:
            for task in flying:
                task.cancel()
            gone.cancel()

    async def _row(self, upload: Upload, wanted: Wanted, gone: Awaitable[None]) -> Document:
        """The document for one film of many: one that takes too long must not end the others."""
        try:
            return await self.answer(upload, wanted, gone)
        except TimeoutError:
            reason = Reason.INTERNAL_ERROR
            words = f"no answer within {self.config.timeout:g} s. Send it again"
            late = Prediction(upload.name, reason.status, reason, detail=words)
            self.count(late)
            return Document(http_status(late), prediction_document(late, self.model), late)


def build_app(
    predictor: Predictor,
    config: ServeConfig | None = None,
    limits: LimitsConfig | None = None,
    keys: Collection[str] = (),
) -> Guard:
    """The whole application around one model.

    Args:
        predictor: the model.
        config: what is taken on; defaults if left out.
        limits: what a film may cost; defaults if left out.
        keys: API keys, of which each request must bring one; none: no key is wanted.
    """
    config = config or ServeConfig()
    service = Service(predictor, config, limits or LimitsConfig(max_bytes=config.max_upload))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(service.warm_up)
        yield
        service.state = "stopping"
        service.pipeline.close()

    app = FastAPI(
        title="pneumoscope",
        version=predictor.manifest.pneumoscope_version or "0",
        description=DESCRIPTION,
        telemetry=_NO_TELEMETRY,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    _add_answers(app, service)
    _add_state(app, service)
    _add_pages(app)
    _add_errors(app)
    routes = {"/openapi.json", *app.openapi()["paths"], *(f"/{n}" for n in pages.PAGE_FILES)}
    routes |= {"/", "/docs"}
    return Guard(app, config, keys, service.metrics, routes)


def _add_answers(app: FastAPI, service: Service) -> None:
    @app.post(
        "/v1/predictions",
        summary="Answer for one film",
        openapi_extra=schemas.form(many=False),
        responses=schemas.answers(
            {"model": schemas.Row, "description": "the answer"},
            400,
            401,
            408,
            413,
            415,
            422,
            429,
            500,
            503,
        ),
    )
    async def predict(request: Request, heatmap: bool = False, preview: bool = False) -> Response:
        """One row, as the command line writes it; with pictures if asked for."""
        (upload,) = await service.receive(request, 1)
        try:
            found = await service.answer(upload, Wanted(heatmap, preview), _hung_up(request))
        except TimeoutError as error:
            words = f"no answer within {service.config.timeout:g} s"
            raise overloaded(words, service.queue.expected) from error
        return JSONResponse(found.body, found.status)

    @app.post(
        "/v1/predictions/batch",
        summary="Answer for several films, line by line",
        openapi_extra=schemas.form(many=True),
        response_class=StreamingResponse,
        responses=schemas.answers(
            {
                "content": {_NDJSON: {"schema": schemas.Line.model_json_schema()}},
                "description": "a line per film",
            },
            *(400, 401, 408, 413, 415, 429, 503),
        ),
    )
    async def predict_batch(
        request: Request, heatmap: bool = False, preview: bool = False
    ) -> Response:
        """The field several times; a line of JSON for each film, in order, as it is done.

        A film that is refused has its row and reason like any other.
        """
        uploads = await service.receive(request, service.config.max_files)
        lines = service.lines(request, uploads, Wanted(heatmap, preview))
        return StreamingResponse(lines, media_type=_NDJSON)


def _add_state(app: FastAPI, service: Service) -> None:
    @app.get("/v1/model", summary="The model, its threshold and its validation")
    async def model() -> dict[str, Any]:
        """What answers here."""
        return service.model_document

    @app.get("/healthz", summary="Whether the process lives", response_model=schemas.State)
    async def healthz() -> dict[str, str]:
        """Always 200."""
        return {"status": "ok"}

    @app.get(
        "/readyz",
        summary="Whether films are answered for",
        responses={200: {"model": schemas.State}, 503: {"model": schemas.State}},
    )
    async def readyz() -> Response:
        """200 from when the engine is warm until the server stops."""
        return JSONResponse({"status": service.state}, 200 if service.state == "ok" else 503)

    @app.get("/metrics", summary="Counters for Prometheus", response_class=Response)
    async def metrics() -> Response:
        """Latency, answers, refusals, scores and their drift."""
        return Response(service.metrics.text(), headers={"Content-Type": CONTENT_TYPE})


def _add_pages(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return pages.page_file("index.html")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return pages.docs_page(app.openapi())

    for name in pages.PAGE_FILES:
        app.add_api_route(
            f"/{name}", partial(_file, name), methods=["GET"], include_in_schema=False
        )


async def _file(name: str) -> Response:
    return pages.page_file(name)


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(RequestError)
    async def refused(_: Request, error: RequestError) -> Response:
        return error_response(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        return error_response(RequestError(400, Problem.BAD_REQUEST, f"{where}: {first['msg']}"))

    @app.exception_handler(HTTPException)
    async def unknown(_: Request, error: HTTPException) -> Response:
        told = RequestError(error.status_code, Problem.NOT_FOUND, f"{error.detail}. See /docs")
        told.headers = dict(error.headers or {})
        return error_response(told)

    @app.exception_handler(ClientGoneError)
    async def gone(_: Request, error: ClientGoneError) -> Response:
        return Response(status_code=_CLIENT_GONE)

    @app.exception_handler(Exception)
    async def defect(_: Request, error: Exception) -> Response:
        LOGGER.error("defect", exc_info=error)
        words = "a defect of ours; the server's log says where"
        return error_response(RequestError(500, Problem.DEFECT, words))


def _nothing() -> bytes:
    """A JPEG of 2 megapixels that shows a ramp."""
    from PIL import Image

    ramp = np.linspace(0, 255, 1600).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(np.broadcast_to(ramp, (1250, 1600)).copy()).save(stream, "JPEG")
    return stream.getvalue()


async def _hung_up(request: Request) -> None:
    """Ends when the client closes the connection; the body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
