"""METRICS_PORT: a slow or silent client costs other clients nothing."""

import gzip
import json
import logging
import os
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics

from api.telemetry.metrics import Metrics, shared_registry
from api.telemetry.port import MAX_CONNECTIONS, MetricsServer
from benchmarks.processes import free_port
from tests.support.commands import USERS_API, on, served
from tests.support.metrics import scrape
from tests.support.waiting import wait_until


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MetricsServer]:
    """A server of what one process counts."""
    metrics = Metrics(tmp_path)
    metrics.sample()
    with MetricsServer(shared_registry(tmp_path), "127.0.0.1", 0) as server:
        # None ends because a machine is slow.
        server.max_seconds = 3600.0
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def url_of(server: MetricsServer) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}"


def test_what_is_there(server: MetricsServer) -> None:
    url = url_of(server)
    found = httpx.get(f"{url}/metrics?x=1", headers={"accept-encoding": "identity"})
    assert 'users_api_problems_total{kind="overloaded"} 0.0' in found.text
    assert found.headers["server"] == "users-api"
    for accepted in ("gzip", "br;q=1.0, gzip;q=0.5"):
        small = httpx.get(f"{url}/metrics", headers={"accept-encoding": accepted})
        assert (small.text, small.headers["content-encoding"]) == (found.text, "gzip")
        assert int(small.headers["content-length"]) < len(gzip.compress(found.content)) + 100
    head = httpx.head(f"{url}/metrics", headers={"accept-encoding": "identity"})
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == found.headers["content-length"]
    assert httpx.get(f"{url}/").status_code == httpx.head(f"{url}/metrics/x").status_code == 404
    assert httpx.post(f"{url}/metrics").status_code == 501
    answer = httpx.get(f"{url}/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert len(list(parse_openmetrics(answer.text))) > 10  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("media_type", ["application/openmetrics-text", "text/plain"])
def test_who_asks_for_a_version_that_there_is_not_gets_another(server: MetricsServer, media_type: str) -> None:
    for version in ("x", "1.x", "", "1.0.0.0", "-1", "9" * 5000):
        answer = httpx.get(f"{url_of(server)}/metrics", headers={"accept": f"{media_type}; version={version}"})
        assert (answer.status_code, "users_api_workers 1.0" in answer.text) == (200, True)


def answering() -> int:
    """Return how many threads serve a connection."""
    return sum("process_request_thread" in thread.name for thread in threading.enumerate())


def ended(connection: socket.socket) -> bool:
    """Wait until the other side has closed a connection."""
    with suppress(ConnectionResetError):
        return connection.recv(1) == b""
    return True


def test_who_says_nothing_has_a_bounded_number_of_threads_for_a_bounded_time(server: MetricsServer) -> None:
    with ExitStack() as connections:

        def connect() -> socket.socket:
            return connections.enter_context(socket.create_connection(server.server_address[:2]))  # type: ignore[arg-type]

        silent = [connect() for _ in range(MAX_CONNECTIONS)]
        silent[0].sendall(b"GET /metrics HTTP/1.1\r\nx-and-then")
        assert all(ended(connect()) for _ in range(100))
        assert answering() == MAX_CONNECTIONS
        # One that goes makes room.
        silent.pop().close()
        wait_until(lambda: answering() < MAX_CONNECTIONS)
        assert scrape(url_of(server)).value("users_api_workers") == 1
        server.max_seconds = 0.0
        assert all(ended(connection) for connection in silent)
        wait_until(lambda: answering() == 0)
        server.max_seconds = 3600.0
        assert scrape(url_of(server)).value("users_api_workers") == 1


def test_who_does_not_read_is_let_go(server: MetricsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.telemetry.port.render", lambda *_: (b"x" * 50_000_000, "text/plain"))
    with socket.create_connection(server.server_address[:2]) as connection:  # type: ignore[arg-type]
        connection.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        assert connection.recv(1) == b"H"
        server.max_seconds = 0.0
        wait_until(lambda: answering() == 0)


def test_what_goes_wrong_is_logged_and_nothing_else(
    server: MetricsServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    for said in (
        b"",
        b"nonsense\r\n\r\n",
        b"GET /metrics HTTP/9.9\r\n\r\n",
        b"GET /" + b"x" * 70_000,
        b"GET / HTTP/1.1\r\n",
    ):
        with socket.create_connection(server.server_address[:2]) as connection:  # type: ignore[arg-type]
            with suppress(ConnectionError):
                connection.sendall(said)
                connection.shutdown(socket.SHUT_WR)
            while not ended(connection):
                pass
    records = [record for record in caplog.records if record.name.startswith("api")]
    assert not records
    monkeypatch.setattr("api.telemetry.port.render", lambda *_: 1 / 0)
    with pytest.raises(httpx.RemoteProtocolError):
        httpx.get(f"{url_of(server)}/metrics")
    wait_until(lambda: [record for record in caplog.records if record.name.startswith("api")])
    (record,) = [record for record in caplog.records if record.name.startswith("api")]
    assert (record.message, record.exc_info and record.exc_info[0]) == (
        "the metrics could not be told",
        ZeroDivisionError,
    )
    assert capfd.readouterr() == ("", "")


def test_an_address_of_ipv6(tmp_path: Path) -> None:
    try:
        server = MetricsServer(shared_registry(tmp_path), "::1", 0)
    except OSError as error:
        if "CI" in os.environ:
            raise
        pytest.skip(f"no IPv6 here: {error}")
    with server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        assert httpx.get(f"http://[::1]:{server.server_address[1]}/metrics").status_code == 200
        server.shutdown()
        thread.join()


def test_whatever_is_asked_the_log_is_json(directory: Path, database: str) -> None:
    said, port = directory / "log", free_port()
    into_the_log = ["sh", "-c", f'exec "$0" "$@" 2> {said}', str(USERS_API)]
    variables = {**on(database), "DRAIN_SECONDS": "0", "METRICS_PORT": str(port)}
    with served(cwd=directory, program=into_the_log, **variables):  # type: ignore[arg-type]
        for accepted in ("text/plain; version=x", "application/openmetrics-text; version=x", "*/*"):
            answer = httpx.get(f"http://127.0.0.1:{port}/metrics", headers={"accept": accepted})
            assert (answer.status_code, bool(re.search("^users_api_workers ", answer.text, re.M))) == (200, True)
        assert httpx.get(f"http://127.0.0.1:{port}/ada@example.com").status_code == 404
    assert all(json.loads(line) for line in said.read_text().splitlines())
