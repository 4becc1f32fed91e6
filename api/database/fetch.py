"""The one way to run a statement: a connection within a deadline, an answer within another; and what faults lead to."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any

import asyncpg

from api.context import serving
from api.database import connecting
from api.database.faults import DATABASE_ERRORS, Next, judge, judge_statement
from api.database.pool import Pool
from api.database.statements import Statement
from api.errors import DatabaseUnavailableError, OutcomeUnknownError, StatementTimeoutError, describe
from api.settings import Settings
from api.telemetry.metrics import DatabaseMetrics, Metrics

if TYPE_CHECKING:
    from api.telemetry.tracing import Tracing

logger = logging.getLogger("api.database")

_MOST_SENDS = 5
"""How often a read whose link breaks is sent: it may be what breaks it."""


class Database:
    """One PostgreSQL, opened and closed by the application's lifespan; `name` is that of its URL, for the log."""

    def __init__(
        self,
        settings: Settings,
        name: str = "DATABASE_URL",
        *,
        metrics: Metrics | None = None,
        tracing: "Tracing | None" = None,
    ) -> None:
        self._settings = settings
        self._name = name
        self._metrics = DatabaseMetrics(metrics or Metrics(), name)
        self._tracing = tracing
        self.answers = True
        """Whether the last statement was answered; a wait that is not over is no failure yet. True before the first."""
        self._acquire_timeout = settings.acquire_timeout_seconds
        self._statement_timeout = settings.statement_timeout_seconds
        # Shorter than the statement's own time: a lock that is not had in time is an answer, a cancelled write is none.
        self.lock_timeout = 0.8 * settings.statement_timeout_seconds
        self._pool = Pool(settings, name, self._metrics)

    async def open(self) -> None:
        """Make the pool. The database may be asleep or down: requests find that out, starting does not."""
        await self._pool.open()

    async def close(self) -> None:
        """Close the pool: connections in use finish first, for as long as one statement may take."""
        await self._pool.close()

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[asyncpg.Connection]:
        """A connection of its own, outside the pool, for what takes as long as a client does.

        Raises DatabaseUnavailableError where there is none to be had.
        """
        loop = asyncio.get_running_loop()
        asked = perf_counter()
        deadline = loop.time() + self._acquire_timeout
        failures = 0
        while True:
            try:
                arguments = {"timeout": deadline - loop.time(), **self._settings.pooled.asyncpg_arguments()}
                attempt = partial(asyncpg.connect, **arguments, statement_cache_size=0)
                connection = await connecting.connect(self._name, attempt)
                self._metrics.opened()
                break
            except DATABASE_ERRORS as error:
                self._metrics.failed_to_open()
                failures += 1
                fault = judge(error)
                pause = connecting.delay(failures)
                if not fault.transient or loop.time() + pause >= deadline:
                    raise DatabaseUnavailableError(fault.remedy) from error
            await asyncio.sleep(pause)
        begun = perf_counter()
        try:
            yield connection
            with suppress(*DATABASE_ERRORS):  # what it was for is done
                await connection.close(timeout=self._statement_timeout)
        finally:
            # Where something is still on its way, the server ends it when nobody is there any more.
            connection.terminate()
            for request in serving.get():
                request.queue += begun - asked
                request.database += perf_counter() - begun

    async def fetch(self, statement: Statement, *arguments: Any) -> list[asyncpg.Record]:
        """Run one statement, which is one transaction and one round trip, and return its rows.

        A fault that passes is waited for, ACQUIRE_TIMEOUT_SECONDS at most: the statement is sent again where it never
        ran, a read also where its answer is lost.

        Raises DatabaseUnavailableError where nothing was changed; where it was sent and the answer is missing,
        OutcomeUnknownError for a write, StatementTimeoutError for a read that takes too long; and asyncpg.PostgresError
        where PostgreSQL refused it, which leaves nothing behind. Where the caller is cancelled, so is the statement, on
        the server; a write that was sent by then raises OutcomeUnknownError.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._acquire_timeout
        sends = 0
        served = serving.get()
        while True:
            asked = perf_counter()
            try:
                borrowed = await self._pool.borrow(deadline)
            except BaseException as error:
                for request in served:
                    request.queue += perf_counter() - asked
                if isinstance(error, DatabaseUnavailableError):
                    # Without a cause every connection was busy, which says nothing of the database.
                    self.answers = self.answers and error.__cause__ is None
                raise
            begun = perf_counter()
            # Behind the proxy, which hides what is counted, and None where it ended between two hands.
            connection = borrowed._con  # type: ignore[attr-defined]
            # Counts up when a statement leaves to be executed; one that is new to a connection is prepared before.
            executed = connection._protocol.queries_count if connection else 0
            answered = False
            outcome = "failed"
            try:
                if connection is None:
                    continue
                rows: list[asyncpg.Record] = await connection.fetch(
                    statement.sql, *arguments, timeout=self._statement_timeout
                )
                answered = self.answers = True
                outcome = "ok"
            except asyncio.CancelledError as error:
                if statement.writes and connection._protocol.queries_count != executed:
                    raise OutcomeUnknownError from error
                raise
            except DATABASE_ERRORS as error:
                sent = connection._protocol.queries_count != executed
                closed = connection.is_closed()
                step, fault = judge_statement(error, sent=sent, writes=statement.writes, closed=closed)
                if closed and (fault.refusal or not executed):
                    self._pool.failed(error)
                answered = step is Next.RAISE
                sends += step is Next.RESEND
                ends = step not in (Next.RETRY, Next.RESEND) or sends == _MOST_SENDS or loop.time() >= deadline
                if ends:
                    self.answers = answered
                if step is Next.RAISE:
                    outcome = "refused"
                    raise
                if step is Next.UNKNOWN:
                    raise OutcomeUnknownError from error
                if step is Next.TIMEOUT:
                    raise StatementTimeoutError from error
                if ends:
                    raise DatabaseUnavailableError(fault.remedy) from error
                logger.info("sql/%s is tried again: %s", statement.name, describe(error))
            else:
                return rows
            finally:
                self._pool.give_back(borrowed, answered, first=not executed)
                if connection is not None:
                    seconds = perf_counter() - begun
                    self._metrics.statement(statement.name, outcome, begun - asked, seconds, served)
                    if self._tracing is not None:
                        self._tracing.statement(statement.name, outcome, seconds, served)
            self._metrics.retry()
            if step is Next.RESEND:
                await asyncio.sleep(connecting.delay(sends))


@contextmanager
def link_errors(*, writes: bool) -> Iterator[None]:
    """Raise what breaks the link under a COPY as Database.fetch does under a statement."""
    try:
        yield
    except DATABASE_ERRORS as error:
        step, fault = judge_statement(error, sent=True, writes=writes, closed=True)
        if step is Next.RAISE:
            raise
        if step is Next.UNKNOWN:
            raise OutcomeUnknownError from error
        raise DatabaseUnavailableError(fault.remedy) from error
