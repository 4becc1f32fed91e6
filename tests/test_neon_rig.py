"""The rig is what it says: verified TLS, prepared statements through the pooler, and every fault as it is described."""

import asyncio

import asyncpg
import httpx
import pytest

from api.app import create_app
from api.url import parse_url
from tests.rig import Cut, Fault, NeonDatabase, Point, Rig
from tests.serving import serve


async def connect(url: str) -> asyncpg.Connection:
    return await asyncpg.connect(**parse_url(url).asyncpg_arguments())


async def test_prepared_statements_through_the_pooler(rig: Rig, neon: NeonDatabase) -> None:
    async with asyncpg.create_pool(**parse_url(neon.pooled).asyncpg_arguments(), min_size=8, max_size=8) as pool:
        assert await asyncio.gather(*(pool.fetchval("select $1::int + 1", n) for n in range(2000))) == list(
            range(1, 2001)
        )
    assert rig.counts.connections == 8


async def test_suspend(rig: Rig, neon: NeonDatabase) -> None:
    connection = await connect(neon.pooled)
    rig.suspend()
    with pytest.raises(asyncpg.ConnectionDoesNotExistError):
        await connection.fetchval("select 1")
    rig.wake_seconds = 0.1
    await (await connect(neon.pooled)).close()
    assert rig.counts.wakes == 1


def test_the_application(rig: Rig, neon: NeonDatabase) -> None:
    with serve(create_app(neon.settings())) as url, httpx.Client(base_url=url) as client:
        assert client.post("/api/v1/users", json={"email": "ada@example.com"}).status_code == 201
        rig.inject(Fault(Point.ANSWER, Cut.RESET))
        assert client.post("/api/v1/users", json={"email": "b@example.com"}).status_code == 503
        assert len(client.get("/api/v1/users").json()) == 2
        rig.suspend()
        assert len(client.get("/api/v1/users").json()) == 2
