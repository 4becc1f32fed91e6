"""Responses: prepared JSON, and problems outside a resource."""

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.errors import to_response
from api.http.headers import SECURITY_HEADERS

START_WITH_BODY = "http.response.start.body"
"""An ASGI extension of our server: `http.response.start` may carry the whole body, which ends the response.

A response is then one message instead of two. Middleware that changes the start of a response needs no change. Under a
server without it the same response is sent as two messages.
"""


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

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""
        start = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        if START_WITH_BODY in scope.get("extensions", ()):
            start["body"] = self.body
            await send(start)
        else:
            await send(start)
            await send({"type": "http.response.body", "body": self.body})


async def send_problem(error: Exception, scope: Scope, receive: Receive, send: Send) -> None:
    """Send the problem of `error`, for a request that reaches no resource."""
    response = to_response(error)
    response.raw_headers.extend(SECURITY_HEADERS)
    await response(scope, receive, send)
