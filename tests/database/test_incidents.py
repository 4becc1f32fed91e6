"""Incidents of a whole PostgreSQL: a primary that crashes while its standby takes over, and a disk that is full."""

import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import psycopg
import pytest

from api.app import create_app
from api.database import migrations
from api.neon.url import parse_url
from tests.support import lacking
from tests.support.database import execute, wait_until_waiting
from tests.support.serving import serve, settings_for
from tests.support.standby import Standby, programs
from tests.support.users import USERS, assert_problem, create
from tests.support.waiting import wait_until


@pytest.fixture
def place(postgres: str) -> Iterator[Path]:
    """A directory for data and sockets that PostgreSQL's system user can enter, below the one of the session."""
    path = Path(tempfile.mkdtemp(prefix="incident-", dir=Path(parse_url(postgres).hosts[0][0]).parent))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def pair(postgres: str, database: str, place: Path) -> Iterator[tuple[Standby, Standby]]:
    """A primary of this test's own, and its standby."""
    with ExitStack() as running:
        primary = Standby(postgres, place / "1")
        primary.start()
        running.callback(primary.stop)
        primary.promote()
        standby = Standby(primary.url(postgres), place / "2")
        standby.start()
        running.callback(standby.stop)
        yield primary, standby
        primary.start()


def test_a_standby_takes_over(pair: tuple[Standby, Standby], database: str) -> None:
    """The URL names both. A write in flight has no known outcome; what comes later waits, and nothing that was read
    before is gone."""
    primary, standby = pair
    first, second = primary.url(database), standby.url(primary.url(database))
    (one,), (other,) = parse_url(first).hosts, parse_url(second).hosts
    both = first.replace(one[0], f"{one[0]},{other[0]}") + "&target_session_attrs=read-write"
    settings = settings_for(both, acquire_timeout_seconds=60)
    with (
        serve(create_app(settings)) as url,
        httpx.Client(base_url=url, timeout=90) as client,
        ThreadPoolExecutor() as threads,
    ):
        path = f"{USERS}/{create(client)['id']}"
        standby.catch_up()
        with psycopg.connect(**parse_url(first).psycopg_arguments()) as holder:  # type: ignore[arg-type]
            holder.execute("select from users for update")
            patch = threads.submit(client.patch, path, json={"name": "Ada"})
            wait_until_waiting(first, 1)
            primary.stop()
            assert_problem(patch.result(), 503, "outcome-unknown")
            holder.close()
        waiting = threads.submit(client.get, path), threads.submit(client.post, USERS, json={"email": "b@example.com"})
        standby.promote()
        read, written = (request.result() for request in waiting)
        assert (read.status_code, written.status_code) == (200, 201)
        assert read.json()["email"] == "ada@example.com"
        assert client.get("/ready").status_code == 200
    assert execute(second, "select count(*) from users") == [(2,)]


# The data on a file system of a fixed size, which only this process sees, and the log of transactions elsewhere:
# PostgreSQL ends if there is no room for that.
SERVE = """
mount -t tmpfs -o size=80m,mode=0755 tmpfs {place}/disk
{chown}
exec {user} sh -ec '
    {programs}/initdb --pgdata={place}/disk/data --waldir={place}/wal --auth=trust --username=postgres --wal-segsize=1
    exec {programs}/postgres -D {place}/disk/data -h "" -k {place} -c fsync=off
' >{place}/log 2>&1
"""


@pytest.fixture
def small(postgres: str, place: Path) -> Iterator[str]:
    """The URL of a database on a disk of 80 MB."""
    (place / "disk").mkdir()
    is_root = os.geteuid() == 0
    owner = Path(parse_url(postgres).hosts[0][0]).owner()
    if is_root:
        shutil.chown(place, owner)
    script = SERVE.format(
        place=shlex.quote(str(place)),
        programs=shlex.quote(str(programs())),
        user=f"setpriv --reuid={owner} --regid={owner} --clear-groups" if is_root else "",
        chown=f"chown {owner} {place}/disk" if is_root else "",
    )
    # Without root, mounting needs a user namespace.
    isolated = ["unshare", "--mount", *([] if is_root else ["--user", "--map-current-user", "--keep-caps"])]
    if subprocess.run([*isolated, "mount", "-t", "tmpfs", "tmpfs", place / "disk"], capture_output=True).returncode:
        lacking("no file system of a test's own: `unshare --mount` is not permitted")
    process = subprocess.Popen([*isolated, "sh", "-ec", script])
    url = f"postgresql://postgres@/postgres?host={place}"
    try:
        wait_until(lambda: process.poll() is not None or _accepts(url))
        assert process.poll() is None, (place / "log").read_text()
        migrations.migrate(parse_url(url), report=lambda _: None)
        yield url
    finally:
        process.terminate()
        process.wait(60)


def _accepts(url: str) -> bool:
    try:
        return execute(url, "select true") == [(True,)]
    except psycopg.OperationalError:
        return False


def fill(url: str) -> None:
    while True:
        execute(url, "insert into filler select repeat(md5(n::text), 30) from generate_series(1, 2000) n")


def test_a_disk_that_is_full(small: str, caplog: pytest.LogCaptureFixture) -> None:
    """Writes fail and change nothing, reads go on, and room on the disk is all that is needed."""
    with serve(create_app(settings_for(small))) as url, httpx.Client(base_url=url, timeout=60) as client:
        ada = create(client)
        execute(small, "create table filler (content text)")
        with pytest.raises(psycopg.errors.DiskFull):
            fill(small)
        emails = iter(range(10_000))
        # There may be room in the pages that the tables have.
        while (answer := client.post(USERS, json={"email": f"{next(emails)}@example.com"})).status_code == 201:
            pass
        assert_problem(answer, 503, "unavailable")
        assert "the disk, or the Neon project's storage limit, is full" in caplog.text
        assert client.get(f"{USERS}/{ada['id']}").json() == ada
        assert client.get("/ready").status_code == 200
        before = execute(small, "select count(*) from users")
        execute(small, "drop table filler")
        assert client.post(USERS, json={"email": "grace@example.com"}).status_code == 201
        assert [(count - 1,) for (count,) in execute(small, "select count(*) from users")] == before  # type: ignore[operator]
