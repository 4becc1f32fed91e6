"""Statements without an answer, over simulated time: when the idle connections are checked, and what is sent again."""

import asyncio
import logging
from dataclasses import replace
from typing import Any

import pytest

from api.database.fetch import PooledDatabase
from api.database.pool import Pool
from api.database.silence import Silence
from api.errors import OutcomeUnknownError, StatementTimeoutError
from api.users.statements import ESTIMATE_USERS
from tests.support.simulated import simulated
from tests.support.simulated_database import STATEMENT_SECONDS, Connection, Database, make_database, make_pool

READ = ESTIMATE_USERS
WRITE = replace(READ, writes=True)
SIZE = 4
BEGUN = 0.25
AGAIN = "URL: no answer to a read for 2 s: it is sent again"


class Recorder(Pool):
    """Records when the idle connections are checked."""

    checked: list[float]

    def check_idle(self) -> None:
        self.checked.append(asyncio.get_running_loop().time() - BEGUN)
        super().check_idle()


async def start(*unanswered: str) -> tuple[Database, Recorder, PooledDatabase]:
    """Return a database that answers at once, but for some statements, and what runs statements on it."""
    database = Database()
    database.latency = 0.0
    database.unanswered.update(unanswered)
    pool = await make_pool(Recorder, database, max_size=SIZE)
    assert isinstance(pool, Recorder)
    pool.checked = []
    fetching = await make_database(pool)
    # A new connection that is lost makes the pool pause, so each has answered before.
    await asyncio.gather(*(fetching.fetch(READ, f"before {n}", 0.0) for n in range(SIZE)))
    await asyncio.sleep(BEGUN)
    assert fetching._silence.timer is None
    return database, pool, fetching


def sent(database: Database, name: str) -> list[float]:
    """Return when a statement was sent, in seconds since the start."""
    return [at - BEGUN for at in database.times[name]]


def about(*seconds: float) -> Any:
    """A statement that is sent again waits for up to 0.05 s before that."""
    return pytest.approx(list(seconds), abs=0.06)


@pytest.mark.parametrize(("late", "again"), [(0.0, 2.25), (0.24, 2.25), (0.26, 2.5), (0.9, 3.0)])
@simulated
async def test_a_silent_read_is_sent_again_after_two_seconds_and_the_rest_of_a_tick(
    late: float, again: float, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    database, pool, fetching = await start("read")
    other = asyncio.create_task(fetching.fetch(WRITE, "write", 1.0))  # time is counted for all of them
    await asyncio.sleep(late)
    await asyncio.gather(other, fetching.fetch(READ, "read", 0.5))
    assert sent(database, "read") == about(late, again)
    assert pool.checked == [again]
    assert ("api.database", logging.INFO, AGAIN) in caplog.record_tuples
    assert [each.closed for each in database.connections if each.forgotten] == [True]


@simulated
async def test_a_silent_write_is_never_sent_again() -> None:
    """Its siblings are checked, once when it is silent and once when its time is over."""
    database, pool, fetching = await start("write")
    with pytest.raises(OutcomeUnknownError):
        await fetching.fetch(WRITE, "write", 0.0)
    assert sent(database, "write") == [0.0]
    assert pool.checked == [2.25, STATEMENT_SECONDS]


@pytest.mark.parametrize(("seconds", "is_slow"), [(0.5, False), (2.1, False), (2.3, True)])
@simulated
async def test_an_answer_to_the_oldest_in_time_has_the_others_sent_again(seconds: float, is_slow: bool) -> None:
    database, _, fetching = await start("oldest", "second", "third")
    trial = asyncio.create_task(fetching.fetch(READ, "oldest", seconds))
    await asyncio.sleep(0.1)
    others = [asyncio.create_task(fetching.fetch(READ, name, 0.0)) for name in ("second", "third")]
    await asyncio.wait([trial, *others])
    assert sent(database, "oldest") == about(0.0, 2.25)
    for name in ("second", "third"):
        assert sent(database, name) == (about(0.1) if is_slow else about(0.1, 2.3 + seconds))
    assert all(isinstance(each.exception(), StatementTimeoutError) is is_slow for each in others)


@simulated
async def test_a_slow_database_gets_its_next_trial_after_30_seconds() -> None:
    database, _, fetching = await start()
    for n in range(9):
        await fetching.fetch(READ, f"{n}", 5.1)
    again = [sent(database, f"{n}")[1:] for n in range(9)]
    assert [at for each in again for at in each] == about(2.25, 32.25)


@simulated
async def test_a_trial_that_was_answered_in_time_is_followed_by_the_next_when_it_is_needed() -> None:
    database, _, fetching = await start("first", "second")
    await fetching.fetch(READ, "first", 0.0)
    await asyncio.sleep(0.01)
    await fetching.fetch(READ, "second", 0.0)
    assert sent(database, "first") == about(0.0, 2.25)
    begun, again = sent(database, "second")
    assert 2.0 < again - begun <= 2.31


@simulated
async def test_a_read_is_given_up_once(caplog: pytest.LogCaptureFixture) -> None:
    """An answer to another read may come before it has seen that its connection is closed."""
    caplog.set_level(logging.INFO)
    silence = Silence("URL", lambda: None)
    connection: Any = Connection(Database(), 0.0)
    silence.in_flight[False][connection] = silence.ticks
    silence.watch()
    await asyncio.sleep(2.3)
    assert connection.is_closed()
    silence.sent = silence.ticks
    silence.confirm()
    assert caplog.messages == [AGAIN]


@simulated
async def test_no_time_is_counted_without_a_statement() -> None:
    _, _, fetching = await start()
    silence = fetching._silence
    for _ in range(2):
        await fetching.fetch(READ, "read", 0.3)
        await asyncio.sleep(1.0)
        assert silence.timer is None
    assert silence.ticks == 1 + 2 * 2
    await fetching.close()


@simulated
async def test_closing_stops_the_count() -> None:
    _, _, fetching = await start()
    await fetching.fetch(READ, "read", 0.0)
    await fetching.close()
    timer = fetching._silence.timer
    assert timer is not None
    assert timer.cancelled()
