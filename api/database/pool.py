"""The connection pool: hands connections from statement to statement, and shares one back-off while it has none."""

import asyncio
import logging
import math
from collections import deque
from functools import partial
from typing import Any

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from api.database import connecting, faults
from api.database.options import DatabaseOptions
from api.errors import DatabaseUnavailableError, describe
from api.telemetry.metrics import DatabaseMetrics

logger = logging.getLogger("api.database")


class Pool:
    """One asyncpg pool, and the queue of statements that wait for one of its connections.

    During an outage that is transient all of them wait in order of arrival, while one attempt after the other is made
    for them, with exponential back-off. A permanent fault fails all of them at once.
    """

    def __init__(self, options: DatabaseOptions, metrics: DatabaseMetrics) -> None:
        self._options = options
        self._metrics = metrics
        self.opened = 0  # connections so far
        # Connections that the pool may still lend, open or not. Taking one before acquire() means it never waits.
        self._free = options.pool_max_size
        self._waiters: deque[asyncio.Future[PoolConnectionProxy | None]] = deque()
        self._returning: set[asyncio.Task[None]] = set()
        # Set by open(): a pool belongs to an event loop. Kept, since asking asyncio for it costs each statement 0.1 µs.
        self._loop: asyncio.AbstractEventLoop
        self._pool: asyncpg.Pool
        # An outage: the attempts that failed in a row, the last one's error, the time of the first, and the timer that
        # runs until the next attempt.
        self._failures = 0
        self._failure: Exception | None = None
        self._since = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._hopeless = False

    async def open(self) -> None:
        """Make the pool. Does not wait for the database, which may be asleep or down: the first statements do."""
        self._loop = asyncio.get_running_loop()
        try:
            self._pool = await self._create_pool(self._options.pool_min_size)
        except faults.DATABASE_ERRORS as error:
            logger.warning(
                "%s: the database does not answer yet, so POOL_MIN_SIZE=%d connections are opened on demand: %s",
                self._options.name,
                self._options.pool_min_size,
                describe(error),
            )
            self._pool = await self._create_pool(0)
        self._metrics.watch(self._state)

    def _state(self) -> dict[str, float]:
        most = self._options.pool_max_size
        waiting = sum(not waiter.done() for waiter in self._waiters)
        return {
            "max_connections": most,
            "connections": self._pool.get_size(),
            "in_use": most - self._free,
            "waiting": waiting,
        }

    async def _create_pool(self, min_size: int) -> asyncpg.Pool:
        return await connecting.create_pool(self._options, min_size, connect=self._connect, init=self._count)

    async def _connect(self, *arguments: Any, **options: Any) -> asyncpg.Connection:
        """Connect; if that gets stuck, try twice at once, within POOL_MAX_SIZE connections in all."""
        has_second = False

        def take_second() -> bool:
            nonlocal has_second
            has_second = self._free > 0
            self._free -= has_second
            return has_second

        try:
            attempt = partial(asyncpg.connect, *arguments, **options)
            return await connecting.connect(self._options.name, attempt, take_second)
        finally:
            if has_second:
                self._free_one()

    async def _count(self, connection: asyncpg.Connection) -> None:
        self.opened += 1
        self._metrics.opened()

    async def close(self) -> None:
        """Close the pool: statements in flight may finish, for as long as one statement may take."""
        if self._timer is not None:
            self._timer.cancel()
        # The server has given up the requests that still need a connection: fail them instead of retrying.
        self._hopeless = True
        try:
            async with asyncio.timeout(self._options.statement_timeout):
                await self._pool.close()
        except TimeoutError:
            self._pool.terminate()

    async def borrow(self, deadline: float) -> PoolConnectionProxy:
        """Acquire a connection: one from the asyncpg pool if it may lend one, else the next that a statement releases.

        While statements wait, a released connection goes straight to the next of them. asyncpg's acquire(timeout=) and
        release() each start a task, which costs more than the rest of a small statement.

        `deadline` is a time of the event loop. Raises DatabaseUnavailableError if it passes, or on a permanent fault.
        """
        ahead = False
        if self._free and not self._failures:
            self._free -= 1
            try:
                # Never waits for another connection; connecting has a timeout of its own, below the deadline.
                return await self._pool.acquire()
            except BaseException as error:
                self._acquire_failed(error, math.inf)
            ahead = True
        while (connection := await self._wait(deadline, ahead)) is None:
            try:
                async with asyncio.timeout_at(deadline):
                    return await self._pool.acquire()
            except BaseException as error:
                self._acquire_failed(error, deadline)
            ahead = True
        return connection

    def give_back(self, connection: PoolConnectionProxy, answered: bool, first: bool) -> None:
        """Hand a connection to the next statement, or release it to the asyncpg pool.

        `answered`: its statement had an answer; without one asyncpg checks the connection. `first`: that statement was
        the connection's first.
        """
        if not (answered and self._hand_over(connection)):
            # Not awaited: the request need not wait until the pool has its connection back.
            task = self._loop.create_task(self._release(connection))
            self._returning.add(task)
            task.add_done_callback(self._returning.discard)
        if first and answered and self._failures:
            self._end_outage()

    def failed(self, error: Exception) -> None:
        """Record that a connection could not be opened, or broke before it served a statement."""
        if not self._failures:
            self._since = self._loop.time()
            logger.warning("%s: no new connection: %s", self._options.name, describe(error))
        self._failures += 1
        self._metrics.failed_to_open()
        self._failure = error.with_traceback(None)
        if self._timer is None:
            self._timer = self._loop.call_later(connecting.delay(self._failures), self._try_again)
        # An open connection can still serve all waiting statements, one after the other.
        if not faults.classify(error).transient and not self._pool.get_size():
            self._hopeless = True
            while self._waiters:
                self._refuse(self._waiters.popleft())

    def _end_outage(self) -> None:
        # Called for new connections only: an older one that answers does not show that the server has room for more.
        seconds = self._loop.time() - self._since
        logger.info("%s: connected again, after %d failures in %.1f s", self._options.name, self._failures, seconds)
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
        """Let waiting statements acquire what is free. In an outage only one may try, unless a connection is idle."""
        while self._free and self._waiters and not self._failures:
            self._free -= self._hand_over(None)
        if self._free and self._waiters and (self._timer is None or self._pool.get_idle_size()):
            if self._timer is None:
                self._timer = self._loop.call_later(connecting.delay(self._failures), self._try_again)
            self._free -= self._hand_over(None)

    def _acquire_failed(self, error: BaseException, deadline: float) -> None:
        """Record that acquire() failed. Raises `error` again unless the database is what failed."""
        if isinstance(error, faults.DATABASE_ERRORS) and self._loop.time() < deadline:
            self.failed(error)
        self._free_one()
        if not isinstance(error, faults.DATABASE_ERRORS):
            raise error

    async def _wait(self, deadline: float, ahead: bool) -> PoolConnectionProxy | None:
        """Wait until a statement hands over its connection; None: acquire one from the asyncpg pool instead."""
        waiter: asyncio.Future[PoolConnectionProxy | None] = self._loop.create_future()
        if self._hopeless:
            self._refuse(waiter)
        elif ahead:
            self._waiters.appendleft(waiter)
        else:
            self._waiters.append(waiter)
        if self._free:
            self._admit()
        timer = self._loop.call_at(deadline, self._refuse, waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                # Handed over in the same tick in which the caller was cancelled: pass it on.
                handed = waiter.result()
                if handed is None:
                    self._free_one()
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
            error = DatabaseUnavailableError(faults.classify(self._failure).remedy)
            error.__cause__ = self._failure
        waiter.set_exception(error)

    def _hand_over(self, connection: PoolConnectionProxy | None) -> bool:
        """Give the first waiting statement a connection, or with None the right to acquire one. False: none waits."""
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
            # asyncpg has closed it, and opens another when one is needed.
            logger.info("a connection was dropped: %s", describe(error))
        finally:
            self._free_one()

    def _free_one(self) -> None:
        self._free += 1
        self._admit()
