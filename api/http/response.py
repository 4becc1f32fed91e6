"""Responses: prepared JSON, and problems outside a resource."""

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.errors import to_response
from api.http.headers import SECURITY_HEADERS


class JSONBody(Response):
    """A response whose body is JSON already: nothing is rendered, and no header is copied."""

    def __init__(self, body: bytes, status: int = 200, headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        self.status_code = status
        self.body = body
        self.background = None
        self.raw_headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            *headers,
        ]


async def send_problem(error: Exception, scope: Scope, receive: Receive, send: Send) -> None:
    """Send the problem of `error`, for a request that reaches no resource."""
    response = to_response(error)
    response.raw_headers.extend(SECURITY_HEADERS)
    await response(scope, receive, send)
