"""The connection pool: acquire within a deadline, connect on no request's account, back off in an outage.

Invariants, each held by the state machine of the pool's tests:

1. At most `pool_max_size` connections are open or being opened.
2. Every `acquire` ends by its deadline, plus one tick of the event loop.
3. An open connection is lent, idle, or being checked (see silence.py). Losing one frees its place at once.
4. An attempt to connect belongs to no request. It has a timeout of its own and outlives the request that caused it. Its
   connection goes to the first waiter that has time left, else it lies idle.
5. While a statement waits and a place is free, an attempt is under way, or a timer will start one.
6. In an outage, attempts start one by one, each after a growing pause. The first statement that is answered on a new
   connection ends the outage: a pooler lets clients in while it cannot reach PostgreSQL.
7. No connection lies idle while a statement waits.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from contextvars import Context
from typing import Any

import asyncpg

from api.database.connecting import STUCK_SECONDS, SUSPECT_SECONDS, close_connection, is_usable, log_second_attempt
from api.database.options import DatabaseOptions
from api.database.outage import Outage
from api.telemetry.metrics import DatabaseMetrics

_OPEN_SECONDS = 10.0
"""Attempts that take longer go on. A worker that does not serve within a minute is killed: see supervisor.py."""
_BUSY = "every connection was busy: see POOL_MAX_SIZE and ACQUIRE_TIMEOUT_SECONDS"


class Pool:
    """Connections to one PostgreSQL, which `connect` opens."""

    def __init__(
        self, options: DatabaseOptions, metrics: DatabaseMetrics, connect: Callable[[], Awaitable[asyncpg.Connection]]
    ) -> None:
        self._options = options
        self._metrics = metrics
        self._connect = connect
        self.opened = 0
        """Connections opened so far."""
        self._open: set[asyncpg.Connection] = set()
        self._unproven: set[asyncpg.Connection] = set()  # they have answered no statement yet
        self._idle: dict[asyncpg.Connection, float] = {}  # since when; the one used last comes last
        self._waiters: dict[asyncio.Future[asyncpg.Connection], float] = {}  # deadlines, in order of arrival
        self._attempts: dict[asyncio.Task[None], bool] = {}  # oldest first; True: stuck, another is made beside it
        self._tasks: set[asyncio.Task[None]] = set()
        self._outage = Outage(options.name, self._grow)
        self._reaper: asyncio.TimerHandle | None = None
        self._closing = False
        self._closed = asyncio.Event()  # set when a connection is closed

    async def open(self) -> None:
        """Open `pool_min_size` connections, if the database answers within ten seconds: it may be asleep or down."""
        self._metrics.watch(self._state)
        self._grow()
        if self._attempts:
            await asyncio.wait(self._attempts, timeout=_OPEN_SECONDS)

    async def close(self) -> None:
        """Close the pool. Connections in use finish first, for as long as one statement may take."""
        self._closing = True
        self._outage.stop()
        for waiter in list(self._waiters):
            self._refuse(waiter)
        for task in self._attempts:
            task.cancel()
        while self._idle:  # one that is being closed serves no more
            connection, _ = self._idle.popitem()
            self._start(close_connection(connection))
        with suppress(TimeoutError):
            async with asyncio.timeout(self._options.statement_timeout):
                while self._open:
                    self._closed.clear()
                    await self._closed.wait()
        for connection in list(self._open):
            connection.terminate()

    def has_room(self) -> bool:
        """Return True if a connection is idle, or another one may be opened and none is being waited for."""
        is_full = len(self._open) + len(self._attempts) >= self._options.pool_max_size
        return bool(self._idle) or not (is_full or self._waiters)

    async def acquire(self, deadline: float) -> asyncpg.Connection:
        """Return the connection that was used last, else the next one that is opened or released.

        `deadline` is a time of the event loop. Raises DatabaseUnavailableError.
        """
        while self._idle:
            connection, _ = self._idle.popitem()
            if not connection.is_closed():
                return connection
            connection.terminate()  # asyncpg calls its termination listeners, if it has not yet
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[asyncpg.Connection] = loop.create_future()
        self._waiters[waiter] = deadline
        if self._closing or (self._outage.is_lasting and not self._open) or loop.time() >= deadline:
            self._refuse(waiter)
        self._grow()
        timer = loop.call_at(deadline, self._refuse, waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._hand_on(waiter.result())  # handed over in the very tick of the cancellation
            raise
        finally:
            timer.cancel()
            self._waiters.pop(waiter, None)

    def release(self, connection: asyncpg.Connection, *, answered: bool, failure: Exception | None = None) -> None:
        """Take a connection back. `answered`: its statement has an answer; `failure`: why it is lost."""
        is_first = connection in self._unproven
        self._unproven.discard(connection)
        if failure is not None:
            self._note_failure(failure)
        if connection.is_closed():
            connection.terminate()
        elif answered:
            if is_first:
                # An answer on an older one proves nothing: those that are open may be all that the server has room for.
                self._outage.end()
            self._hand_on(connection)
        else:
            self._start(self._check(connection))

    def check_idle(self) -> None:
        """Check each idle connection before it serves again, since another one gave no answer."""
        while self._idle:
            connection, _ = self._idle.popitem()
            self._start(self._check(connection, SUSPECT_SECONDS))

    def _note_failure(self, error: Exception) -> None:
        if self._closing:
            return
        self._metrics.failed_to_open()
        self._outage.note(error)
        if self._outage.is_lasting and not self._open:
            for waiter in list(self._waiters):
                self._refuse(waiter)

    def _state(self) -> dict[str, float]:
        return {
            "max_connections": self._options.pool_max_size,
            "connections": len(self._open),
            "in_use": len(self._open) - len(self._idle) + len(self._attempts),
            "waiting": len(self._waiters),
        }

    def _grow(self) -> None:
        """Start the attempts to connect that are wanted and allowed."""
        if self._closing or self._outage.is_pausing:
            return
        stuck = [task for task, is_stuck in self._attempts.items() if is_stuck]
        waiting, fresh = len(self._waiters), len(self._attempts) - len(stuck)
        if self._outage.is_on:
            wanted = min(waiting, 1) - fresh
        else:
            wanted = max(waiting - fresh, self._options.pool_min_size - len(self._open) - len(self._attempts))
        room = self._options.pool_max_size - len(self._open) - len(self._attempts)
        # Without room, new attempts take the place of those that are stuck. While no connection is open the oldest one
        # goes on: a compute that wakes may take long to answer.
        for task in stuck[0 if self._open else 1 :][: max(wanted - room, 0)]:
            task.cancel()
        for _ in range(min(wanted, room)):
            self._attempts[self._start(self._attempt())] = False

    async def _attempt(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        stuck = asyncio.get_running_loop().call_later(STUCK_SECONDS, self._note_stuck, task)
        connection = error = None
        try:
            async with asyncio.timeout(self._options.connect_timeout):
                connection = await self._connect()
        except Exception as failure:  # of any kind: its place is free again
            error = failure
        except asyncio.CancelledError:
            pass  # given up: see _grow, _admit and close
        stuck.cancel()
        del self._attempts[task]
        if connection is not None:
            self._admit(connection)
        elif error is not None:
            self._note_failure(error)
        self._grow()

    def _admit(self, connection: asyncpg.Connection) -> None:
        """Take a new connection in, and give up the attempts that are stuck while this one succeeded."""
        self.opened += 1
        self._metrics.opened()
        self._open.add(connection)
        self._unproven.add(connection)
        connection.add_termination_listener(self._forget)
        for task, is_stuck in self._attempts.items():
            if is_stuck:
                task.cancel()
        self._hand_on(connection)

    def _note_stuck(self, task: asyncio.Task[None]) -> None:
        """Make another attempt beside one that takes long, if a statement waits."""
        self._attempts[task] = True
        if self._waiters:
            log_second_attempt(self._options.name)
            self._grow()

    def _hand_on(self, connection: asyncpg.Connection) -> None:
        """Give a connection to the first waiter that has time left, else let it lie idle."""
        loop = asyncio.get_running_loop()
        while self._waiters:
            waiter = next(iter(self._waiters))
            deadline = self._waiters.pop(waiter)
            if deadline > loop.time() and not waiter.done():  # else its timer is due, or it was cancelled
                waiter.set_result(connection)
                return
        if self._closing:
            self._start(close_connection(connection))
            return
        self._idle[connection] = loop.time()
        if self._reaper is None:
            self._reaper = loop.call_later(self._options.pool_idle_seconds, self._reap)

    def _reap(self) -> None:
        """Close the connections that have lain idle for too long, down to `pool_min_size`."""
        loop = asyncio.get_running_loop()
        self._reaper = None
        for connection, since in list(self._idle.items()):
            rest = since + self._options.pool_idle_seconds - loop.time()
            if rest > 0 or len(self._open) <= self._options.pool_min_size:
                self._reaper = loop.call_later(max(rest, 1.0), self._reap)
                return
            self._unproven.discard(connection)
            self._forget(connection)
            connection.terminate()

    def _forget(self, connection: Any) -> None:
        """Free the place of a connection that is closed; asyncpg calls this too."""
        self._open.discard(connection)
        is_idle = self._idle.pop(connection, None) is not None
        is_unproven = connection in self._unproven
        self._unproven.discard(connection)
        self._closed.set()
        if is_idle and is_unproven:  # `release` knows why one in use is lost
            self._note_failure(ConnectionResetError("a new connection was closed before it was used"))
        self._grow()

    async def _check(self, connection: asyncpg.Connection, *seconds: float) -> None:
        if await is_usable(connection, *seconds):
            self._hand_on(connection)

    def _refuse(self, waiter: asyncio.Future[asyncpg.Connection]) -> None:
        self._waiters.pop(waiter, None)
        if waiter.done():
            return
        if any(self._attempts.values()) and not self._outage.is_on:
            self._outage.note(TimeoutError("no answer to an attempt to connect"))
        waiter.set_exception(self._outage.explain("this process is stopping" if self._closing else _BUSY))

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run `work` in a task of its own, which belongs to no request."""
        task = asyncio.get_running_loop().create_task(work, context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
