"""METRICS_PORT: a slow or silent client costs other clients nothing."""

import gzip
import json
import logging
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics

from api.environment import SettingsError
from api.server.metrics_port import MAX_CONNECTIONS, MetricsProtocol, MetricsServer, serve_metrics
from api.telemetry.metrics import Metrics
from benchmarks.processes import free_port
from tests.support.commands import USERS_API, on, served
from tests.support.metrics import scrape
from tests.support.waiting import wait_until


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MetricsServer]:
    """A server of what one process counts."""
    metrics = Metrics(tmp_path)
    metrics.sample()
    # None ends because a machine is slow.
    monkeypatch.setattr(MetricsProtocol, "max_seconds", 3600.0)
    with serve_metrics(tmp_path, "127.0.0.1", 0) as server:
        wait_until(lambda: server.started)
        yield server


def address_of(server: MetricsServer) -> tuple[str, int]:
    address: tuple[str, int] = server.servers[0].sockets[0].getsockname()
    return address


def url_of(server: MetricsServer) -> str:
    return f"http://127.0.0.1:{address_of(server)[1]}"


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
    assert (refused := httpx.post(f"{url}/metrics")).status_code == 405
    assert refused.headers["allow"] == "GET, HEAD"
    answer = httpx.get(f"{url}/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert len(list(parse_openmetrics(answer.text))) > 10  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("media_type", ["application/openmetrics-text", "text/plain"])
def test_who_asks_for_a_version_that_there_is_not_gets_another(server: MetricsServer, media_type: str) -> None:
    for version in ("x", "1.x", "", "1.0.0.0", "-1", "9" * 5000):
        answer = httpx.get(f"{url_of(server)}/metrics", headers={"accept": f"{media_type}; version={version}"})
        assert (answer.status_code, "users_api_workers 1.0" in answer.text) == (200, True)


def ended(connection: socket.socket) -> bool:
    """Wait until the other side has closed a connection."""
    with suppress(ConnectionResetError):
        return connection.recv(1) == b""
    return True


def test_who_says_nothing_has_one_of_a_bounded_number_of_connections_for_a_bounded_time(
    server: MetricsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_ones = server.server_state.connections
    with ExitStack() as connections:

        def connect() -> socket.socket:
            return connections.enter_context(socket.create_connection(address_of(server)))

        silent = [connect() for _ in range(MAX_CONNECTIONS)]
        silent[0].sendall(b"GET /metrics HTTP/1.1\r\nx-and-then")
        wait_until(lambda: len(open_ones) == MAX_CONNECTIONS)
        assert all(ended(connect()) for _ in range(100))
        assert len(open_ones) == MAX_CONNECTIONS
        # One that goes makes room.
        silent.pop().close()
        wait_until(lambda: len(open_ones) < MAX_CONNECTIONS)
        assert scrape(url_of(server)).value("users_api_workers") == 1
        for connection in silent:
            connection.close()
        wait_until(lambda: not open_ones)
        # Nothing is said, a byte now and then, or half a head: the time counts from the beginning.
        monkeypatch.setattr(MetricsProtocol, "max_seconds", 0.5)
        silent = [connect() for _ in range(MAX_CONNECTIONS)]
        silent[0].sendall(b"GET /metrics HTTP/1.1\r\nx-and-then")
        silent[1].settimeout(0.02)
        with suppress(ConnectionError):
            while True:
                silent[1].sendall(b"G")
                with suppress(TimeoutError):
                    if not silent[1].recv(1):
                        break
        assert all(ended(connection) for connection in silent if connection is not silent[1])
        wait_until(lambda: not open_ones)
        monkeypatch.setattr(MetricsProtocol, "max_seconds", 3600.0)
        assert scrape(url_of(server)).value("users_api_workers") == 1


def test_who_does_not_read_is_let_go(server: MetricsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.service.metrics.render", lambda *_: (b"x" * 50_000_000, "text/plain"))
    monkeypatch.setattr(MetricsProtocol, "max_seconds", 3.0)
    with socket.create_connection(address_of(server)) as connection:
        connection.sendall(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n")
        assert connection.recv(1) == b"H"
        wait_until(lambda: not server.server_state.connections)


def test_the_process_does_not_wait_for_a_client(tmp_path: Path) -> None:
    with serve_metrics(tmp_path, "127.0.0.1", 0) as server:
        wait_until(lambda: server.started)
        with socket.create_connection(address_of(server)) as silent:
            silent.sendall(b"GET /metrics HTTP/1.1\r\nx-and-then")
            wait_until(lambda: server.server_state.connections)
            began, server.should_exit = time.monotonic(), True
            assert ended(silent)
    assert time.monotonic() - began < MetricsProtocol.max_seconds


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
        with socket.create_connection(address_of(server)) as connection:
            with suppress(ConnectionError):
                connection.sendall(said)
                connection.shutdown(socket.SHUT_WR)
            while not ended(connection):
                pass
    records = [record for record in caplog.records if record.name.startswith("api")]
    assert not records
    monkeypatch.setattr("api.service.metrics.render", lambda *_: 1 / 0)
    assert httpx.get(f"{url_of(server)}/metrics").status_code == 500
    (record,) = [record for record in caplog.records if record.name.startswith("api")]
    assert re.match("request [0-9a-f]+ failed: ZeroDivisionError: ", record.message)
    assert capfd.readouterr() == ("", "")


def test_an_address_of_ipv6(tmp_path: Path) -> None:
    try:
        with serve_metrics(tmp_path, "::1", 0) as server:
            wait_until(lambda: server.started)
            assert httpx.get(f"http://[::1]:{address_of(server)[1]}/metrics").status_code == 200
    except SettingsError as error:
        if "CI" in os.environ:
            raise
        pytest.skip(f"no IPv6 here: {error}")


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
