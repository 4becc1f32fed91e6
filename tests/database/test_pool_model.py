"""The pool over simulated time: its invariants, whatever connects, breaks, refuses, is cancelled or expires."""

import asyncio
import os
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import asyncpg
import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from api.database.options import DatabaseOptions
from api.database.pool import Pool
from api.errors import DatabaseUnavailableError
from api.neon.url import parse_url
from api.telemetry.metrics import DatabaseMetrics, Metrics
from tests.support.simulated import SimulatedLoop

TICK = 1e-6
MAX_SIZE = 3
CONNECT_SECONDS = 10.0
ACQUIRE_SECONDS = 2.0


class Connection:
    """The part of an asyncpg.Connection that the pool uses."""

    def __init__(self, database: "Database") -> None:
        self.database = database
        self.closed = False
        self.statements = 0
        self._listeners: list[Callable[[Any], object]] = []

    def is_closed(self) -> bool:
        return self.closed

    def add_termination_listener(self, listener: Callable[[Any], object]) -> None:
        self._listeners.append(listener)

    def terminate(self) -> None:
        self.closed = True
        for listener in self._listeners:
            asyncio.get_running_loop().call_soon(listener, self)
        self._listeners.clear()

    async def close(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - as asyncpg has it
        await asyncio.sleep(self.database.latency)
        self.terminate()

    async def execute(self, sql: str, timeout: float | None = None) -> None:  # noqa: ASYNC109 - as asyncpg has it
        await asyncio.sleep(self.database.latency)
        if self.database.state != "up" or self.closed:
            self.terminate()
            raise ConnectionResetError


class Database:
    """A database that is up, refuses connections, refuses them for good, or does not answer an attempt at all."""

    def __init__(self) -> None:
        self.state = "up"
        self.latency = 0.02
        self.connections: list[Connection] = []
        self.attempts: list[float] = []
        self.connecting = 0

    async def connect(self) -> Any:
        loop = asyncio.get_running_loop()
        self.attempts.append(loop.time())
        self.connecting += 1
        try:
            await asyncio.sleep(self.latency)
            if self.state == "silent":
                await asyncio.sleep(3600)
            if self.state == "refusing":
                raise asyncpg.CannotConnectNowError("the database system is starting up")
            if self.state == "denying":
                raise asyncpg.InvalidPasswordError("password authentication failed")
            connection = Connection(self)
            self.connections.append(connection)
            return connection
        finally:
            self.connecting -= 1

    @property
    def open(self) -> int:
        return sum(not each.closed for each in self.connections)


class Caller:
    """A statement: acquires a connection, holds it for a while, and releases it."""

    def __init__(self, pool: Pool, seconds: float, answered: bool, patience: float) -> None:
        loop = asyncio.get_running_loop()
        self.deadline = loop.time() + patience
        self.acquired: float | None = None
        self.ended: float | None = None
        self.error: BaseException | None = None
        self._pool, self._seconds, self._answered = pool, seconds, answered
        self.task = loop.create_task(self._run())

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            connection: Any = await self._pool.acquire(self.deadline)
        except BaseException as error:
            self.error = error
            self.ended = loop.time()
            return
        self.acquired = loop.time()
        failure = None
        try:
            await asyncio.sleep(self._seconds)
            if connection.database.state != "up" and not connection.statements:
                connection.terminate()
                failure = asyncpg.CannotConnectNowError("the pooler cannot reach PostgreSQL")
            connection.statements += 1
        finally:
            self.ended = loop.time()
            self._pool.release(connection, answered=self._answered and not connection.closed, failure=failure)

    @property
    def is_waiting(self) -> bool:
        return self.acquired is None and self.ended is None


async def make_pool(kind: type[Pool], database: Database, *, min_size: int = 0, max_size: int) -> Pool:
    options = DatabaseOptions(
        name="URL",
        url=parse_url("postgresql://user@localhost/database"),
        acquire_timeout=ACQUIRE_SECONDS,
        connect_timeout=CONNECT_SECONDS,
        statement_timeout=10.0,
        statement_cache_size=0,
        pool_min_size=min_size,
        pool_max_size=max_size,
        pool_idle_seconds=120.0,
    )
    pool = kind(options, DatabaseMetrics(Metrics(), "URL"), database.connect)
    await pool.open()
    return pool


class PoolMachine(RuleBasedStateMachine):
    """Steps of a pool, its callers and its database; the invariants hold after each."""

    kind = Pool

    def __init__(self) -> None:
        super().__init__()
        self.loop = SimulatedLoop()
        self.callers: list[Caller] = []
        self.database = Database()
        self.breaks = 0

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        self.loop.run_until_complete(work)

    @initialize(min_size=st.sampled_from([0, 2]), latency=st.sampled_from([0.0, 0.005, 0.02, 0.3]))
    def start(self, min_size: int, latency: float) -> None:
        self.database.latency = latency

        async def start() -> None:
            self.pool = await make_pool(self.kind, self.database, min_size=min_size, max_size=MAX_SIZE)

        self.run(start())

    @rule(
        seconds=st.sampled_from([0.0, 0.05, 1.7]),
        patience=st.sampled_from([0.001, 0.03, 0.5, 2.0]),
        answered=st.booleans(),
    )
    def call(self, seconds: float, patience: float, answered: bool) -> None:
        async def call() -> None:
            self.callers.append(Caller(self.pool, seconds, answered, patience))

        self.run(call())

    @rule(seconds=st.sampled_from([0.0, TICK, 0.004, 0.02, 0.1, 1.0, 11.0, 130.0]))
    def wait(self, seconds: float) -> None:
        self.run(asyncio.sleep(seconds))

    @rule(state=st.sampled_from(["up", "refusing", "denying", "silent"]))
    def change(self, state: str) -> None:
        self.database.state = state

    @rule(at_once=st.booleans())
    def break_connections(self, at_once: bool) -> None:
        self.breaks += 1

        async def break_all() -> None:
            for connection in self.database.connections:
                if not connection.closed:
                    connection.terminate()
            if not at_once:
                await asyncio.sleep(0)

        self.run(break_all())

    @precondition(lambda self: any(not each.task.done() for each in self.callers))
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        caller = data.draw(st.sampled_from([each for each in self.callers if not each.task.done()]))

        async def cancel() -> None:
            caller.task.cancel()

        self.run(cancel())

    @invariant()
    def never_more_than_the_pool_allows(self) -> None:
        assert self.database.open + self.database.connecting <= MAX_SIZE

    @invariant()
    def every_waiter_ends_by_its_deadline(self) -> None:
        for caller in self.callers:
            if caller.acquired is not None:
                assert caller.acquired <= caller.deadline + TICK
            elif caller.ended is None:
                assert self.loop.time() <= caller.deadline + TICK
            else:
                assert caller.ended <= caller.deadline + TICK
            if caller.error is not None:
                assert isinstance(caller.error, DatabaseUnavailableError | asyncio.CancelledError)

    @invariant()
    def none_waits_beside_an_idle_connection_or_an_unused_place(self) -> None:
        if not hasattr(self, "pool"):
            return
        pool = self.pool
        if any(each.is_waiting for each in self.callers) and pool._waiters:
            assert not any(not each.is_closed() for each in pool._idle)
            has_room = len(pool._open) + len(pool._attempts) < MAX_SIZE
            assert pool._outage.is_pausing or pool._attempts or not has_room

    @invariant()
    def attempts_are_few_in_an_outage(self) -> None:
        # The shortest pause is 25 ms; three places may have one attempt each before the first failure.
        last = [at for at in self.database.attempts if at > self.loop.time() - 1.0]
        assert len(last) <= 45 + MAX_SIZE * self.breaks

    def teardown(self) -> None:
        """The database comes back: the pool serves at once, loses no place, and closes."""

        async def end() -> None:
            loop = asyncio.get_running_loop()
            self.database.state = "up"
            await asyncio.sleep(0.31 + 2 * self.database.latency + 1.1)
            callers = [Caller(self.pool, 0.0, True, ACQUIRE_SECONDS) for _ in range(2 * MAX_SIZE)]
            await asyncio.gather(*(each.task for each in self.callers + callers), return_exceptions=True)
            for each in callers:
                assert each.acquired is not None, each.error
            holders = [Caller(self.pool, 5.0, True, ACQUIRE_SECONDS) for _ in range(MAX_SIZE)]
            await asyncio.sleep(1.9)
            assert all(each.acquired is not None for each in holders)
            begun = loop.time()
            await self.pool.close()
            assert loop.time() - begun <= 10.0 + TICK
            assert self.database.open == 0

        try:
            if hasattr(self, "pool"):
                self.run(end())
        finally:
            for _ in range(3):
                tasks = asyncio.all_tasks(self.loop)
                for task in tasks:
                    task.cancel()
                self.loop.run_until_complete(asyncio.wait(tasks)) if tasks else None
            self.loop.close()


PoolMachine.TestCase.settings = settings(
    max_examples=int(os.environ.get("EXAMPLES", "100")), stateful_step_count=30, deadline=None
)
TestPool = PoolMachine.TestCase


class BoundToRequest(Pool):
    """A planted bug: an attempt to connect ends at the deadline of the statement that has waited longest."""

    async def _attempt(self) -> None:
        loop = asyncio.get_running_loop()
        deadline = next(iter(self._waiters.values()), loop.time() + CONNECT_SECONDS)
        self._options = replace(self._options, connect_timeout=max(deadline - loop.time(), 0.0))
        await super()._attempt()


class WithoutDeadline(Pool):
    """A planted bug: a waiter is refused only when a connection comes for it."""

    async def acquire(self, deadline: float) -> Any:
        return await super().acquire(deadline + 60.0)


def recover(kind: type[Pool], latency: float, outage: float) -> tuple[float, float]:
    """Return how long after an outage the first of 60 statements a second is served, and how long until 99 % are."""
    loop = SimulatedLoop()

    async def run() -> tuple[float, float]:
        database = Database()
        database.latency = latency
        pool = await make_pool(kind, database, max_size=10)
        callers: list[tuple[float, Caller]] = []

        async def load(seconds: float) -> None:
            for _ in range(round(60 * seconds)):
                callers.append((loop.time(), Caller(pool, latency, True, 15.0)))
                await asyncio.sleep(1 / 60)

        await load(1.0)
        database.state = "refusing"
        for connection in database.connections:
            connection.terminate()
        await load(outage)
        database.state = "up"
        back = loop.time()
        await load(20.0)
        await asyncio.gather(*(caller.task for _, caller in callers))
        served = [caller.acquired for _, caller in callers if caller.acquired is not None and caller.acquired >= back]
        lost = [begun for begun, caller in callers if begun >= back and caller.error is not None]
        await pool.close()
        return min(served, default=float("inf")) - back, max(lost, default=back) - back

    try:
        return loop.run_until_complete(run())
    finally:
        loop.close()


@pytest.mark.parametrize("latency", [0.0, 0.005, 0.02, 0.08])
@pytest.mark.parametrize("outage", [5.0, 18.0])
def test_a_healthy_database_is_used_at_once(latency: float, outage: float) -> None:
    first, all_served = recover(Pool, latency, outage)
    assert first <= 1.0
    assert all_served <= 2.0


def test_an_attempt_that_is_bound_to_its_request_is_found() -> None:
    first, all_served = recover(BoundToRequest, 0.02, 18.0)
    assert first > 1.0 or all_served > 2.0


def test_a_waiter_without_a_deadline_is_found() -> None:
    class Planted(PoolMachine):
        kind = WithoutDeadline

    quick = settings(
        max_examples=200, stateful_step_count=30, deadline=None, database=None, phases=[Phase.generate],
        report_multiple_bugs=False,
    )  # fmt: skip
    with pytest.raises(AssertionError):
        run_state_machine_as_test(Planted, settings=quick)
