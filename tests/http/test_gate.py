"""The gate: how many requests are admitted, deadlines, and the cancellation of their statements."""

import asyncio
import socket
from concurrent.futures import Future, ThreadPoolExecutor

import httpx
import pytest

from api.app import create_app
from api.database import silence
from tests.support.database import execute, locked, wait_until_waiting
from tests.support.rig import NeonDatabase
from tests.support.serving import serve, settings_for
from tests.support.users import assert_problem

USERS = "/api/v1/users"
STARTED = """
    select array_agg(query_start order by query_start) from pg_stat_activity
    where datname = current_database() and wait_event_type = 'Lock'
"""
SOON = {"request-timeout": "1"}


@pytest.fixture
def user(client: httpx.Client) -> str:
    """The path of a user."""
    path: str = client.post(USERS, json={"email": "ada@example.com"}).headers["location"]
    return path


def test_a_deadline_that_cannot_be_read_is_refused(client: httpx.Client) -> None:
    for value in ("", "0", "0.0", "-1", "1s", "1,5", "1e3", "inf", "nan", "+1", ".5", "9" * 10):
        for method in ("GET", "DELETE"):
            response = client.request(method, f"{USERS}/1", headers={"request-timeout": value})
            assert_problem(response, 422, "invalid")
            assert response.json()["errors"][0]["loc"] == ["header", "request-timeout"]


def test_a_deadline_that_does_not_pass_changes_nothing(client: httpx.Client, user: str) -> None:
    for value in ("60", "60.5", "999999999"):
        assert client.get(user, headers={"request-timeout": value}).status_code == 200
    assert client.patch(user, json={"name": "x"}, headers={"request-timeout": "60"}).json()["name"] == "x"


def test_a_read_is_cancelled_on_the_server(client: httpx.Client, user: str, database: str) -> None:
    with locked(database):
        for path in (user, USERS, f"{USERS}?skip=1", f"{USERS}?email=ada@example.com"):
            assert_problem(client.get(path, headers=SOON), 504, "deadline-exceeded")
            wait_until_waiting(database, 0)
    assert client.get(user).status_code == 200


def test_a_write_that_was_sent_may_have_happened_and_is_cancelled_on_the_server(
    client: httpx.Client, user: str, database: str
) -> None:
    with locked(database, "select from users for update"):
        response = client.patch(user, json={"name": "x"}, headers=SOON)
        assert_problem(response, 503, "outcome-unknown")
        assert response.headers["retry-after"] == "1"
        assert_problem(client.delete(user, headers=SOON), 503, "outcome-unknown")
        wait_until_waiting(database, 0)
    assert client.get(user).json()["name"] is None


def test_a_statement_is_cancelled_through_the_pooler_too(neon: NeonDatabase) -> None:
    with serve(create_app(neon.settings(auth="off"))) as url, httpx.Client(base_url=url) as client:
        user = client.post(USERS, json={"email": "ada@example.com"}).headers["location"]
        with locked(neon.superuser):
            assert_problem(client.get(user, headers=SOON), 504, "deadline-exceeded")
            wait_until_waiting(neon.superuser, 0)
        with locked(neon.superuser, "select from users for update"):
            assert_problem(client.delete(user, headers=SOON), 503, "outcome-unknown")
            wait_until_waiting(neon.superuser, 0)
        assert client.get(user).status_code == 200


def test_the_server_keeps_to_its_own_time_outs(database: str) -> None:
    app = create_app(settings_for(database, statement_timeout_seconds=0.3))
    with serve(app) as url, httpx.Client(base_url=url) as client, locked(database):
        assert_problem(client.get(USERS, headers={"request-timeout": "60"}), 504, None)


def test_a_write_that_was_never_sent_changed_nothing(database: str, batching: bool) -> None:
    """The only connection is taken, so no write is sent: each waits for it, when batched in a batch of its own."""
    app = create_app(settings_for(database, batching=batching, batch_max_size=1, pool_max_size=1))
    with serve(app) as url, httpx.Client(base_url=url) as client, ThreadPoolExecutor() as threads:
        client.get(USERS)
        with locked(database):
            reading = threads.submit(client.get, USERS)
            wait_until_waiting(database, 1)
            writes: list[Future[httpx.Response]] = [
                threads.submit(client.post, USERS, json={"email": f"{n}@example.com"}, headers=SOON) for n in range(3)
            ]
            for write in writes:
                assert_problem(write.result(), 504, "deadline-exceeded")
        assert reading.result().json() == []
    assert execute(database, "select count(*) from users") == [(0,)]


def test_a_body_that_does_not_come_in_time(client: httpx.Client) -> None:
    head = b"POST /api/v1/users HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 9\r\n"
    with socket.create_connection((client.base_url.host, client.base_url.port or 80), timeout=60) as connection:
        connection.sendall(head + b'request-timeout: 0.1\r\n\r\n{"ema')
        answer = connection.recv(1 << 16)
    assert answer.startswith(b"HTTP/1.1 504 ")
    assert b"deadline-exceeded" in answer
    assert client.get(USERS).json() == []


async def test_a_deadline_leaves_a_shared_statement_alone(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other requests get the answer of the statement in flight."""
    monkeypatch.setattr(silence, "_SILENT_TICKS", 1000)  # or a read is sent again where this takes two seconds
    app = create_app(settings_for(database, batch_in_flight=1))
    with serve(app) as url:
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            users = [(await client.post(USERS, json={"email": f"{n}@example.com"})).headers["location"] for n in (0, 1)]
            with locked(database):
                first = asyncio.ensure_future(client.get(users[0]))
                await asyncio.to_thread(wait_until_waiting, database, 1)
                # These gather until the first gives its slot back, and then share a statement.
                patient, hasty = (
                    asyncio.ensure_future(client.get(users[1], headers=headers))
                    for headers in ({}, {"request-timeout": "1"})
                )
                await asyncio.to_thread(wait_until_waiting, database, 2)
                before = await asyncio.to_thread(execute, database, STARTED)
                assert_problem(await hasty, 504, "deadline-exceeded")
                assert await asyncio.to_thread(execute, database, STARTED) == before
            assert {answer.status_code for answer in await asyncio.gather(first, patient)} == {200}


def test_beyond_the_bound_a_request_is_refused_at_once(database: str, batching: bool) -> None:
    app = create_app(settings_for(database, batching=batching, requests_max_under_way=2))
    with serve(app) as url, httpx.Client(base_url=url, timeout=60) as client, ThreadPoolExecutor() as threads:
        with locked(database):
            under_way = [threads.submit(client.get, path) for path in (USERS, f"{USERS}/1")]
            wait_until_waiting(database, 2)
            for refused in (client.get(USERS), client.post(USERS, json={"email": "ada@example.com"})):
                assert_problem(refused, 503, "overloaded")
                assert refused.headers["retry-after"] == "1"
            assert client.get("/health").status_code == 200
            assert client.get("/ready").status_code == 200
        assert [request.result().status_code for request in under_way] == [200, 404]
        assert client.get(USERS).status_code == 200
