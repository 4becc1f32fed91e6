"""The pool's life, and the one way to run a statement: a connection within a deadline, an answer within another."""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from api.errors import DatabaseUnavailableError, OutcomeUnknownError, StatementTimeoutError, describe
from api.settings import Settings
from api.statements import Statement

logger = logging.getLogger("api.database")

# What connecting can raise: the network, PostgreSQL's own refusals, and what asyncpg and the pool add.
_CONNECT_ERRORS = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError)
# What leaves the fate of a statement on its way open: the link broke, or the server gave up without having judged it.
_BROKEN_LINK_ERRORS = (
    OSError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,
    asyncpg.ProtocolViolationError,  # PgBouncer's word for a server that went away in the middle
    asyncpg.OperatorInterventionError,
    asyncpg.InternalServerError,  # Neon's proxy reports its own failures so
)


class Database:
    """One asyncpg pool, opened and closed by the application's lifespan."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._acquire_timeout = settings.acquire_timeout_seconds
        self._statement_timeout = settings.statement_timeout_seconds
        # Shorter than the statement's own time: a lock that is not had in time is an answer, a cancelled write is none.
        self.lock_timeout = 0.8 * settings.statement_timeout_seconds
        self._free = settings.pool_max_size
        self._waiters: deque[asyncio.Future[PoolConnectionProxy | None]] = deque()
        self._returning: set[asyncio.Task[None]] = set()
        self._pool: asyncpg.Pool  # made by open(): a pool belongs to an event loop

    async def open(self) -> None:
        """Make the pool. The database may be asleep or down: requests find that out, starting does not."""
        try:
            self._pool = await self._create_pool(self._settings.pool_min_size)
        except _CONNECT_ERRORS as error:
            logger.warning(
                "POOL_MIN_SIZE=%d: the database does not answer yet, so connections are opened on demand: %s",
                self._settings.pool_min_size,
                describe(error),
            )
            self._pool = await self._create_pool(0)

    async def _create_pool(self, min_size: int) -> asyncpg.Pool:
        settings = self._settings
        arguments = {"timeout": settings.acquire_timeout_seconds, **settings.pooled.asyncpg_arguments()}
        return await asyncpg.create_pool(
            **arguments,
            min_size=min_size,
            max_size=settings.pool_max_size,
            max_inactive_connection_lifetime=settings.pool_idle_seconds,
            statement_cache_size=settings.statement_cache_size,
            reset=_keep_session,
        )

    async def close(self) -> None:
        """Close the pool: connections in use finish first, for as long as one statement may take."""
        try:
            async with asyncio.timeout(self._statement_timeout):
                await self._pool.close()
        except TimeoutError:
            self._pool.terminate()

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[asyncpg.Connection]:
        """A connection of its own, outside the pool, for what takes as long as a client does.

        Raises DatabaseUnavailableError where there is none to be had.
        """
        settings = self._settings
        arguments = {"timeout": settings.acquire_timeout_seconds, **settings.pooled.asyncpg_arguments()}
        try:
            connection = await asyncpg.connect(**arguments, statement_cache_size=0)
        except _CONNECT_ERRORS as error:
            raise DatabaseUnavailableError from error
        try:
            yield connection
            with suppress(*_BROKEN_LINK_ERRORS):  # what it was for is done
                await connection.close(timeout=self._statement_timeout)
        finally:
            # Where something is still on its way, the server ends it when nobody is there any more.
            connection.terminate()

    async def fetch(self, statement: Statement, *arguments: Any) -> list[asyncpg.Record]:
        """Run one statement, which is one transaction and one round trip, and return its rows.

        Raises DatabaseUnavailableError where it was never sent; where it was sent and the answer is missing,
        OutcomeUnknownError for a write, DatabaseUnavailableError or StatementTimeoutError for a read; and
        asyncpg.PostgresError where PostgreSQL refused it, which leaves nothing behind.
        """
        # Every idle connection may have been closed by a compute that fell asleep: pass over each, then open a new one.
        for _ in range(self._settings.pool_max_size + 1):
            connection = await self._borrow()
            reusable = False
            try:
                rows = await connection.fetch(statement.sql, *arguments, timeout=self._statement_timeout)
            except TimeoutError as error:
                raise (OutcomeUnknownError if statement.writes else StatementTimeoutError) from error
            except _BROKEN_LINK_ERRORS as error:
                if not was_never_sent(error):
                    raise (OutcomeUnknownError if statement.writes else DatabaseUnavailableError) from error
                with suppress(asyncpg.InterfaceError):  # the pool may have taken it away already
                    connection.terminate()
                cause = error
            else:
                reusable = True
                return rows
            finally:
                if not (reusable and self._hand_over(connection)):
                    # Not awaited: who asked need not wait until the pool has its connection back.
                    task = asyncio.get_running_loop().create_task(self._give_back(connection))
                    self._returning.add(task)
                    task.add_done_callback(self._returning.discard)
        raise DatabaseUnavailableError from cause

    async def _borrow(self) -> PoolConnectionProxy:
        """A connection: the pool's where one is free, else the next that another statement is done with.

        While statements wait, a connection goes from hand to hand. The pool's own acquire(timeout=) and release() each
        start a task, which costs more than the rest of a small statement.
        """
        if self._free:
            self._free -= 1
        elif (handed := await self._wait_turn()) is not None:
            return handed
        try:
            # Never waits: a place in the pool is ours. Connecting has its own time-out.
            return await self._pool.acquire()
        except BaseException as error:
            self._pass_on_place()
            if isinstance(error, _CONNECT_ERRORS):
                raise DatabaseUnavailableError from error
            raise

    async def _wait_turn(self) -> PoolConnectionProxy | None:
        """What another statement leaves: its connection, or None for its place in the pool."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[PoolConnectionProxy | None] = loop.create_future()
        self._waiters.append(waiter)
        timer = loop.call_later(self._acquire_timeout, _expire, waiter)
        try:
            return await waiter
        except TimeoutError as error:
            raise DatabaseUnavailableError from error
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                # It was handed over in the very tick in which the caller was cancelled: it must not be lost.
                handed = waiter.result()
                if handed is None:
                    self._pass_on_place()
                elif not self._hand_over(handed):
                    await self._give_back(handed)
            raise
        finally:
            timer.cancel()

    def _hand_over(self, connection: PoolConnectionProxy | None) -> bool:
        """Give a connection, or the place of one, to the statement that waits first. False where none does."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(connection)
                return True
        return False

    async def _give_back(self, connection: PoolConnectionProxy) -> None:
        try:
            await self._pool.release(connection)
        except _CONNECT_ERRORS as error:
            # The pool has ended it, and opens another when one is wanted.
            logger.info("a connection could not be kept: %s", describe(error))
        finally:
            self._pass_on_place()

    def _pass_on_place(self) -> None:
        if not self._hand_over(None):
            self._free += 1


@contextmanager
def link_errors(*, writes: bool) -> Iterator[None]:
    """Raise a link that breaks under a COPY as DatabaseUnavailableError, or OutcomeUnknownError where it writes."""
    try:
        yield
    except _BROKEN_LINK_ERRORS as error:
        raise (OutcomeUnknownError if writes else DatabaseUnavailableError) from error


def was_never_sent(error: Exception) -> bool:
    """Whether asyncpg saw, before it sent anything, that the server had closed the connection.

    `_check_open` of asyncpg/connection.py says so where it knows, `_set_state` of asyncpg/protocol/coreproto.pyx where
    the server's farewell has come and the end of the connection has not. Subclasses mean something else: a
    ProtocolError is raised while an answer is read, when a write has happened already.
    """
    if type(error) is asyncpg.InterfaceError:
        # The second is the pool's, whose connection ended between two hands.
        return str(error).startswith(("connection is closed", "cannot call Connection."))
    return type(error) is asyncpg.InternalClientError and str(error).startswith("cannot switch to state")


def _expire(waiter: asyncio.Future[Any]) -> None:
    if not waiter.done():
        waiter.set_exception(TimeoutError("no connection became free in time"))


async def _keep_session(connection: asyncpg.Connection) -> None:
    """Stand in for the pool's reset query, which costs a round trip for every borrow.

    It would undo session state, and no statement of ours leaves any: a transaction pooler would lose it anyway.
    """
