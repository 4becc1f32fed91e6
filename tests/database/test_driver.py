"""The private parts that the service relies on, of asyncpg, yoyo and asyncio: they exist, and do what it believes."""

import asyncio
import inspect
import re
import ssl
from collections.abc import Callable
from typing import Any

import asyncpg
import pytest
import uvloop
import yoyo.migrations
from yoyo.backends.core.postgresql import PostgresqlPsycopgBackend

from api.database.driver import counter_of, fetch
from api.database.yoyo_backend import Backend
from api.neon.tls import expect_host
from api.neon.url import parse_url


@pytest.mark.parametrize("cache_size", [100, 0])
async def test_an_execution_is_counted_when_it_is_sent_and_a_preparation_never(database: str, cache_size: int) -> None:
    arguments = parse_url(database).asyncpg_arguments()
    connection = await asyncpg.connect(**arguments, statement_cache_size=cache_size)
    counter = counter_of(connection)
    assert counter.queries_count == 0
    await connection.fetch("select $1::int", 1)  # prepared, and executed
    assert counter.queries_count == 1
    await connection.fetch("select $1::int", 2)
    assert counter.queries_count == 2

    await connection.prepare("select $1::text")
    with pytest.raises(asyncpg.UndefinedTableError):
        await connection.fetch("select from nowhere")  # fails while it is prepared
    with pytest.raises(asyncpg.DataError):
        await connection.fetch("select $1::int", "no number")  # is not sent
    assert counter.queries_count == 2
    with pytest.raises(asyncpg.DivisionByZeroError):
        await connection.fetch("select 1 / $1::int", 0)  # fails while it is executed
    assert counter.queries_count == 3

    slow = asyncio.create_task(connection.fetch("select pg_sleep($1)", 60))
    while counter.queries_count == 3:  # noqa: ASYNC110 - counted before there is an answer
        await asyncio.sleep(0.001)
    assert not slow.done()
    connection.terminate()
    with pytest.raises(asyncpg.ConnectionDoesNotExistError):
        await slow
    assert connection.is_closed()
    assert counter.queries_count == 4


@pytest.mark.parametrize("cache_size", [100, 0])
async def test_a_prepared_statement_is_executed_as_asyncpg_does_it(database: str, cache_size: int) -> None:
    arguments = parse_url(database).asyncpg_arguments()
    connection, other = [await asyncpg.connect(**arguments, statement_cache_size=cache_size) for _ in range(2)]
    counter = counter_of(connection)

    async def rows(sql: str, *values: object) -> list[tuple[object, ...]]:
        return [tuple(row) for row in await fetch(connection, sql, values, 5)]

    try:
        await other.execute("create table pairs (id int); insert into pairs values (7), (8)")
        await other.execute(
            "create type pair as (a int); create table typed (pair pair); insert into typed values (row(1))"
        )
        for number in (1, 2, 3):
            assert await rows("select $1::int as n", number) == [(number,)]
            assert counter.queries_count == number
        prepared = "select count(*) from pg_prepared_statements where statement = 'select $1::int as n'"
        assert await connection.fetchval(prepared) == (1 if cache_size else 0)
        with pytest.raises(TimeoutError):
            await fetch(connection, "select pg_sleep($1)", [60], 0.05)
        with pytest.raises(TimeoutError):
            await fetch(connection, "select pg_sleep($1)", [60], 0.05)  # prepared by now
        with pytest.raises(asyncpg.DataError):
            await rows("select $1::int as n", "no number")

        # Another migration than ours changes what a statement returns.
        assert await rows("select * from pairs") == [(7,), (8,)]
        await other.execute("alter table pairs add column name text default 'x'")
        assert await rows("select * from pairs") == [(7, "x"), (8, "x")]
        assert await rows("select pair from typed") == [((1,),)]
        await other.execute("alter type pair add attribute b text")
        with pytest.raises(asyncpg.OutdatedSchemaCacheError):
            await rows("select pair from typed")
        assert await rows("select pair from typed") == [((1, None),)]
    finally:
        connection.terminate()
        other.terminate()


async def test_a_statement_that_is_prepared_takes_the_short_way(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    long_ways: list[str] = []
    ask = asyncpg.Connection.fetch

    async def record(connection: asyncpg.Connection, sql: str, *arguments: object, **options: Any) -> object:
        long_ways.append(sql)
        return await ask(connection, sql, *arguments, **options)

    monkeypatch.setattr(asyncpg.Connection, "fetch", record)
    connection = await asyncpg.connect(**parse_url(database).asyncpg_arguments())
    for number in (1, 2, 3):
        rows = await fetch(connection, "select generate_series(1, $1::int)", [number], 5)
        assert [row[0] for row in rows] == [1, 2, 3][:number]
    connection.terminate()
    assert len(long_ways) == 1


def test_yoyo_has_what_the_backend_overrides() -> None:
    for name in ("init_connection", "get_log_data", "mark_one", "unmark_one"):
        own, inherited = (getattr(each, name) for each in (Backend, PostgresqlPsycopgBackend))
        assert own is not inherited
        assert list(inspect.signature(own).parameters) == list(inspect.signature(inherited).parameters)
    assert Backend.create_lock_table_sql.startswith("CREATE TABLE IF NOT EXISTS {0.lock_table_quoted}")
    assert Backend.lock_table == "yoyo_lock"
    # What it opens are migrations: see `_open`.
    opened = re.findall(r"open\((.+?)\)", inspect.getsource(yoyo.migrations))
    assert opened == ['path, "r", encoding="UTF-8"', 'self.path, "r"']


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_tls_starts_with_the_name_that_the_context_expects(
    new_loop: Callable[[], asyncio.AbstractEventLoop], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both event loops start TLS by the context's wrap_bio, and pass the name where `expect_host` replaces it."""
    names: list[object] = []
    wrap_bio = ssl.SSLContext.wrap_bio

    def record(context: ssl.SSLContext, *arguments: object) -> ssl.SSLObject:
        names.append(arguments[3])
        return wrap_bio(context, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(ssl.SSLContext, "wrap_bio", record)

    async def connect() -> None:
        async with await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0) as server:
            context = ssl.create_default_context()
            expect_host(context, "db.example.com")
            with pytest.raises(OSError, match=r".*"):
                await asyncio.open_connection(
                    *server.sockets[0].getsockname(), ssl=context, server_hostname="127.0.0.1"
                )

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(connect())
    assert names == ["db.example.com"]
