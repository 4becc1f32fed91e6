"""The pool: a connection within a deadline, from hand to hand, and one shared wait while none can be had."""

import asyncio
import logging
import math
from collections import deque
from functools import partial
from typing import Any

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from api.database import connecting, faults
from api.errors import DatabaseUnavailableError, describe
from api.settings import Settings
from api.telemetry.metrics import DatabaseMetrics

logger = logging.getLogger("api.database")


class Pool:
    """One asyncpg pool and the statements that wait for a connection of it.

    While a connection cannot be had for a reason that passes, all of them wait together, in order of arrival, and one
    attempt after the other is made for them, with growing delays. A reason that stays is told to all of them at once.
    """

    def __init__(self, settings: Settings, name: str, metrics: DatabaseMetrics) -> None:
        self._settings = settings
        self._name = name
        self._metrics = metrics
        self.opened = 0  # connections so far
        self._free = settings.pool_max_size
        self._waiters: deque[asyncio.Future[PoolConnectionProxy | None]] = deque()
        self._returning: set[asyncio.Task[None]] = set()
        self._pool: asyncpg.Pool  # made by open(): a pool belongs to an event loop
        # An outage: how many attempts failed in a row, on what the last one did, since when, and, until the next may be
        # made, its timer.
        self._failures = 0
        self._failure: Exception | None = None
        self._since = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._hopeless = False

    async def open(self) -> None:
        """Make the pool. The database may be asleep or down: requests find that out, starting does not."""
        try:
            self._pool = await self._create_pool(self._settings.pool_min_size)
        except faults.DATABASE_ERRORS as error:
            logger.warning(
                "%s: the database does not answer yet, so POOL_MIN_SIZE=%d connections are opened on demand: %s",
                self._name,
                self._settings.pool_min_size,
                describe(error),
            )
            self._pool = await self._create_pool(0)
        self._metrics.watch(self._state)

    def _state(self) -> dict[str, float]:
        most = self._settings.pool_max_size
        waiting = sum(not waiter.done() for waiter in self._waiters)
        return {
            "max_connections": most,
            "connections": self._pool.get_size(),
            "in_use": most - self._free,
            "waiting": waiting,
        }

    async def _create_pool(self, min_size: int) -> asyncpg.Pool:
        settings = self._settings
        arguments = settings.pooled.asyncpg_arguments()
        # A part of the deadline, so that an attempt that gets stuck leaves time for another.
        longest = settings.acquire_timeout_seconds * 2 / 3
        arguments["timeout"] = min(arguments.get("timeout", longest), longest)
        return await asyncpg.create_pool(
            **arguments,
            connect=self._connect,
            min_size=min_size,
            max_size=settings.pool_max_size,
            max_inactive_connection_lifetime=settings.pool_idle_seconds,
            statement_cache_size=settings.statement_cache_size,
            # Bounds the cancellation of a statement too: on a link that is stuck it would never be acknowledged.
            command_timeout=settings.statement_timeout_seconds,
            init=self._count,
            reset=_keep_session,
        )

    async def _connect(self, *arguments: Any, **options: Any) -> asyncpg.Connection:
        """asyncpg.connect, twice where that gets stuck. A place for each, so no more are open than the pool allows."""
        has_second = False

        def take_place() -> bool:
            nonlocal has_second
            has_second = self._free > 0
            self._free -= has_second
            return has_second

        try:
            return await connecting.connect(self._name, partial(asyncpg.connect, *arguments, **options), take_place)
        finally:
            if has_second:
                self._pass_on_place()

    async def _count(self, connection: asyncpg.Connection) -> None:
        self.opened += 1
        self._metrics.opened()

    async def close(self) -> None:
        """Close the pool: connections in use finish first, for as long as one statement may take."""
        if self._timer is not None:
            self._timer.cancel()
        # Who still asks was given up by the server, and would ask again and again for what is closing.
        self._hopeless = True
        try:
            async with asyncio.timeout(self._settings.statement_timeout_seconds):
                await self._pool.close()
        except TimeoutError:
            self._pool.terminate()

    async def borrow(self, deadline: float) -> PoolConnectionProxy:
        """A connection: the pool's where one is free, else the next that another statement is done with.

        While statements wait, a connection goes from hand to hand. The pool's own acquire(timeout=) and release() each
        start a task, which costs more than the rest of a small statement.

        `deadline` is a time of the event loop. Raises DatabaseUnavailableError.
        """
        ahead = False
        if self._free and not self._failures:
            self._free -= 1
            try:
                # Never waits: a place in the pool is ours. Connecting has a time-out of its own, below the deadline.
                return await self._pool.acquire()
            except BaseException as error:
                self._give_up_place(error, math.inf)
            ahead = True
        while (connection := await self._wait_turn(deadline, ahead)) is None:
            try:
                async with asyncio.timeout_at(deadline):
                    return await self._pool.acquire()
            except BaseException as error:
                self._give_up_place(error, deadline)
            ahead = True
        return connection

    def give_back(self, connection: PoolConnectionProxy, answered: bool, first: bool) -> None:
        """Hand a connection over, or let the pool see to it where its statement, maybe its `first`, has no answer."""
        if not (answered and self._hand_over(connection)):
            # Not awaited: who asked need not wait until the pool has its connection back.
            task = asyncio.get_running_loop().create_task(self._release(connection))
            self._returning.add(task)
            task.add_done_callback(self._returning.discard)
        if first and answered and self._failures:
            self._end_outage()

    def failed(self, error: Exception) -> None:
        """Note that a connection could not be had, or broke before it served anybody."""
        loop = asyncio.get_running_loop()
        if not self._failures:
            self._since = loop.time()
            logger.warning("%s: no new connection: %s", self._name, describe(error))
        self._failures += 1
        self._metrics.failed_to_open()
        self._failure = error.with_traceback(None)
        if self._timer is None:
            self._timer = loop.call_later(connecting.delay(self._failures), self._try_again)
        # While there is a connection there is hope: it serves those who wait, one after the other.
        if not faults.judge(error).transient and not self._pool.get_size():
            self._hopeless = True
            while self._waiters:
                self._refuse(self._waiters.popleft())

    def _end_outage(self) -> None:
        # What an older connection answers proves nothing: those that are open may be all that the server has room for.
        seconds = asyncio.get_running_loop().time() - self._since
        logger.info("%s: connected again, after %d failures in %.1f s", self._name, self._failures, seconds)
        self._failures = 0
        self._failure = None
        if self._timer is not None:
            self._timer.cancel()
        self._try_again()

    def _try_again(self) -> None:
        self._timer = None
        self._hopeless = False
        self._admit()

    def _admit(self) -> None:
        """Let those who wait have the free places. In an outage one does, to try, unless a connection lies idle."""
        while self._free and self._waiters and not self._failures:
            self._free -= self._hand_over(None)
        if self._free and self._waiters and (self._timer is None or self._pool.get_idle_size()):
            loop = asyncio.get_running_loop()
            self._timer = self._timer or loop.call_later(connecting.delay(self._failures), self._try_again)
            self._free -= self._hand_over(None)

    def _give_up_place(self, error: BaseException, deadline: float) -> None:
        """Pass on a place in the pool that brought no connection. Raises what is not the database's failure."""
        if isinstance(error, faults.DATABASE_ERRORS) and asyncio.get_running_loop().time() < deadline:
            self.failed(error)
        self._pass_on_place()
        if not isinstance(error, faults.DATABASE_ERRORS):
            raise error

    async def _wait_turn(self, deadline: float, ahead: bool) -> PoolConnectionProxy | None:
        """What another statement leaves: its connection, or None for a place in the pool."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[PoolConnectionProxy | None] = loop.create_future()
        if self._hopeless:
            self._refuse(waiter)
        elif ahead:
            self._waiters.appendleft(waiter)
        else:
            self._waiters.append(waiter)
        if self._free:
            self._admit()
        timer = loop.call_at(deadline, self._refuse, waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                # It was handed over in the very tick in which the caller was cancelled: it must not be lost.
                handed = waiter.result()
                if handed is None:
                    self._pass_on_place()
                elif not self._hand_over(handed):
                    await self._release(handed)
            raise
        finally:
            timer.cancel()

    def _refuse(self, waiter: asyncio.Future[PoolConnectionProxy | None]) -> None:
        if waiter.done():
            return
        if self._failure is None:
            error = DatabaseUnavailableError("every connection was busy: see POOL_MAX_SIZE and ACQUIRE_TIMEOUT_SECONDS")
        else:
            error = DatabaseUnavailableError(faults.judge(self._failure).remedy)
            error.__cause__ = self._failure
        waiter.set_exception(error)

    def _hand_over(self, connection: PoolConnectionProxy | None) -> bool:
        """Give a connection, or the place of one, to the statement that waits first. False where none does."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(connection)
                return True
        return False

    async def _release(self, connection: PoolConnectionProxy) -> None:
        try:
            await self._pool.release(connection)
        except faults.DATABASE_ERRORS as error:
            # The pool has ended it, and opens another when one is wanted.
            logger.info("a connection could not be kept: %s", describe(error))
        finally:
            self._pass_on_place()

    def _pass_on_place(self) -> None:
        self._free += 1
        self._admit()


async def _keep_session(connection: asyncpg.Connection) -> None:
    """Stand in for the pool's reset query, which costs a round trip for every borrow.

    It would undo session state, and no statement of ours leaves any: a transaction pooler would lose it anyway.
    """
