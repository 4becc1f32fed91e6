"""Between HTTP and Python: bytes to models, query strings to pages, ETags to versions, bodies to responses."""

import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import TypeVar
from urllib.parse import parse_qsl

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from api.errors import Problem, to_response, version_mismatch
from api.http.gate import Gate
from api.http.headers import SECURITY_HEADERS
from api.http.operation import Operation

MAX_BODY_BYTES = 64 * 1024

Headers = Sequence[tuple[bytes, bytes]]
Handler = Callable[[Request], Awaitable[Response]]
Described = tuple[Handler, Operation | None]
"""A handler, and what /openapi.json says of it; None keeps it out."""
Model = TypeVar("Model", bound=BaseModel)

_ETAG = re.compile(rb'(?:W/)?"([^"]*)"')
_VERSION = re.compile(rb"[1-9][0-9]{0,17}")
_CONDITIONS = frozenset({b"if-match", b"if-none-match"})


class Resource:
    """The ASGI application of one path: a handler for each method, and a problem for whatever goes wrong.

    GET answers HEAD too (the server drops the body). Any other method is 405 with Allow. `is_open` says that nobody is
    asked who they are; `headers` go with every answer; a `gate` bounds the requests.
    """

    def __init__(
        self,
        *,
        is_open: bool = False,
        headers: Headers = SECURITY_HEADERS,
        gate: Gate | None = None,
        **methods: Described,
    ) -> None:
        self.is_open = is_open
        self._headers = headers
        self.gate = gate
        self.methods = {method.upper(): described for method, described in methods.items()}
        self._handlers = {method: handler for method, (handler, _) in self.methods.items()}
        if "GET" in self._handlers:
            self._handlers["HEAD"] = self._handlers["GET"]
        self._allow = ", ".join(sorted(self._handlers))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        request = Request(scope, receive, send)
        handler = self._handlers.get(scope["method"], self._refuse)
        try:
            response = await (self.gate.admit(handler, request) if self.gate else handler(request))
        except ClientDisconnect:
            return
        except Exception as error:  # The boundary: whatever it is becomes a problem.
            response = to_response(error)
        response.raw_headers.extend(self._headers)
        await response(scope, receive, send)

    async def _refuse(self, request: Request) -> Response:
        raise Problem(405, "Method Not Allowed", headers={"Allow": self._allow})


def resources(routes: Iterable[BaseRoute]) -> Iterator[tuple[str, Resource]]:
    """The path and the Resource of each route that has one."""
    for route in routes:
        if isinstance(route, Route) and isinstance(route.endpoint, Resource):
            yield route.path_format, route.endpoint


async def respond_not_found(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer for a path that no resource has."""
    await send_problem(Problem(404, "Not Found"), scope, receive, send)


async def send_problem(error: Exception, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request that reaches no resource."""
    response = to_response(error)
    response.raw_headers.extend(SECURITY_HEADERS)
    await response(scope, receive, send)


class JSONBody(Response):
    """A response whose body is JSON already: no rendering, no copying of headers."""

    def __init__(self, body: bytes, status: int = 200, headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        self.status_code = status
        self.body = body
        self.background = None
        self.raw_headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            *headers,
        ]


def read_header(request: Request, name: bytes) -> bytes | None:
    """A header as it was sent, None where there is none; `name` is in lower case, as the server hands names over."""
    for key, value in request.scope["headers"]:
        if key == name:
            return value  # type: ignore[no-any-return]
    return None


async def read_body(request: Request, model: type[Model]) -> Model:
    """The request's JSON object as a model. Raises Problem: 413, 415 or 422."""
    media_type = read_header(request, b"content-type") or b""
    if media_type != b"application/json" and media_type.partition(b";")[0].strip().lower() != b"application/json":
        raise not_json()
    try:
        return model.model_validate_json(await _read_bytes(request))
    except ValidationError as error:
        raise unprocessable(error, "body") from None


async def _read_bytes(request: Request) -> bytes:
    # The declared length is refused before a byte is read; a chunked body declares none and is counted.
    # Without the zeros that a client may put before it: of more than 4,300 digits Python makes no number.
    if int((read_header(request, b"content-length") or b"").lstrip(b"0") or 0) > MAX_BODY_BYTES:
        raise body_too_large()
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise body_too_large()
    return bytes(body)


def read_query(request: Request, model: type[Model]) -> Model:
    """The query string as a model; of a repeated key the last value counts. Raises Problem: 422."""
    pairs = parse_qsl(request.scope["query_string"].decode("latin-1"), keep_blank_values=True)
    try:
        return model.model_validate_strings(dict(pairs))
    except ValidationError as error:
        raise unprocessable(error, "query") from None


def not_json() -> Problem:
    """The problem of a body that does not say that it is JSON."""
    return Problem(415, "The body must be application/json")


def body_too_large() -> Problem:
    """The problem of a body above MAX_BODY_BYTES."""
    return Problem(413, f"The body must be at most {MAX_BODY_BYTES} bytes")


def unprocessable(error: ValidationError, where: str) -> Problem:
    """The problem of a body or a query that the model refused; `where` is what it came in."""
    faults = [
        {"loc": [where, *fault["loc"]], "msg": fault["msg"].removeprefix("Value error, "), "type": fault["type"]}
        for fault in error.errors(include_url=False, include_context=False, include_input=False)
    ]
    return Problem(422, "The request is not valid; see errors", "invalid", errors=faults)


def etag(version: int) -> bytes:
    """The strong validator of a version (RFC 9110, section 8.8.3)."""
    return b'"%d"' % version


def read_if_match(request: Request) -> list[int] | None:
    """The versions that If-Match names; None where any will do.

    Weak tags never match (RFC 9110, section 13.1.1 asks for strong comparison), nor does a tag that is not ours.
    """
    header = _read_list(request, b"if-match")
    if header is None or header.strip() == b"*":
        return None
    return [int(tag[1]) for tag in _ETAG.finditer(header) if tag[0].startswith(b'"') and _VERSION.fullmatch(tag[1])]


def read_condition(request: Request) -> list[int] | None:
    """The versions that a change may find, by If-Match. Raises Problem: 412.

    If-None-Match must not be ignored (RFC 9110, section 13.1.2), and no change needs it.
    """
    if not _has_conditions(request):
        return None
    if _read_list(request, b"if-none-match") is not None:
        raise Problem(412, "A change is made conditional by If-Match, not by If-None-Match", "version-mismatch")
    return read_if_match(request)


def is_known(request: Request, version: int) -> bool:
    """Whether who asks for this version has it: If-None-Match names it, or any (RFC 9110, section 13.1.2).

    Raises Problem: 412, where If-Match names others.
    """
    if not _has_conditions(request):
        return False
    versions = read_if_match(request)
    if versions is not None and version not in versions:
        raise version_mismatch()
    header = _read_list(request, b"if-none-match") or b""
    return header.strip() == b"*" or any(tag[1] == b"%d" % version for tag in _ETAG.finditer(header))


def _has_conditions(request: Request) -> bool:
    return bool([name for name, _ in request.scope["headers"] if name in _CONDITIONS])


def _read_list(request: Request, name: bytes) -> bytes | None:
    """A header that is a list, and may come in several lines (RFC 9110, section 5.3); None where there is none."""
    lines = [value for key, value in request.scope["headers"] if key == name]
    return b", ".join(lines) if lines else None
