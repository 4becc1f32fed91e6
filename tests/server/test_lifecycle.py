"""Signals: graceful shutdown and replacement of a server and its workers, with requests in flight."""

import signal
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from tests.support.commands import USERS_API, Served, workers
from tests.support.database import execute, locked, wait_until_waiting
from tests.support.users import assert_problem
from tests.support.waiting import wait_until

pytestmark = pytest.mark.long

USERS = "/api/v1/users"


def is_refused(url: str) -> bool:
    """Return whether connections are refused."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) != 0


@pytest.mark.parametrize("number", ["1", "2"])
def test_a_server_that_stops_serves_on_for_a_while_and_says_so(start: Callable[..., Served], number: str) -> None:
    with start("--workers", number, DRAIN_SECONDS="60", GRACE_SECONDS="90") as (url, process):
        assert httpx.get(f"{url}/ready").status_code == 200
        assert "connection" not in httpx.get(f"{url}{USERS}").headers
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGTERM)  # as systemd does, to each process
        assert process.stderr is not None
        for _ in range(int(number)):  # each worker says so once
            next(line for line in process.stderr if "and /ready is 503" in line)
        assert_problem(httpx.get(f"{url}/ready"), 503, "stopping")
        for path in (USERS, "/health"):
            answer = httpx.get(f"{url}{path}")
            assert (answer.status_code, answer.headers["connection"]) == (200, "close")
        assert process.poll() is None
        process.send_signal(signal.SIGINT)  # does not wait so long
        assert process.wait(timeout=60) == 0


@pytest.mark.parametrize(("number", "sig"), [("1", "SIGTERM"), ("2", "SIGTERM"), ("1", "SIGINT"), ("1", "SIGHUP")])
def test_requests_under_way_finish(start: Callable[..., Served], database: str, number: str, sig: str) -> None:
    # The second worker may be about to start: connections are refused once it has started, and stopped.
    patience = {"STATEMENT_TIMEOUT_SECONDS": "100", "GRACE_SECONDS": "100"}
    with start("--workers", number, **patience) as (url, process), ThreadPoolExecutor() as threads:
        path = httpx.post(f"{url}{USERS}", json={"email": "ada@example.com"}).headers["location"]
        with locked(database, "select from users for update"):
            patch = threads.submit(httpx.patch, f"{url}{path}", json={"name": "Ada"}, timeout=60)
            wait_until_waiting(database, 1)
            process.send_signal(signal.Signals[sig])
            wait_until(lambda: is_refused(url))
        assert patch.result().status_code == 200
        assert patch.result().headers["connection"] == "close"
        assert process.wait(timeout=60) == 0
    assert execute(database, "select name from users") == [("Ada",)]


def test_what_takes_longer_than_the_grace_is_told_so(start: Callable[..., Served], database: str) -> None:
    with start(GRACE_SECONDS="3") as (url, process), ThreadPoolExecutor() as threads:
        path = httpx.post(f"{url}{USERS}", json={"email": "ada@example.com"}).headers["location"]
        half = b"POST /api/v1/users HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{"
        host, _, port = url.removeprefix("http://").rpartition(":")
        with (
            locked(database, "select from users for update"),
            socket.create_connection((host, int(port)), timeout=60) as connection,
        ):
            connection.sendall(half)
            patch = threads.submit(httpx.patch, f"{url}{path}", json={"name": "Ada"}, timeout=60)
            wait_until_waiting(database, 1)
            process.send_signal(signal.SIGTERM)
            assert_problem(patch.result(), 503, "outcome-unknown")
            assert b"urn:problem:users-api:stopping" in connection.recv(1 << 16)
            wait_until_waiting(database, 0)
            assert process.wait(timeout=60) == 0


def test_an_import_that_takes_longer_than_the_grace_says_how_far_it_came(
    start: Callable[..., Served], database: str
) -> None:
    head = b"POST /api/v1/users/import HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-ndjson\r\n"
    with start(GRACE_SECONDS="3") as (url, process):
        host, _, port = url.removeprefix("http://").rpartition(":")
        address = host, int(port)
        with (
            socket.create_connection(address, timeout=60) as begun,
            socket.create_connection(address, timeout=60) as silent,
        ):
            begun.sendall(head + b"content-length: 999\r\n\r\n" + b'{"email":"ada@example.com"}\nnobody\n')
            silent.sendall(head + b"content-length: 999\r\nexpect: 100-continue\r\n\r\n")
            assert begun.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
            assert silent.recv(1 << 16).startswith(b"HTTP/1.1 100 ")
            process.send_signal(signal.SIGTERM)
            answer = b""
            while data := begun.recv(1 << 16):
                answer += data
            assert b'{"summary":{"complete":false,"lines":2,"created":1,' in answer
            assert b"urn:problem:users-api:stopping" in answer
            assert answer.endswith(b"\r\n0\r\n\r\n")
            assert silent.recv(1 << 16).startswith(b"HTTP/1.1 503 ")
        assert process.wait(timeout=60) == 0
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
    assert execute(database, "select email from users") == [("ada@example.com",)]


def test_a_request_whose_head_has_begun_is_answered(start: Callable[..., Served]) -> None:
    with start() as (url, process):
        host, _, port = url.removeprefix("http://").rpartition(":")
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            request = b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"
            connection.sendall(request + request[:9])
            assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200 ")  # The 9 bytes were read with the first.
            process.send_signal(signal.SIGTERM)
            wait_until(lambda: is_refused(url))
            connection.sendall(request[9:])
            answer = connection.recv(1 << 16)
            assert answer.startswith(b"HTTP/1.1 200 ")
            assert b"connection: close" in answer
            assert connection.recv(1 << 16) == b""


def test_a_creation_whose_server_is_killed_is_sent_again_to_another(
    start: Callable[..., Served], database: str
) -> None:
    """As a pod that is killed without a signal: its clients lose their connections, the other pod knows the key."""
    creation = {"json": {"email": "ada@example.com"}, "headers": {"idempotency-key": "1"}, "timeout": 60}
    with (
        start() as (other, _),
        start(ends_with=-signal.SIGKILL) as (url, process),
        ThreadPoolExecutor() as threads,
    ):
        with locked(database):
            lost = threads.submit(httpx.post, f"{url}{USERS}", **creation)  # type: ignore[arg-type]
            wait_until_waiting(database, 1)
            process.kill()
            assert isinstance(lost.exception(), httpx.TransportError)
        # PostgreSQL finishes the statement, which was not cancelled.
        answer = httpx.post(f"{other}{USERS}", **creation)  # type: ignore[arg-type]
        assert answer.status_code == 201
        assert execute(database, "select count(*) from users") == [(1,)]
        assert httpx.get(f"{other}{answer.headers['location']}").status_code == 200


# What happens to workers


def test_a_worker_that_is_killed_comes_back(start: Callable[..., Served]) -> None:
    with start("--workers", "2", says="exited unexpectedly, with exit code -9") as (url, process):
        wait_until(lambda: len(workers(process)) == 2)
        for _ in range(2):
            killed, other = workers(process)
            psutil.Process(killed).kill()
            wait_until(lambda: len(workers(process) - {killed, other}) == 1)  # noqa: B023
            assert other in workers(process)
            assert httpx.get(f"{url}{USERS}").status_code == 200


def test_workers_that_are_killed_before_they_serve_come_back(start: Callable[..., Served]) -> None:
    with start("--workers", "2", says="exited unexpectedly, with exit code -9") as (url, process):
        killed: set[int] = set()
        while len(killed) < 6:  # those that served, and at least two generations that had no time to
            for worker in workers(process) - killed:
                psutil.Process(worker).kill()
                killed.add(worker)
        wait_until(lambda: not is_refused(url) and len(workers(process) - killed) == 2)
        assert httpx.get(f"{url}{USERS}", timeout=30).status_code == 200


def test_workers_do_not_outlive_their_supervisor(start: Callable[..., Served]) -> None:
    with start("--workers", "2", ends_with=-signal.SIGKILL) as (url, process):
        process.kill()
        process.wait()
        wait_until(lambda: is_refused(url))


def test_a_worker_that_hangs_does_not_keep_the_others(start: Callable[..., Served]) -> None:
    hung = start("--workers", "2", ends_with=1, says="exceeded GRACE_SECONDS: killing it", GRACE_SECONDS="1")
    with hung as (_, process):
        wait_until(lambda: len(workers(process)) == 2)
        psutil.Process(workers(process).pop()).suspend()


def test_a_server_can_be_stopped_while_its_workers_are_replaced(start: Callable[..., Served]) -> None:
    with start("--workers", "2", DRAIN_SECONDS="60", GRACE_SECONDS="90") as (url, process):
        wait_until(lambda: len(workers(process)) == 2)
        process.send_signal(signal.SIGHUP)
        wait_until(lambda: len(workers(process)) == 3)
        wait_until(lambda: httpx.get(f"{url}{USERS}").headers.get("connection") is None)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0


def test_workers_stay_where_no_new_one_starts(start: Callable[..., Served], directory: Path) -> None:
    log = directory / "log"
    into_the_log = ["sh", "-c", 'exec "$0" "$@" 2> log', USERS_API]
    with start("--workers", "2", program=into_the_log) as (url, process):
        wait_until(lambda: log.read_text().count("Application startup complete") == 2)
        before = workers(process)
        (directory / ".env").write_text("POOL_MAX_SIZE=0\n")
        process.send_signal(signal.SIGHUP)
        wait_until(lambda: "a new worker did not start" in log.read_text())
        assert workers(process) == before
        assert httpx.get(f"{url}{USERS}").status_code == 200
    assert "users-api: POOL_MAX_SIZE: " in log.read_text()
    assert "Traceback" not in log.read_text()
