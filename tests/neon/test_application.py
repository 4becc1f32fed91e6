"""The application behind the Neon rig: the commands, and a compute that may be suspended."""

import asyncio
import copy
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest

from api.app import create_app
from api.settings import Settings
from tests.support import ROOT
from tests.support.commands import USERS_API, run, served
from tests.support.database import MIGRATIONS, execute, wait_until_true
from tests.support.rig import PASSWORD, ROLE, Counts, Cut, NeonDatabase, Rig
from tests.support.serving import serve
from tests.support.waiting import wait_until

USERS = "/api/v1/users"


def test_the_commands(rig: Rig, neon: NeonDatabase, tmp_path: Path) -> None:
    """Each in a process of its own, with nothing but the two URLs: sslrootcert, host name and password are in them."""
    urls = neon.environment()
    assert run("migrate", "rollback", "--yes", **urls).returncode == 0
    assert f"applying {MIGRATIONS[-1]}" in run("migrate", **urls).stdout
    assert re.search(f"{MIGRATIONS[-1]} +applied", run("migrate", "status", **urls).stdout)
    assert "statements fit the database" in run("check-sql", **urls).stdout
    with (
        served("--workers", "2", cwd=tmp_path, ends_with=0, **urls) as (url, _),
        httpx.Client(base_url=url) as client,
    ):
        path = client.post(USERS, json={"email": "ada@example.com"}).headers["location"]
        rig.suspend()
        assert client.get(path).json()["email"] == "ada@example.com"
    assert not rig.links


@pytest.mark.usefixtures("rig")  # which says how to get a PgBouncer
def test_the_rig_by_hand() -> None:
    """What `make neon-rig` runs: two URLs that work, faults at the prompt, and Ctrl-C leaves nothing behind."""
    command = [sys.executable, "-m", "tests.support.rig"]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as rig:
        assert rig.stdin
        assert rig.stdout
        said = "".join(iter(rig.stdout.readline, "Ctrl-C ends it; nothing is kept.\n"))
        urls = dict(re.findall("export (.+)='(.+)'", said))
        assert "applying 0001.create-users" in run("migrate", **urls).stdout
        rig.stdin.write("suspend\nnonsense\nfault answer reset 3\ncounts\n")
        answers = "".join(iter(rig.stdout.readline, "0 open, 3 faults to come\n"))
        assert "'suspend': 1" in answers
        assert "not understood" in answers
        rig.send_signal(signal.SIGINT)
        rig.communicate(timeout=30)
    assert rig.returncode == 0
    assert not Path(re.findall("sslrootcert=(.+)&", urls["DIRECT_URL"])[0]).parent.exists()


def test_a_server_that_is_not_who_it_should_be_gets_no_password(rig: Rig, neon: NeonDatabase) -> None:
    rig.present("wrong name")
    refused = run("check-sql", **neon.environment())
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "DATABASE_URL: cannot connect" in refused.stderr
    assert not rig.counts.dropped_parameters  # no startup packet came, hence no password either


IDLE_SECONDS = 0.4
"""In place of POOL_IDLE_SECONDS' 120."""


async def test_an_idle_application_lets_the_compute_sleep(rig: Rig, neon: NeonDatabase) -> None:
    with serve(create_app(neon.settings(pool_idle_seconds=IDLE_SECONDS))) as url:
        async with httpx.AsyncClient(base_url=url) as client:
            path = (await client.post(USERS, json={"email": "ada@example.com"})).headers["location"]
            responses = await asyncio.gather(*(client.get(f"{USERS}?limit={n}") for n in range(1, 101)))
            assert {response.status_code for response in responses} == {200}
            await nothing_happens(rig, client)

            rig.suspend()
            rig.counts = Counts()
            await nothing_happens(rig, client)
            assert rig.asleep

            started = time.perf_counter()
            assert (await client.get(path)).status_code == 200
            assert time.perf_counter() - started >= rig.wake_seconds
            # The first request is not tried twice: it wakes the compute, and waits for one connection and its answer.
            counts = rig.counts
            assert (counts.wakes, counts.connections, counts.statements) == (1, 1, 1)
            assert counts.round_trips == 2  # asyncpg describes a statement that is new on its connection

            # A compute that is suspended under open connections does not draw new ones either.
            rig.suspend()
            rig.counts = Counts()
            await nothing_happens(rig, client)
            assert rig.asleep


async def nothing_happens(rig: Rig, client: httpx.AsyncClient) -> None:
    """Wait until the pool has let go, and watch for three times as long as it may keep an idle connection."""
    await asyncio.to_thread(wait_until, lambda: not rig.links)
    before = copy.deepcopy(rig.counts)
    for _ in range(3):
        await asyncio.sleep(IDLE_SECONDS)
        assert (await client.get("/health")).status_code == 200  # what a load balancer's probe asks
    assert rig.counts == before
    assert not rig.links


def test_the_defaults_let_it_sleep() -> None:
    """The settings that the test above relies on, and the one that it shortens."""
    defaults = {name: field.default for name, field in Settings.model_fields.items()}
    assert defaults["pool_min_size"] == 0  # a floor would be kept up in the background (asyncpg 0.32)
    assert defaults["pool_idle_seconds"] <= 300 / 2  # Neon suspends after 300 s


def test_a_password_is_rotated_without_a_failed_request(rig: Rig, neon: NeonDatabase, directory: Path) -> None:
    """Old connections live on, new ones need the new password, and SIGHUP makes the workers read it from its file."""
    log, secrets = directory / "log", directory / "secrets"
    secrets.mkdir()
    (secrets / "DATABASE_URL").write_text(f"{neon.direct}\n")
    with served(
        *("--workers", "2"),
        cwd=directory,
        program=("sh", "-c", 'exec "$0" "$@" 2> log', USERS_API),
        **{"SECRETS_DIR": "secrets", "AUTH": "off", "POOL_MIN_SIZE": "1"},  # type: ignore[arg-type]
    ) as (url, process):
        # Each worker has been let in before the password is another one.
        let_in = f"datname = current_database() and usename = '{ROLE}' and state = 'idle'"
        wait_until_true(neon.superuser, f"select count(*) = 2 from pg_stat_activity where {let_in}")
        changed = quote(rotated := "npg_rotated", safe="")
        execute(rig.superuser_url, f"alter role {ROLE} password '{rotated}'")
        try:
            assert "password authentication failed" in run("check-sql", DATABASE_URL=neon.direct).stderr
            for _ in range(20):
                assert httpx.get(f"{url}/api/v1/users").status_code == 200
            (secrets / "DATABASE_URL").write_text(neon.direct.replace(quote(PASSWORD, safe=""), changed))
            process.send_signal(signal.SIGHUP)
            wait_until(lambda: '"the workers are replaced"' in log.read_text())
            rig.cut(Cut.RESET)
            for _ in range(20):
                assert httpx.get(f"{url}/api/v1/users").status_code == 200
        finally:
            execute(rig.superuser_url, f"alter role {ROLE} password '{PASSWORD}'")
