"""A connection outside the pool: one that is cancelled leaves none open."""

import asyncio
from typing import Any

import asyncpg
import pytest

from api.database import pool
from api.database.fetch import PooledDatabase
from api.database.options import database_options
from tests.support.serving import settings_for


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[asyncpg.Connection]:
    """The connections that are opened."""
    opened: list[asyncpg.Connection] = []
    connect = asyncpg.connect

    async def record(**arguments: Any) -> asyncpg.Connection:
        opened.append(await connect(**arguments))
        return opened[-1]

    monkeypatch.setattr(asyncpg, "connect", record)
    return opened


async def hold(database: str) -> None:
    async with PooledDatabase(database_options(settings_for(database))).connect() as connection:
        assert await connection.fetchval("select 1") == 1
        await asyncio.sleep(3600)


async def end(task: asyncio.Task[None], before: set[asyncio.Task[Any]]) -> None:
    """Cancel a task, and wait for the tasks that there were not before, and for what is called at their end."""
    task.cancel()
    while others := asyncio.all_tasks() - before:
        await asyncio.wait(others)
    await asyncio.sleep(0)


@pytest.mark.parametrize("ticks", range(8))
async def test_whoever_is_cancelled_in_whichever_tick_leaves_no_connection_open(
    database: str, made: list[asyncpg.Connection], ticks: int
) -> None:
    before = asyncio.all_tasks()
    task = asyncio.create_task(hold(database))
    while not made:  # noqa: ASYNC110 - counted in ticks
        await asyncio.sleep(0)
    for _ in range(ticks):
        await asyncio.sleep(0)
    await end(task, before)
    assert [connection.is_closed() for connection in made] == [True]


async def test_nothing_is_left_of_the_attempt_that_came_second(
    database: str, made: list[asyncpg.Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "STUCK_SECONDS", 0)
    before = asyncio.all_tasks()
    task = asyncio.create_task(hold(database))
    while not made:  # noqa: ASYNC110 - its statement follows
        await asyncio.sleep(0)
    await asyncio.sleep(0.1)
    while sum(not each.is_closed() for each in made) > 1:  # noqa: ASYNC110 - both came in one tick
        await asyncio.sleep(0.1)
    assert not task.done()
    await end(task, before)
    assert all(connection.is_closed() for connection in made)
