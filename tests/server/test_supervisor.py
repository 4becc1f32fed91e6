"""The supervisor: failures of its workers and its own, and settings that change while it runs."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest
from uvicorn.config import STARTUP_FAILURE

from api.auth.keys import make_api_key
from benchmarks.processes import free_port
from tests.support import ROOT
from tests.support.commands import USERS_API, Served, environment, workers
from tests.support.database import locked, wait_until_waiting
from tests.support.users import USERS
from tests.support.waiting import wait_until

pytestmark = pytest.mark.long

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of another process are Linux's")
INTO_THE_LOG = ["sh", "-c", 'exec "$0" "$@" 2> log', USERS_API]


def said(log: Path, text: str, times: int = 1) -> Callable[[], bool]:
    return lambda: log.read_text().count(text) >= times


def run_supervisor(code: str) -> "subprocess.CompletedProcess[str]":
    """Run `supervisor`, which `code` makes."""
    code = (
        "import asyncio, contextlib, resource, sys; from uvicorn import Config; from api.server.listening import bind\n"
        "from api.server.supervisor import Supervisor\n"
        "stack = contextlib.ExitStack(); sockets = stack.enter_context(bind('127.0.0.1', 0, 'PORT'))\n"
        f"{code}\n"
        "if __name__ == '__main__': sys.exit(supervisor.run())"
    )
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=60
    )


def test_a_supervisor_whose_workers_do_not_start_gives_up() -> None:
    ended = run_supervisor(
        "supervisor = Supervisor(Config('api.no_such_module:app', workers=2), sockets, grace_seconds=5)"
    )
    assert ended.returncode == STARTUP_FAILURE
    assert "exited unexpectedly, with exit code 3" in ended.stderr


def test_a_supervisor_that_has_no_room_for_its_workers_says_so() -> None:
    ended = run_supervisor(
        "supervisor = Supervisor(Config('tests.support.serving:live', workers=2), sockets, grace_seconds=5)\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (8, 8))"
    )
    assert ended.returncode == 1
    assert "cannot start a worker ([Errno 24] Too many open files)" in ended.stderr
    assert "Traceback" not in ended.stderr


@LINUX
def test_a_place_that_finds_no_room_is_filled_when_there_is_some(start: Callable[..., Served], directory: Path) -> None:
    log = directory / "log"
    with start("--workers", "2", program=INTO_THE_LOG) as (url, process):
        wait_until(said(log, "Application startup complete", 2))
        supervisor, (killed, other) = psutil.Process(process.pid), workers(process)
        limits = supervisor.rlimit(psutil.RLIMIT_NOFILE)
        supervisor.rlimit(psutil.RLIMIT_NOFILE, (3, limits[1]))
        psutil.Process(killed).kill()
        wait_until(said(log, "cannot start a worker (", 2))  # It is tried again.
        process.send_signal(signal.SIGHUP)
        wait_until(said(log, "a new worker did not start"))
        assert workers(process) == {other}
        supervisor.rlimit(psutil.RLIMIT_NOFILE, limits)
        wait_until(lambda: len(workers(process)) == 2)
        process.send_signal(signal.SIGHUP)
        wait_until(said(log, '"the workers are replaced"'))
        assert len(workers(process)) == 2
        assert other not in workers(process)
        assert httpx.get(f"{url}{USERS}").status_code == 200
    assert "Traceback" not in log.read_text()


def test_a_successor_that_dies_is_replaced_while_its_predecessor_finishes(
    start: Callable[..., Served],
    directory: Path,
) -> None:
    log = directory / "log"
    with start("--workers", "2", program=INTO_THE_LOG, GRACE_SECONDS="3600") as (url, process):
        wait_until(said(log, "Application startup complete", 2))
        before = [psutil.Process(worker) for worker in workers(process)]
        try:
            for worker in before:
                worker.suspend()  # They take a very long time.
            process.send_signal(signal.SIGHUP)
            wait_until(said(log, "which finishes its requests"))
            successors = workers(process) - {worker.pid for worker in before}
            assert len(successors) == 1
            psutil.Process(*successors).kill()
            wait_until(lambda: len(workers(process) - {worker.pid for worker in before} - successors) == 1)
            assert httpx.get(f"{url}{USERS}", timeout=60).status_code == 200
        finally:
            for worker in before:
                worker.kill()


@pytest.mark.parametrize("sig", [signal.SIGINT, signal.SIGHUP])
def test_a_worker_that_starts_leaves_to_the_supervisor_what_a_terminal_sends(
    start: Callable[..., Served],
    directory: Path,
    sig: signal.Signals,
) -> None:
    log = directory / "log"
    with start("--workers", "2", program=INTO_THE_LOG) as (_, process):
        wait_until(said(log, "Application startup complete", 2))
        for count in (1, 2):
            killed, other = before = workers(process)
            psutil.Process(killed).kill()
            wait_until(lambda: len(workers(process) - before) == 1)  # noqa: B023
            (new,) = workers(process) - before
            psutil.Process(new).send_signal(sig)
            wait_until(said(log, "Application startup complete", 2 + count))
            psutil.Process(new).send_signal(sig)
            assert workers(process) == {new, other}
    assert log.read_text().count("exited unexpectedly") == 2  # those that were killed
    assert "Traceback" not in log.read_text()


# What has changed when a worker starts


def test_new_workers_have_the_settings_that_are_there_now(
    start: Callable[..., Served],
    directory: Path,
) -> None:
    log, dotenv = directory / "log", directory / ".env"
    key, entry = make_api_key("ada", read_only=True)
    bearer = {"authorization": f"Bearer {key}"}
    dotenv.write_text("DRAIN_SECONDS=0\n")
    secrets = directory / "secrets"
    secrets.mkdir()
    (secrets / "API_KEYS").write_text(f"{entry}\n")
    with start("--workers", "2", program=INTO_THE_LOG, DRAIN_SECONDS="") as (url, process):
        wait_until(said(log, "Application startup complete", 2))

        def replace(settings: str, times: int) -> None:
            dotenv.write_text(settings)
            process.send_signal(signal.SIGHUP)
            wait_until(said(log, '"the workers are replaced"', times))

        assert httpx.get(f"{url}{USERS}").status_code == 200
        replace(f"API_KEYS={entry}\nMETRICS_PORT={free_port()}\nDRAIN_SECONDS=0\n", 1)
        assert httpx.get(f"{url}{USERS}").status_code == 401
        assert httpx.get(f"{url}{USERS}", headers=bearer).status_code == 200
        assert httpx.get(f"{url}/metrics", headers=bearer).status_code == 200  # No METRICS_PORT serves it instead.
        assert log.read_text().count("a change of METRICS_PORT needs a restart: it stays unset") == 2
        started = log.read_text().count("Started server process")
        replace("LOG_LEVEL=warning\nDRAIN_SECONDS=0\n", 2)
        assert httpx.get(f"{url}{USERS}").status_code == 200
        assert log.read_text().count("Started server process") == started
        replace("SECRETS_DIR=secrets\nDRAIN_SECONDS=0\n", 3)
        assert httpx.get(f"{url}{USERS}").status_code == 401
        assert httpx.get(f"{url}{USERS}", headers=bearer).status_code == 200
        # Kubernetes puts what was mounted last in the place of the files, and sends no signal.
        other, other_entry = make_api_key("ada", read_only=True)
        (secrets / "API_KEYS").write_text(f"{other_entry}\n")
        assert httpx.get(f"{url}{USERS}", headers=bearer).status_code == 200
        replace(dotenv.read_text(), 4)
        assert httpx.get(f"{url}{USERS}", headers=bearer).status_code == 401
        assert httpx.get(f"{url}{USERS}", headers={"authorization": f"Bearer {other}"}).status_code == 200
        replace("DRAIN_SECONDS=77\nGRACE_SECONDS=99\n", 5)
        process.send_signal(signal.SIGTERM)
        wait_until(said(log, "draining: requests are served for 77 s", 2))
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0
    assert "Traceback" not in log.read_text()


def test_the_metrics_stay_on_the_port_where_they_are_served(
    start: Callable[..., Served],
    directory: Path,
) -> None:
    log, dotenv, port = directory / "log", directory / ".env", free_port()
    dotenv.write_text(f"METRICS_PORT={port}\n")
    with start("--workers", "2", program=INTO_THE_LOG) as (url, process):
        wait_until(said(log, "Application startup complete", 2))
        dotenv.unlink()
        process.send_signal(signal.SIGHUP)
        wait_until(said(log, '"the workers are replaced"'))
        assert httpx.get(f"{url}/metrics").status_code == 404
        assert httpx.get(f"http://127.0.0.1:{port}/metrics").status_code == 200
        assert said(log, f"a change of METRICS_PORT needs a restart: it stays {port}", 2)()


def test_a_new_worker_has_its_own_grace(start: Callable[..., Served], directory: Path, database: str) -> None:
    """The supervisor, too, waits as long as the worker may take."""
    log = directory / "log"
    (directory / ".env").write_text("GRACE_SECONDS=1\n")
    with start("--workers", "2", program=INTO_THE_LOG) as (url, process), ThreadPoolExecutor() as threads:
        wait_until(said(log, "Application startup complete", 2))
        (directory / ".env").write_text("GRACE_SECONDS=3600\nSTATEMENT_TIMEOUT_SECONDS=300\n")
        process.send_signal(signal.SIGHUP)
        wait_until(said(log, '"the workers are replaced"'))
        with locked(database):
            answer = threads.submit(httpx.get, f"{url}{USERS}", timeout=90)
            wait_until_waiting(database, 1)
            process.send_signal(signal.SIGTERM)
            time.sleep(5)  # Longer than the first workers had, and the supervisor for them.
        assert answer.result().status_code == 200
        assert process.wait(timeout=60) == 0
