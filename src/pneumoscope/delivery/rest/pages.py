"""Responses for browsers: the files of `web/`, and `/docs`, rendered from the OpenAPI document.

All files are in the package; no page loads anything from another server.
"""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

from jinja2 import Environment
from starlette.responses import HTMLResponse, Response

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
