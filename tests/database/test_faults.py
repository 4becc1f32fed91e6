"""Faults of the database: transient ones become latency, permanent ones fail at once; no write runs twice.

The application behind the rig; the table that decides is tested in test_fault_table.py.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from api.app import create_app
from api.database.connecting import delay
from api.neon.url import parse_url
from tests.support.database import KILL_ALL, SLOW_WRITES, execute, locked, wait_until_waiting
from tests.support.rig import (
    NEON_PERMANENT,
    NEON_TRANSIENT,
    POOLER_FULL,
    SERVER_FULL,
    SHUTDOWN,
    STARTING,
    Cut,
    Farewell,
    Injection,
    NeonDatabase,
    Point,
    Rig,
)
from tests.support.rig.injections import (
    CACHED_DATABASE,
    CACHED_PASSWORD,
    CACHED_STARTING,
    QUERY_WAIT_TIMEOUT,
    SERVER_CRASHED,
    SHUTTING_DOWN,
    STATEMENT_POINTS,
    Action,
)
from tests.support.serving import serve, settings_for
from tests.support.waiting import wait_until

pytestmark = pytest.mark.far
USERS = "/api/v1/users"


def test_delays_grow_up_to_a_bound_and_differ() -> None:
    longest = [max(delay(failures) for _ in range(200)) for failures in (1, 2, 3, 100_000)]
    assert longest == sorted(longest)
    assert 0.025 <= min(delay(1) for _ in range(200)) < longest[0] <= 0.05
    assert 0.15 <= min(delay(100) for _ in range(200)) < longest[3] <= 0.3


@contextmanager
def serving(neon: NeonDatabase, **overrides: object) -> Iterator[httpx.Client]:
    app = create_app(neon.settings(**overrides))
    with serve(app) as url, httpx.Client(base_url=url, timeout=30) as client:
        yield client


async def all_at_once(url: httpx.URL, number: int) -> Counter[int]:
    """The statuses of so many reads, and as many writes."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=30, limits=limits) as many:
        reads = [many.get(USERS, params={"after": n}) for n in range(number)]
        writes = [many.post(USERS, json={"email": f"{n}@example.com"}) for n in range(number)]
        return Counter(answer.status_code for answer in await asyncio.gather(*reads, *writes))


def users(neon: NeonDatabase) -> int:
    return int(str(execute(neon.superuser, "select count(*) from users")[0][0]))


@pytest.mark.heavy  # where processors are short, an attempt that takes long gets company
@pytest.mark.parametrize("batching", [True, False])
async def test_a_herd_that_wakes_the_compute_is_served_by_one_pool(
    rig: Rig, neon: NeonDatabase, batching: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "api.database")
    with serving(neon, batching=batching, pool_max_size=4) as client:
        client.get(USERS)
        rig.suspend()
        before = rig.counts.connections
        assert await all_at_once(client.base_url, 100) == {200: 100, 201: 100}
        assert rig.counts.wakes == 1
        # On a busy machine even an attempt to a compute that is awake takes long, and gets company.
        company = caplog.text.count("another is made beside it")
        assert rig.counts.connections - before <= 4 + company
    assert users(neon) == 100


SHORTEST_WAIT = 0.15
"""Seconds between two attempts of an outage, from the fourth on; a slow machine makes it longer, never shorter."""


@pytest.mark.parametrize("batching", [True, False])
async def test_a_herd_that_is_refused_shares_the_wait(rig: Rig, neon: NeonDatabase, batching: bool) -> None:
    with serving(neon, batching=batching, pool_max_size=4) as client:
        rig.inject(Injection(Point.CONNECT, NEON_TRANSIENT[0]), times=1000)
        clock = asyncio.get_running_loop().time
        start = clock()
        herd = asyncio.create_task(all_at_once(client.base_url, 100))
        await attempts(rig, 10)
        # At first one attempt for each place in the pool, then one after each wait, for all 200 requests together.
        assert rig.counts.connections <= 4 + 3 + (clock() - start) / SHORTEST_WAIT
        rig.reset()
        assert await herd == {200: 100, 201: 100}
        assert rig.counts.connections <= 4 + 1
    assert users(neon) == 100


async def attempts(rig: Rig, number: int) -> None:
    """Return when there have been so many attempts to connect."""
    await asyncio.to_thread(wait_until, lambda: rig.counts.connections >= number)


WORDS = [*NEON_TRANSIENT, STARTING, SHUTTING_DOWN, SHUTDOWN, POOLER_FULL, SERVER_FULL, CACHED_STARTING]
ENDS = [Cut.RESET, Cut.CLOSE]


@pytest.mark.parametrize(
    ("point", "action"),
    # Before TLS, neither side sends a message.
    [(Point.ACCEPT, cut) for cut in ENDS] + [(Point.CONNECT, action) for action in (*ENDS, *WORDS)],
    ids=repr,
)
def test_what_passes_while_connecting_is_latency(
    rig: Rig, neon: NeonDatabase, point: Point, action: Action, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with serving(neon) as client:
        rig.inject(Injection(point, action), times=3)
        assert client.post(USERS, json={"email": "ada@example.com"}).status_code == 201
        assert client.get(f"{USERS}/1").status_code == 200
        assert rig.pending == 0
    assert "DATABASE_URL: no new connection: " in caplog.text
    assert "DATABASE_URL: connected again, after " in caplog.text


def assert_unavailable_at_once(rig: Rig, client: httpx.Client, remedy: str, caplog: pytest.LogCaptureFixture) -> None:
    before = rig.counts.connections
    with caplog.at_level(logging.WARNING):
        answers = [client.post(USERS, json={"email": "ada@example.com"}), client.get(USERS)]
    for answer in answers:
        assert answer.status_code == 503
        problem = answer.json()
        assert problem["type"] == "urn:problem:users-api:unavailable"
        assert problem["detail"] == "The database cannot be reached"
        (line,) = [line for line in caplog.messages if problem["request_id"] in line]
        assert remedy in line
    # One attempt, or one each.
    assert 1 <= rig.counts.connections - before <= 2


@pytest.mark.parametrize(
    ("farewell", "remedy"),
    [
        (NEON_PERMANENT[0], "enable it in Neon's console"),
        (NEON_PERMANENT[1], "Billing in Neon's console"),
        (NEON_PERMANENT[2], "does not exist"),
        (CACHED_PASSWORD, "check the user and the password"),
        (CACHED_DATABASE, "check the database in the URL"),
    ],
)
def test_what_stays_fails_at_once(
    rig: Rig, neon: NeonDatabase, farewell: Farewell, remedy: str, caplog: pytest.LogCaptureFixture
) -> None:
    # A deadline that the test would not outlive.
    with serving(neon, acquire_timeout_seconds=300) as client:
        rig.inject(Injection(Point.CONNECT, farewell), times=2)
        assert_unavailable_at_once(rig, client, remedy, caplog)
        while rig.pending:
            client.get(USERS)
        # It was mended: nothing is remembered for longer than a moment.
        wait_until(lambda: client.get(USERS).status_code != 503)
        assert client.post(USERS, json={"email": "ada@example.com"}).status_code == 201


@pytest.mark.parametrize("via", ["pooled", "direct"])
@pytest.mark.parametrize(("part", "remedy"), [("password", "password"), ("database", "database")])
def test_what_is_wrong_in_the_url_fails_at_once(
    rig: Rig, neon: NeonDatabase, via: str, part: str, remedy: str, caplog: pytest.LogCaptureFixture
) -> None:
    url = neon.pooled if via == "pooled" else neon.direct
    name = parse_url(url).database
    wrong = url.replace("npg_", "wrong_") if part == "password" else url.replace(f"/{name}?", "/no_such_database?")
    with (
        serve(create_app(settings_for(wrong, acquire_timeout_seconds=300))) as base,
        httpx.Client(base_url=base, timeout=30) as client,
    ):
        assert_unavailable_at_once(rig, client, remedy, caplog)
    assert "sesame" not in caplog.text


@pytest.fixture
def short_memory(rig: Rig) -> Iterator[None]:
    """PgBouncer logs in again a tenth of a second after it failed."""
    rig.pgbouncer.run("set server_login_retry = '0.1'")
    yield
    rig.pgbouncer.run("set server_login_retry = 15")


def test_a_database_that_is_gone_behind_the_pooler_fails_at_once(
    rig: Rig, neon: NeonDatabase, postgres: str, short_memory: None, caplog: pytest.LogCaptureFixture
) -> None:
    """PostgreSQL tells the first request, PgBouncer the next ones. Waiting for 300 s would take too long for a test."""
    name = parse_url(neon.superuser).database
    with serving(neon, acquire_timeout_seconds=300) as client:
        assert client.get(USERS).status_code == 200
        execute(neon.superuser, KILL_ALL)
        execute(postgres, f"alter database {name} rename to gone")
        try:
            answers = [client.get(USERS)]
            while "cached error: database" not in caplog.text:
                answers.append(client.get(USERS))
        finally:
            execute(postgres, f"alter database gone rename to {name}")
        for answer in answers:
            assert answer.json()["type"] == "urn:problem:users-api:unavailable"
            (line,) = [line for line in caplog.messages if answer.json()["request_id"] in line]
            assert line.endswith("check the database in the URL")
        wait_until(lambda: client.get(USERS).status_code == 200)


@pytest.mark.parametrize("certificate", ["expired", "wrong name", "unknown authority", "none"])
def test_a_server_that_proves_nothing_fails_at_once(
    rig: Rig, neon: NeonDatabase, certificate: str, caplog: pytest.LogCaptureFixture
) -> None:
    rig.present(certificate)  # type: ignore[arg-type]
    with serving(neon, acquire_timeout_seconds=300) as client:
        remedy = "the server speaks no TLS" if certificate == "none" else "sslrootcert=FILE"
        assert_unavailable_at_once(rig, client, remedy, caplog)
        rig.present("valid")
        wait_until(lambda: client.get(USERS).status_code == 200)


async def test_a_herd_hears_at_once_what_stays(rig: Rig, neon: NeonDatabase) -> None:
    with serving(neon, acquire_timeout_seconds=300, pool_max_size=4, batching=False) as client:
        rig.inject(Injection(Point.CONNECT, NEON_PERMANENT[0]), times=1000)
        assert await all_at_once(client.base_url, 100) == {503: 200}
        assert rig.counts.connections < 50


async def test_nobody_is_refused_while_a_connection_lives(rig: Rig, neon: NeonDatabase) -> None:
    with serving(neon, acquire_timeout_seconds=300, pool_max_size=4, batching=False) as client:
        client.get(USERS)
        rig.inject(Injection(Point.CONNECT, Farewell("28P01", "the password was changed")), times=1000)
        assert await all_at_once(client.base_url, 100) == {200: 100, 201: 100}
        assert rig.counts.faults.total() > 0


LOST = (Point.REQUEST, Point.TORN_REQUEST, Point.ANSWER, Point.TORN_ANSWER)


@pytest.mark.parametrize("action", [Cut.RESET, Cut.CLOSE, SHUTDOWN, SERVER_CRASHED], ids=repr)
@pytest.mark.parametrize("point", STATEMENT_POINTS)
def test_a_statement_that_is_cut_off(rig: Rig, neon: NeonDatabase, point: Point, action: Action) -> None:
    with serving(neon) as client:
        path = client.post(USERS, json={"email": "ada@example.com"}).headers["location"]

        rig.inject(Injection(point, action))
        assert client.get(path).status_code == 200
        assert rig.pending == 0

        rig.inject(Injection(point, action))
        answer = client.patch(path, json={"name": "Ada"})
        assert rig.pending == 0
        happened = point in (Point.ANSWER, Point.TORN_ANSWER, Point.ANSWERED)
        if point in LOST:
            assert answer.status_code == 503
            assert answer.json()["type"] == "urn:problem:users-api:outcome-unknown"
        else:
            assert answer.status_code == 200
        assert client.get(path).json()["name"] == ("Ada" if happened else None)
        # It ran once or not at all.
        assert client.get(path).headers["etag"] == ('"2"' if happened else '"1"')


def test_a_read_that_breaks_every_link_is_given_up(rig: Rig, neon: NeonDatabase) -> None:
    with serving(neon) as client:
        client.get(USERS)
        rig.inject(Injection(Point.ANSWER, Cut.RESET), times=100)
        answer = client.get(USERS)
        assert answer.json()["type"] == "urn:problem:users-api:unavailable"
        assert rig.counts.faults.total() == 5


@pytest.mark.parametrize("words", [QUERY_WAIT_TIMEOUT, CACHED_STARTING, SERVER_FULL, NEON_TRANSIENT[0]], ids=repr)
def test_a_write_that_was_refused_before_it_reached_postgresql_is_sent_again(
    rig: Rig, neon: NeonDatabase, words: Farewell
) -> None:
    with serving(neon) as client:
        path = client.post(USERS, json={"email": "ada@example.com"}).headers["location"]
        rig.inject(Injection(Point.REQUEST, words), times=3)
        answer = client.patch(path, json={"name": "Ada"})
        assert (answer.status_code, answer.headers["etag"]) == (200, '"2"')
        assert rig.pending == 0


async def test_a_pooler_that_refuses_statements_is_not_hammered(rig: Rig, neon: NeonDatabase) -> None:
    with serving(neon) as client:
        rig.inject(Injection(Point.REQUEST, CACHED_STARTING), times=1000)
        clock = asyncio.get_running_loop().time
        start = clock()
        async with httpx.AsyncClient(base_url=client.base_url, timeout=30) as many:
            post = asyncio.create_task(many.post(USERS, json={"email": "ada@example.com"}))
            await attempts(rig, 12)
            assert rig.counts.connections <= 1 + 3 + (clock() - start) / SHORTEST_WAIT
            rig.forget()  # A reset would cut the try that may be under way.
            assert (await post).status_code == 201
    assert users(neon) == 1


@pytest.fixture
def short_queue(rig: Rig) -> Iterator[None]:
    """PgBouncer gives up on a statement that waits for a server connection for a second."""
    rig.pgbouncer.run("set query_wait_timeout = 1")
    yield
    rig.pgbouncer.run("set query_wait_timeout = 120")


async def test_the_real_poolers_refusal_is_latency(rig: Rig, neon: NeonDatabase, short_queue: None) -> None:
    name = parse_url(neon.pooled).database
    with serving(neon) as client:
        path = client.post(USERS, json={"email": "ada@example.com"}).headers["location"]
        async with httpx.AsyncClient(base_url=client.base_url, timeout=30) as many:
            # As while PostgreSQL restarts: clients wait for a server connection, then are disconnected.
            await asyncio.to_thread(rig.pgbouncer.run, f"pause {name}")
            patch = asyncio.create_task(many.patch(path, json={"name": "Ada"}))
            await attempts(rig, rig.counts.connections + 1)
            await asyncio.to_thread(rig.pgbouncer.run, f"resume {name}")
            answer = await patch
        assert (answer.status_code, answer.headers["etag"]) == (200, '"2"')


# A lock on the table blocks the preparation of statements on it.


async def test_a_write_that_is_cut_off_while_it_is_prepared_is_sent_again(rig: Rig, neon: NeonDatabase) -> None:
    with serving(neon) as client:
        async with httpx.AsyncClient(base_url=client.base_url, timeout=30) as many:
            with locked(neon.superuser):
                post = asyncio.create_task(many.post(USERS, json={"email": "ada@example.com"}))
                await asyncio.to_thread(wait_until_waiting, neon.superuser, 1)
                rig.cut(Cut.RESET)
            assert (await post).status_code == 201
        assert users(neon) == 1


def test_a_write_that_had_no_time_to_be_sent_changed_nothing(neon: NeonDatabase) -> None:
    with serving(neon, statement_timeout_seconds=1.5) as client:
        with locked(neon.superuser):
            answer = client.post(USERS, json={"email": "ada@example.com"})
            assert answer.json()["type"] == "urn:problem:users-api:unavailable"
        assert client.post(USERS, json={"email": "ada@example.com"}).status_code == 201


def test_a_link_that_gets_stuck_does_not_keep_its_place_in_the_pool(rig: Rig, neon: NeonDatabase) -> None:
    with serving(neon, pool_max_size=1, statement_timeout_seconds=1.5) as client:
        path = client.post(USERS, json={"email": "ada@example.com"}).headers["location"]
        rig.inject(Injection(Point.ANSWER, Cut.STALL))
        assert client.get(path).status_code == 504
        assert client.get(path).status_code == 200
        rig.inject(Injection(Point.ANSWER, Cut.STALL))
        assert client.patch(path, json={"name": "Ada"}).json()["type"] == "urn:problem:users-api:outcome-unknown"
        assert client.get(path).json()["name"] == "Ada"


@pytest.mark.parametrize("point", [Point.ACCEPT, Point.CONNECT])
async def test_an_attempt_that_gets_stuck_is_overtaken_by_another(
    rig: Rig, neon: NeonDatabase, point: Point, caplog: pytest.LogCaptureFixture
) -> None:
    """It would be waited for until 200 s are over, which is longer than a test may take."""
    caplog.set_level(logging.INFO)
    with serving(neon, acquire_timeout_seconds=300, pool_max_size=2) as client:
        rig.inject(Injection(point, Cut.STALL))
        assert client.get(USERS).status_code == 200
        assert rig.counts.connections == 2
        # The place of the one that was given up is free again.
        assert await all_at_once(client.base_url, 20) == {200: 20, 201: 20}
        assert rig.counts.connections == 3
    assert "DATABASE_URL: no answer to an attempt to connect" in caplog.text


def test_an_export_overtakes_an_attempt_that_gets_stuck(rig: Rig, neon: NeonDatabase) -> None:
    """As above. An export has a connection of its own, outside the pool."""
    with serving(neon, acquire_timeout_seconds=300) as client:
        rig.inject(Injection(Point.CONNECT, Cut.STALL))
        assert client.get(f"{USERS}/export").status_code == 200
        assert rig.counts.connections == 2


def test_an_attempt_that_gets_stuck_in_the_last_place_leaves_time_for_another(
    rig: Rig, neon: NeonDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(neon, acquire_timeout_seconds=3, pool_max_size=1) as client:
        rig.inject(Injection(Point.CONNECT, Cut.STALL))
        assert client.get(USERS).status_code == 200
        assert rig.counts.connections == 2
    assert "DATABASE_URL: no new connection: TimeoutError" in caplog.text


async def test_more_connections_than_the_server_has_are_waited_for(rig: Rig, neon: NeonDatabase) -> None:
    with serving(neon, pool_max_size=8, batching=False) as client:
        rig.max_client_conn = 2
        assert await all_at_once(client.base_url, 100) == {200: 100, 201: 100}
        wait_until(lambda: len(rig.links) <= 2)  # the last attempt may be about to be refused
        # Now and then it is tried whether there is room for another, not for each of the 200 nor whenever one is done.
        assert rig.counts.faults["full 08P01"] <= 40
    assert users(neon) == 100


FULL = """
    create function fill_up() returns trigger language plpgsql as $$
    begin raise disk_full using message = 'could not extend file'; end $$;
    create trigger fill_up before insert on users for each row execute function fill_up()
"""
SLOW = f"{SLOW_WRITES}; alter database {{name}} set statement_timeout = '1s'"


@pytest.mark.parametrize(
    ("sabotage", "remedy"),
    [
        (FULL, "storage limit, is full"),
        (SLOW, "a statement_timeout of the role"),
        ("alter database {name} set default_transaction_read_only = on", "must lead to the primary"),
    ],
)
def test_a_write_that_postgresql_gives_up_changed_nothing(
    neon: NeonDatabase, sabotage: str, remedy: str, caplog: pytest.LogCaptureFixture
) -> None:
    execute(neon.superuser, sabotage.replace("{name}", parse_url(neon.superuser).database))
    with serving(neon) as client:
        answer = client.post(USERS, json={"email": "ada@example.com"})
        assert answer.json()["type"] == "urn:problem:users-api:unavailable"
        assert client.get(USERS).json() == []
        assert client.get("/ready").status_code == 200
    assert remedy in caplog.text


def test_a_pooler_without_prepared_statements_is_told(
    rig: Rig, neon: NeonDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    rig.pgbouncer.run("set max_prepared_statements = 0")
    try:
        with serving(neon) as client:
            path = client.post(USERS, json={"email": "ada@example.com"}).headers["location"]
            client.get(path)
            # Another server connection, which does not know the statement.
            rig.pgbouncer.run("reconnect")
            answer = client.get(path)
            assert answer.json()["type"] == "urn:problem:users-api:unavailable"
    finally:
        rig.pgbouncer.run("set max_prepared_statements = 1000")
    assert "STATEMENT_CACHE_SIZE=0" in caplog.text
