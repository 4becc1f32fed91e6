"""The pool over simulated time: its invariants, whatever connects, breaks, refuses, is silent, cancelled or expires."""

import asyncio
import os
from collections import Counter
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

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

from api.database.pool import Pool
from api.database.silence import Silence
from api.errors import DatabaseUnavailableError, OutcomeUnknownError, StatementTimeoutError
from api.users.statements import ESTIMATE_USERS
from tests.support.simulated import SimulatedLoop, simulate
from tests.support.simulated_database import (
    ACQUIRE_SECONDS,
    CONNECT_SECONDS,
    STATEMENT_SECONDS,
    Caller,
    Database,
    make_database,
    make_pool,
)

TICK = 1e-6
MAX_SIZE = 3
READ = ESTIMATE_USERS
WRITE = replace(READ, writes=True)


class PoolMachine(RuleBasedStateMachine):
    """Steps of a pool, its callers and its database; the invariants hold after each."""

    kind = Pool

    def __init__(self) -> None:
        super().__init__()
        self.loop = SimulatedLoop()
        self.callers: list[Caller] = []
        self.database = Database()
        self.breaks = 0
        self.changed = False
        self.forgotten = False
        self.statements: dict[str, asyncio.Task[Any]] = {}

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        self.loop.run_until_complete(work)

    @initialize(min_size=st.sampled_from([0, 2]), latency=st.sampled_from([0.0, 0.005, 0.02, 0.3]))
    def start(self, min_size: int, latency: float) -> None:
        self.database.latency = latency

        async def start() -> None:
            self.pool = await make_pool(self.kind, self.database, min_size=min_size, max_size=MAX_SIZE)
            self.fetching = await make_database(self.pool)

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

    @rule(writes=st.booleans(), seconds=st.sampled_from([0.0, 0.3, 2.5, 6.0]))
    def fetch(self, writes: bool, seconds: float) -> None:
        name = f"{'write' if writes else 'read'} {len(self.statements)}"

        async def fetch() -> None:
            statement = self.fetching.fetch(WRITE if writes else READ, name, seconds)
            self.statements[name] = asyncio.create_task(statement)

        self.run(fetch())

    @rule(seconds=st.sampled_from([0.0, TICK, 0.004, 0.02, 0.1, 1.0, 11.0, 130.0]))
    def wait(self, seconds: float) -> None:
        self.run(asyncio.sleep(seconds))

    @rule(state=st.sampled_from(["up", "refusing", "denying", "silent"]))
    def change(self, state: str) -> None:
        self.database.state = state
        self.changed = True

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

    @rule(all_of_them=st.booleans())
    def forget_connections(self, all_of_them: bool) -> None:
        self.forgotten = True
        for connection in self.database.connections if all_of_them else self.database.connections[-1:]:
            connection.forgotten = True

    @precondition(lambda self: any(not each.task.done() for each in self.callers))
    @rule(data=st.data(), callbacks=st.integers(1, 40))
    def cancel(self, data: st.DataObject, callbacks: int) -> None:
        """Cancel a caller at one of the next moments, between any two steps of any tasks."""
        caller = data.draw(st.sampled_from([each for each in self.callers if not each.task.done()]))
        self.loop.after(callbacks, caller.task.cancel)

    @invariant()
    def never_more_than_the_pool_allows(self) -> None:
        assert self.database.most <= MAX_SIZE

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

    @invariant()
    def a_statement_is_never_in_flight_twice_and_a_write_never_sent_twice(self) -> None:
        running = Counter(each.running for each in self.database.connections if each.running and not each.closed)
        assert not running or max(running.values()) == 1
        # A write that was rejected never ran, which happens to the first statement of a connection alone.
        refused = sum(not each.statements and each.closed for each in self.database.connections)
        for name, times in self.database.sent.items():
            assert times <= 1 + refused or not name.startswith("write")

    @invariant()
    def a_slow_database_gets_one_statement_more(self) -> None:
        if not self.forgotten and not self.breaks and not self.changed:
            again = sum(times - 1 for times in self.database.sent.values())
            assert again <= 1 + self.loop.time() / 30.0

    @invariant()
    def every_statement_ends(self) -> None:
        for task in self.statements.values():
            if task.done() and not task.cancelled() and (error := task.exception()):
                assert isinstance(error, DatabaseUnavailableError | OutcomeUnknownError | StatementTimeoutError), repr(
                    error
                )

    def teardown(self) -> None:
        """The database comes back: the pool serves at once, loses no place, and closes."""

        async def end() -> None:
            loop = asyncio.get_running_loop()
            self.database.state = "up"
            await asyncio.sleep(0.31 + 2 * self.database.latency + 1.1)
            # Statements, and forgotten connections with their checks, keep their places for so long.
            under_way = [*self.statements.values(), *(each.task for each in self.callers)]
            await asyncio.gather(*under_way, return_exceptions=True)
            if self.forgotten:
                await asyncio.sleep(STATEMENT_SECONDS + 2.0)
            callers = [Caller(self.pool, 0.0, True, ACQUIRE_SECONDS) for _ in range(2 * MAX_SIZE)]
            await asyncio.gather(*(each.task for each in callers), return_exceptions=True)
            if self.forgotten:
                await asyncio.sleep(STATEMENT_SECONDS + 2.0)
            for each in callers:
                assert each.acquired is not None or self.forgotten, each.error
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
            self.loop.end()


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

    async def run() -> tuple[float, float]:
        loop = asyncio.get_running_loop()
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

    return simulate(run())


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


class NeverRests(Silence):
    """A planted bug: every slow read is sent again, however slow the database is."""

    def _tick(self) -> None:
        self._next_trial = 0
        super()._tick()


def slow_reads(silence: type[Silence]) -> int:
    """Return how many statements a database of which every read takes 3 s gets beyond the 60 reads of a minute."""

    async def run() -> int:
        database = Database()
        fetching = await make_database(await make_pool(Pool, database, max_size=MAX_SIZE), silence)
        for _ in range(20):
            await asyncio.gather(*(fetching.fetch(READ, f"{n}", 3.0) for n in range(MAX_SIZE)), return_exceptions=True)
        await fetching.close()
        return database.sent.total() - 20 * MAX_SIZE

    return simulate(run())


def test_a_slow_database_gets_one_statement_more_in_30_seconds() -> None:
    assert 1 <= slow_reads(Silence) <= 1 + 65 // 30


def test_a_slow_database_that_gets_ever_more_statements_is_found() -> None:
    assert slow_reads(NeverRests) > 1 + 65 // 30


class TrustsSiblings(Pool):
    """A planted bug: what one connection showed is not applied to the others."""

    def check_idle(self) -> None:
        pass


def forget(kind: type[Pool], latency: float, writes: bool) -> list[float]:
    """Return the seconds that each of six statements in a row takes once every idle connection is forgotten."""

    async def run() -> list[float]:
        loop = asyncio.get_running_loop()
        database = Database()
        database.latency = latency
        pool = await make_pool(kind, database, max_size=MAX_SIZE)
        fetching = await make_database(pool)
        await asyncio.gather(*(fetching.fetch(READ, f"before {n}", 0.1) for n in range(MAX_SIZE)))
        for connection in database.connections:
            connection.forgotten = True
        seconds = []
        for n in range(6):
            begun = loop.time()
            work = fetching.fetch(WRITE if writes and not n else READ, f"after {n}", 0.0)
            try:
                await work
            except OutcomeUnknownError:
                assert writes
                assert not n
            except StatementTimeoutError:
                assert kind is TrustsSiblings
            seconds.append(loop.time() - begun)
        assert not writes or database.sent["after 0"] == 1
        await fetching.close()
        return seconds

    return simulate(run())


@pytest.mark.parametrize("latency", [0.0, 0.005, 0.02, 0.08])
@pytest.mark.parametrize("writes", [False, True])
def test_forgotten_connections_cost_one_statement(latency: float, writes: bool) -> None:
    first, *others = forget(Pool, latency, writes)
    assert first == pytest.approx(STATEMENT_SECONDS) if writes else first < 2.3 + 5 * latency
    assert max(others) < 4 * latency + TICK


def test_siblings_that_are_trusted_are_found() -> None:
    assert sum(forget(TrustsSiblings, 0.02, False)) > 4.0
