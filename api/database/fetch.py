"""The one way to run a statement: a connection before one deadline, an answer before another, and the retries."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, Protocol

import asyncpg

from api.context import serving
from api.database import connecting, driver, indexes
from api.database.faults import DATABASE_ERRORS, Fault, as_error, decide_next
from api.database.options import DatabaseOptions
from api.database.pool import Pool
from api.database.silence import Silence
from api.database.statements import Statement
from api.database.verdicts import Next
from api.errors import (
    DatabaseUnavailableError,
    OutcomeUnknownError,
    StatementFailedError,
    StatementTimeoutError,
    describe,
)
from api.telemetry.metrics import DatabaseMetrics, Metrics

if TYPE_CHECKING:
    from api.telemetry.tracing import Tracing

logger = logging.getLogger("api.database")

_RETRIES = (Next.RETRY, Next.RESEND, Next.REPEAT)
_REFUSALS = (Next.RAISE, Next.FAILED, Next.REPEAT)
_MOST_RESENDS = 5
"""How often a read is sent whose connection breaks each time: the read may be what breaks it."""


class Database(Protocol):
    """A database to query functions: a PooledDatabase, or a Replica with the primary behind it."""

    @property
    def lock_timeout(self) -> float:
        """The seconds that a write waits for a locked row: shorter than a statement may take.

        A lock timeout is a definite answer, and a write that is cancelled has none.
        """

    def has_room(self) -> bool:
        """Return True if a statement would get a connection without waiting for one in use."""

    async def fetch(self, statement: Statement, *arguments: Any) -> list[asyncpg.Record]:
        """Run one statement, which is one transaction and one round trip, and return its rows.

        A transient fault is retried, for ACQUIRE_TIMEOUT_SECONDS at most: a statement that never ran or was rolled back
        is sent again, and a read also if its answer was lost.

        Raises DatabaseUnavailableError if nothing was changed: StatementFailedError if PostgreSQL refused the
        statement, and asyncpg.PostgresError if it refused the content of a write. If the statement was sent and has no
        answer, raises OutcomeUnknownError for a write, and StatementTimeoutError for a read that takes too long. If the
        caller is cancelled, the statement is cancelled on the server; a write that was sent by then raises
        OutcomeUnknownError.
        """


class _Retry(NamedTuple):
    """The decision to repeat an attempt: RETRY, RESEND or REPEAT."""

    error: Exception
    fault: Fault
    step: Next


class PooledDatabase:
    """One PostgreSQL behind a connection pool, opened and closed by the application's lifespan."""

    def __init__(
        self, options: DatabaseOptions, *, metrics: Metrics | None = None, tracing: "Tracing | None" = None
    ) -> None:
        self._options = options
        self.metrics = self._metrics = DatabaseMetrics(metrics or Metrics(), options.name)
        self._tracing = tracing
        self.answers = True
        """True unless the last statement had no answer. A statement under way changes nothing."""
        self._acquire_timeout = options.acquire_timeout
        self._statement_timeout = options.statement_timeout
        self._index_names: dict[str, str] = {}  # see indexes.identify
        # Shorter than the statement's own time: a lock timeout is a definite answer, a cancelled write is not.
        self.lock_timeout = 0.8 * options.statement_timeout
        self._pool = Pool(options, self._metrics, partial(connecting.open_connection, options))
        self.has_room = self._pool.has_room
        self._silence = Silence(options.name, self._pool.check_idle)
        self._loop: asyncio.AbstractEventLoop  # set by open(): asking asyncio costs each statement 0.1 µs

    @property
    def opened(self) -> int:
        """The number of connections that the pool has opened so far."""
        return self._pool.opened

    async def open(self) -> None:
        """Open the pool. Does not wait for the database, which may be asleep or down: the first statements do."""
        self._loop = asyncio.get_running_loop()
        await self._pool.open()

    async def close(self) -> None:
        """Close the pool: statements in flight may finish, for as long as one statement may take."""
        await self._pool.close()
        self._silence.stop()

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[asyncpg.Connection]:
        """Open a connection outside the pool, for work that takes as long as its client does.

        Raises DatabaseUnavailableError if none can be opened within ACQUIRE_TIMEOUT_SECONDS.
        """
        asked = perf_counter()
        arguments = self._options.url.asyncpg_arguments() | {"timeout": self._options.connect_timeout}
        # A pool of its own, with a second place for an attempt beside one that is stuck.
        options = replace(self._options, pool_min_size=0, pool_max_size=2, pool_idle_seconds=1.0)
        pool = Pool(options, self._metrics, partial(asyncpg.connect, **arguments, statement_cache_size=0))
        try:
            connection = await pool.acquire(asyncio.get_running_loop().time() + self._acquire_timeout)
            begun = perf_counter()
            try:
                yield connection
                with suppress(*DATABASE_ERRORS):  # the work is done
                    await connection.close(timeout=self._statement_timeout)
            finally:
                connection.terminate()  # does not wait: the server ends what still runs once it is gone
                for request in serving.get():
                    request.queue += begun - asked
                    request.database += perf_counter() - begun
        finally:
            await pool.close()

    async def fetch(self, statement: Statement, *arguments: Any) -> list[asyncpg.Record]:
        """Run one statement; see `Database.fetch`."""
        deadline = self._loop.time() + self._acquire_timeout
        retries = failures = 0
        while True:
            try:
                result = await self._attempt(statement, arguments, deadline)
            except asyncpg.UniqueViolationError as error:
                if await indexes.identify(self.fetch, self._index_names, error) or failures:
                    raise
                result = _Retry(error, Fault(transient=True), Next.REPEAT)
            if isinstance(result, list):
                if retries:
                    self._silence.confirm()
                return result
            retries += 1
            pause = 0.0
            if result.step is not Next.RETRY:  # the pool makes the pauses between connections
                failures += 1
                pause = connecting.delay(failures)
            is_spent = result.step is Next.RESEND and failures >= _MOST_RESENDS
            if is_spent or self._loop.time() + pause >= deadline:
                self._give_up(statement, result)
            logger.info("sql/%s is tried again: %s", statement.name, describe(result.error))
            self._metrics.retry()
            if pause:
                await asyncio.sleep(pause)

    def _give_up(self, statement: Statement, retry: _Retry) -> NoReturn:
        if retry.step is not Next.REPEAT:
            self.answers = False
            raise DatabaseUnavailableError(retry.fault.remedy) from retry.error
        if not statement.writes:
            raise StatementFailedError(retry.fault.remedy) from retry.error
        raise retry.error

    async def _attempt(
        self, statement: Statement, arguments: tuple[Any, ...], deadline: float
    ) -> list[asyncpg.Record] | _Retry:
        """Send a statement over one connection. Return its rows, or why it may be sent again; raise as `fetch` does."""
        served = serving.get()
        asked = perf_counter()
        try:
            connection = await self._pool.acquire(deadline)
        except BaseException as error:
            self._not_acquired(error, perf_counter() - asked)
            raise
        begun = perf_counter()
        in_flight = self._silence.in_flight[statement.writes]
        in_flight[connection] = self._silence.ticks
        if self._silence.timer is None:
            self._silence.watch()
        counter = driver.counter_of(connection)
        executed = counter.queries_count
        outcome = "failed"
        failure = None
        try:
            rows = await driver.fetch(connection, statement.sql, arguments, self._statement_timeout)
        except asyncio.CancelledError as error:
            if statement.writes and counter.queries_count != executed:
                raise OutcomeUnknownError from error
            raise
        except DATABASE_ERRORS as raised:
            cause = as_error(raised)
            sent = counter.queries_count != executed
            closed = connection.is_closed()
            step, fault = decide_next(cause, sent=sent, writes=statement.writes, closed=closed)
            failure = cause if closed and (fault.rejection or not executed) else None
            self._suspect_idle(raised)
            outcome = "refused" if step in _REFUSALS else "failed"
            if step in _RETRIES:
                return _Retry(cause, fault, step)
            self.answers = step is Next.RAISE
            if step is Next.RAISE:
                raise cause from cause.__cause__
            raise _failure(step, fault) from cause
        else:
            self.answers = True
            outcome = "ok"
            return rows
        finally:
            self._silence.sent = in_flight.pop(connection, 0)
            self._pool.release(connection, answered=outcome != "failed", failure=failure)
            seconds = perf_counter() - begun
            self._metrics.statement(statement.name, outcome, begun - asked, seconds, served)
            if self._tracing is not None:
                self._tracing.statement(statement.name, outcome, seconds, served)

    def _suspect_idle(self, error: Exception) -> None:
        """Check the idle connections if a statement had no answer in time, or no byte of it was acknowledged."""
        if isinstance(error, TimeoutError) or isinstance(error.__cause__, TimeoutError):  # the latter is ETIMEDOUT
            self._pool.check_idle()

    def _not_acquired(self, error: BaseException, waited: float) -> None:
        """Record that no connection was had within `waited` seconds."""
        for request in serving.get():
            request.queue += waited
        if isinstance(error, DatabaseUnavailableError):
            # Without a cause every connection was busy, which says nothing about the database.
            self.answers = self.answers and error.__cause__ is None


def _failure(step: Next, fault: Fault) -> Exception:
    if step is Next.UNKNOWN:
        return OutcomeUnknownError()
    if step is Next.TIMEOUT:
        return StatementTimeoutError()
    if step is Next.FAILED:
        return StatementFailedError(fault.remedy)
    return DatabaseUnavailableError(fault.remedy)


@contextmanager
def link_errors(*, writes: bool) -> Iterator[None]:
    """Raise what breaks the connection under a COPY as `Database.fetch` does under a statement."""
    try:
        yield
    except DATABASE_ERRORS as raised:
        error = as_error(raised)
        step, fault = decide_next(error, sent=True, writes=writes, closed=True)
        if step is Next.RAISE or (step is Next.REPEAT and writes):
            raise error from error.__cause__
        raise _failure(step, fault) from error
