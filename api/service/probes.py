"""/health and /ready: the liveness and readiness probes."""

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import Context

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from api.database.fetch import PooledDatabase
from api.errors import DatabaseUnavailableError, StoppingError, problem_of
from api.http.operation import Content, Operation, ResponseDoc
from api.http.resource import Resource
from api.http.response import JSONBody

DRAINING = "draining"
"""A key of the lifespan's state, of which each request's scope has a copy. The server sets it before it stops."""

_TIMEOUT_SECONDS = 0.8
"""The timeout of the query of /ready. Kubernetes waits for a second by default (`timeoutSeconds`)."""


def _status_doc(status: str, description: str) -> ResponseDoc:
    schema = {
        "type": "object",
        "properties": {"status": {"type": "string", "const": status}},
        "required": ["status"],
        "additionalProperties": False,
    }
    return ResponseDoc(description, [Content(schema, {"status": status})])


_HEALTH = Operation(
    summary="Is the process up?",
    description="Never queries the database, which may be suspended.",
    responses={200: _status_doc("healthy", "The process is up.")},
    uses_database=False,
)
_READY = Operation(
    summary="Is the server ready for requests?",
    description="Not ready while the server stops or the database is unreachable: if the last statement got no "
    "response, the probe sends one. It never wakes a database that is merely suspended, unless "
    "READINESS_PROBE_SECONDS is set.",
    responses={200: _status_doc("ready", "The server is ready.")},
    problems=[problem_of(StoppingError), problem_of(DatabaseUnavailableError)],
    uses_database=False,
)


class Probes:
    """The two probes. `query` sends the smallest statement to the database and raises if it fails.

    `interval` is READINESS_PROBE_SECONDS: /ready queries the database at most that often.
    """

    def __init__(
        self, database: PooledDatabase, query: Callable[[], Awaitable[object]], interval: float | None
    ) -> None:
        self._database = database
        self._query = query
        self._interval = interval
        self._last: asyncio.Task[bool] | None = None  # the last query: at most one is in flight
        self._sent = float("-inf")

    def routes(self) -> list[BaseRoute]:
        """Return the routes, which require no authentication."""
        return [
            Route("/health", Resource(gate=None, is_open=True, get=(self.get_health, _HEALTH))),
            Route("/ready", Resource(gate=None, is_open=True, get=(self.get_ready, _READY))),
        ]

    async def get_health(self, request: Request) -> Response:
        """GET /health. Never queries the database, which may be suspended."""
        return JSONBody(b'{"status":"healthy"}')

    async def get_ready(self, request: Request) -> Response:
        """GET /ready. Raises StoppingError or DatabaseUnavailableError."""
        if request.scope["state"].get(DRAINING):
            raise StoppingError
        # A server that is not ready receives no requests, so only a query can show that the database is back. It does
        # not wake a suspended compute needlessly: the request that failed needed it awake too.
        if (self._is_due() or not self._database.answers) and not await self._database_responds():
            raise DatabaseUnavailableError("the query of the probe failed, or takes too long")
        return JSONBody(b'{"status":"ready"}')

    def _is_due(self) -> bool:
        """Return whether the interval has passed, or the last query has not succeeded yet."""
        if self._interval is None:
            return False
        succeeded = self._last is not None and self._last.done() and self._last.result()
        return not succeeded or asyncio.get_running_loop().time() - self._sent >= self._interval

    async def _database_responds(self) -> bool:
        if self._last is None or self._last.done():
            loop = asyncio.get_running_loop()
            self._sent = loop.time()
            self._last = loop.create_task(self._succeeds(), context=Context())  # not in the context of this request
        await asyncio.wait([self._last], timeout=_TIMEOUT_SECONDS)
        return self._last.done() and self._last.result()

    async def _succeeds(self) -> bool:
        try:
            await self._query()
        except Exception:  # The database logged the cause.
            return False
        return True
