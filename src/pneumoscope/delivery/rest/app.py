"""The ASGI application with all routes, and the files of the web page.

Each result comes from one `Predictor`. The page's files are in `web/`, and `/docs` is rendered from
the OpenAPI document. All of them are in the package; no page loads anything from another server.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from functools import partial
from importlib import resources
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from jinja2 import Environment
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse

from pneumoscope.config import LimitsConfig, ServeConfig
from pneumoscope.delivery.rest import documents
from pneumoscope.delivery.rest.documents import Wanted
from pneumoscope.delivery.rest.guard import (
    HELD,
    ClientGoneError,
    Guard,
    Problem,
    RequestError,
    error_response,
    overloaded,
)
from pneumoscope.delivery.rest.logs import CONTENT_TYPE, LOGGER
from pneumoscope.delivery.rest.service import Service, hung_up
from pneumoscope.inference.predictor import Predictor

_TYPES = {
    "index.html": "text/html; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
    "app.js": "text/javascript; charset=utf-8",
    "server.js": "text/javascript; charset=utf-8",
    "batch.js": "text/javascript; charset=utf-8",
    "dropped.js": "text/javascript; charset=utf-8",
    "viewer.js": "text/javascript; charset=utf-8",
    "planner.js": "text/javascript; charset=utf-8",
    "session.js": "text/javascript; charset=utf-8",
    "words.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
"""Every file that is served, with its type: nothing else can be asked for."""

PAGE_FILES = tuple(name for name in _TYPES if name != "index.html")

_NDJSON = "application/x-ndjson"
_NO_TELEMETRY: Any = dict.fromkeys(
    ("tracing", "metrics", "logs", "operation_spans", "auto_configure"), False
)
"""Off: FastAPI would report requests and exceptions to wherever the environment says."""

_CLIENT_GONE = 499
"""The status that nginx logs for a client that disconnected; no client receives it."""

DESCRIPTION = (
    "Classifies chest X-rays as pneumonia or normal. Research software: not a medical device, not "
    "for decisions about patients. Images are held in memory while they are scored, and nowhere "
    "else."
)


def page_file(name: str) -> Response:
    """One file of the page."""
    return Response(_read(name), media_type=_TYPES[name])


def docs_page(document: dict[str, Any]) -> HTMLResponse:
    """The OpenAPI document for people to read, without a script."""
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_read("docs.html.j2").decode("utf-8"))
    return HTMLResponse(
        template.render(
            api=document,
            routes=list(_routes(document)),
            schemas=document.get("components", {}).get("schemas", {}),
            named=_named,
        )
    )


def _read(name: str) -> bytes:
    return resources.files("pneumoscope.delivery").joinpath("web", name).read_bytes()


def _routes(document: dict[str, Any]) -> Any:
    for path, methods in document["paths"].items():
        for method, route in methods.items():
            yield {"path": path, "method": method.upper(), **route}


def _named(schema: dict[str, Any]) -> str:
    """A schema in few words."""
    if "$ref" in schema:
        return str(schema["$ref"]).rsplit("/", 1)[-1]
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_named(one) for one in schema["anyOf"]))
    if "enum" in schema:
        return " or ".join(json.dumps(one) for one in schema["enum"])
    if "const" in schema:
        return json.dumps(schema["const"])
    if schema.get("format") == "binary":
        return "file"
    if schema.get("type") == "array":
        return f"one or more: {_named(schema.get('items', {}))}"
    return str(schema.get("title") or schema.get("type", "JSON"))


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
        config: limits of requests; defaults if omitted.
        limits: limits for reading one image; defaults if omitted.
        keys: API keys, one of which each request must send; empty: no key is required.
        hosts: accepted values of the header `Host`; `None`: all, for a caller that checks them.
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
    _add_predictions(app, service)
    _add_state(app, service)
    _add_pages(app)
    _add_errors(app)
    routes = {"/openapi.json", *app.openapi()["paths"], *(f"/{n}" for n in PAGE_FILES)}
    routes |= {"/", "/docs"}
    return Guard(app, config, keys, service.metrics, routes, hosts)


def _add_predictions(app: FastAPI, service: Service) -> None:
    @app.post(
        "/v1/predictions",
        summary="Score one image",
        openapi_extra=documents.form(many=False),
        responses=documents.responses(
            {"model": documents.Row, "description": "the result"},
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
        """One row of `predictions.csv` as JSON, with images on request."""
        (upload,) = await service.receive(request, 1)
        try:
            found = await service.predict(upload, Wanted(heatmap, preview), hung_up(request))
            # A client that reads slowly holds its connection only.
            request.scope[HELD].close()
        except TimeoutError as error:
            words = f"no result within {service.config.timeout:g} s"
            raise overloaded(words, service.queue.expected) from error
        return JSONResponse(found.body, found.status)

    @app.post(
        "/v1/predictions/batch",
        summary="Score several images, line by line",
        openapi_extra=documents.form(many=True),
        response_class=StreamingResponse,
        responses=documents.responses(
            {
                "content": {_NDJSON: {"schema": documents.Line.model_json_schema()}},
                "description": "a line per image",
            },
            *(400, 401, 408, 413, 415, 429, 503),
        ),
    )
    async def predict_batch(
        request: Request, heatmap: bool = False, preview: bool = False
    ) -> Response:
        """Several files; returns a line of JSON for each, in order, as soon as it is scored.

        A rejected image has a row with its reason.
        """
        uploads = await service.receive(request, service.config.max_files)
        lines = service.lines(request, uploads, Wanted(heatmap, preview))
        return StreamingResponse(lines, media_type=_NDJSON)


def _add_state(app: FastAPI, service: Service) -> None:
    @app.get("/v1/model", summary="The model, its threshold and its validation")
    async def model() -> dict[str, Any]:
        """The model that scores here."""
        return service.model_document

    @app.get("/healthz", summary="Whether the process is alive", response_model=documents.State)
    async def healthz() -> dict[str, str]:
        """Always 200."""
        return {"status": "ok"}

    @app.get(
        "/readyz",
        summary="Whether images are scored",
        responses={200: {"model": documents.State}, 503: {"model": documents.State}},
    )
    async def readyz() -> Response:
        """200 once the engine is warm, until the server stops."""
        return JSONResponse({"status": service.state}, 200 if service.state == "ok" else 503)

    @app.get("/metrics", summary="Counters for Prometheus", response_class=Response)
    async def metrics() -> Response:
        """Latency, results, rejections, scores and their drift."""
        return Response(service.metrics.text(), headers={"Content-Type": CONTENT_TYPE})


def _add_pages(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return page_file("index.html")

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return docs_page(app.openapi())

    for name in PAGE_FILES:
        app.add_api_route(
            f"/{name}", partial(_file, name), methods=["GET"], include_in_schema=False
        )


async def _file(name: str) -> Response:
    return page_file(name)


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
        words = "internal error (bug); the server's log states where"
        return error_response(RequestError(500, Problem.DEFECT, words))
