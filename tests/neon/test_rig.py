"""The Neon rig: TLS that must be verified, a real pooler, and each fault injection as a raw connection sees it."""

import asyncio
import socket
import struct
from collections.abc import Callable
from dataclasses import replace

import asyncpg
import psycopg
import pytest
import uvloop

from api.neon.drivers import DatabaseURL
from api.neon.url import parse_url
from tests.support.database import execute
from tests.support.rig import (
    HOSTS,
    NEON_PERMANENT,
    NEON_TRANSIENT,
    POOLER_FULL,
    ROLE,
    SERVER_FULL,
    SHUTDOWN,
    Cut,
    Farewell,
    Injection,
    NeonDatabase,
    Point,
    Rig,
)
from tests.support.rig.rig import Certificate
from tests.support.waiting import wait_until

INSERT = "insert into users (email) values ($1)"


async def connect(url: DatabaseURL) -> asyncpg.Connection:
    return await asyncpg.connect(**url.asyncpg_arguments())


def connect_psycopg(url: DatabaseURL) -> psycopg.Connection:
    return psycopg.connect(**url.psycopg_arguments(), autocommit=True)  # type: ignore[arg-type]


def try_psycopg(url: DatabaseURL) -> None:
    connect_psycopg(url).close()


def try_asyncpg(url: DatabaseURL) -> None:
    async def attempt() -> None:
        try:
            await (await connect(url)).close()
        finally:
            # asyncpg does not wait until TLS has said goodbye, and no loop closes well before: asyncio's own leaves the
            # socket open even so.
            await asyncio.sleep(0.05)

    uvloop.run(attempt())


drivers = pytest.mark.parametrize("attempt", [try_asyncpg, try_psycopg], ids=["asyncpg", "psycopg"])
Attempt = Callable[[DatabaseURL], None]
FAILURES = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
"""What asyncpg raises where a connection ends, according to when it notices."""


@pytest.fixture(params=["pooled", "direct"])
def url(neon: NeonDatabase, request: pytest.FixtureRequest) -> DatabaseURL:
    """Either way to the database."""
    return parse_url(getattr(neon, request.param))


@drivers
def test_either_way_is_verified_tls_with_a_password(rig: Rig, url: DatabaseURL, attempt: Attempt) -> None:
    attempt(url)
    with pytest.raises((asyncpg.PostgresError, psycopg.OperationalError), match=r"password|SASL|authentication"):
        attempt(replace(url, password="wrong"))
    with pytest.raises((asyncpg.PostgresError, psycopg.OperationalError), match="insecure"):
        attempt(replace(url, sslmode="disable"))
    with pytest.raises((OSError, psycopg.OperationalError), match="certificate"):
        attempt(replace(url, sslrootcert=None))  # the system's authorities do not know the rig's
    wait_until(lambda: rig.counts.tls_failures == 1)


@drivers
@pytest.mark.parametrize(
    ("certificate", "said"),
    [
        ("wrong name", "mismatch|does not match"),
        ("unknown authority", "verify failed"),
        ("expired", "expired|verify failed"),
        ("none", "rejected SSL|does not support SSL"),
    ],
)
def test_a_certificate_that_does_not_hold_is_refused(
    rig: Rig, url: DatabaseURL, attempt: Attempt, certificate: Certificate, said: str
) -> None:
    rig.present(certificate)
    with pytest.raises((OSError, psycopg.OperationalError), match=said):
        attempt(url)
    assert rig.counts.statements == 0


def test_the_password_is_proved_by_scram(url: DatabaseURL) -> None:
    arguments = url.psycopg_arguments() | {"require_auth": "scram-sha-256"}
    with psycopg.connect(**arguments) as connection:  # type: ignore[arg-type]
        assert connection.execute("select current_user").fetchone() == (ROLE,)
    assert url.hosts[0][0] in HOSTS.values()


async def test_prepared_statements_through_the_pooler(rig: Rig, neon: NeonDatabase) -> None:
    arguments = parse_url(neon.pooled).asyncpg_arguments()
    async with asyncpg.create_pool(**arguments, min_size=8, max_size=8) as pool:
        answers = await asyncio.gather(*(pool.fetchval("select $1::int + 1", n) for n in range(2000)))
    assert answers == [n + 1 for n in range(2000)]
    assert (rig.counts.connections, rig.counts.statements) == (8, 4000)  # each with the pool's reset query


async def test_the_pooler_pools_transactions(rig: Rig, neon: NeonDatabase) -> None:
    clients = [await connect(parse_url(neon.pooled)) for _ in range(5)]
    sessions = {await client.fetchval("select pg_backend_pid()") for client in clients}
    assert len(sessions) == 1
    (pooled,) = (pool for pool in rig.pgbouncer.run("show pools") if pool["user"] == ROLE and pool["cl_active"])
    assert (pooled["cl_active"], pooled["pool_mode"]) == (5, "transaction")
    for client in clients:
        await client.close()


async def test_the_direct_way_keeps_a_session(neon: NeonDatabase) -> None:
    one, other = await connect(parse_url(neon.direct)), await connect(parse_url(neon.direct))
    await one.execute("set lock_timeout = '7s'")
    assert await one.fetchval("show lock_timeout") == "7s"
    assert await one.fetchval("select pg_try_advisory_lock(1)")
    assert not await other.fetchval("select pg_try_advisory_lock(1)")
    await one.close()
    await other.close()


async def test_a_statement_whose_result_types_change_fails_for_ever_behind_a_pooler(neon: NeonDatabase) -> None:
    """So every statement of the application has fixed result types: only Neon could repair such a connection."""
    pool = await asyncpg.create_pool(**parse_url(neon.pooled).asyncpg_arguments(), min_size=2, max_size=2)
    await pool.fetch("select * from users")
    execute(neon.superuser, "alter table users add column nickname text")
    for _ in range(10):
        with pytest.raises(asyncpg.InvalidCachedStatementError):
            await pool.fetch("select * from users")
    await pool.close()


async def test_startup_parameters_are_dropped_as_neon_does(rig: Rig, url: DatabaseURL) -> None:
    arguments = url.asyncpg_arguments() | {"server_settings": {"statement_timeout": "1", "application_name": "kept"}}
    connection = await asyncpg.connect(**arguments)
    assert await connection.fetchval("show statement_timeout") == "0"
    assert await connection.fetchval("show application_name") == "kept"
    assert rig.counts.dropped_parameters["statement_timeout"] == 1
    await connection.close()


async def test_a_cancellation_reaches_the_server(rig: Rig, url: DatabaseURL) -> None:
    connection = await connect(url)
    with pytest.raises(TimeoutError):
        await connection.fetchval("select pg_sleep(60)", timeout=0.1)
    assert await connection.fetchval("select 1") == 1  # asyncpg waits until the cancellation is answered
    assert rig.counts.cancels == 1
    await connection.close()


COMMITS = (Point.ANSWER, Point.TORN_ANSWER, Point.ANSWERED)


async def comes_true(condition: Callable[[], object]) -> None:
    """Wait for the rig while the event loop goes on: asyncpg cancels in the background, over connections of its own."""
    await asyncio.to_thread(wait_until, condition)


async def written(neon: NeonDatabase) -> int:
    """The number of users, once the server is done with everything that it was sent."""
    busy = "select pid from pg_stat_activity where datname = current_database() and state <> 'idle'"
    await comes_true(lambda: not execute(neon.superuser, f"{busy} and usename = '{ROLE}'"))
    return len(execute(neon.superuser, "select id from users"))


@pytest.mark.parametrize("action", [Cut.RESET, Cut.CLOSE, SHUTDOWN], ids=["reset", "close", "57P01"])
@pytest.mark.parametrize("point", [Point.REQUEST, Point.TORN_REQUEST, *COMMITS])
async def test_a_cut_statement(
    rig: Rig, neon: NeonDatabase, url: DatabaseURL, point: Point, action: Cut | Farewell
) -> None:
    connection = await connect(url)
    await connection.execute(INSERT, "first@example.com")
    rig.inject(Injection(point, action))
    if point is Point.ANSWERED:
        assert await connection.execute(INSERT, "ada@example.com") == "INSERT 0 1"
    else:
        with pytest.raises(FAILURES):
            await connection.execute(INSERT, "ada@example.com")
    with pytest.raises(FAILURES):
        await connection.execute(INSERT, "never@example.com")
    assert connection.is_closed()
    assert await written(neon) == 1 + (point in COMMITS)
    assert rig.counts.faults == {f"{point} {action.value if isinstance(action, Cut) else action.sqlstate}": 1}


@pytest.mark.parametrize("point", [Point.REQUEST, Point.TORN_REQUEST, *COMMITS])
async def test_a_stall(rig: Rig, neon: NeonDatabase, url: DatabaseURL, point: Point) -> None:
    connection = await connect(url)
    insert = await connection.prepare(INSERT)  # which takes none of the time below
    rig.inject(Injection(point, Cut.STALL))
    if point is Point.ANSWERED:
        await insert.fetch("ada@example.com")
    else:
        with pytest.raises(TimeoutError):
            await insert.fetch("ada@example.com", timeout=0.2)
    # Nothing flows any more, and nothing closes. It is not cancelled: the request for that might outlast the test.
    stalled = asyncio.create_task(connection.fetchval("select 1"))
    assert await asyncio.wait([stalled], timeout=0.1) == (set(), {stalled})
    assert not connection.is_closed()
    await comes_true(lambda: not rig.links)  # a stalled connection is none that the rig still carries
    rig.reset()
    assert await written(neon) == (point in COMMITS)
    connection.terminate()
    with pytest.raises(FAILURES):
        await stalled


@pytest.mark.parametrize("farewell", [*NEON_TRANSIENT, *NEON_PERMANENT], ids=lambda farewell: farewell.message[:20])
async def test_neon_says_what_failed(rig: Rig, url: DatabaseURL, farewell: Farewell) -> None:
    rig.inject(Injection(Point.CONNECT, farewell), times=2)
    with pytest.raises(asyncpg.InternalServerError) as caught:
        await connect(url)
    assert (caught.value.sqlstate, caught.value.args[0]) == ("XX000", farewell.message)
    with pytest.raises(psycopg.OperationalError) as said:
        await asyncio.to_thread(try_psycopg, url)
    assert farewell.message in str(said.value)
    await (await connect(url)).close()


async def test_a_fault_waits_for_its_route(rig: Rig, neon: NeonDatabase) -> None:
    rig.inject(Injection(Point.CONNECT, Cut.RESET, via="direct"))
    await (await connect(parse_url(neon.pooled))).close()
    assert rig.pending == 1
    with pytest.raises(FAILURES):
        await connect(parse_url(neon.direct))
    assert rig.pending == 0


STARTUP = struct.pack("!II", 8 + 7, 3 << 16) + b"user\0x\0"


@pytest.mark.parametrize("point", [Point.ACCEPT, Point.CONNECT])
def test_how_a_connection_ends_on_the_wire(rig: Rig, point: Point) -> None:
    rig.present("none")

    def ended(action: Cut) -> bytes:
        rig.inject(Injection(point, action))
        with socket.create_connection(("127.0.0.1", rig.ports["direct"])) as raw:
            raw.settimeout(0.3 if action is Cut.STALL else 30)
            if point is Point.CONNECT:
                raw.sendall(STARTUP)
            return raw.recv(1)

    assert ended(Cut.CLOSE) == b""
    with pytest.raises(ConnectionResetError):
        ended(Cut.RESET)
    with pytest.raises(TimeoutError):
        ended(Cut.STALL)


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03", STARTUP[:9]], ids=repr)
def test_whoever_leaves_early_leaves_nothing(rig: Rig, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", rig.ports["pooled"])) as raw:
        raw.sendall(sent)
    wait_until(lambda: rig.counts.connections == 1 and not rig.links)


async def test_direct_tls_negotiation(url: DatabaseURL) -> None:
    connection = await connect(replace(url, sslnegotiation="direct"))
    assert await connection.fetchval("select 1") == 1
    await connection.close()


async def test_a_suspended_compute_wakes_once_for_all(rig: Rig, url: DatabaseURL) -> None:
    idle, busy = await connect(url), await connect(url)
    statement = asyncio.create_task(busy.fetchval("select pg_sleep(60)"))
    await comes_true(lambda: rig.counts.statements)
    rig.suspend()
    with pytest.raises(asyncpg.ConnectionDoesNotExistError) as caught:
        await statement
    assert isinstance(caught.value.__cause__, asyncpg.AdminShutdownError)
    with pytest.raises(FAILURES):
        await idle.fetchval("select 1")
    rig.wake_seconds = 0.2
    started = asyncio.get_running_loop().time()
    woken = await asyncio.gather(*(connect(url) for _ in range(5)))
    assert asyncio.get_running_loop().time() - started >= 0.2
    assert rig.counts.wakes == 1
    for connection in woken:
        await connection.close()


async def test_suspending_without_a_word(rig: Rig, url: DatabaseURL) -> None:
    connection = await connect(url)
    rig.suspend(Cut.RESET)
    with pytest.raises(FAILURES):
        await connection.fetchval("select 1")
    await (await connect(url)).close()


async def test_latency_is_there_and_back(rig: Rig, url: DatabaseURL) -> None:
    connection = await connect(url)
    statement = await connection.prepare("select 1")
    rig.latency = 0.1
    started = asyncio.get_running_loop().time()
    await statement.fetchval()
    assert asyncio.get_running_loop().time() - started >= 0.1
    await connection.close()


async def test_a_full_pooler_or_server_refuses(rig: Rig, neon: NeonDatabase) -> None:
    held = await connect(parse_url(neon.pooled))
    rig.max_client_conn = 1
    for url, full in ((neon.pooled, POOLER_FULL), (neon.direct, SERVER_FULL)):
        with pytest.raises(asyncpg.PostgresError) as caught:
            await connect(parse_url(url))
        assert (caught.value.sqlstate, caught.value.args[0]) == (full.sqlstate, full.message)
    await held.close()


async def test_pgbouncer_itself_refuses_in_the_same_words(rig: Rig, neon: NeonDatabase) -> None:
    held = await connect(parse_url(neon.pooled))
    rig.pgbouncer.run("set max_client_conn = 1")
    try:
        with pytest.raises(asyncpg.PostgresError) as caught:
            await connect(parse_url(neon.pooled))
    finally:
        rig.pgbouncer.run("set max_client_conn = 10000")
    assert (caught.value.sqlstate, caught.value.args[0]) == (POOLER_FULL.sqlstate, POOLER_FULL.message)
    await held.close()


def test_a_reset_leaves_nothing(rig: Rig, neon: NeonDatabase) -> None:
    with connect_psycopg(parse_url(neon.pooled)) as connection:
        rig.inject(Injection(Point.ANSWER, Cut.RESET), times=100)
        rig.suspend()
        rig.latency, rig.max_client_conn = 9, 0
        rig.present("expired")
        rig.reset()
        assert not rig.links
        with pytest.raises(psycopg.OperationalError):
            connection.execute("select 1")
    try_asyncpg(parse_url(neon.pooled))
    assert (rig.counts.connections, rig.counts.wakes, rig.pending) == (1, 0, 0)
