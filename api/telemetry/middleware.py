"""Everything that is noted of a request, in one place: its id, how long it took and where, and what is logged of it."""

import logging
import re
from bisect import bisect_left
from collections.abc import Iterator
from random import getrandbits
from time import perf_counter
from typing import TYPE_CHECKING, Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.context import CLIENT_LEFT, RequestContext, serving
from api.http.headers import REQUEST_ID
from api.settings import Settings
from api.telemetry.families import SECONDS, SUM
from api.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from api.telemetry.tracing import Tracing

logger = logging.getLogger("api.requests")

_REQUEST_ID = re.compile(REQUEST_ID.encode())
# https://www.w3.org/TR/trace-context/#traceparent-header: versions after 00 may have more behind it; ff is none.
_TRACEPARENT = re.compile(rb"(?!ff|00.{54})[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")
_IDENTIFYING = frozenset({b"x-request-id", b"traceparent"})


def _make_ids() -> Iterator[bytes]:
    """16 random digits each, the last two of which count: to draw all of them for every request takes twice as long."""
    last = [b"%02x" % number for number in range(256)]
    while True:
        first = b"%014x" % getrandbits(56)
        yield from [first + each for each in last]


class _TellingContext(RequestContext):
    """A request whose client is told where the time went, until the answer began."""

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
            told = ", ".join(f"{name};dur={seconds * 1000:.3f}" for name, seconds in times.items())
            message["headers"].append((b"server-timing", told.encode()))
        return super().send(message)


class Telemetry:
    """The outermost ASGI middleware. It costs a request about 2 µs; what costs more, a setting asks for.

    A request has the id that its client gave it in X-Request-Id, or a new one; the answer says which.
    """

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics, tracing: "Tracing | None") -> None:
        self.app = app
        self._metrics = metrics
        self._rows = metrics.requests
        self._tracing = tracing
        self._slow = settings.slow_request_seconds
        self._logs_all = settings.access_log
        self._new_ids = _make_ids()
        self._make_context = _TellingContext if settings.server_timing else RequestContext

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and note what becomes of it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = self._make_context(next(self._new_ids), send)
        for name, value in [header for header in scope["headers"] if header[0] in _IDENTIFYING]:
            if name == b"traceparent":
                if parent := _TRACEPARENT.fullmatch(value):
                    request.trace_id = parent[1].decode()
            elif _REQUEST_ID.fullmatch(value):
                request.name = value
        if self._tracing is not None:
            self._tracing.begin(request, scope)
        serving.set((request,))
        try:
            await self.app(scope, receive, request.send)
        except Exception:  # Ours: uvicorn logs it, and answers.
            request.status = 500
            raise
        finally:
            seconds = perf_counter() - request.started
            # One that a replica had is no problem where the primary answered after it.
            if request.problem is not None and request.status >= 400:
                self._metrics.problem(request.problem)
            # What failed stays a failure: clients that tire of waiting for it are no reason to hide it.
            if request.status < 500 and _left(send):
                request.status = CLIENT_LEFT
            row = self._rows.get((scope.get("endpoint"), scope["method"], request.status))
            if row is None:
                row = self._metrics.request_row(
                    scope.get("endpoint"), scope["method"], request.status, _template(scope)
                )
            row[bisect_left(SECONDS, seconds)] += 1
            row[SUM] += seconds
            if seconds >= self._slow:
                logger.warning("slow request", extra=_describe(request, scope, seconds))
            elif self._logs_all:
                logger.info("request", extra=_describe(request, scope, seconds))
            if self._tracing is not None:
                self._tracing.end(request, scope["method"], _template(scope), _path(scope))


def _left(send: Send) -> bool:
    """Whether the client went away before it had its answer, as uvicorn knows; other servers do not tell."""
    cycle: Any = getattr(send, "__self__", None)
    return not getattr(cycle, "response_complete", True) and cycle.transport.is_closing()


def _template(scope: Scope) -> str | None:
    """The path of the route, such as /api/v1/users/{id}; None where the request reached none."""
    route = scope.get("route")
    return None if route is None else route.path_format


def _path(scope: Scope) -> str | None:
    """The path that was asked for, where nothing in it can be a client's secret: all that varies in it are digits."""
    if all(value.isascii() and value.isdigit() for value in scope.get("path_params", {}).values()):
        return scope["path"] if "route" in scope else None
    return _template(scope)


def _describe(request: RequestContext, scope: Scope, seconds: float) -> dict[str, Any]:
    """What the log says of a request; times in seconds."""
    described: dict[str, Any] = {"method": scope["method"], "status": request.status}
    if path := _path(scope):
        described["path"] = path
    if caller := scope.get("caller"):
        # A token's subject may be an address.
        described["caller"] = caller if caller.startswith("key:") else "token"
    return {
        **described,
        "batch_seconds": round(request.batch, 6),
        "queue_seconds": round(request.queue, 6),
        "database_seconds": round(request.database, 6),
        "total_seconds": round(seconds, 6),
        "shared_by": request.shared_by,
    }
