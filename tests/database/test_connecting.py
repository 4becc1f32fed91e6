"""Connecting: its bounds, the options of the socket, the back-off, the check, and connections outside the pool."""

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import asyncpg
import pytest

from api.database import connecting, pool
from api.database.driver import socket_of
from api.database.fetch import PooledDatabase
from api.database.options import DatabaseOptions, database_options
from api.neon.url import parse_url
from api.telemetry.families import FAILED
from api.telemetry.metrics import Metrics
from tests.support.serving import settings_for
from tests.support.simulated import simulated
from tests.support.simulated_database import STATEMENT_SECONDS, Connection, Database, make_options


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


async def test_a_connection_that_was_used_is_no_failure_to_connect(
    database: str, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = Metrics()
    outside = PooledDatabase(database_options(settings_for(database)), metrics=metrics)
    failures = metrics.row(FAILED.name, "DATABASE_URL")
    async with outside.connect() as connection:
        assert await connection.fetchval("select 1") == 1
    assert failures[0] == 0
    async with outside.connect() as connection:
        with pytest.raises(asyncpg.PostgresError):
            await connection.execute("select pg_terminate_backend(pg_backend_pid())")
        await asyncio.sleep(0.001)
        assert connection.is_closed()
    assert failures[0] == 0
    assert not caplog.messages


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


@pytest.mark.parametrize(
    ("failures", "longest"), [(1, 0.05), (2, 0.1), (3, 0.2), (4, 0.3), (5, 0.3), (12, 0.3), (100_000, 0.3)]
)
def test_the_pauses_grow_up_to_a_third_of_a_second_with_jitter(failures: int, longest: float) -> None:
    pauses = [connecting.delay(failures) for _ in range(300)]
    assert longest / 2 <= min(pauses) < 0.6 * longest
    assert 0.9 * longest < max(pauses) <= longest


@asynccontextmanager
async def over_tcp(database: str) -> AsyncIterator[DatabaseOptions]:
    """Yield the options of a database that is reached over TCP. PostgreSQL itself listens on a socket of Unix."""
    url = parse_url(database)
    directory, port = url.hosts[0]
    writers = []

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with suppress(ConnectionError):
            while piece := await reader.read(2**16):
                writer.write(piece)
        writer.close()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_unix_connection(f"{directory}/.s.PGSQL.{port}")
        await asyncio.gather(carry(reader, far_writer), carry(far_reader, writer))

    async with await asyncio.start_server(forward, "127.0.0.1", 0) as server:
        address = server.sockets[0].getsockname()
        near = parse_url(f"postgresql://{url.user}@127.0.0.1:{address[1]}/{url.database}?sslmode=disable")
        yield replace(make_options(max_size=1), url=near)
        for writer in writers:
            await writer.wait_closed()


async def test_a_connection_over_tcp_is_watched_by_the_kernel(database: str) -> None:
    """An idle one is closed 12 s after the network is lost: 10 s idle, and a probe that has no answer for 2 s."""
    async with over_tcp(database) as options:
        connection = await connecting.open_connection(options)
        found = socket_of(connection)
        assert found.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        for option, value in (
            (socket.TCP_KEEPIDLE, 10),
            (socket.TCP_KEEPINTVL, 2),
            (socket.TCP_KEEPCNT, 2),
            (socket.TCP_USER_TIMEOUT, 2000),
        ):
            assert found.getsockopt(socket.IPPROTO_TCP, option) == value
        await connection.close()


def test_the_socket_of_a_connection_that_is_closed_is_left_alone() -> None:
    """Its descriptor may be another socket's."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        transport = SimpleNamespace(get_extra_info={"socket": other}.get)
        closed: Any = SimpleNamespace(is_closed=lambda: True, _transport=transport)
        connecting.watch_network(closed)
        assert other.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0
    lost: Any = SimpleNamespace(is_closed=lambda: False, _transport=transport)
    connecting.watch_network(lost)  # between the two, which is no error


async def test_an_open_connection_bounds_its_statements_and_keeps_what_is_prepared(database: str) -> None:
    for size in (0, 100):
        options = database_options(settings_for(database, statement_timeout_seconds=1, statement_cache_size=size))
        connection = await connecting.open_connection(options)
        await connection.fetch("select 1")
        prepared = await connection.fetchval("select count(*) from pg_prepared_statements where statement = 'select 1'")
        assert prepared == bool(size)
        with pytest.raises(TimeoutError):
            await connection.fetch("select pg_sleep(10)")
        await connection.close()


async def test_an_attempt_to_connect_that_has_no_answer_ends_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = parse_url(
            f"postgresql://user@127.0.0.1:{silent.getsockname()[1]}/none?sslmode=disable&connect_timeout=60"
        )
        with pytest.raises(TimeoutError):
            await connecting.open_connection(replace(make_options(max_size=1), url=url, connect_timeout=0.05))


async def connect(database: Database) -> Any:
    connection: Connection = await database.connect()
    return connection


@pytest.mark.parametrize("seconds", [0.5, 2.0])
@simulated
async def test_a_check_takes_its_own_time_and_leaves_nothing_behind(seconds: float) -> None:
    """However long a statement may take. A connection that asyncpg's timeout ends would have it open another."""
    loop = asyncio.get_running_loop()
    database = Database()
    connection = await connect(database)
    database.latency, connection.command_timeout = 0.9 * seconds, 0.1
    assert await connecting.is_usable(connection, seconds)
    await asyncio.sleep(STATEMENT_SECONDS)
    assert not connection.is_closed()
    database.latency = 1.1 * seconds
    begun = loop.time()
    assert not await connecting.is_usable(connection, seconds)
    assert loop.time() - begun == pytest.approx(seconds)
    assert connection.is_closed()
    assert not connection.timed_out


@simulated
async def test_a_connection_without_an_answer_is_checked_for_two_seconds() -> None:
    connection = await connect(Database())
    connection.forgotten = True
    begun = asyncio.get_running_loop().time()
    assert not await connecting.is_usable(connection)
    assert asyncio.get_running_loop().time() - begun == pytest.approx(2.0)


@simulated
async def test_a_check_that_fails_or_is_cancelled_drops_the_connection(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    database = Database()
    connection = await connect(database)
    check = asyncio.create_task(connecting.is_usable(connection))
    await asyncio.sleep(0.001)
    check.cancel()
    assert not await check
    assert connection.is_closed()
    connection = await connect(database)
    database.state = "refusing"
    assert not await connecting.is_usable(connection)
    assert [message.partition(":")[0] for message in caplog.messages] == ["a connection was dropped"] * 2


@simulated
async def test_a_connection_that_does_not_answer_is_closed_by_force() -> None:
    connection = await connect(Database())
    connection.forgotten = True
    begun = asyncio.get_running_loop().time()
    await connecting.close_connection(connection)
    assert asyncio.get_running_loop().time() - begun == pytest.approx(2.0)
    assert connection.is_closed()
