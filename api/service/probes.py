"""/health and /ready: what an orchestrator restarts a process for, and what a balancer takes it out for."""

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import Context

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from api.database.fetch import PooledDatabase
from api.errors import DatabaseUnavailableError, StoppingError, problem_of
from api.http.operation import Answer, Content, Operation
from api.http.resource import Resource
from api.http.response import JSONBody

DRAINING = "draining"
"""Set in the lifespan's state, which every request's scope holds a copy of, by a server that is about to stop."""

_PATIENCE_SECONDS = 0.8
"""How long /ready waits for the database: Kubernetes waits for a second (`timeoutSeconds`)."""


def _answer(status: str, description: str) -> Answer:
    return Answer(description, [Content({"const": {"status": status}}, {"status": status})])


_HEALTH = Operation(
    summary="Is the process up?",
    description="Never touches the database, which may be asleep.",
    answers={200: _answer("healthy", "It is.")},
    uses_database=False,
    tag="service",
)
_READY = Operation(
    summary="May requests be sent here?",
    description="Not while the server stops, nor while the database cannot be reached: where it did not answer the "
    "last time that it was asked, it is asked again. Never wakes a database that is merely asleep, unless "
    "READINESS_PROBE_SECONDS is set.",
    answers={200: _answer("ready", "They may.")},
    refusals=[problem_of(StoppingError), problem_of(DatabaseUnavailableError)],
    uses_database=False,
    tag="service",
)


class Probes:
    """The two probes. `ask` sends the smallest statement to the database and raises where that fails.

    `every` is READINESS_PROBE_SECONDS: /ready asks the database itself, at most that often.
    """

    def __init__(self, database: PooledDatabase, ask: Callable[[], Awaitable[object]], every: float | None) -> None:
        self._database = database
        self._ask = ask
        self._every = every
        self._question: asyncio.Task[bool] | None = None  # the last one: at most one is open at a time
        self._asked = float("-inf")

    def routes(self) -> list[BaseRoute]:
        """The paths; nobody is asked who they are."""
        return [
            Route("/health", Resource(is_open=True, get=(self.get_health, _HEALTH))),
            Route("/ready", Resource(is_open=True, get=(self.get_ready, _READY))),
        ]

    async def get_health(self, request: Request) -> Response:
        """GET /health: the process serves. Never touches the database, which may be asleep."""
        return JSONBody(b'{"status":"healthy"}')

    async def get_ready(self, request: Request) -> Response:
        """GET /ready. Raises StoppingError or DatabaseUnavailableError."""
        if request.scope["state"].get(DRAINING):
            raise StoppingError
        # Without the question nothing would show that the database is back: nobody sends requests to a server that is
        # not ready. It wakes nothing that sleeps: the request that failed had wanted it awake.
        if (self._is_due() or not self._database.answers) and not await self._database_answers():
            raise DatabaseUnavailableError
        return JSONBody(b'{"status":"ready"}')

    def _is_due(self) -> bool:
        """Whether the database is asked in any case; what it has not answered yet, or refused, is due again."""
        if self._every is None:
            return False
        answered = self._question is not None and self._question.done() and self._question.result()
        return not answered or asyncio.get_running_loop().time() - self._asked >= self._every

    async def _database_answers(self) -> bool:
        if self._question is None or self._question.done():
            loop = asyncio.get_running_loop()
            self._asked = loop.time()
            self._question = loop.create_task(self._find_out(), context=Context())  # of no request
        await asyncio.wait([self._question], timeout=_PATIENCE_SECONDS)
        return self._question.done() and self._question.result()

    async def _find_out(self) -> bool:
        try:
            await self._ask()
        except Exception:  # What failed, and why, is in the log.
            return False
        return True
