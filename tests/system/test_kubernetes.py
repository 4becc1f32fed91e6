"""The manifests, run by podman: under load replicas are updated and killed, and the database is away."""

import asyncio
import os
import re
import secrets
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from api.neon.url import parse_url
from benchmarks.measure import delayed
from tests.support import lacking
from tests.support import rig as neon_rig
from tests.support.database import NewDatabase, execute
from tests.support.load import Load
from tests.support.podman import podman
from tests.support.pods import NAMES, Pods, Pooler, balanced
from tests.support.waiting import status, wait_until

CLIENTS = 24
AT_LEAST = 20_000
AWAY_SECONDS = 20
PROGRAMS = f"{os.environ['PATH']}:/usr/sbin:/usr/libexec/podman:/usr/lib/podman"

pytestmark = [
    pytest.mark.timeout(900),  # The image may have to be built first.
    pytest.mark.parametrize("anyio_backend", [("asyncio", {"use_uvloop": True})], ids=["uvloop"]),
]


@pytest.fixture(scope="module")
def second_image(image: str) -> Iterator[str]:
    """Another build: the same service in an image of another id."""
    name = f"{image}-second"
    podman("build", "--layers=false", "--tag", name, "-", stdin=f"FROM {image}\nLABEL build=second\n")
    yield name
    podman("image", "rm", "--force", name)


@pytest.fixture
def database(postgres: str, new_database: NewDatabase) -> Iterator[str]:
    """The superuser's URL of an empty database that belongs to the role of the manifests."""
    if not execute(postgres, "select 1 from pg_roles where rolname = 'users_api'"):
        execute(postgres, "create role users_api login")
    with new_database("template0", "users_api") as url:
        yield url


@pytest.fixture
def pooler(database: str, directory: Path) -> Iterator[Pooler]:
    """PgBouncer in front of the database."""
    program = neon_rig.find()
    if program is None:
        lacking(f"no PgBouncer >= 1.21: run {neon_rig.SCRIPT}, which finds or fetches one")
    parsed = parse_url(database)
    password = secrets.token_hex(16)
    pooler = Pooler(program, directory, Path(parsed.hosts[0][0], ".s.PGSQL.5432"), parsed.database, password)
    pooler.start()
    yield pooler
    pooler.stop()


@pytest.fixture
def pods(image: str, database: str, pooler: Pooler) -> Iterator[Pods]:
    """A migrated database, and two replicas that are ready."""
    if shutil.which("catatonit", path=PROGRAMS) is None:
        lacking("podman's pods need catatonit: apt-get install catatonit")
    pods = Pods(image, f"-test{os.getpid()}")
    parsed = parse_url(database)
    try:
        with delayed(Path(parsed.hosts[0][0], ".s.PGSQL.5432"), 0) as (direct, _):
            pods.add_secret(
                "users-api-migrate", DIRECT_URL=f"postgresql://users_api@127.0.0.1:{direct}/{parsed.database}"
            )
            migrate = pods.play("migrate")
            ended = podman("wait", migrate).stdout.strip()
            assert ended == "0", podman("logs", migrate)
        pods.add_secret("users-api-server", DATABASE_URL=pooler.url)
        for name in NAMES:
            pods.start(name)
        yield pods
    finally:
        pods.remove()


@pytest.fixture
def balancer(pods: Pods, tmp_path: Path) -> Iterator[int]:
    """The port of the HAProxy before the replicas."""
    if shutil.which("haproxy", path=PROGRAMS) is None:
        lacking("no HAProxy before the pods: apt-get install haproxy")
    with balanced(pods, tmp_path) as port:
        yield port


def report(capsys: pytest.CaptureFixture[str], what: str, load: Load, lost: object) -> None:
    with capsys.disabled():
        statuses = Counter(re.findall(r": (\w+)", failure)[0] for failure in load.failures)
        print(
            f"\n{what}: {len(load.failures)} failed of {load.requests} requests "
            f"({dict(load.answers)}; failures: {dict(statuses)}), {lost or 'none'} lost of {load.acknowledged} writes"
        )


async def test_a_rolling_update_under_load(
    pods: Pods, balancer: int, second_image: str, database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def update() -> None:
        pods.image = second_image
        for name in NAMES:
            assert pods.stop(name) == 0
            assert "Traceback" not in pods.log(name)
            pods.start(name)

    before = {pods.inspect(name, "{{.Image}}") for name in NAMES}
    load = Load(AT_LEAST)
    async with load.running(balancer, CLIENTS):
        await asyncio.to_thread(update)
    lost = load.lost(database)
    report(capsys, "rolling update", load, lost)
    assert len(before | {pods.inspect(name, "{{.Image}}") for name in NAMES}) == 2
    assert load.failures == []
    assert lost == {}
    assert load.requests >= AT_LEAST


async def test_a_replica_that_is_killed(
    pods: Pods, balancer: int, database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Podman starts it again. What it had in hand and cannot be sent again is all that fails: at most one a client."""
    load = Load(5000)
    async with load.running(balancer, CLIENTS):
        await asyncio.sleep(2)
        killed = pods.kill("one")
        await asyncio.to_thread(wait_until, lambda: pods.inspect("one", "{{.State.Pid}}") not in ("0", killed))
        await asyncio.to_thread(pods.wait_until, "one", 200)
    lost = load.lost(database)
    report(capsys, "killed", load, lost)
    assert len(load.failures) <= CLIENTS
    assert not [failure for failure in load.failures if failure.startswith("GET")]
    assert lost == {}


async def test_the_database_is_away(
    pods: Pods, balancer: int, pooler: Pooler, database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is restarted meanwhile, and afterwards every request is served."""
    started = [pods.inspect(name, "{{.State.StartedAt}}") for name in NAMES]
    during, afterwards = Load(), Load(2000)
    async with during.running(balancer, CLIENTS):
        await asyncio.sleep(1)
        pooler.stop()
        await asyncio.sleep(AWAY_SECONDS)
        for name in NAMES:  # when a request of each has waited in vain
            await asyncio.to_thread(pods.wait_until, name, 503)
        alive = [pods.status(name, "/health") for name in NAMES]
        pooler.start()
        for name in NAMES:
            await asyncio.to_thread(pods.wait_until, name, 200)
    lost = during.lost(database)
    report(capsys, f"database away for at least {AWAY_SECONDS} s", during, lost)
    execute(database, "truncate users")
    await asyncio.to_thread(wait_until, lambda: status(balancer, "/ready") == 200)
    async with afterwards.running(balancer, CLIENTS):
        pass
    report(capsys, "afterwards", afterwards, afterwards.lost(database))
    assert alive == [200] * len(NAMES)
    assert lost == {}
    assert (afterwards.failures, afterwards.lost(database)) == ([], {})
    assert [pods.inspect(name, "{{.State.StartedAt}}") for name in NAMES] == started
