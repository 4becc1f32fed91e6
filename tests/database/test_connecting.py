"""A cancelled attempt to connect leaves no connection open."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import asyncpg
import pytest

from api.database import connecting
from api.neon.url import parse_url


def attempts(database: str, made: list[asyncpg.Connection]) -> Callable[[], Coroutine[Any, Any, asyncpg.Connection]]:
    async def attempt() -> asyncpg.Connection:
        made.append(await asyncpg.connect(**parse_url(database).asyncpg_arguments()))
        return made[-1]

    return attempt


async def end(before: set[asyncio.Task[Any]]) -> None:
    """Wait for the tasks that there were not before, and for what is called at their end."""
    while others := asyncio.all_tasks() - before:
        await asyncio.wait(others)
    await asyncio.sleep(0)


@pytest.mark.parametrize("ticks", range(8))
async def test_whoever_is_cancelled_in_whichever_tick_leaves_no_connection_open(database: str, ticks: int) -> None:
    before = asyncio.all_tasks()
    made: list[asyncpg.Connection] = []
    task = asyncio.create_task(connecting.connect("DATABASE_URL", attempts(database, made)))
    while not made:  # noqa: ASYNC110 - counted in ticks
        await asyncio.sleep(0)
    for _ in range(ticks):
        await asyncio.sleep(0)
    if not task.cancel():
        await (await task).close()
    await end(before)
    assert [connection.is_closed() for connection in made] == [True]


async def test_nothing_is_left_of_the_attempt_that_came_second(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connecting, "STUCK_SECONDS", 0)
    before = asyncio.all_tasks()
    made: list[asyncpg.Connection] = []
    first = await connecting.connect("DATABASE_URL", attempts(database, made))
    await end(before)
    assert [connection.is_closed() for connection in made if connection is not first] in ([], [True])
    assert await first.fetchval("select 1") == 1
    await first.close()
