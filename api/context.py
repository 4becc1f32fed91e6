"""The requests that the running code serves: what a log line belongs to, and whom a statement's time is counted for."""

import secrets
from collections.abc import Iterable, Sequence
from contextvars import ContextVar
from time import perf_counter
from typing import Any, Protocol

from starlette.types import Message, Send

CLIENT_LEFT = 499
"""The status of a request whose client went away before it had its answer; nginx began it. Nobody receives it."""


class RequestContext:
    """One request under way.

    `name` is its id, as it stands in a header; `trace_id` is the trace that it belongs to, as its client or our tracing
    says. `status` is that of the answer once it has begun, `problem` the kind of a refusal. `batch` are the seconds
    that it waited until its statements left, `queue` those until they had a connection, `database` those that
    PostgreSQL took, and `shared_by` the requests that were in one of them, at most.
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
        """Pass a part of the answer on, with the id in its head."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"].append((b"x-request-id", self.name))
        return self._send(message)

    @property
    def id(self) -> str:
        """What names it in the log, in a problem, and to its client."""
        return self.name.decode()


class Batch(list[RequestContext]):
    """The requests that share a statement. `waited` are the seconds that the first to come did until it left."""

    waited = 0.0


serving: ContextVar[Sequence[RequestContext]] = ContextVar("serving", default=())
"""One in the code that answers a request, a Batch in the code that runs its statement, none elsewhere."""


class Waiting(Protocol):
    """A call that waits for a statement: since when (`perf_counter`), and the requests that it is for."""

    @property
    def arrived(self) -> float: ...  # noqa: D102

    @property
    def served(self) -> Sequence[RequestContext]: ...  # noqa: D102


def share(calls: Iterable[Waiting]) -> None:
    """Say that what runs in this task from now on serves the requests of all of these calls."""
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
    """The id of the request under way, a new one outside of any."""
    served = serving.get()
    return served[0].id if served else secrets.token_hex(8)
