"""Where requests go with a replica, and the position in the answer to a write: over simulated time."""

import asyncio
import json
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Any, NamedTuple

import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.types import ASGIApp

from api.database.fetch import Database
from api.http.resource import Resource, Routes
from api.http.response import JSONBody
from api.service.read_after import replicated
from api.users.statements import ESTIMATE_USERS
from tests.support.replicas import Pair, simulated_pair
from tests.support.simulated import SimulatedLoop

BEYOND = "FFFFFFFF/FFFFFFFF"
DEPENDS_ON_ROWS = {200, 201, 204, 404, 409, 412}

POSITIONS = [
    ("0/16B3748", 0x16B3748),
    ("0/16b3748", 0x16B3748),
    ("0/FFFFFFFF", 2**32 - 1),
    ("1/0", 2**32),
    ("00000001/00000001", 2**32 + 1),
    ("A/B", 0xA_0000_000B),
    ("7FFFFFFF/FFFFFFFF", 2**63 - 1),
]
"""Positions as PostgreSQL writes them, and as numbers: beyond 32 bits too, since a log only grows."""


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {"loop_factory": SimulatedLoop}


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    async with simulated_pair() as pair:
        yield pair


def resource(database: Database, *, primary_only: bool = False) -> Resource:
    """Return a resource whose reads say who answers, and whose writes get the answer that they ask for."""

    async def get(request: Request) -> Response:
        (row,) = await database.fetch(ESTIMATE_USERS)
        return JSONBody(row["server"].encode())

    async def post(request: Request) -> Response:
        return JSONBody(b"written", int(request.headers["status"]))

    return Resource(gate=None, primary_only=primary_only, get=(get, None), post=(post, None))


def application(pair: Pair) -> ASGIApp:
    primary = [Route("/users", resource(pair.primary_pool))]
    return Routes(replicated(primary, [Route("/users", resource(pair.replica))], pair.replica))


async def ask(app: ASGIApp, method: str = "GET", *read_after: str, status: int = 200) -> Answer:
    """Send one request. There is one start of the answer, and one body after it."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"status", b"%d" % status), *((b"read-after", each.encode()) for each in read_after)]
    scope = {"type": "http", "method": method, "path": "/users", "query_string": b"", "headers": headers}
    await app(scope, None, send)  # type: ignore[arg-type] # no request has a body
    start, body = sent
    found = {name.decode(): value.decode() for name, value in start["headers"]}
    return Answer(start["status"], found, body["body"])


@pytest.mark.parametrize("status", [each.value for each in HTTPStatus if each >= 200] + [499])
async def test_an_answer_to_a_write_has_a_position_if_it_depends_on_rows(pair: Pair, status: int) -> None:
    pair.primary.position = 0x16B3748
    answer = await ask(application(pair), "POST", status=status)
    assert answer.status == status
    assert answer.body == b"written"
    if status >= 500:
        assert answer.headers["read-after"] == BEYOND
        assert pair.primary.statements == 0
    else:
        assert answer.headers.get("read-after") == ("0/16B3748" if status in DEPENDS_ON_ROWS else None)


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_reads_go_to_the_replica(pair: Pair, method: str) -> None:
    answer = await ask(application(pair), method)
    assert answer.body == b"standby"
    assert "read-after" not in answer.headers


@pytest.mark.parametrize(("token", "position"), POSITIONS)
async def test_a_read_goes_to_a_replica_that_has_replayed_the_position_and_no_less(
    pair: Pair, token: str, position: int
) -> None:
    app = application(pair)
    pair.standby.position = position - 1
    assert (await ask(app, "GET", token)).body == b"primary"
    pair.standby.position = position
    assert (await ask(app, "GET", token)).body == b"standby"


@pytest.mark.parametrize("token", [BEYOND, BEYOND.lower()])
async def test_an_unknown_position_is_read_from_the_primary_at_once(pair: Pair, token: str) -> None:
    pair.standby.position = 2**63 - 1
    assert (await ask(application(pair), "GET", token)).body == b"primary"
    assert pair.standby.statements == 0


@pytest.mark.parametrize(
    "token", ["", "0", "0/", "/0", "0/123456789", "123456789/0", "x/y", "0/1, 0/2", "-1/1", "0x1/0x2", "∞/0"]
)
async def test_a_malformed_position_is_refused(pair: Pair, token: str) -> None:
    answer = await ask(application(pair), "GET", token)
    assert answer.status == 422
    assert json.loads(answer.body)["errors"][0]["loc"] == ["header", "read-after"]
    assert pair.standby.statements == pair.primary.statements == 0


async def test_two_positions_are_refused(pair: Pair) -> None:
    assert (await ask(application(pair), "GET", "1/0", "1/0")).status == 400


async def test_the_primary_answers_if_the_replica_restarts_during_a_read(pair: Pair) -> None:
    app = application(pair)
    pair.standby.position = 7
    await ask(app)  # so that a connection is open
    assert (await ask(app, "GET", "0/7")).body == b"standby"
    asyncio.get_running_loop().call_later(0.005, pair.standby.restart, 6)
    assert (await ask(app, "GET", "0/7")).body == b"primary"
    asyncio.get_running_loop().call_later(0.005, pair.standby.restart, 5)
    assert (await ask(app)).body == b"standby"  # of a client that wrote nothing


async def test_only_resources_on_both_databases_are_read_from_the_replica(pair: Pair) -> None:
    async def plain(request: Request) -> Response:
        return Response()

    def routes(database: Database) -> list[BaseRoute]:
        return [
            Route("/users", resource(database)),
            Route("/primary", resource(database, primary_only=True)),
            Route("/plain", plain),
            Mount("/mounted", routes=[Route("/users", resource(database))]),
        ]

    primary = [*routes(pair.primary_pool), Route("/other", resource(pair.primary_pool))]
    served = replicated(primary, routes(pair.replica), pair.replica)
    assert [route is old for route, old in zip(served, primary, strict=True)] == [False, True, True, True, True]
