"""Ids beyond 2^53, which JavaScript's numbers cannot tell apart."""

import json
import re
from collections.abc import Callable

import httpx
import pytest

from tests.support.database import execute
from tests.support.users import USERS, create

FIRST = 2**53 + 1  # the least that a double rounds
LAST = 2**63 - 1


def link(response: httpx.Response) -> str:
    return re.fullmatch('<(.+)>; rel="next"', response.headers["link"])[1]  # type: ignore[index]


@pytest.fixture(params=[FIRST, LAST - 2])
def ids(request: pytest.FixtureRequest, client: httpx.Client, database: str) -> list[int]:
    """Three users in a row."""
    execute(database, f"alter table users alter column id restart with {request.param}")
    return [create(client, f"{n}@example.com", name=f"n{n}")["id"] for n in range(3)]


def test_a_user_is_read_changed_and_deleted_by_it(client: httpx.Client, ids: list[int]) -> None:
    assert ids == [ids[0], ids[0] + 1, ids[0] + 2]
    for n, id in enumerate(ids):
        url = f"{USERS}/{id}"
        found = client.get(url)
        assert found.text.startswith(f'{{"id":{id},"email":"{n}@example.com"')
        changed = client.patch(url, json={"name": "New"}, headers={"if-match": '"1"'})
        assert (changed.status_code, changed.json()["id"], changed.headers["etag"]) == (200, id, '"2"')
    assert client.delete(f"{USERS}/{ids[1]}").status_code == 204
    assert [user["id"] for user in client.get(USERS).json()] == [ids[0], ids[2]]
    sent = {"json": {"email": "key@example.com"}, "headers": {"idempotency-key": "one"}}
    if ids[2] < LAST:
        first, again = client.post(USERS, **sent), client.post(USERS, **sent)  # type: ignore[arg-type]
        assert first.headers["location"] == again.headers["location"] == f"{USERS}/{ids[2] + 1}"
        assert first.json()["id"] == again.json()["id"] == ids[2] + 1


def pages(client: httpx.Client, query: str) -> list[int]:
    found, url = [], f"{USERS}?{query}&limit=1"
    while True:
        response = client.get(url)
        found += [user["id"] for user in response.json()]
        if "link" not in response.headers:
            return found
        url = link(response)


@pytest.mark.parametrize(
    ("query", "order"),
    [
        ("order=id", list),
        ("order=-id", lambda ids: ids[::-1]),
        ("order=created_at", list),
        ("order=-created_at", lambda ids: ids[::-1]),
        ("q=n", list),
        ("email=1@example.com", lambda ids: ids[1:2]),
    ],
)
def test_pages_go_on_behind_it(
    client: httpx.Client, ids: list[int], query: str, order: Callable[[list[int]], list[int]]
) -> None:
    assert pages(client, query) == order(ids)
    assert pages(client, f"after={ids[0]}") == ids[1:]
    assert link(client.get(f"{USERS}?limit=2")) == f"{USERS}?after={ids[1]}&limit=2"


def test_it_is_exported_as_it_is(client: httpx.Client, ids: list[int]) -> None:
    lines = client.get(f"{USERS}/export").text.splitlines()
    assert [json.loads(line)["id"] for line in lines] == ids
    rows = client.get(f"{USERS}/export", params={"format": "csv"}).text.splitlines()[1:]
    assert [row.partition(",")[0] for row in rows] == [str(id) for id in ids]
