"""Concurrent requests for one user, on the real pool."""

import asyncio
from collections import Counter

import asyncpg
import httpx
import pytest

from api.app import create_app
from api.database.fetch import PooledDatabase
from api.database.options import database_options
from api.database.statements import Statement
from api.neon.url import parse_url
from api.users import queries
from api.users.statements import (
    DELETE_USERS,
    IMPORT_USERS,
    IMPORT_USERS_UPDATE,
    INSERT_USERS,
    INSERT_USERS_ONCE,
    UPDATE_USERS,
)
from tests.support.database import execute, locked
from tests.support.serving import serve, settings_for
from tests.support.statements import arguments

USERS = "/api/v1/users"


async def test_fifty_creates_of_one_address_make_one_user(client: httpx.Client) -> None:
    async with httpx.AsyncClient(base_url=client.base_url) as many:
        emails = ["ada@example.com", "ADA@example.com", "Ada@EXAMPLE.com"]
        answers = await asyncio.gather(*(many.post(USERS, json={"email": emails[n % 3]}) for n in range(50)))
    assert Counter(answer.status_code for answer in answers) == {201: 1, 409: 49}
    assert len(client.get(USERS).json()) == 1


async def test_of_many_patches_with_one_if_match_one_wins(client: httpx.Client) -> None:
    url = client.post(USERS, json={"email": "ada@example.com"}).headers["location"]
    async with httpx.AsyncClient(base_url=client.base_url) as many:
        answers = await asyncio.gather(
            *(many.patch(url, json={"name": f"name {n}"}, headers={"if-match": '"1"'}) for n in range(20))
        )
    assert Counter(answer.status_code for answer in answers) == {200: 1, 412: 19}
    winner = next(answer for answer in answers if answer.status_code == 200)
    assert client.get(url).content == winner.content


async def test_every_patch_without_a_condition_counts(client: httpx.Client) -> None:
    url = client.post(USERS, json={"email": "ada@example.com"}).headers["location"]
    async with httpx.AsyncClient(base_url=client.base_url) as many:
        answers = await asyncio.gather(*(many.patch(url, json={"name": f"name {n}"}) for n in range(30)))
    assert {answer.status_code for answer in answers} == {200}
    assert sorted(int(answer.headers["etag"].strip('"')) for answer in answers) == list(range(2, 32))
    assert client.get(url).headers["etag"] == '"31"'


async def test_of_many_deletes_one_wins(client: httpx.Client) -> None:
    url = client.post(USERS, json={"email": "ada@example.com"}).headers["location"]
    async with httpx.AsyncClient(base_url=client.base_url) as many:
        answers = await asyncio.gather(*(many.delete(url) for _ in range(20)))
    assert Counter(answer.status_code for answer in answers) == {204: 1, 404: 19}


async def test_one_connection_serves_many_clients(database: str) -> None:
    settings = settings_for(database, pool_max_size=1)
    with serve(create_app(settings)) as url:
        async with httpx.AsyncClient(base_url=url) as many:
            answers = await asyncio.gather(*(many.post(USERS, json={"email": f"{n}@example.com"}) for n in range(60)))
            assert {answer.status_code for answer in answers} == {201}
            assert len((await many.get(USERS)).json()) == 60


@pytest.mark.parametrize(
    "write", [INSERT_USERS, INSERT_USERS_ONCE, UPDATE_USERS, DELETE_USERS, IMPORT_USERS, IMPORT_USERS_UPDATE]
)
async def test_a_write_waits_for_a_row_as_long_as_it_is_told(database: str, write: Statement) -> None:
    """It sets no time for the statements after it, which a pooler may send over the same connection for others."""
    execute(database, "insert into users (email) values ('user1@example.com')")
    connection = await asyncpg.connect(**parse_url(database).asyncpg_arguments())
    *values, _ = arguments(write, 1)
    try:
        held = "update users set name = 'held'; insert into users (email) values ('new1@example.com')"
        with locked(database, held), pytest.raises(asyncpg.LockNotAvailableError):
            await connection.fetch(write.sql, *values, "20ms", timeout=5)
        await connection.fetch(write.sql, *values, "20ms")
        assert await connection.fetchval("show lock_timeout") == "0"
    finally:
        await connection.close()


async def test_two_workers_that_create_the_same_users_never_deadlock(database: str) -> None:
    """Both lock addresses in one order, whatever the plan. The slower one creates none, and sees those of the other."""
    users = [queries.NewUser(f"{n:03}@example.com", None) for n in range(50)]
    workers = [PooledDatabase(database_options(settings_for(database))) for _ in range(2)]
    for worker in workers:
        await worker.open()
    for _ in range(10):
        outcomes = await asyncio.gather(
            *(queries.insert_users(worker, users) for worker in workers), return_exceptions=True
        )
        rows = [each for each in outcomes if isinstance(each, list)]
        assert {type(each) for each in outcomes} <= {list, asyncpg.UniqueViolationError}
        assert [each for each in rows if all(row and row["body"] for row in each)]
        execute(database, "delete from users")
    for worker in workers:
        await worker.close()
