"""/metrics: exact numbers over any number of processes, and counters that never fall."""

import gc
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics

from api.app import create_app
from api.auth.keys import make_api_key
from api.environment import SettingsError
from api.server.metrics_port import serve_metrics
from api.telemetry.counters import Counters, read
from api.telemetry.directory import open_metrics, shared_directory
from api.telemetry.metrics import Metrics
from api.telemetry.middleware import Telemetry
from benchmarks.processes import free_port
from tests.support.commands import on, run, served, workers
from tests.support.database import locked, wait_until_waiting
from tests.support.metrics import STATEMENT, scrape
from tests.support.rig import Cut, Injection, NeonDatabase, Point, Rig
from tests.support.serving import serve, settings_for
from tests.support.users import assert_problem
from tests.support.waiting import wait_until

USERS = "/api/v1/users"
DURATION = "http_request_duration_seconds"
PRIMARY = "DATABASE_URL"


def test_requests_by_route_method_and_status(client: httpx.Client) -> None:
    path = client.post(USERS, json={"email": "ada@example.com"}).headers["location"]
    assert client.post(f"{USERS}/", json={"email": "ada@example.com"}).status_code == 409
    for _ in range(3):
        client.get(path)
    client.head(path)
    client.get(f"{USERS}/ada@example.com")
    client.put(path)
    client.request("PROPFIND", path)
    client.get("/nowhere")
    client.get("/health")
    found = scrape(str(client.base_url)).all(f"{DURATION}_count", "route", "method", "status")
    assert found == {
        (USERS, "POST", "201"): 1,
        (USERS, "POST", "409"): 1,
        (f"{USERS}/{{id}}", "GET", "200"): 3,
        (f"{USERS}/{{id}}", "HEAD", "200"): 1,
        (f"{USERS}/{{id}}", "GET", "404"): 1,
        (f"{USERS}/{{id}}", "PUT", "405"): 1,
        (f"{USERS}/{{id}}", "_OTHER", "405"): 1,
        ("unrouted", "GET", "404"): 1,
        ("/health", "GET", "200"): 1,
    }
    # The scrape itself was counted when it had ended.
    assert scrape(str(client.base_url)).value(f"{DURATION}_count", route="/metrics") == 1


def test_histograms_hold_what_was_observed(client: httpx.Client) -> None:
    for _ in range(20):
        client.get("/health")
    found = scrape(str(client.base_url))
    classes = found.all(f"{DURATION}_bucket", "route", "le")
    counts = [value for (route, _), value in classes.items() if route == "/health"]
    assert counts == sorted(counts)
    assert classes["/health", "+Inf"] == 20
    assert 0 < found.value(f"{DURATION}_sum", route="/health") < 20 * 10


def test_statements_and_batches(database: str, batching: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.database.slots.SLOT_SECONDS", 60.0)
    with serve(create_app(settings_for(database, batching=batching, batch_in_flight=1))) as url:
        path = f"{url}{httpx.post(f'{url}{USERS}', json={'email': 'ada@example.com'}).headers['location']}"
        with ThreadPoolExecutor(10) as threads, locked(database):
            answers = [threads.submit(httpx.get, path, timeout=60)]
            wait_until_waiting(database, 1)
            answers += [threads.submit(httpx.get, path, timeout=60) for _ in range(9)]
            wait_until(lambda: scrape(url).value("users_api_requests_under_way") == 10)
            wait_until(lambda: scrape(url).value("users_api_pool_in_use", url=PRIMARY) == (1 if batching else 10))
        assert {answer.result().status_code for answer in answers} == {200}
        # A connection goes back to the pool, and a request is counted, just after the answer is sent.
        wait_until(lambda: scrape(url).value("users_api_pool_in_use") == 0)
        found = scrape(url)
    select = {"statement": "users/select_users", "url": PRIMARY}
    sent = found.value(f"{STATEMENT}_count", outcome="ok", **select)
    assert sent == found.value(f"{STATEMENT}_count", **select) == (2 if batching else 10)
    assert found.value("users_api_batch_size_sum", **select) == 10
    assert found.value("users_api_batch_size_count", **select) == sent
    assert found.value("users_api_batch_size_bucket", le="1.0", **select) == (1 if batching else 10)
    assert found.value("users_api_batch_wait_seconds_count", **select) == sent
    assert (found.value("users_api_batch_wait_seconds_sum", **select) > 0) == batching
    assert found.value("users_api_pool_in_use") == found.value("users_api_requests_under_way") == 0
    assert found.value("users_api_pool_connections") == found.value("users_api_connections_opened_total") > 0
    assert found.value("users_api_pool_max_connections") == 10


def test_statements_that_wait_for_a_connection(database: str, batching: bool) -> None:
    with serve(create_app(settings_for(database, batching=batching, pool_max_size=1))) as url:
        path = httpx.post(f"{url}{USERS}", json={"email": "ada@example.com"}).headers["location"]
        with ThreadPoolExecutor() as threads, locked(database):
            # Of two kinds, so that they share nothing.
            answers = [threads.submit(httpx.get, f"{url}{each}", timeout=60) for each in (path, USERS)]
            wait_until(lambda: scrape(url).value("users_api_pool_waiting") == 1)
            assert scrape(url).value("users_api_pool_in_use") == 1
        assert [answer.result().status_code for answer in answers] == [200, 200]
        assert scrape(url).value("users_api_pool_waiting") == 0


def test_refusals_by_kind(database: str) -> None:
    with serve(create_app(settings_for(database, requests_max_under_way=1))) as url:
        assert scrape(url).all("users_api_problems_total", "kind") == {
            ("overloaded",): 0,
            ("unavailable",): 0,
            ("outcome-unknown",): 0,
            ("locked",): 0,
        }
        httpx.post(f"{url}{USERS}", json={"email": "nobody"})
        with ThreadPoolExecutor() as threads, locked(database):
            waiting = threads.submit(httpx.get, f"{url}{USERS}/1", timeout=60)
            wait_until_waiting(database, 1)
            assert_problem(httpx.get(f"{url}{USERS}/1"), 503, "overloaded")
        assert waiting.result().status_code == 404
        kinds = scrape(url).all("users_api_problems_total", "kind")
        assert {kind: value for kind, value in kinds.items() if value} == {("overloaded",): 1, ("invalid",): 1}


def test_retries_and_reconnects(rig: Rig, neon: NeonDatabase) -> None:
    with serve(create_app(neon.settings())) as url:
        assert httpx.get(f"{url}{USERS}/1").status_code == 404
        rig.inject(Injection(Point.ANSWER, Cut.RESET), times=3)
        assert httpx.get(f"{url}{USERS}/1", timeout=60).status_code == 404
        found = scrape(url)
    assert found.value("users_api_statement_retries_total", url=PRIMARY) == 3
    assert found.value("users_api_connections_opened_total", url=PRIMARY) == 4
    statement = {"statement": "users/select_users", "url": PRIMARY}
    assert found.value(f"{STATEMENT}_count", outcome="failed", **statement) == 3
    assert found.value(f"{STATEMENT}_count", outcome="ok", **statement) == 2


def test_a_connection_that_cannot_be_had(unreachable: str) -> None:
    with serve(create_app(settings_for(unreachable, acquire_timeout_seconds=0.3))) as url:
        assert_problem(httpx.get(f"{url}{USERS}"), 503, "unavailable")
        found = scrape(url)
        assert found.value("users_api_connection_failures_total", url=PRIMARY) > 0
        assert found.value(f"{STATEMENT}_count") == 0


@pytest.fixture
def unreachable() -> str:
    return f"postgresql://ada:sesame@127.0.0.1:{free_port()}/x"


def test_a_refusal_by_postgresql_is_an_outcome_of_its_own(client: httpx.Client) -> None:
    client.post(USERS, json={"email": "ada@example.com"})
    path = client.post(USERS, json={"email": "bob@example.com"}).headers["location"]
    assert client.patch(path, json={"email": "ada@example.com"}).status_code == 409
    found = scrape(str(client.base_url))
    assert found.value(f"{STATEMENT}_count", statement="users/update_users", outcome="refused") == 1


def test_a_client_that_leaves_is_counted(directory: Path, database: str) -> None:
    variables = {**on(database), "DRAIN_SECONDS": "0", "STATEMENT_TIMEOUT_SECONDS": "100"}
    with served(cwd=directory, **variables) as (url, process):  # type: ignore[arg-type]

        def connect(request: str) -> socket.socket:
            connection = socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])))
            connection.sendall(f"{request} HTTP/1.1\r\nhost: x\r\n".encode())
            return connection

        def leave(connection: socket.socket) -> None:
            """Close a connection, and wait until the server has done so too."""
            port = connection.getsockname()[1]
            connection.close()
            server = psutil.Process(process.pid)
            wait_until(lambda: port not in [each.raddr.port for each in server.net_connections("tcp") if each.raddr])

        def counted(number: int) -> dict[tuple[str, str], float]:
            """The requests of users by method and status, once there are so many."""
            routes = [USERS, f"{USERS}/{{id}}"]
            wait_until(lambda: sum(scrape(url).value(f"{DURATION}_count", route=route) for route in routes) == number)
            found = scrape(url).all(f"{DURATION}_count", "method", "status", "route")
            return {(method, status): value for (method, status, route), value in found.items() if route in routes}

        sends = connect(f"POST {USERS}")
        sends.sendall(b"content-type: application/json\r\ncontent-length: 28\r\n\r\n{")
        leave(sends)
        assert counted(1) == {("POST", "499"): 1}

        with locked(database) as lock:
            waits = connect(f"GET {USERS}/1")
            waits.sendall(b"\r\n")
            stays = connect(f"GET {USERS}/1")
            stays.sendall(b"connection: close\r\n\r\n")
            wait_until_waiting(database, 2)
            leave(waits)
            lock.rollback()
            assert stays.makefile("rb").read().startswith(b"HTTP/1.1 404 ")
            stays.close()
        assert counted(3) == {("POST", "499"): 1, ("GET", "499"): 1, ("GET", "404"): 1}

        # A failure (5xx) stays one, even if its client has disconnected.
        with locked(database):
            fails = connect(f"GET {USERS}/1")
            fails.sendall(b"request-timeout: 0.5\r\n\r\n")
            leave(fails)
            assert counted(4)["GET", "504"] == 1


async def test_under_a_server_that_does_not_tell_a_client_without_an_answer_has_left() -> None:
    metrics = Metrics()

    async def says_nothing(scope: Any, receive: Any, send: Any) -> None:
        """What Resource does when the client has gone."""

    app = Telemetry(says_nothing, metrics, None, slow_request_seconds=1.0, access_log=False, server_timing=False)
    await app({"type": "http", "method": "GET", "headers": []}, None, None)  # type: ignore[arg-type]
    assert metrics.requests[None, "GET", 499][0] == 1


def test_openmetrics_for_who_asks(client: httpx.Client) -> None:
    client.get("/health")
    answer = client.get("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    families = parse_openmetrics(answer.text)  # type: ignore[no-untyped-call]
    assert {family.name for family in families} > {DURATION, "users_api_build"}


def test_who_asks_for_a_version_that_there_is_not_gets_another(client: httpx.Client) -> None:
    client.get("/health")
    for media_type in ("application/openmetrics-text", "text/plain"):
        for version in ("x", "1.x", "", "1.0.0.0", "-1", "9" * 5000):
            answer = client.get("/metrics", headers={"accept": f"{media_type}; version={version}"})
            assert answer.status_code == 200, answer.text
            assert f"{DURATION}_count" in answer.text


def test_methods_that_clients_make_up_take_no_memory() -> None:
    metrics = Metrics()
    for number in range(100):
        metrics.request_row(None, f"MADE-UP-{number}", 405, None)[0] += 1
    assert not metrics.requests
    assert metrics.request_row(None, "MADE-UP", 405, None)[0] == 100


def test_whoever_may_read_may_ask(database: str) -> None:
    key, entry = make_api_key("prometheus", read_only=True)
    with serve(create_app(settings_for(database, api_keys=entry))) as url:
        assert_problem(httpx.get(f"{url}/metrics"), 401, "unauthenticated")
        found = scrape(url, authorization=f"Bearer {key}")
        assert found.value(f"{DURATION}_count", route="unrouted", status="401") == 1


# Several processes


def in_process(code: str, place: Path) -> "subprocess.Popen[str]":
    """Run Python with `counters`, those of a process of its own; it is done when it says so."""
    setup = "import sys, pathlib; from api.telemetry.counters import Counters\n"
    setup += f"counters = Counters(pathlib.Path({str(place)!r}))\n"
    process = subprocess.Popen(
        [sys.executable, "-c", f"{setup}{code}\nprint('done', flush=True); sys.stdin.read()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "done\n"
    return process


def lives_and_rows(place: Path) -> list[tuple[bool, dict[tuple[str, ...], list[float]]]]:
    return sorted(read(place), key=lambda found: sorted(found[1].items()))


def test_what_a_killed_process_has_counted_stays_and_the_next_one_counts_on(tmp_path: Path) -> None:
    with in_process("counters.row('a', 'b')[3] += 2", tmp_path) as killed:
        assert lives_and_rows(tmp_path) == [(True, {("a", "b"): [0, 0, 0, 2] + [0] * 12})]
        killed.kill()
    ((lives, rows),) = read(tmp_path)
    assert (lives, rows["a", "b"][3]) == (False, 2)
    mine, other = Counters(tmp_path), Counters(tmp_path)
    assert mine.row("a", "b")[3] == 2
    mine.row("a", "b")[3] += 1
    other.row("c")[0] += 0.5
    assert [(lives, {key: max(row) for key, row in rows.items()}) for lives, rows in lives_and_rows(tmp_path)] == [
        (True, {("a", "b"): 3}),
        (True, {("c",): 0.5}),
    ]
    assert lives_and_rows(tmp_path) == sorted(mine.read(), key=lambda found: sorted(found[1].items()))
    assert len(list(tmp_path.iterdir())) == 2


def test_gauges_are_those_of_the_living(tmp_path: Path) -> None:
    code = "counters.row('users_api_workers')[0] = 1; counters.row('users_api_problems', 'x')[0] = 7"
    metrics = Metrics(tmp_path)
    metrics.sample()
    with in_process(code, tmp_path) as other:
        registry = metrics.registry()
        assert registry.get_sample_value("users_api_workers") == 2
        other.kill()
    assert registry.get_sample_value("users_api_workers") == 1
    assert registry.get_sample_value("users_api_problems_total", {"kind": "x"}) == 7


def test_what_is_now_is_not_taken_over_from_a_process_that_has_ended(tmp_path: Path) -> None:
    code = """
for url in ("DATABASE_URL", "READ_DATABASE_URL"):
    counters.row("users_api_pool_max_connections", url)[0] = 10
counters.row("users_api_workers")[0] = 1
counters.row("users_api_connections_opened", "READ_DATABASE_URL")[0] = 7
"""
    with in_process(code, tmp_path) as killed:
        killed.kill()
    metrics = Metrics(tmp_path)
    metrics.watch(lambda: {("users_api_pool_max_connections", PRIMARY): 3.0})
    assert len(list(tmp_path.iterdir())) == 1

    def shown() -> dict[tuple[str, str], float]:
        return {
            (sample.name, sample.labels.get("url", "")): sample.value
            for family in metrics.registry().collect()
            for sample in family.samples
            if sample.name.startswith(("users_api_pool", "users_api_workers", "users_api_connections"))
        }

    counted = {("users_api_connections_opened_total", "READ_DATABASE_URL"): 7}
    assert shown() == counted
    metrics.sample()
    assert shown() == {**counted, ("users_api_pool_max_connections", PRIMARY): 3, ("users_api_workers", ""): 1}


def test_a_key_without_room_is_counted_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    counters = Counters()
    for number in range(1024):
        counters.row("a", str(number))[0] += 1
    assert not caplog.text
    counters.row("one more")[0] += 1
    counters.row("a", "0")[0] += 1
    counters.row("x" * 200)[0] += 1
    assert caplog.text.count("no room for the metric") == 2
    ((_, rows),) = counters.read()
    assert (len(rows), rows["a", "0"][0]) == (1024, 2)


def test_a_row_whose_process_was_killed_while_it_made_it_is_made_again(tmp_path: Path) -> None:
    killed = Counters(tmp_path)
    killed.row("a")[0] += 1
    killed.row("a much longer key")[0] += 1
    # All but its last step.
    (file,) = tmp_path.iterdir()
    content = file.read_bytes()
    place = content.index(b'["a much')
    file.write_bytes(content[:place] + b"\0" + content[place + 1 :])
    assert [rows.keys() for _, rows in read(tmp_path)] == [{("a",)}]
    del killed
    gc.collect()  # Its lock goes with it.
    successor = Counters(tmp_path)
    assert list(tmp_path.iterdir()) == [file]
    successor.row("b")[1] += 1
    assert [set(rows) for _, rows in read(tmp_path)] == [{("a",), ("b",)}]


@pytest.mark.parametrize("room", [0, 100_000])
def test_a_worker_without_room_on_the_disk_serves_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, room: int
) -> None:
    write = os.pwrite

    def fill(descriptor: int, content: bytes, offset: int) -> int:
        if not room:
            raise OSError(28, "No space left on device")
        return write(descriptor, content[:room], offset)

    monkeypatch.setattr(os, "pwrite", fill)
    open_metrics(tmp_path).problem("x")
    assert "has only its own counters: [Errno 28]" in caplog.text


def test_what_servers_that_were_killed_have_left_goes_with_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(os, "access", lambda *_: False)
    left, empty, alive, young, strange = (tmp_path / f"users-api-metrics-{name}" for name in "abcde")
    for each in (left, empty, alive, young, strange):
        each.mkdir()
    (strange / "a").mkdir()
    with in_process("counters.row('a')[0] += 1", left) as killed:
        killed.kill()
    counters = Counters(alive)
    for each in (left, empty, alive, strange):
        os.utime(each, (0, 0))
    with shared_directory() as place:
        assert set(tmp_path.iterdir()) == {alive, young, strange, place}
    monkeypatch.setattr(os, "geteuid", lambda: -1)
    os.utime(young, (0, 0))
    with shared_directory():
        assert young.exists()
    assert counters.row("a")[0] == 0


def test_the_directory_goes_with_the_server() -> None:
    with shared_directory() as place:
        assert place is not None
        Metrics(place)
        assert oct(place.stat().st_mode)[-3:] == "700"
    assert not place.exists()


Serve = Callable[..., AbstractContextManager[tuple[str, "subprocess.Popen[str]"]]]


@pytest.fixture
def start(directory: Path, database: str) -> Iterator[Serve]:
    def start_it(*arguments: str, **variables: str) -> Any:
        return served(*arguments, cwd=directory, DRAIN_SECONDS="0", **{**on(database), **variables})  # type: ignore[arg-type]

    yield start_it
    assert not list(directory.iterdir())


def test_two_workers_add_up_and_a_killed_one_takes_nothing_along(start: Serve) -> None:
    port = free_port()
    with start("--workers", "2", METRICS_PORT=str(port)) as (url, process):
        metrics = f"http://127.0.0.1:{port}"
        assert_problem(httpx.get(f"{url}/metrics"), 404, None)

        def ask(times: int) -> None:
            for _ in range(times):  # each on a connection of its own, so that both workers get some
                httpx.get(f"{url}{USERS}/1")

        def answered() -> float:
            return scrape(metrics).value(f"{DURATION}_count", route=f"{USERS}/{{id}}")

        ask(60)
        wait_until(lambda: answered() == 60)
        wait_until(lambda: scrape(metrics).value("users_api_workers") == 2)
        assert scrape(metrics).value("users_api_pool_max_connections", url=PRIMARY) == 20
        before = workers(process)
        os.kill(min(before), signal.SIGKILL)
        wait_until(lambda: len(workers(process) - before) == 1)
        wait_until(lambda: scrape(metrics).value("users_api_workers") == 2)
        assert answered() == 60
        ask(20)
        wait_until(lambda: answered() == 80)
        process.send_signal(signal.SIGHUP)
        wait_until(lambda: not before & workers(process))
        wait_until(lambda: scrape(metrics).value("users_api_workers") == 2)
        ask(20)
        wait_until(lambda: answered() == 100)


def test_the_port_of_the_api_is_not_that_of_the_metrics(database: str) -> None:
    port = str(free_port())
    ended = run("serve", "--port", port, METRICS_PORT=port, **on(database))
    assert ended.returncode == 2
    assert ended.stderr == f"users-api: METRICS_PORT: the API itself is served on port {port}: name another one\n"


def test_metrics_on_a_port_need_a_place_to_write() -> None:
    with (
        pytest.raises(SettingsError, match="make /dev/shm, or the directory that TMPDIR names, writable"),
        serve_metrics(None, "127.0.0.1", free_port()),
    ):
        pass


def test_a_port_that_is_taken_is_named(database: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        ended = run("serve", "--port", "0", METRICS_PORT=str(port), **on(database))
    assert ended.returncode == 2
    assert re.fullmatch(rf"users-api: METRICS_PORT: cannot listen on http://127\.0\.0\.1:{port}: .+\n", ended.stderr)
