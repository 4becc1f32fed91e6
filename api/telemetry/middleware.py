"""The middleware that times, counts and logs requests, and gives each its id."""

import logging
import re
from bisect import bisect_left
from collections.abc import Iterator
from random import getrandbits
from time import perf_counter
from typing import TYPE_CHECKING, Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.context import CLIENT_LEFT, DISCONNECTED, RequestContext, serving
from api.http.headers import REQUEST_ID
from api.http.request import fields_of, values_of
from api.telemetry.families import SECONDS, SUM
from api.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from api.telemetry.tracing import Tracing

logger = logging.getLogger("api.requests")

_REQUEST_ID = re.compile(REQUEST_ID.encode())
# https://www.w3.org/TR/trace-context/#traceparent-header: versions after 00 may have more fields; ff is invalid.
_TRACEPARENT = re.compile(rb"(?!ff|00.{54})[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")


def _make_ids() -> Iterator[bytes]:
    """Yield ids of 16 hexadecimal digits: 14 random ones, then two that count, which halves the cost of an id."""
    last = [b"%02x" % number for number in range(256)]
    while True:
        first = b"%014x" % getrandbits(56)
        yield from [first + each for each in last]


class _TimedContext(RequestContext):
    """A request whose response has a Server-Timing header: the times until it started."""

    __slots__ = ()

    def send(self, message: Message) -> Any:
        if message["type"] == "http.response.start":
            times = {
                "batch": self.batch,
                "queue": self.queue,
                "db": self.database,
                "total": perf_counter() - self.started,
            }
            # In milliseconds: https://www.w3.org/TR/server-timing/#the-server-timing-header-field
            timing = ", ".join(f"{name};dur={seconds * 1000:.3f}" for name, seconds in times.items())
            message["headers"].append((b"server-timing", timing.encode()))
        return super().send(message)


class Telemetry:
    """The outermost ASGI middleware. It costs a request about 2 µs; anything more expensive is off by default.

    A request keeps the id that its client sent in X-Request-Id, else it gets a new one; the response names it. Requests
    of at least `slow_request_seconds` are logged, with `access_log` all of them. With `server_timing` responses
    have a Server-Timing header.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        tracing: "Tracing | None",
        *,
        slow_request_seconds: float,
        access_log: bool,
        server_timing: bool,
    ) -> None:
        self.app = app
        self._metrics = metrics
        self._rows = metrics.requests
        self._tracing = tracing
        self._slow_request_seconds = slow_request_seconds
        self._access_log = access_log
        self._new_ids = _make_ids()
        self._make_context = _TimedContext if server_timing else RequestContext

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, then count it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = self._make_context(next(self._new_ids), send)
        fields = fields_of(scope)
        if b"x-request-id" in fields:
            for value in values_of(scope, b"x-request-id"):
                if _REQUEST_ID.fullmatch(value):
                    request.name = value
        if b"traceparent" in fields:
            for value in values_of(scope, b"traceparent"):
                if parent := _TRACEPARENT.fullmatch(value):
                    request.trace_id = parent[1].decode()
        if self._tracing is not None:
            self._tracing.begin(request, scope)
        serving.set((request,))
        try:
            await self.app(scope, receive, request.send)
        except Exception:  # A bug: the server logs it and sends a 500.
            request.status = 500
            raise
        finally:
            self._end(request, scope)

    def _end(self, request: RequestContext, scope: Scope) -> None:
        """Count a request, log it if a setting requires that, and end its span."""
        seconds = perf_counter() - request.started
        # Do not count a replica's problem if the primary then served the request.
        if request.problem is not None and request.status >= 400:
            self._metrics.problem(request.problem)
        # Keep a 5xx even if the client disconnected: a client timeout must not hide it.
        if request.status < 500 and DISCONNECTED in scope.get("state", ()):
            request.status = CLIENT_LEFT
        row = self._rows.get((scope.get("endpoint"), scope["method"], request.status))
        if row is None:
            row = self._metrics.request_row(scope.get("endpoint"), scope["method"], request.status, _template(scope))
        row[bisect_left(SECONDS, seconds)] += 1
        row[SUM] += seconds
        if seconds >= self._slow_request_seconds:
            logger.warning("slow request", extra=_describe(request, scope, seconds))
        elif self._access_log:
            logger.info("request", extra=_describe(request, scope, seconds))
        if self._tracing is not None:
            self._tracing.end(request, scope["method"], _template(scope), _path(scope))


def _template(scope: Scope) -> str | None:
    """Return the path of the route, such as /api/v1/NAME/{id}; None if no route matched."""
    route = scope.get("route")
    return None if route is None else route.path_format


def _path(scope: Scope) -> str | None:
    """Return the requested path if only digits vary in it, else its template: other values may be a secret."""
    if all(value.isascii() and value.isdigit() for value in scope.get("path_params", {}).values()):
        return scope["path"] if "route" in scope else None
    return _template(scope)


def _describe(request: RequestContext, scope: Scope, seconds: float) -> dict[str, Any]:
    """Return the log fields of a request; times are in seconds."""
    described: dict[str, Any] = {"method": scope["method"], "status": request.status}
    if path := _path(scope):
        described["path"] = path
    if caller := scope.get("caller"):
        # A token's subject may be an email address.
        described["caller"] = caller if caller.startswith("key:") else "token"
    return {
        **described,
        "batch_seconds": round(request.batch, 6),
        "queue_seconds": round(request.queue, 6),
        "database_seconds": round(request.database, 6),
        "total_seconds": round(seconds, 6),
        "shared_by": request.shared_by,
    }
