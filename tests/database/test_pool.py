"""The connection pool: its size, its timeouts, and the responses when the database fails."""

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import replace

import httpx
import pytest

from api.app import create_app
from api.database.fetch import PooledDatabase
from api.database.options import database_options
from api.database.statements import Statement, declared_statements
from api.errors import DatabaseUnavailableError, Problem
from api.users.problems import USER, email_taken
from api.users.statements import ESTIMATE_USERS
from tests.support.database import (
    KILL_ALL,
    SESSION_STATE,
    SLOW_WRITES,
    connections,
    execute,
    locked,
    wait_until_true,
    wait_until_waiting,
)
from tests.support.serving import serve, settings_for
from tests.support.statements import arguments

USERS = "/api/v1/users"
UNREACHABLE = "postgresql://nobody:sesame@127.0.0.1:1/none?sslmode=disable"


@pytest.fixture
def locked_user(client: httpx.Client, database: str) -> Iterator[str]:
    """The path of a user whose row another session holds."""
    path: str = client.post(USERS, json={"email": "ada@example.com"}).headers["location"]
    with locked(database, "select from users for update"):
        yield path


def assert_unavailable(response: httpx.Response, kind: str) -> None:
    assert response.status_code == 503
    assert response.json()["type"] == f"urn:problem:users-api:{kind}"
    assert response.headers["retry-after"] == "1"


def test_starting_does_not_need_the_database(caplog: pytest.LogCaptureFixture) -> None:
    app = create_app(settings_for(UNREACHABLE, acquire_timeout_seconds=1))
    with serve(app) as url, httpx.Client(base_url=url) as client:
        assert client.get("/health").status_code == 200
        assert_unavailable(client.get(USERS), "unavailable")
        assert_unavailable(client.post(USERS, json={"email": "ada@example.com"}), "unavailable")
    assert "sesame" not in caplog.text
    assert "ada@" not in caplog.text


def test_starting_with_a_floor_does_not_need_it_either(caplog: pytest.LogCaptureFixture) -> None:
    app = create_app(settings_for(UNREACHABLE, pool_min_size=2, acquire_timeout_seconds=1))
    with serve(app) as url:
        assert httpx.get(f"{url}/health").status_code == 200
    assert "DATABASE_URL: no new connection" in caplog.text


def test_the_floor_is_kept_open(database: str) -> None:
    with serve(create_app(settings_for(database, pool_min_size=3))):
        assert connections(database) == 3
    assert connections(database) == 0


def test_the_default_opens_nothing_until_it_is_needed(client: httpx.Client, database: str) -> None:
    assert connections(database) == 0
    client.get(USERS)
    assert connections(database) == 1


async def test_no_statement_leaves_session_state(database: str) -> None:
    """What lets the pool drop its reset query: after every statement the session is as it was new."""
    look = replace(declared_statements()[0], sql=SESSION_STATE)
    pool = PooledDatabase(database_options(settings_for(database, pool_max_size=1)))
    await pool.open()
    try:
        await assert_session_stays_new(pool, look)
    finally:
        await pool.close()


async def assert_session_stays_new(pool: PooledDatabase, look: Statement) -> None:
    new = dict((await pool.fetch(look))[0])
    assert [new[kind] for kind in ("locks", "cursors", "channels", "temporary_tables", "prepared")] == [0] * 5
    for statement in declared_statements():
        for _ in range(2):  # A unique address the first time, a taken one the second.
            await pool.fetch(statement, *arguments(statement, 2))
        assert dict((await pool.fetch(look))[0]) == new, statement.name


def test_no_connection_in_time_is_a_503(database: str) -> None:
    settings = settings_for(database, pool_max_size=1, acquire_timeout_seconds=1)
    with serve(create_app(settings)) as url, httpx.Client(base_url=url) as client:
        path = client.post(USERS, json={"email": "ada@example.com"}).headers["location"]
        with locked(database, "select from users for update"):
            blocked = threading.Thread(target=client.delete, args=(path,))
            blocked.start()
            wait_until_waiting(database, 1)
            assert_unavailable(client.get(path), "unavailable")
        blocked.join()


def test_a_write_that_takes_too_long_says_that_it_may_have_happened(database: str) -> None:
    execute(database, SLOW_WRITES)
    settings = settings_for(database, statement_timeout_seconds=1)
    with serve(create_app(settings)) as url, httpx.Client(base_url=url) as client:
        assert_unavailable(client.post(USERS, json={"email": "ada@example.com"}), "outcome-unknown")
        # It was cancelled on the server, and the connection serves again.
        assert client.get(USERS).json() == []


def test_a_locked_user_is_told_apart(database: str) -> None:
    # A fifth of it is left for all but the wait for the lock, as for the preparation of the statement.
    settings = settings_for(database, statement_timeout_seconds=2)
    with serve(create_app(settings)) as url, httpx.Client(base_url=url) as client:
        path = client.post(USERS, json={"email": "ada@example.com"}).headers["location"]
        with locked(database, "select from users for update"):
            assert_unavailable(client.delete(path), "locked")
            assert_unavailable(client.patch(path, json={"name": "x"}), "locked")
            assert client.get(path).status_code == 200
        assert client.delete(path).status_code == 204


def test_a_read_that_takes_too_long_is_a_504(database: str) -> None:
    settings = settings_for(database, statement_timeout_seconds=1)
    with serve(create_app(settings)) as url, httpx.Client(base_url=url) as client:
        with locked(database):
            response = client.get(USERS)
            assert (response.status_code, response.json()["type"]) == (504, "about:blank")
        assert client.get(USERS).status_code == 200


def test_a_write_whose_connection_dies_says_that_it_may_have_happened(
    client: httpx.Client, locked_user: str, database: str
) -> None:
    async def killed() -> httpx.Response:
        async with httpx.AsyncClient(base_url=client.base_url) as another:
            patch = asyncio.create_task(another.patch(locked_user, json={"name": "x"}))
            kill = "select pg_terminate_backend(pid) from pg_locks where not granted"
            await asyncio.to_thread(wait_until_true, database, kill)
            return await patch

    assert_unavailable(asyncio.run(killed()), "outcome-unknown")
    assert client.get(locked_user).json()["name"] is None


def test_connections_that_were_closed_while_idle_are_not_noticed(client: httpx.Client, database: str) -> None:
    client.get(USERS)
    execute(database, KILL_ALL)
    assert [client.get(USERS).status_code for _ in range(3)] == [200, 200, 200]


def test_a_refusal_keeps_nothing_of_the_requests_before_it() -> None:
    for refuse in (email_taken, USER.not_found, USER.changed):
        for _ in range(3):
            with pytest.raises(Problem) as raised:
                raise refuse()
        assert len(raised.traceback) == 1


def test_a_bug_is_an_opaque_500_and_logged_whole(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def bug(version: int) -> bytes:
        raise LookupError("nobody knows me")

    monkeypatch.setattr("api.resources.rows.etag", bug)
    response = client.post(USERS, json={"email": "ada@example.com", "name": "Ada"})
    assert response.status_code == 500
    problem = response.json()
    assert problem == {
        "type": "about:blank",
        "title": "Internal Server Error",
        "status": 500,
        "detail": "Internal server error; the log has it under this request_id",
        "request_id": problem["request_id"],
    }
    assert problem["request_id"] in caplog.text
    assert "LookupError: nobody knows me" in caplog.text
    assert "api/users/handlers.py" in caplog.text
    for secret in ("ada@example.com", "insert into"):
        assert secret not in caplog.text


@pytest.mark.parametrize("sabotage", ["drop table users cascade", "alter table users rename column body to text"])
def test_a_broken_schema_is_unavailable(
    client: httpx.Client, database: str, sabotage: str, caplog: pytest.LogCaptureFixture
) -> None:
    client.get(USERS)
    execute(database, sabotage)
    for response in (client.get(USERS), client.get(f"{USERS}/1"), client.post(USERS, json={"email": "a@example.com"})):
        assert_unavailable(response, "unavailable")
        assert "users" not in response.json()["detail"]
        (line,) = [line for line in caplog.messages if response.json()["request_id"] in line]
        assert "`users-api migrate`" in line
        assert "api/" not in line  # no traceback: it is no bug of the code
    assert client.get("/health").status_code == 200
    assert_unavailable(client.get("/ready"), "unavailable")


async def test_what_is_asked_of_a_closing_pool_is_refused_at_once(database: str) -> None:
    """From a request that the server cancelled: its answer is lost, and a retry would delay other requests."""
    settings = settings_for(database, pool_max_size=2, acquire_timeout_seconds=300)
    closing = PooledDatabase(database_options(settings))
    await closing.open()
    slow = replace(ESTIMATE_USERS, sql="select pg_advisory_lock(1)")
    with locked(database, "select pg_advisory_lock(1)"):
        under_way = asyncio.create_task(closing.fetch(slow))
        await closing.fetch(ESTIMATE_USERS)
        await asyncio.to_thread(wait_until_waiting, database, 1)  # its connection was opened beside the other
        end = asyncio.create_task(closing.close())
        await asyncio.sleep(0)
        with pytest.raises(DatabaseUnavailableError):
            await closing.fetch(ESTIMATE_USERS)
        assert not end.done()
    await asyncio.gather(under_way, end)
