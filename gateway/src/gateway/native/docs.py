"""/openapi.json, and /docs: an interactive page of it made of packaged files only."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from swagger_ui_bundle import swagger_ui_path

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>Tunesmith API</title>
<link rel="stylesheet" href="/docs/swagger-ui.css">
<link rel="icon" type="image/png" href="/docs/favicon-32x32.png" sizes="32x32">
</head>
<body>
<div id="swagger-ui"></div>
<script src="/docs/swagger-ui-bundle.js"></script>
<script src="/docs/start.js"></script>
</body>
</html>
"""
# A link may carry a token after the "#", which no server sees: it is used and taken out of the address bar.
_START = """window.addEventListener("load", () => {
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (token) history.replaceState(null, "", location.pathname);
  const ui = SwaggerUIBundle({
    url: "/docs/openapi.json", dom_id: "#swagger-ui", deepLinking: true, tryItOutEnabled: true, validatorUrl: null,
    onComplete: () => { if (token) ui.preauthorizeApiKey("bearer", token); },
  });
});
"""
_ASSETS = {
    "swagger-ui.css": "text/css",
    "swagger-ui-bundle.js": "text/javascript",
    "favicon-32x32.png": "image/png",
}
# The page sets style attributes and shows inline images; everything else comes from here.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_PAGE_HEADERS = {"content-security-policy": _POLICY}


def docs_routes(build: Callable[[], dict[str, Any]]) -> list[BaseRoute]:
    """The routes; build makes the document when it is first asked for."""
    document = cache(lambda: orjson.dumps(build()))
    for_page = cache(lambda: orjson.dumps(as_openapi_30(build())))

    async def openapi(_: Request) -> Response:
        return Response(document(), media_type="application/json")

    async def openapi_for_page(_: Request) -> Response:
        return Response(for_page(), media_type="application/json")

    async def page(_: Request) -> Response:
        return Response(_PAGE, media_type="text/html", headers=_PAGE_HEADERS)

    async def start(_: Request) -> Response:
        return Response(_START, media_type="text/javascript")

    return [
        Route("/openapi.json", openapi),
        Route("/docs", page),
        Route("/docs/openapi.json", openapi_for_page),
        Route("/docs/start.js", start),
        *(Route(f"/docs/{name}", _asset(name, kind)) for name, kind in _ASSETS.items()),
    ]


def _asset(name: str, media_type: str) -> Callable[[Request], Any]:
    async def asset(_: Request) -> Response:
        content = (Path(str(swagger_ui_path)) / name).read_bytes()
        return Response(content, media_type=media_type, headers={"cache-control": "max-age=86400"})

    return asset


def as_openapi_30(document: Any) -> Any:
    """The document as OpenAPI 3.0, which is the newest that the packaged page reads."""
    converted: dict[str, Any] = _to_30(document)
    return {**converted, "openapi": "3.0.3"}


def _to_30(value: Any) -> Any:
    if isinstance(value, list):
        return [_to_30(item) for item in value]
    if not isinstance(value, dict):
        return value
    schema = {name: _to_30(item) for name, item in value.items()}
    for name, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if isinstance(schema.get(name), int | float):
            schema |= {bound: schema[name], name: True}
    if isinstance(schema.get("type"), list):
        kinds = [kind for kind in schema["type"] if kind != "null"]
        schema |= {"nullable": "null" in schema["type"], "type": kinds[0]}
    if isinstance(schema.get("examples"), list):
        schema["example"] = schema.pop("examples")[0]
    if schema.pop("contentEncoding", None):
        schema["format"] = "byte"
    return schema
