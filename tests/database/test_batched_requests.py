"""Requests that share statements: what each of them is answered, on PostgreSQL."""

import asyncio
from collections import Counter
from collections.abc import Callable

import httpx
import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.app import create_app
from api.database import slots
from tests.support.database import execute, locked
from tests.support.metrics import scrape
from tests.support.serving import serve, settings_for
from tests.support.waiting import wait_until

USERS = "/api/v1/users"


@pytest.fixture(autouse=True)
def nothing_is_spaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Statements that overlap start at once."""
    monkeypatch.setattr(slots, "SPACING_SECONDS", 0.0)


async def test_an_error_belongs_to_its_request(client: httpx.Client) -> None:
    ids = [client.post(USERS, json={"email": f"{n}@example.com"}).json()["id"] for n in range(20)]
    async with httpx.AsyncClient(base_url=client.base_url) as many:
        patches = [
            many.patch(f"{USERS}/{i}", json={"email": "0@example.com" if n % 5 == 4 else f"new{n}@example.com"})
            for n, i in enumerate(ids)
        ]
        stale = [many.patch(f"{USERS}/{i}", json={"name": "x"}, headers={"if-match": '"9"'}) for i in ids[:3]]
        missing = [many.patch(f"{USERS}/{i}", json={"name": "x"}) for i in (8888, 9999)]
        answers = await asyncio.gather(*patches, *stale, *missing)
    # The first user gives up its address at the same moment: at most one other may take it.
    taken = Counter(answer.status_code for answer in answers[4:20:5])
    assert taken[200] + taken[409] == 4
    assert taken[200] <= 1
    assert {answer.status_code for n, answer in enumerate(answers[:20]) if n % 5 != 4} == {200}
    assert [answer.status_code for answer in answers[20:]] == [412] * 3 + [404] * 2


async def test_creates_of_one_batch_do_not_touch_each_other(client: httpx.Client) -> None:
    client.post(USERS, json={"email": "taken@example.com"})
    async with httpx.AsyncClient(base_url=client.base_url) as many:
        emails = [f"{n}@example.com" if n % 3 else "taken@example.com" for n in range(30)]
        answers = await asyncio.gather(*(many.post(USERS, json={"email": email, "name": email}) for email in emails))
    for email, answer in zip(emails, answers, strict=True):
        assert answer.status_code == (409 if email.startswith("taken") else 201)
        if answer.status_code == 201:
            assert answer.json()["name"] == email
            assert client.get(answer.headers["location"]).content == answer.content


async def test_one_locked_row_does_not_hold_the_others(database: str, batching: bool) -> None:
    app = create_app(settings_for(database, batching=batching, statement_timeout_seconds=20))
    with serve(app) as url:
        async with httpx.AsyncClient(base_url=url, timeout=30) as many:
            created = await asyncio.gather(*(many.post(USERS, json={"email": f"{n}@example.com"}) for n in range(20)))
            paths = [answer.headers["location"] for answer in created]
            with locked(database, "select from users where email = '7@example.com' for update"):
                patches = [asyncio.ensure_future(many.patch(path, json={"name": "x"})) for path in paths]
                free = await asyncio.gather(*(patch for n, patch in enumerate(patches) if n != 7))
                assert {answer.status_code for answer in free} == {200}
                assert not patches[7].done()
                # Nor do later requests wait for it.
                assert (await many.patch(paths[3], json={"name": "y"})).status_code == 200
            assert (await patches[7]).status_code == 200


async def test_a_write_is_answered_after_its_commit(client: httpx.Client, database: str) -> None:
    async def create_and_look(many: httpx.AsyncClient, n: int) -> None:
        answer = await many.post(USERS, json={"email": f"{n}@example.com"})
        assert answer.status_code == 201
        # Over another connection, which sees what is committed and nothing else.
        count = f"select count(*) from users where id = {answer.json()['id']}"
        assert await asyncio.to_thread(execute, database, count) == [(1,)]

    async with httpx.AsyncClient(base_url=client.base_url) as many:
        await asyncio.gather(*(create_and_look(many, n) for n in range(40)))


def ends_with_its_client(app: ASGIApp) -> ASGIApp:
    """The application on a server that cancels a request whose client has left. uvicorn lets it go on."""

    async def served(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        body = [await receive()]
        while body[-1].get("more_body"):
            body.append(await receive())

        async def replayed() -> Message:
            return body.pop(0)

        request = asyncio.ensure_future(app(scope, replayed, send))
        left = asyncio.ensure_future(receive())
        left.add_done_callback(lambda _: request.cancel())
        await request
        await left  # which is said, too, when the answer is complete

    return served


@pytest.mark.parametrize("cancels", [False, True], ids=["uvicorn", "a server that cancels"])
async def test_a_client_that_vanishes_takes_nobody_along(database: str, batching: bool, cancels: bool) -> None:
    settings = settings_for(
        database, batching=batching, acquire_timeout_seconds=100, statement_timeout_seconds=100, batch_in_flight=1
    )
    app = create_app(settings)
    with serve(ends_with_its_client(app) if cancels else app) as url:

        async def until(holds: Callable[[float], bool], metric: str = "users_api_requests_under_way") -> None:
            await asyncio.to_thread(wait_until, lambda: holds(scrape(url).value(metric)))

        async with httpx.AsyncClient(base_url=url, timeout=100) as many:
            with locked(database):
                # Alternately, so that clients that disconnect share statements with clients that stay.
                posts = [asyncio.ensure_future(many.post(USERS, json={"email": f"{n}@example.com"})) for n in range(20)]
                await until(lambda under_way: under_way == 20)
                # The first left alone; with the second statement others are on their way.
                await until(lambda in_use: in_use >= 2, "users_api_pool_in_use")
                for post in posts[1::2]:
                    post.cancel()
                await asyncio.wait(posts[1::2])
                await until(lambda under_way: under_way <= (10 if cancels else 20))
            assert {answer.status_code for answer in await asyncio.gather(*posts[::2])} == {201}
        await until(lambda under_way: under_way == 0)
        problems = scrape(url).all("users_api_problems_total", "kind")
    created = {email for (email,) in execute(database, "select email from users")}
    stayed = {f"{n}@example.com" for n in range(0, 20, 2)}
    if cancels:
        assert problems.get(("outcome-unknown",), 0) + problems.get(("stopping",), 0) == 10
        assert created >= stayed
    else:
        # What a client that is gone has asked for is done all the same.
        assert created == stayed | {f"{n}@example.com" for n in range(1, 20, 2)}


async def test_beyond_the_cap_a_503_with_retry_after(database: str) -> None:
    app = create_app(settings_for(database, batch_max_waiting=5, batch_in_flight=1, batch_max_size=1))
    with serve(app) as url:
        async with httpx.AsyncClient(base_url=url, limits=httpx.Limits(max_connections=80)) as many:
            answers = await asyncio.gather(*(many.post(USERS, json={"email": f"{n}@example.com"}) for n in range(80)))
    counted = Counter(answer.status_code for answer in answers)
    assert set(counted) == {201, 503}
    refused = next(answer for answer in answers if answer.status_code == 503)
    assert refused.json()["type"] == "urn:problem:users-api:overloaded"
    assert refused.headers["retry-after"] == "1"
    assert execute(database, "select count(*) from users") == [(counted[201],)]
