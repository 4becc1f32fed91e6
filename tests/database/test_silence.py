"""Connections that die without a sign: the network loses their packets, or a proxy hangs that acknowledges them."""

import asyncio
import logging
import os
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import httpx
import pytest

from api.app import create_app
from api.database import connecting, silence
from api.database.driver import socket_of
from api.database.pool import Pool
from api.neon.url import parse_url
from tests.support.database import locked
from tests.support.rig import LOSES_PACKETS, Cut, NeonDatabase, Rig
from tests.support.serving import serve

pytestmark = pytest.mark.far
USERS = "/api/v1/users"
SHORT_SECONDS = 0.5
"""In place of the 2 s without an answer: two ticks, or up to one more."""
LATE_SECONDS = 4.0
"""How late a busy machine may be, and less than any other timeout here."""
LATE_TICKS = round(LATE_SECONDS / silence._TICK_SECONDS)
"""In place of the ticks without an answer, for reads that shall not be sent again because the machine is busy."""


@pytest.fixture
def _soon(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(silence, "_SILENT_TICKS", 2)
    monkeypatch.setitem(connecting._SOCKET_OPTIONS, "TCP_USER_TIMEOUT", round(1000 * SHORT_SECONDS))


soon = pytest.mark.usefixtures("_soon")


@pytest.fixture(params=[Cut.LOSS, Cut.STALL], ids=str)
def forgotten(request: pytest.FixtureRequest) -> Cut:
    """How connections end without a sign."""
    cut: Cut = request.param
    return cut


@asynccontextmanager
async def forgetting(
    rig: Rig, neon: NeonDatabase, cut: Cut, **overrides: object
) -> AsyncIterator[tuple[httpx.AsyncClient, str]]:
    """Serve over a pool whose connections are idle, and then forgotten; yield a client, and the path of a user."""
    if cut is Cut.LOSS and not LOSES_PACKETS and not os.environ.get("CI"):
        pytest.skip("only root can make a link lose packets: run these tests as root on Linux")
    app = create_app(neon.settings(pool_max_size=4, pool_min_size=4, **overrides))
    with serve(app) as url:
        async with httpx.AsyncClient(base_url=url, timeout=30) as client:
            path = (await client.post(USERS, json={"email": "ada@example.com"})).headers["location"]
            await asyncio.gather(*(client.get(f"{USERS}?limit={n}") for n in range(1, 40)))
            for _ in range(8):
                await client.patch(path, json={"name": "Ada"})
            assert len(rig.links) == 4
            rig.cut(cut)
            yield client, path


async def timed_get(client: httpx.AsyncClient, path: str) -> float:
    begun = time.perf_counter()
    assert (await client.get(path)).status_code == 200
    return time.perf_counter() - begun


def sent_again(caplog: pytest.LogCaptureFixture) -> int:
    """How many statements were. Each forgotten connection that serves costs one."""
    return caplog.text.count(" is tried again: ")


@soon
@pytest.mark.parametrize("batching", [True, False])
async def test_forgotten_connections_cost_one_read(
    rig: Rig,
    neon: NeonDatabase,
    forgotten: Cut,
    batching: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with forgetting(rig, neon, forgotten, batching=batching) as (client, path):
        caplog.clear()
        assert SHORT_SECONDS <= await timed_get(client, path) < SHORT_SECONDS + LATE_SECONDS
        monkeypatch.setattr(silence, "_SILENT_TICKS", LATE_TICKS)
        for _ in range(8):
            await timed_get(client, path)
        assert sent_again(caplog) == 1


async def test_forgotten_connections_cost_two_seconds(rig: Rig, neon: NeonDatabase) -> None:
    async with forgetting(rig, neon, Cut.LOSS) as (client, path):
        assert 2.0 <= await timed_get(client, path) < 2.25 + LATE_SECONDS


@soon
@pytest.mark.parametrize("batching", [True, False])
async def test_reads_that_wait_at_once_are_all_sent_again(
    rig: Rig, neon: NeonDatabase, forgotten: Cut, batching: bool
) -> None:
    """More than the pool has connections, each of which is forgotten."""
    async with forgetting(rig, neon, forgotten, batching=batching) as (client, path):
        slowest = max(await asyncio.gather(*(timed_get(client, path) for _ in range(12))))
        assert slowest < 2 * SHORT_SECONDS + LATE_SECONDS


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Is set when the idle connections are being checked."""
    begun = threading.Event()
    check_idle = Pool.check_idle

    def check(pool: Pool) -> None:
        check_idle(pool)
        begun.set()

    monkeypatch.setattr(Pool, "check_idle", check)
    return begun


@soon
async def test_forgotten_connections_cost_one_write_its_outcome(
    rig: Rig,
    neon: NeonDatabase,
    forgotten: Cut,
    checked: threading.Event,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The kernel ends it where the network is silent; where a proxy is, it may wait for a lock, and waits on."""
    timeout = 1.5 if forgotten is Cut.STALL else 30.0
    async with forgetting(rig, neon, forgotten, statement_timeout_seconds=timeout) as (client, path):
        caplog.clear()
        checked.clear()
        begun = time.perf_counter()
        write = asyncio.create_task(client.patch(path, json={"name": "Grace"}))
        await asyncio.to_thread(checked.wait)
        monkeypatch.setattr(silence, "_SILENT_TICKS", LATE_TICKS)
        for _ in range(8):
            await timed_get(client, path)
        assert sent_again(caplog) == 0
        answer = await write
        assert time.perf_counter() - begun < 1.5 + LATE_SECONDS
        assert answer.json()["type"] == "urn:problem:users-api:outcome-unknown"
        assert (await client.get(path)).json()["name"] == "Ada"  # it was sent once, into the void


@soon
async def test_a_slow_statement_is_not_sent_by_everyone_again(rig: Rig, neon: NeonDatabase) -> None:
    async with forgetting(rig, neon, Cut.CLOSE, batching=False) as (client, _):
        await client.get(USERS)
        before = rig.counts.statements
        with locked(neon.superuser):
            reads = [asyncio.create_task(client.get(USERS)) for _ in range(4)]
            await asyncio.sleep(3 * SHORT_SECONDS)
        assert {(await read).status_code for read in reads} == {200}
        # One read is sent again. An idle connection may have been checked meanwhile.
        assert 4 <= rig.counts.statements - before <= 4 + 1 + 3


async def test_a_keepalive_segment_is_no_statement(
    rig: Rig, neon: NeonDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel of the proxy answers it: the compute behind it may sleep."""
    monkeypatch.setitem(connecting._SOCKET_OPTIONS, "TCP_KEEPIDLE", 1)
    connection = await asyncpg.connect(**parse_url(neon.pooled).asyncpg_arguments())
    connecting.watch_network(connection)
    await connection.fetchval("select 1")
    rig.suspend(Cut.STALL)
    counts = (rig.counts.statements, rig.counts.round_trips, rig.counts.connections)
    sent = segments_sent(connection)
    await asyncio.sleep(1.3)
    assert segments_sent(connection) > sent
    assert (rig.counts.statements, rig.counts.round_trips, rig.counts.connections) == counts
    assert rig.asleep
    connection.terminate()


def segments_sent(connection: asyncpg.Connection) -> int:
    """tcpi_segs_out of Linux's struct tcp_info."""
    information = socket_of(connection).getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    found: int = struct.unpack_from("I", information, 136)[0]
    return found


async def test_a_unix_socket_has_no_options(database: str) -> None:
    connection = await asyncpg.connect(**parse_url(database).asyncpg_arguments())
    connecting.watch_network(connection)
    assert socket_of(connection).getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0
    await connection.close()
