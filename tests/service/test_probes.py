"""Readiness: /ready, with and without a database."""

from collections.abc import Callable, Iterator

import httpx
import pytest

from api.app import create_app
from tests.support.database import KILL_ALL, WAITING, connections, execute, locked, wait_until_true
from tests.support.serving import serve, settings_for
from tests.support.users import assert_problem
from tests.support.waiting import wait_until

USERS = "/api/v1/users"


def test_ready_asks_nobody_while_nothing_has_failed(client: httpx.Client, database: str) -> None:
    assert client.get("/ready").json() == {"status": "ready"}
    assert connections(database) == 0
    client.get(USERS)
    execute(database, KILL_ALL)  # as a compute does that falls asleep
    wait_until(lambda: connections(database) == 0)  # They are told to end, and end when they run.
    assert client.get("/ready").status_code == 200
    assert connections(database) == 0


@pytest.fixture
def shut(database: str, postgres: str) -> Iterator[Callable[[bool], None]]:
    """Refuse every connection to the test's database, or accept them again."""
    name = database.partition("?")[0].rpartition("/")[2]

    def shut_or_open(shuts: bool) -> None:
        execute(postgres, f"alter database {name} allow_connections {not shuts}")
        if shuts:
            execute(postgres, f"select pg_terminate_backend(pid) from pg_stat_activity where datname = '{name}'")

    yield shut_or_open
    shut_or_open(False)


def test_ready_says_no_from_a_failure_until_the_database_is_back(
    database: str, shut: Callable[[bool], None], caplog: pytest.LogCaptureFixture
) -> None:
    with (
        serve(create_app(settings_for(database, acquire_timeout_seconds=0.5))) as url,
        httpx.Client(base_url=url) as client,
    ):
        shut(True)
        assert client.get("/ready").status_code == 200  # No request has failed yet.
        assert_problem(client.get(USERS), 503, "unavailable")
        refused = client.get("/ready")
        assert_problem(refused, 503, "unavailable")
        assert refused.headers["retry-after"] == "1"
        assert "the query of the probe failed, or takes too long" in caplog.text
        assert client.get("/health").status_code == 200
        shut(False)
        # A server that is not ready gets no requests: it must find out by itself.
        wait_until(lambda: client.get("/ready").status_code == 200)
        assert client.get(USERS).status_code == 200


def test_ready_asks_the_database_where_that_is_set(database: str, shut: Callable[[bool], None]) -> None:
    # Of the service alone: the session of the last question may still be ending.
    asked = """
        select query_start from pg_stat_activity
        where datname = current_database() and backend_type = 'client backend' and usename <> current_user
    """
    with (
        serve(create_app(settings_for(database, readiness_probe_seconds=3600))) as url,
        serve(create_app(settings_for(database, readiness_probe_seconds=1, acquire_timeout_seconds=0.5))) as often,
    ):
        # It gives the database 0.8 s, the first time with a new connection.
        wait_until(lambda: httpx.get(f"{url}/ready").status_code == 200)
        first = execute(database, asked)
        assert len(first) == 1
        assert httpx.get(f"{url}/ready").status_code == 200
        assert execute(database, asked) == first
        shut(True)
        wait_until(lambda: httpx.get(f"{often}/ready").status_code == 503)
        assert httpx.get(f"{url}/ready").status_code == 200


def test_ready_says_no_as_long_as_the_database_does_not_answer(database: str) -> None:
    """Each time, not only the first: it is not known before that a statement will have no answer."""
    settings = settings_for(database, readiness_probe_seconds=3600, statement_timeout_seconds=300)
    with serve(create_app(settings)) as url, httpx.Client(base_url=url) as client:
        with locked(database):
            for _ in range(3):
                assert_problem(client.get("/ready"), 503, "unavailable")
            wait_until_true(database, WAITING.format("1 or count(*) = 2"))  # One question, which is sent again once.
        wait_until(lambda: client.get("/ready").status_code == 200)
