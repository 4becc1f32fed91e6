"""The requests that the running code serves: log lines name them, and a statement's time is counted for them."""

import secrets
from collections.abc import Iterable, Sequence
from contextvars import ContextVar
from time import perf_counter
from typing import Any, Protocol

from starlette.types import Message, Send

CLIENT_LEFT = 499
"""The status of a request whose client disconnected before its response was complete. It is nginx's, and never sent."""

DISCONNECTED = "disconnected"
"""A key of the `state` in a request's scope. Our server sets it when the client disconnects too early.

Each request has a state of its own, so the entry is about that request alone. Under another ASGI server it is never
set, and such a request counts with the status of its response.
"""


class RequestContext:
    """One request in flight.

    `name` is its id as a header carries it. `trace_id` is its trace, from the client's traceparent or our tracing.
    `status` is that of the response once it has started, `problem` the kind of its problem. Three times, in seconds:
    `batch` until its statements were sent, `queue` until they had a connection, `database` in PostgreSQL. `shared_by`
    is the largest number of requests that shared one of its statements.
    """

    __slots__ = (
        "_send",
        "batch",
        "database",
        "name",
        "problem",
        "queue",
        "shared_by",
        "span",
        "started",
        "status",
        "trace_id",
    )

    def __init__(self, name: bytes, send: Send) -> None:
        self.started = perf_counter()
        self.name = name
        self.status = CLIENT_LEFT
        self.batch = self.queue = self.database = 0.0
        self.shared_by = 0
        self.trace_id: str | None = None
        self.span: Any = None  # OpenTelemetry's, where it is used
        self.problem: str | None = None
        self._send = send

    def send(self, message: Message) -> Any:
        """Send a part of the response, with the id in its headers."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"].append((b"x-request-id", self.name))
        return self._send(message)

    @property
    def id(self) -> str:
        """The id in the log, in a problem, and in the header X-Request-Id."""
        return self.name.decode()


class Batch(list[RequestContext]):
    """The requests that share a statement. `waited` is how long the first of them waited for it, in seconds."""

    waited = 0.0


serving: ContextVar[Sequence[RequestContext]] = ContextVar("serving", default=())
"""One request in the code that handles it, a Batch in the code that runs its statement, none elsewhere."""


class Waiting(Protocol):
    """A call that waits for a statement, with its arrival (`perf_counter`) and its requests."""

    @property
    def arrived(self) -> float: ...  # noqa: D102

    @property
    def served(self) -> Sequence[RequestContext]: ...  # noqa: D102


def share(calls: Iterable[Waiting]) -> None:
    """Make the running task serve the requests of all these calls from now on."""
    now = perf_counter()
    batch = Batch()
    for call in calls:
        waited = now - call.arrived
        if waited > batch.waited:
            batch.waited = waited
        for request in call.served:
            request.batch += waited
            batch.append(request)
    serving.set(batch)


def request_id() -> str:
    """Return the id of the current request, or a new id if there is none."""
    served = serving.get()
    return served[0].id if served else secrets.token_hex(8)
