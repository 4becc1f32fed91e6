"""The pool when two things happen in one tick: at each moment of a hand-over, between any two steps of any tasks."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from api.database.pool import Pool
from api.errors import DatabaseUnavailableError
from tests.support.simulated import SimulatedLoop, simulate
from tests.support.simulated_database import Caller, Database, make_pool

SIZE = 2
SECOND = 1.0


@dataclass
class HandOver:
    """Both connections come to the first waiters, others wait behind them, and something happens meanwhile."""

    loop: SimulatedLoop
    database: Database
    pool: Pool
    waiters: list[Caller]
    closing: asyncio.Task[None] | None = None
    cancelled: Caller | None = None
    is_over: bool = False

    def cancel(self) -> None:
        if self.waiters[0].is_waiting:
            self.waiters[0].task.cancel()
            self.cancelled = self.waiters[0]

    def cancel_next(self) -> None:
        """Cancel right after what comes next, and before anything that follows from it."""
        self.loop.call_soon(self.cancel)

    def cancel_both(self) -> None:
        for waiter in self.waiters[:SIZE]:
            waiter.task.cancel()

    def expire(self) -> None:
        """The loop is busy until the first waiter has no time left."""
        self.loop.spend(max(self.waiters[0].deadline - self.loop.time(), 0.0))

    def break_all(self) -> None:
        for connection in self.database.connections:
            connection.terminate()

    def close(self) -> None:
        self.closing = self.loop.create_task(self.pool.close())


BY_RELEASE, BY_CHECK, BY_CONNECTING = "released", "checked", "opened"
CANCEL, CANCEL_BOTH, EXPIRE = HandOver.cancel, HandOver.cancel_both, HandOver.expire
CANCEL_NEXT, BREAK, CLOSE = HandOver.cancel_next, HandOver.break_all, HandOver.close
EVENTS = [
    *((CANCEL,), (CANCEL_BOTH,), (EXPIRE,), (BREAK,), (CLOSE,)),
    *((CANCEL, BREAK), (BREAK, CANCEL), (CANCEL, EXPIRE), (EXPIRE, CANCEL), (CANCEL, CLOSE), (CLOSE, CANCEL_NEXT)),
]


@pytest.mark.parametrize("events", EVENTS, ids=lambda events: " ".join(event.__name__ for event in events))
@pytest.mark.parametrize("kind", [BY_RELEASE, BY_CHECK, BY_CONNECTING])
def test_no_connection_and_no_place_is_lost_at_any_moment(
    kind: str, events: tuple[Callable[[HandOver], None], ...]
) -> None:
    callbacks = 1
    while simulate(hand_over(kind, events, callbacks)):
        callbacks += 1
    assert callbacks > 10


async def hand_over(kind: str, events: tuple[Callable[[HandOver], None], ...], callbacks: int) -> bool:
    """Let events happen after so many callbacks of a hand-over. Return False if it was over by then."""
    loop: Any = asyncio.get_running_loop()
    database = Database()
    pool = await make_pool(Pool, database, max_size=SIZE)
    if kind != BY_CONNECTING:
        for _ in range(SIZE):
            Caller(pool, 0.1, kind == BY_RELEASE, SECOND)
        await asyncio.sleep(0.1)
    seconds = (0.5 * SECOND, SECOND, SECOND, SECOND)
    world = HandOver(loop, database, pool, [Caller(pool, 0.0, True, patience) for patience in seconds])

    await asyncio.sleep(0)  # all of them wait
    happened = False

    def happen() -> None:
        nonlocal happened
        if not world.is_over:
            happened = True
            for event in events:
                event(world)

    loop.after(callbacks, happen)
    await asyncio.wait([each.task for each in world.waiters])
    world.is_over = True
    refused = [each for each in world.waiters if each.connection is None]
    if CLOSE in events:
        assert all(isinstance(each.error, DatabaseUnavailableError | asyncio.CancelledError) for each in refused)
    elif CANCEL_BOTH in events:
        assert not set(refused) - set(world.waiters[:SIZE])
    else:
        assert not set(refused) - set(world.waiters[:1])
    if world.cancelled is not None:
        assert isinstance(world.cancelled.error, asyncio.CancelledError)
    await _end(world)
    assert database.most <= SIZE
    assert database.open == database.connecting == 0
    return happened


async def _end(world: HandOver) -> None:
    """As many as the pool has places get a connection at the same time, and it closes as soon as they have ended."""
    loop = asyncio.get_running_loop()
    if world.closing is None:
        holders = [Caller(world.pool, 5 * SECOND, True, SECOND) for _ in range(SIZE)]
        await asyncio.sleep(SECOND)
        assert all(each.connection for each in holders)
        await asyncio.wait([each.task for each in holders])
        world.closing = loop.create_task(world.pool.close())
    begun = loop.time()
    await world.closing
    assert loop.time() - begun < SECOND


def test_a_connection_that_is_lost_while_it_is_opened_frees_its_place() -> None:
    """In one of these moments it is open, and the pool does not listen to it yet."""
    callbacks = 1
    while simulate(lose(callbacks)):
        callbacks += 1
    assert callbacks > 5


async def lose(callbacks: int) -> bool:
    """Lose the connection so many callbacks after the pool begins to open. Return False if it was open by then."""
    loop: Any = asyncio.get_running_loop()
    database = Database()
    events = []

    def lose() -> None:
        events.append("lost")
        for connection in database.connections:
            connection.terminate()

    loop.after(callbacks, lose)
    pool = await make_pool(Pool, database, min_size=1, max_size=1)
    events.append("opened")
    await asyncio.sleep(SECOND)
    caller = Caller(pool, SECOND, True, SECOND)
    await caller.task
    assert not caller.connection.closed
    return events[0] == "lost"
