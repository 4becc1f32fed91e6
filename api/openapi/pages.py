"""/openapi.json and /docs: Swagger UI, served from an installed package, so that browsers contact no third party.

Both require no authentication: they contain no data, and document how to authenticate.
"""

import re
from collections.abc import Callable, Mapping
from functools import cache
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Route

from api.errors import Problem
from api.http.conditions import is_current
from api.http.headers import SECURITY_HEADERS
from api.http.resource import Handler, Resource

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
# RFC 9110, section 14.1.2. Python refuses to parse numbers of more than 4,300 digits.
_RANGE = re.compile(rb"bytes=(?:([0-9]{1,4000})-([0-9]{0,4000})|-([0-9]{1,4000}))", re.IGNORECASE)
_ASSET_HEADERS = [(b"x-content-type-options", b"nosniff"), (b"cache-control", b"public, max-age=86400")]


def documentation(document: Callable[[], Mapping[str, Any]]) -> list[BaseRoute]:
    """Return the routes that show the OpenAPI document, which `document` makes for the first request."""
    text = _constant(lambda: orjson.dumps(document()), "application/json")
    page = _constant(lambda: _PAGE, "text/html")

    async def get_page(request: Request) -> Response:
        if _assets() is None:
            remedy = "pip install --no-deps flask-swagger-ui"
            raise Problem(404, f"This page is not installed: {remedy}. /openapi.json says the same")
        return await page(request)

    return [
        _open("/openapi.json", text, SECURITY_HEADERS),
        _open("/docs", get_page, _PAGE_HEADERS),
        _open("/docs/start.js", _constant(lambda: _START, "text/javascript"), _ASSET_HEADERS),
        _open("/docs/swagger-ui.css", _asset("swagger-ui.css"), _ASSET_HEADERS),
        _open("/docs/swagger-ui-bundle.js", _asset("swagger-ui-bundle.js"), _ASSET_HEADERS),
    ]


def _open(path: str, handler: Handler, headers: list[tuple[bytes, bytes]]) -> Route:
    return Route(path, Resource(gate=None, is_open=True, headers=headers, get=(handler, None)))


def _constant(make_body: Callable[[], bytes], media_type: str) -> Handler:
    @cache
    def made() -> tuple[bytes, str]:
        body = make_body()
        return body, f'"{sha256(body).hexdigest()[:32]}"'

    async def get_constant(request: Request) -> Response:
        body, tag = made()
        if _is_current(request, tag):
            return Response(status_code=304, headers={"ETag": tag})
        return Response(body, headers={"ETag": tag}, media_type=media_type)

    return get_constant


def _asset(name: str) -> Handler:
    async def get_asset(request: Request) -> Response:
        directory = _assets()
        if directory is None:
            raise Problem(404, "Not Found")
        path = directory / name
        response = FileResponse(path, stat_result=path.stat())
        if _is_current(request, response.headers["etag"]):
            return Response(status_code=304, headers={"ETag": response.headers["etag"]})
        _choose_range(request, response)
        return response

    return get_asset


def _is_current(request: Request, tag: str) -> bool:
    mismatch = Problem(412, "The ETag is not one that If-Match names", "version-mismatch")
    return is_current(request, tag.encode(), mismatch)


def _choose_range(request: Request, response: FileResponse) -> None:
    """Leave a Range to `response` if it can be satisfied. Raises Problem: 416.

    Otherwise it is ignored: another unit or method, an invalid one, several ranges (RFC 9110, section 14.2).
    FileResponse would refuse it, and without our headers.
    """
    headers, request.scope["headers"] = request.scope["headers"], []
    wanted = [value for name, value in headers if name == b"range"]
    validators = [value.decode("latin-1") for name, value in headers if name == b"if-range"]
    if request.method != "GET" or len(wanted) != 1 or not (match := _RANGE.fullmatch(wanted[0])):
        return
    if validators and validators != [response.headers["etag"]] and validators != [response.headers["last-modified"]]:
        return
    size = int(response.headers["content-length"])
    first, last, suffix = (int(number) if number else None for number in match.groups())
    if first is None:
        first, last = max(0, size - (suffix or 0)), None
    if first >= size:
        raise Problem(416, f"There are {size} bytes", headers={"Content-Range": f"bytes */{size}"})
    if last is None or first <= last:
        last = size - 1 if last is None else min(last, size - 1)
        request.scope["headers"] = [(b"range", b"bytes=%d-%d" % (first, last))]


def _assets() -> Path | None:
    """Return the directory of Swagger UI's files, None if not installed. No code of the package runs."""
    try:
        return Path(str(distribution("flask-swagger-ui").locate_file("flask_swagger_ui/dist")))
    except PackageNotFoundError:
        return None
