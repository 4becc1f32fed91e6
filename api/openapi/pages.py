"""/openapi.json and /docs: Swagger UI, served from an installed package, so that browsers contact no third party.

Both require no authentication: they contain no data, and document how to authenticate.
"""

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Route

from api.errors import Problem
from api.http.headers import SECURITY_HEADERS
from api.http.resource import Handler, Resource
from api.http.response import JSONBody

_PAGE = b"""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>users-api</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="docs/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""
_START = b"""\
SwaggerUIBundle({url: "openapi.json", dom_id: "#swagger-ui", deepLinking: true, validatorUrl: null});
"""
_PAGE_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-cache"),
    (
        b"content-security-policy",
        # Scripts and requests from this origin alone. Swagger UI's style sheet has its icons as data: URLs.
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
]
_ASSET_HEADERS = [(b"x-content-type-options", b"nosniff"), (b"cache-control", b"public, max-age=86400")]


def documentation(document: Mapping[str, Any]) -> list[BaseRoute]:
    """Return the routes that show the OpenAPI document."""
    text = orjson.dumps(document)

    async def get_document(request: Request) -> Response:
        return JSONBody(text)

    async def get_page(request: Request) -> Response:
        if _assets() is None:
            raise Problem(404, "This page is not installed: pip install 'users-api[docs]'. /openapi.json says the same")
        return Response(_PAGE, media_type="text/html")

    async def get_start(request: Request) -> Response:
        return Response(_START, media_type="text/javascript")

    return [
        _open("/openapi.json", get_document, SECURITY_HEADERS),
        _open("/docs", get_page, _PAGE_HEADERS),
        _open("/docs/start.js", get_start, _ASSET_HEADERS),
        _open("/docs/swagger-ui.css", _asset("swagger-ui.css"), _ASSET_HEADERS),
        _open("/docs/swagger-ui-bundle.js", _asset("swagger-ui-bundle.js"), _ASSET_HEADERS),
    ]


def _open(path: str, handler: Handler, headers: list[tuple[bytes, bytes]]) -> Route:
    return Route(path, Resource(gate=None, is_open=True, headers=headers, get=(handler, None)))


def _asset(name: str) -> Handler:
    async def get_asset(request: Request) -> Response:
        directory = _assets()
        if directory is None:
            raise Problem(404, "Not Found")
        return FileResponse(directory / name)

    return get_asset


def _assets() -> Path | None:
    """Return the directory of Swagger UI's files, None if not installed. The package's Flask code never runs."""
    try:
        return Path(str(distribution("flask-swagger-ui").locate_file("flask_swagger_ui/dist")))
    except PackageNotFoundError:
        return None
