"""The application: every route.

Comes in: a `Predictor`, a configuration, keys. Goes out: an ASGI application. Every answer comes
from a `Predictor`, as everywhere. Knows nothing of sockets, signals or bundles' files.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException

from pneumoscope.config import LimitsConfig, ServeConfig
from pneumoscope.delivery.rest import documents, pages
from pneumoscope.delivery.rest.documents import Wanted
from pneumoscope.delivery.rest.guard import HELD, Guard, error_response
from pneumoscope.delivery.rest.logs import CONTENT_TYPE, LOGGER
from pneumoscope.delivery.rest.problems import ClientGoneError, Problem, RequestError, overloaded
from pneumoscope.delivery.rest.service import Service, hung_up
from pneumoscope.inference.predictor import Predictor

_NDJSON = "application/x-ndjson"
_NO_TELEMETRY: Any = dict.fromkeys(
    ("tracing", "metrics", "logs", "operation_spans", "auto_configure"), False
)
"""FastAPI would report requests and exceptions wherever the environment tells it to."""

_CLIENT_GONE = 499
"""nginx's code for a client that hung up; nobody receives it."""

DESCRIPTION = (
    "Tells pneumonia from normal on chest X-rays. Research software: not a medical device, not for "
    "decisions about patients. Images are held in memory while they are answered for, and nowhere "
    "else."
)


def build_app(
    predictor: Predictor,
    config: ServeConfig | None = None,
    limits: LimitsConfig | None = None,
    keys: Collection[str] = (),
    hosts: Collection[str] | None = None,
) -> Guard:
    """The whole application around one model.

    Args:
        predictor: the model.
        config: what is taken on; defaults if left out.
        limits: what a film may cost; defaults if left out.
        keys: API keys, of which each request must bring one; none: no key is wanted.
        hosts: names that requests may ask by, of which `serve` gives those of its settings; `None`
            leaves that to who runs the application.
    """
    config = config or ServeConfig()
    service = Service(predictor, config, limits or LimitsConfig(max_bytes=config.max_upload))

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(service.warm_up)
        yield
        service.state = "stopping"
        service.pipeline.close()
        service.processes.close()

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
    return Guard(app, config, keys, service.metrics, routes, hosts)


def _add_answers(app: FastAPI, service: Service) -> None:
    @app.post(
        "/v1/predictions",
        summary="Result for one film",
        openapi_extra=documents.form(many=False),
        responses=documents.responses(
            {"model": documents.Row, "description": "the answer"},
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
            found = await service.answer(upload, Wanted(heatmap, preview), hung_up(request))
            # A client that takes its time to read holds nothing but its connection.
            request.scope[HELD].close()
        except TimeoutError as error:
            words = f"no answer within {service.config.timeout:g} s"
            raise overloaded(words, service.queue.expected) from error
        return JSONResponse(found.body, found.status)

    @app.post(
        "/v1/predictions/batch",
        summary="Result for several films, line by line",
        openapi_extra=documents.form(many=True),
        response_class=StreamingResponse,
        responses=documents.responses(
            {
                "content": {_NDJSON: {"schema": documents.Line.model_json_schema()}},
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

    @app.get("/healthz", summary="Whether the process lives", response_model=documents.State)
    async def healthz() -> dict[str, str]:
        """Always 200."""
        return {"status": "ok"}

    @app.get(
        "/readyz",
        summary="Whether films are answered for",
        responses={200: {"model": documents.State}, 503: {"model": documents.State}},
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
