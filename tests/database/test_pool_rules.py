"""The pool's rules one by one, over simulated time: its size, back-off, stuck attempts, checks, idle time, closing."""

import asyncio
import gc
import logging
import re
import weakref
from contextvars import ContextVar
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from api.database.outage import Outage
from api.database.pool import Pool
from api.errors import DatabaseUnavailableError
from api.telemetry.families import FAILED, OPENED
from api.telemetry.metrics import DatabaseMetrics, Metrics
from tests.support.simulated import SimulatedLoop, simulated
from tests.support.simulated_database import (
    CONNECT_SECONDS,
    STATEMENT_SECONDS,
    Caller,
    Database,
    make_options,
    make_pool,
)

SIZE = 3
IDLE_SECONDS = 120.0
SHORT = 0.03  # longer than to connect, and shorter than any pause
LONG = 5.0
LONGEST_PAUSES = (0.05, 0.1, 0.2, 0.3, 0.3, 0.3)


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO)
    return caplog


@simulated
async def test_an_attempt_that_fails_in_an_unknown_way_leaves_its_place_free() -> None:
    database = Database()
    connect, failures = database.connect, iter([ValueError("a bug")])

    async def connect_the_second_time() -> Any:
        for failure in failures:
            raise failure
        return await connect()

    database.connect = connect_the_second_time  # type: ignore[method-assign]
    pool = await make_pool(Pool, database, max_size=1)
    caller = Caller(pool, 1.0, True, LONG)
    await caller.task
    assert caller.acquired is not None


@simulated
async def test_the_gauges_and_the_room_at_each_moment() -> None:
    metrics = Metrics()
    pool = await make_pool(Pool, Database(), max_size=2, metrics=metrics)

    def state() -> tuple[float, float, float, bool]:
        metrics.sample()
        assert metrics.row("users_api_pool_max_connections", "URL")[0] == 2
        connections, in_use, waiting = (
            metrics.row(f"users_api_pool_{name}", "URL")[0] for name in ("connections", "in_use", "waiting")
        )
        return connections, in_use, waiting, pool.has_room()

    assert state() == (0, 0, 0, True)
    first = Caller(pool, 1.0, True, LONG)
    await asyncio.sleep(0)
    assert state() == (0, 1, 1, False)  # the place that is free is for another one, but this one comes first
    await asyncio.sleep(SHORT)
    assert state() == (1, 1, 0, True)
    second = Caller(pool, 1.0, True, LONG)
    await asyncio.sleep(0)
    second.task.cancel()
    await asyncio.sleep(0)
    assert state() == (1, 2, 0, False)  # its attempt goes on
    await asyncio.sleep(SHORT)
    assert state() == (2, 1, 0, True)
    third, fourth = Caller(pool, 0.5, True, LONG), Caller(pool, 0.0, True, LONG)
    await asyncio.sleep(0)
    assert state() == (2, 2, 1, False)
    fourth.task.cancel()
    await asyncio.sleep(0)
    assert state() == (2, 2, 0, False)
    await third.task
    assert state() == (2, 1, 0, True)
    await first.task
    assert state() == (2, 0, 0, True)


@simulated
async def test_connections_and_failures_are_counted() -> None:
    database, metrics = Database(), Metrics()
    pool = await make_pool(Pool, database, max_size=SIZE, metrics=metrics)
    database.state = "refusing"
    refused = Caller(pool, 0.0, True, SHORT)
    await refused.task
    database.state = "up"
    await asyncio.sleep(LONG)
    await asyncio.gather(*(Caller(pool, 1.0, True, LONG).task for _ in range(2)))
    assert pool.opened == metrics.row(OPENED.name, "URL")[0] == 2
    assert metrics.row(FAILED.name, "URL")[0] == 1


@pytest.mark.parametrize("waiting", range(SIZE + 2))
@simulated
async def test_as_many_attempts_as_statements_wait_within_the_size(waiting: int) -> None:
    database = Database()
    pool = await make_pool(Pool, database, max_size=SIZE)
    callers = [Caller(pool, 1.0, True, LONG) for _ in range(waiting)]
    await asyncio.sleep(0.001)
    assert len(database.attempts) == min(waiting, SIZE)
    await asyncio.gather(*(each.task for each in callers))
    assert len(database.attempts) == min(waiting, SIZE)


@simulated
async def test_the_floor_is_opened_first_and_again_when_a_connection_is_lost() -> None:
    database = Database()
    pool = await make_pool(Pool, database, min_size=2, max_size=SIZE)
    assert (database.open, len(database.attempts)) == (2, 2)
    used = Caller(pool, 0.0, True, LONG)
    await used.task
    used.connection.terminate()
    await asyncio.sleep(SHORT)
    assert (database.open, len(database.attempts)) == (2, 3)


@simulated
async def test_the_connection_that_was_used_last_comes_first() -> None:
    pool = await make_pool(Pool, Database(), max_size=2)
    first, last = Caller(pool, 0.1, True, LONG), Caller(pool, 0.2, True, LONG)
    await asyncio.gather(first.task, last.task)
    again = Caller(pool, 0.0, True, LONG)
    await again.task
    assert again.connection is last.connection is not first.connection


@simulated
async def test_a_statement_without_time_left_is_refused_and_connects_for_nothing() -> None:
    database = Database()
    pool = await make_pool(Pool, database, max_size=SIZE)
    with pytest.raises(DatabaseUnavailableError):
        await pool.acquire(asyncio.get_running_loop().time())
    assert not database.attempts


async def busy_pool() -> Pool:
    """Return a pool whose one connection is in use for LONG."""
    pool = await make_pool(Pool, Database(), max_size=1)
    Caller(pool, LONG, True, LONG)
    await asyncio.sleep(SHORT)
    return pool


@simulated
async def test_a_statement_whose_time_ends_in_this_moment_gets_no_connection() -> None:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, SimulatedLoop)
    database = Database()
    database.latency = 0.0  # times are exact
    pool = await make_pool(Pool, database, max_size=1)
    connection = await pool.acquire(LONG)
    expired, waiting = Caller(pool, 0.0, True, 0.5), Caller(pool, 0.0, True, LONG)
    await asyncio.sleep(0)
    loop.spend(0.5)
    assert loop.time() == expired.deadline
    pool.release(connection, answered=True)
    await asyncio.wait([expired.task, waiting.task])
    assert isinstance(expired.error, DatabaseUnavailableError)
    assert waiting.acquired == expired.deadline


@simulated
async def test_a_statement_that_finds_every_connection_busy_names_the_settings() -> None:
    pool = await busy_pool()
    with pytest.raises(DatabaseUnavailableError) as raised:
        await pool.acquire(1.0)
    assert asyncio.get_running_loop().time() == 1.0
    assert str(raised.value) == "every connection was busy: see POOL_MAX_SIZE and ACQUIRE_TIMEOUT_SECONDS"
    assert raised.value.__cause__ is None


@simulated
async def test_attempts_are_made_one_by_one_in_an_outage_after_growing_pauses(log: pytest.LogCaptureFixture) -> None:
    database = Database()
    database.latency, database.state = 0.01, "refusing"
    pool = await make_pool(Pool, database, max_size=SIZE)
    callers = [Caller(pool, LONG, True, LONG)]
    for _ in range(200):
        await asyncio.sleep(0.01)
        if len(callers) < SIZE:
            callers.append(Caller(pool, LONG, True, LONG))
        assert database.connecting <= 1
    assert_growing(database.attempts, database.latency)
    failures = len(database.attempts) - database.connecting
    database.state = "up"
    await asyncio.sleep(0.35)
    assert all(each.acquired for each in callers)  # before any of them is answered
    await asyncio.gather(*(each.task for each in callers))
    start, end = log.record_tuples
    assert start[:2] == ("api.database", logging.WARNING)
    assert start[2].startswith("URL: no new connection: CannotConnectNowError: the database system is starting up")
    assert end[:2] == ("api.database", logging.INFO)
    assert re.fullmatch(rf"URL: connected again, after {failures} failures in 7\.\d s", end[2])


@simulated
async def test_the_end_of_an_outage_ends_its_pause_and_makes_the_next_attempt_at_once() -> None:
    loop = asyncio.get_running_loop()
    retries = []
    outage = Outage("URL", lambda: retries.append(loop.time()))
    for _ in range(4):
        outage.note(ConnectionRefusedError())
    await asyncio.sleep(0.06)
    assert len(retries) == 1  # one pause, the first
    outage.note(ConnectionRefusedError())
    assert (outage.is_on, outage.is_pausing, outage.is_lasting) == (True, True, False)
    await asyncio.sleep(0.1)
    outage.end()
    outage.end()
    assert retries[1:] == [loop.time()]
    assert (outage.is_on, outage.is_pausing, outage.is_lasting) == (False, False, False)
    await asyncio.sleep(1.0)
    assert len(retries) == 2


@simulated
async def test_the_next_outage_is_a_new_one(log: pytest.LogCaptureFixture) -> None:
    database = Database()
    pool = await make_pool(Pool, database, max_size=SIZE)
    for _ in range(2):
        database.state = "refusing"
        caller = Caller(pool, 0.0, True, LONG)
        await asyncio.sleep(1.0)
        database.state = "up"
        await caller.task
        caller.connection.terminate()
        await asyncio.sleep(100.0)
    assert len(re.findall(r"connected again, after \d failures in 1\.\d s", log.text)) == 2


@simulated
async def test_a_statement_waits_in_an_outage_for_its_own_time(log: pytest.LogCaptureFixture) -> None:
    database = Database()
    database.state = "refusing"
    pool = await make_pool(Pool, database, max_size=SIZE)
    caller = Caller(pool, 0.0, True, 1.0)
    await caller.task
    assert caller.ended == caller.deadline
    assert isinstance(caller.error, DatabaseUnavailableError)
    assert "the server is starting, stopping or recovering" in str(caller.error)
    assert caller.error.__cause__ is not None
    assert caller.error.__cause__.__traceback__ is None  # which would keep what its frames hold


@simulated
async def test_nothing_waits_while_waiting_does_not_help() -> None:
    """The password is wrong: statements are refused at once until the next attempt, unless another may end."""
    database = Database()
    database.state = "denying"
    pool = await make_pool(Pool, database, max_size=SIZE)
    waiting = [Caller(pool, 0.0, True, LONG) for _ in range(SIZE + 2)]
    await asyncio.gather(*(each.task for each in waiting))
    assert {each.ended for each in waiting} == {database.latency}
    attempts = len(database.attempts)
    at_once = Caller(pool, 0.0, True, LONG)
    await at_once.task
    assert at_once.ended == database.latency
    assert len(database.attempts) == attempts
    await asyncio.sleep(0.1)
    database.state = "up"
    later = Caller(pool, 0.0, True, LONG)
    await later.task
    assert later.acquired is not None


@simulated
async def test_a_statement_waits_beside_one_in_use_though_no_other_connection_is_let_in() -> None:
    database = Database()
    pool = await make_pool(Pool, database, max_size=2)
    await Caller(pool, 0.0, True, LONG).task
    holder = Caller(pool, 1.0, True, LONG)
    await asyncio.sleep(0)
    database.state = "denying"
    waiting = Caller(pool, 0.0, True, LONG)
    await asyncio.sleep(0.01)
    another = Caller(pool, 0.0, True, LONG)
    await asyncio.gather(waiting.task, another.task)
    assert waiting.connection is another.connection is holder.connection


@simulated
async def test_an_answer_on_an_older_connection_ends_no_outage(log: pytest.LogCaptureFixture) -> None:
    database = Database()
    pool = await make_pool(Pool, database, max_size=2)
    await Caller(pool, 0.0, True, LONG).task
    holder = Caller(pool, 1.0, True, LONG)
    await asyncio.sleep(0)
    database.state = "refusing"
    await asyncio.gather(holder.task, Caller(pool, 0.0, True, LONG).task)
    await Caller(pool, 0.0, True, LONG).task
    assert "connected again" not in log.text


@simulated
async def test_a_pooler_that_lets_clients_in_and_reaches_no_server_is_an_outage(log: pytest.LogCaptureFixture) -> None:
    database, metrics = Database(), Metrics()
    database.latency = 0.0
    pool = await make_pool(Pool, database, max_size=SIZE, metrics=metrics)
    for _ in LONGEST_PAUSES:
        await connect_and_fail(pool)
    assert_growing(database.attempts)
    assert metrics.row(FAILED.name, "URL")[0] == len(LONGEST_PAUSES)
    assert log.text.count("no new connection") == 1
    assert "connected again" not in log.text


def assert_growing(attempts: list[float], latency: float = 0.0) -> None:
    pauses = [after - before for before, after in pairwise(attempts)]
    for pause, longest in zip(pauses, LONGEST_PAUSES, strict=False):
        assert longest / 2 <= pause - latency <= longest + 0.001


async def connect_and_fail(pool: Pool) -> None:
    connection = await pool.acquire(asyncio.get_running_loop().time() + LONG)
    connection.terminate()
    pool.release(connection, answered=False, failure=ConnectionResetError("no server"))


@simulated
async def test_a_new_connection_that_is_lost_before_its_use_is_a_failure(log: pytest.LogCaptureFixture) -> None:
    database, metrics = Database(), Metrics()
    pool = await make_pool(Pool, database, min_size=1, max_size=SIZE, metrics=metrics)
    for failures in (1, 2):
        database.connections[-1].terminate()
        await asyncio.sleep(0.001)
        assert metrics.row(FAILED.name, "URL")[0] == failures
        if failures == 1:
            await Caller(pool, 0.0, True, LONG).task
            database.connections[-1].terminate()
            await asyncio.sleep(SHORT)
            assert metrics.row(FAILED.name, "URL")[0] == failures  # it had been used
    assert "a new connection was closed before it was used" in log.text


@simulated
async def test_a_second_attempt_is_made_beside_one_that_is_stuck(log: pytest.LogCaptureFixture) -> None:
    database = Database()
    database.latency, database.state = 0.0, "silent"
    pool = await make_pool(Pool, database, max_size=SIZE)
    caller = Caller(pool, 0.0, True, LONG)
    await asyncio.sleep(1.5)
    assert log.messages == ["URL: no answer to an attempt to connect: another is made beside it"]
    await asyncio.sleep(1.0)
    assert database.attempts == [0.0, 1.0, 2.0]
    assert database.connecting == SIZE  # none is given up while there is room
    database.state = "up"
    await caller.task
    assert caller.acquired == 3.0
    await asyncio.sleep(0.001)
    assert database.connecting == 0  # those that are stuck are given up
    await asyncio.sleep(LONG)
    assert database.attempts == [0.0, 1.0, 2.0, 3.0]


@simulated
async def test_no_second_attempt_is_made_if_nothing_waits(log: pytest.LogCaptureFixture) -> None:
    database = Database()
    database.state = "silent"
    pool = await make_pool(Pool, database, max_size=SIZE)
    await Caller(pool, 0.0, True, 0.5).task
    await asyncio.sleep(LONG)
    assert len(database.attempts) == 1
    assert not log.messages


@simulated
async def test_without_room_the_oldest_attempt_goes_on_and_the_others_are_made_anew() -> None:
    """A compute that wakes may answer late."""
    database = Database()
    database.latency, database.state = 0.0, "silent"
    pool = await make_pool(Pool, database, max_size=2)
    Caller(pool, 0.0, True, CONNECT_SECONDS + LONG)
    await asyncio.sleep(4.5)
    assert database.attempts == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert database.connecting == 2
    database.wake()
    await asyncio.sleep(0.01)
    assert sorted(each.begun for each in database.connections) == [0.0, 4.0]


@simulated
async def test_without_room_an_attempt_beside_an_open_connection_is_made_anew() -> None:
    database = Database()
    database.latency = 0.0
    pool = await make_pool(Pool, database, max_size=2)
    Caller(pool, LONG, True, LONG)
    await asyncio.sleep(0.0625)
    database.state = "silent"
    begun = len(database.attempts)
    Caller(pool, 0.0, True, LONG)
    await asyncio.sleep(3.5)
    first, *later = database.attempts[begun:]
    assert [at - first for at in later] == [1.0, 2.0, 3.0]
    assert database.connecting == 1


@simulated
async def test_an_attempt_ends_after_its_own_timeout(log: pytest.LogCaptureFixture) -> None:
    """Whatever time the statement has that it was made for."""
    database = Database()
    database.latency, database.state = 0.0, "silent"
    pool = await make_pool(Pool, database, max_size=1)
    await Caller(pool, 0.0, True, 0.5).task
    await asyncio.sleep(CONNECT_SECONDS - 0.75)
    assert database.connecting == 1
    await asyncio.sleep(0.5)
    assert database.connecting == 0
    assert "URL: no new connection: TimeoutError" in log.text


@simulated
async def test_a_statement_without_a_connection_knows_of_the_attempt_that_is_stuck() -> None:
    """Without this cause its error would say that every connection is busy."""
    database = Database()
    database.state = "silent"
    pool = await make_pool(Pool, database, max_size=1)
    early, late = Caller(pool, 0.0, True, 0.5), Caller(pool, 0.0, True, 1.5)
    await asyncio.gather(early.task, late.task)
    assert early.error is not None
    assert early.error.__cause__ is None
    assert late.error is not None
    assert isinstance(late.error.__cause__, TimeoutError)


@simulated
async def test_idle_connections_are_closed_one_by_one_down_to_the_floor() -> None:
    database = Database()
    database.latency = 0.0  # times are exact
    pool = await make_pool(Pool, database, min_size=1, max_size=SIZE)
    seconds = (1.0, 50.0, 80.0)
    callers = [Caller(pool, each, True, LONG) for each in seconds]
    await asyncio.gather(*(each.task for each in callers))

    async def open_at(time: float) -> list[bool]:
        await asyncio.sleep(time - asyncio.get_running_loop().time())
        return [not each.connection.closed for each in callers]

    assert await open_at(IDLE_SECONDS + 0.5) == [True, True, True]
    assert await open_at(IDLE_SECONDS + 1.5) == [False, True, True]
    assert await open_at(IDLE_SECONDS + 49.5) == [False, True, True]
    assert await open_at(IDLE_SECONDS + 51.5) == [False, False, True]
    assert await open_at(10 * IDLE_SECONDS) == [False, False, True]
    assert pool.has_room()
    assert len(database.attempts) == SIZE


@simulated
async def test_a_connection_that_is_used_now_and_then_stays() -> None:
    database = Database()
    pool = await make_pool(Pool, database, max_size=SIZE)
    for opened in (1, 2):
        for _ in range(5):
            await Caller(pool, 0.0, True, LONG).task
            await asyncio.sleep(IDLE_SECONDS - 1.0)
        assert (pool.opened, database.open) == (opened, 1)
        await asyncio.sleep(2.0)
        assert database.open == 0


@simulated
async def test_closing_an_idle_connection_that_was_never_used_is_no_failure() -> None:
    database, metrics = Database(), Metrics()
    pool = await make_pool(Pool, database, max_size=SIZE, metrics=metrics)
    await Caller(pool, 0.0, True, 0.001).task
    await asyncio.sleep(2 * IDLE_SECONDS)
    assert (pool.opened, database.open) == (1, 0)
    assert metrics.row(FAILED.name, "URL")[0] == 0


@pytest.mark.parametrize("suspected", [False, True])
@simulated
async def test_a_connection_without_an_answer_is_checked_before_it_serves(suspected: bool) -> None:
    """It keeps its place meanwhile: for 2 s after a statement without an answer, and for 0.5 s if it was idle."""
    database = Database()
    pool = await make_pool(Pool, database, max_size=1)
    for is_lost in (False, True):
        connection = await pool.acquire(asyncio.get_running_loop().time() + LONG)
        database.connections[-1].forgotten = is_lost
        begun = asyncio.get_running_loop().time()
        pool.release(connection, answered=suspected)
        if suspected:
            pool.check_idle()
        caller = Caller(pool, LONG, True, LONG)
        await asyncio.sleep(SHORT)
        assert (caller.connection is connection) is not is_lost
        await caller.task
        assert caller.connection.closed is False  # a check that is passed leaves nothing behind
    assert connection.is_closed()
    assert caller.acquired == pytest.approx(begun + (0.5 if suspected else 2.0) + database.latency)


@simulated
async def test_what_closes_an_idle_connection_frees_its_place() -> None:
    database = Database()
    pool = await make_pool(Pool, database, max_size=1)
    await Caller(pool, 0.0, True, LONG).task
    database.connections[0].terminate()
    caller = Caller(pool, 0.0, True, LONG)
    await caller.task
    assert caller.connection is database.connections[1]


@simulated
async def test_closing_waits_for_statements_and_for_no_longer() -> None:
    loop = asyncio.get_running_loop()
    database = Database()
    pool = await make_pool(Pool, database, max_size=SIZE)
    callers = [Caller(pool, each, True, LONG) for each in (0.0, 3.0, 2 * STATEMENT_SECONDS)]
    await asyncio.sleep(1.0)
    waiting = [Caller(pool, 3.0, True, LONG), Caller(pool, LONG, True, LONG)]
    await asyncio.sleep(0)
    begun = loop.time()
    closing = asyncio.create_task(pool.close())
    late = Caller(pool, 0.0, True, LONG)
    await asyncio.sleep(SHORT)
    assert isinstance(waiting[1].error, DatabaseUnavailableError)
    assert "this process is stopping" in str(waiting[1].error)
    assert isinstance(late.error, DatabaseUnavailableError)
    assert late.ended == begun
    await waiting[0].task
    late = Caller(pool, 0.0, True, LONG)  # a connection is released and not yet closed
    await late.task
    assert isinstance(late.error, DatabaseUnavailableError)
    await asyncio.sleep(SHORT)
    assert database.open == 1
    await closing
    assert loop.time() - begun == pytest.approx(STATEMENT_SECONDS)
    assert database.open == 0
    assert callers[2].ended is None


@simulated
async def test_closing_ends_at_once_without_statements(log: pytest.LogCaptureFixture) -> None:
    loop = asyncio.get_running_loop()
    database = Database()
    metrics = Metrics()
    pool = await make_pool(Pool, database, min_size=2, max_size=SIZE, metrics=metrics)
    await asyncio.gather(*(Caller(pool, 0.0, True, LONG).task for _ in range(2)))
    database.state = "silent"
    for seconds in (1.0, 0.5, 0.0):
        Caller(pool, seconds, True, LONG)
    await asyncio.sleep(0.75)
    assert database.connecting == 1  # for nothing by now
    begun = loop.time()
    await pool.close()
    assert loop.time() - begun <= 0.25 + database.latency + 0.001
    await asyncio.sleep(0.001)
    assert database.open == database.connecting == 0
    await asyncio.sleep(100.0)
    assert len(database.attempts) == SIZE
    assert not log.messages
    assert metrics.row(FAILED.name, "URL")[0] == 0


@simulated
async def test_closing_in_an_outage_makes_no_further_attempt() -> None:
    database = Database()
    database.state = "refusing"
    pool = await make_pool(Pool, database, min_size=1, max_size=SIZE)
    waiting = Caller(pool, 0.0, True, LONG)
    await asyncio.sleep(0)
    attempts = len(database.attempts)
    await pool.close()
    await asyncio.sleep(100.0)
    assert len(database.attempts) == attempts == 1
    assert str(waiting.error) == "this process is stopping"


@simulated
async def test_what_lies_idle_in_a_pool_that_closes_serves_no_more() -> None:
    database = Database()
    pool = await make_pool(Pool, database, min_size=1, max_size=1)
    closing = asyncio.create_task(pool.close())
    await asyncio.sleep(0)
    with pytest.raises(DatabaseUnavailableError):
        await pool.acquire(LONG)
    await closing


@simulated
async def test_closing_bounds_the_goodbye_to_a_connection_that_does_not_answer() -> None:
    database = Database()
    pool = await make_pool(Pool, database, min_size=1, max_size=SIZE)
    database.connections[0].forgotten = True
    begun = asyncio.get_running_loop().time()
    await pool.close()
    assert asyncio.get_running_loop().time() - begun == pytest.approx(2.0)
    assert database.open == 0


@simulated
async def test_opening_waits_for_the_floor_for_ten_seconds_and_the_attempts_go_on() -> None:
    loop, answer = asyncio.get_running_loop(), asyncio.Event()
    database = Database()

    async def connect() -> Any:
        await answer.wait()
        return await database.connect()

    options = replace(make_options(min_size=1, max_size=1), connect_timeout=60.0)
    pool = Pool(options, DatabaseMetrics(Metrics(), "URL"), connect)
    begun = loop.time()
    await pool.open()
    assert loop.time() - begun == pytest.approx(10.0)
    answer.set()
    await asyncio.sleep(SHORT)
    assert pool.opened == 1
    await pool.close()


@simulated
async def test_the_pool_works_on_no_requests_account_and_keeps_nothing_of_it() -> None:
    request: ContextVar[str] = ContextVar("request", default="none")
    found = []
    database = Database()

    async def connect() -> Any:
        found.append(request.get())
        return await database.connect()

    pool = Pool(make_options(max_size=1), DatabaseMetrics(Metrics(), "URL"), connect)
    await pool.open()
    request.set("one")
    for _ in range(100):
        connection = await pool.acquire(asyncio.get_running_loop().time() + LONG)
        pool.release(connection, answered=False)  # it is checked in a task
    assert found == ["none"]
    await asyncio.sleep(1.0)
    # Of this loop: other tests leave some to the collector.
    loop = asyncio.get_running_loop()
    assert sum(isinstance(each, asyncio.Task) and each.get_loop() is loop for each in gc.get_objects()) < 50


@simulated
async def test_the_pool_keeps_nothing_of_a_connection_that_is_lost() -> None:
    database = Database()
    pool = await make_pool(Pool, database, min_size=1, max_size=1)
    connection = database.connections.pop()
    connection.terminate()
    lost = weakref.ref(connection)
    del connection
    await asyncio.sleep(SHORT)
    gc.collect()
    assert lost() is None
    assert pool.opened == 1


@simulated
async def test_a_connection_that_is_lost_while_the_pool_closes_begins_no_outage(log: pytest.LogCaptureFixture) -> None:
    metrics = Metrics()
    pool = await make_pool(Pool, Database(), max_size=1, metrics=metrics)
    connection = await pool.acquire(LONG)
    closing = asyncio.create_task(pool.close())
    await asyncio.sleep(0)
    connection.terminate()
    pool.release(connection, answered=False, failure=ConnectionResetError("lost"))
    await closing
    assert metrics.row(FAILED.name, "URL")[0] == 0
    assert not log.messages
