"""Servers restarted and workers replaced by signals under load: no request fails and no write is lost."""

import asyncio
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from api.neon.url import parse_url
from benchmarks.measure import delayed
from benchmarks.processes import free_port
from tests.support.balancer import Balancer
from tests.support.commands import USERS_API, environment
from tests.support.load import Load
from tests.support.rig import DISTANCE_SECONDS

RESTARTS = HANG_UPS = 20
CLIENTS = 24
AT_LEAST = 50_000
# Longer than any client keeps a connection idle, and than the balancer needs to notice on a busy machine.
DRAIN_SECONDS = "1"


@asynccontextmanager
async def serving(port: int, workers: int, database: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        *(str(USERS_API), "serve", "--port", str(port), "--workers", str(workers)),
        env=environment(DATABASE_URL=database, DIRECT_URL=database, DRAIN_SECONDS=DRAIN_SECONDS),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
            await process.communicate()


async def until_logged(process: asyncio.subprocess.Process, text: str) -> None:
    assert process.stderr is not None
    while text not in (line := (await process.stderr.readline()).decode()):
        assert line, f"it ended without saying {text!r}"


@pytest.fixture
def far(database: str) -> Iterator[str]:
    """The URL of the database, 10 ms away: by a process of its own, since the rig would need all of a processor."""
    parsed = parse_url(database)
    directory, port = parsed.hosts[0]
    with delayed(Path(directory, f".s.PGSQL.{port}"), 1000 * DISTANCE_SECONDS) as (proxy, _):
        yield f"postgresql://postgres@127.0.0.1:{proxy}/{parsed.database}?sslmode=disable"


@pytest.mark.heavy
@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("anyio_backend", [("asyncio", {"use_uvloop": True})], ids=["uvloop"])
async def test_no_request_fails_and_no_write_is_lost(
    database: str, far: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One server is stopped by SIGTERM and started again, the workers of two others are replaced by SIGHUP, often.

    PostgreSQL is 10 ms away: statements are in flight at each of these moments.
    """
    restarted, one, another = (free_port() for _ in range(3))
    load = Load(AT_LEAST)

    async def restart() -> None:
        for n in range(RESTARTS):
            async with serving(restarted, 2 if n % 5 == 0 else 1, far) as process:
                await balancer.ready[restarted].wait()
                process.send_signal(signal.SIGTERM)
                _, log = await process.communicate()
                assert process.returncode == 0, log.decode()
                assert b"Traceback" not in log

    async def hang_up(process: asyncio.subprocess.Process, port: int) -> None:
        for _ in range(HANG_UPS // 2):
            process.send_signal(signal.SIGHUP)
            await until_logged(process, '"the workers are replaced"')
        assert balancer.unready[port] == 0  # A worker that is replaced ends, and the service goes on.

    async with (
        Balancer([restarted, one, another]).running() as balancer,
        serving(one, 2, far) as first,
        serving(another, 2, far) as second,
    ):
        await asyncio.gather(balancer.ready[one].wait(), balancer.ready[another].wait())
        async with load.running(balancer.port, CLIENTS):
            await asyncio.gather(restart(), hang_up(first, one), hang_up(second, another))
            assert balancer.unready[restarted] >= RESTARTS
    wrong = load.lost(database)
    with capsys.disabled():
        print(
            f"\n{RESTARTS} SIGTERM restarts, {HANG_UPS} SIGHUPs: {len(load.failures)} failed of {load.requests} "
            f"requests ({dict(load.answers)}), {len(wrong)} acknowledged writes missing of {len(load.names)}"
        )
    assert load.failures == []
    assert wrong == {}
    assert load.requests >= AT_LEAST
