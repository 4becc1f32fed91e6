"""When /ready queries the database, and how long it waits for it: over simulated time."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from functools import partial
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from api.app import create_app, describe
from api.auth.keys import make_api_key
from api.context import RequestContext, serving
from api.http.resource import Routes
from api.service.probes import Probes
from api.users.statements import ESTIMATE_USERS
from tests.support.replicas import Pair, simulated_pair
from tests.support.serving import settings_for
from tests.support.simulated import SimulatedLoop

INTERVAL = 16.0
NOWHERE = "postgresql://ada:sesame@127.0.0.1:1/x"


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {"loop_factory": SimulatedLoop}


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    async with simulated_pair() as pair:
        pair.primary.latency = 0.0
        yield pair


class Probe:
    """Asks an application for one of the probes."""

    def __init__(self, pair: Pair, interval: float | None) -> None:
        self._app: Any = Routes(
            Probes(pair.primary_pool, partial(pair.primary_pool.fetch, ESTIMATE_USERS), interval).routes()
        )

    async def ask(self, path: str = "/ready", **state: object) -> tuple[int, bytes]:
        return await ask(self._app, path, **state)

    async def __call__(self, path: str = "/ready", **state: object) -> int:
        return (await self.ask(path, **state))[0]


async def ask(app: Any, path: str, **state: object) -> tuple[int, bytes]:
    """Return the status and the body of the answer."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": path, "query_string": b"", "headers": [], "state": state}
    await app(scope, None, send)
    start, body = sent
    return start["status"], body["body"]


async def test_without_an_interval_only_a_failure_makes_it_query(pair: Pair) -> None:
    probe = Probe(pair, None)
    assert await probe() == await probe("/health") == 200
    assert pair.primary.statements == 0
    pair.primary_pool.answers = False
    assert await probe() == 200
    assert await probe() == 200
    assert pair.primary.statements == 1
    pair.primary.state = "failing"
    pair.primary_pool.answers = False
    assert await probe() == await probe() == 503
    assert await probe("/health") == 200
    assert pair.primary.statements == 3


async def test_with_an_interval_it_queries_that_often(pair: Pair) -> None:
    probe = Probe(pair, INTERVAL)
    for number in (1, 2, 3):
        assert await probe() == 200
        assert pair.primary.statements == number
        await asyncio.sleep(INTERVAL - 1.0)
        assert await probe() == 200
        assert pair.primary.statements == number
        await asyncio.sleep(1.0)


async def test_a_query_that_failed_is_repeated_before_the_interval_is_over(pair: Pair) -> None:
    probe = Probe(pair, INTERVAL)
    pair.primary.state = "failing"
    assert await probe() == 503
    pair.primary.state = "up"
    assert await probe() == await probe() == 200
    assert pair.primary.statements == 2


async def test_it_answers_within_the_second_that_kubernetes_waits(pair: Pair) -> None:
    loop, probe = asyncio.get_running_loop(), Probe(pair, INTERVAL)
    pair.primary.state = "silent"
    for _ in range(5):
        begun = loop.time()
        assert await probe() == 503
        assert loop.time() - begun <= 0.9


async def test_a_query_that_takes_long_is_the_only_one_and_counts_when_it_succeeds(pair: Pair) -> None:
    probe = Probe(pair, INTERVAL)
    pair.primary.latency = 1.0  # to connect, and to answer
    assert await probe() == await probe() == 503
    assert await probe() == await probe() == 200
    assert pair.primary.statements == 1


async def test_the_query_belongs_to_no_request(pair: Pair) -> None:
    async def send(message: object) -> None: ...

    request = RequestContext(b"1", send)
    serving.set([request])
    pair.primary.latency = 0.1
    assert await Probe(pair, INTERVAL)() == 200
    assert request.queue == request.database == 0.0


async def test_a_server_that_drains_is_up_and_not_ready(pair: Pair) -> None:
    probe = Probe(pair, None)
    assert await probe(draining=True) == 503
    assert await probe("/health", draining=True) == 200


async def test_probes_need_no_credentials() -> None:
    _, entry = make_api_key("ada", read_only=True)
    app = create_app(settings_for(NOWHERE, api_keys=entry))
    for path, status in (("/ready", 200), ("/health", 200), ("/api/v1/users", 401)):
        assert (await ask(app, path))[0] == status


async def test_the_document_has_the_answers_of_the_probes_and_no_others(pair: Pair) -> None:
    probe = Probe(pair, None)
    answers = {"/health": [await probe.ask("/health")], "/ready": [await probe.ask(), await probe.ask(draining=True)]}
    pair.primary.state, pair.primary_pool.answers = "failing", False
    answers["/ready"].append(await probe.ask())
    document = describe(settings_for(NOWHERE))
    for path, found in answers.items():
        described = document["paths"][path]["get"]["responses"]
        assert {str(status) for status, _ in found} | {"500"} == set(described)
        for status in (200, 503):
            bodies = [json.loads(body) for answered, body in found if answered == status]
            assert bodies == [] or kinds(bodies) == kinds(examples(described[str(status)]))
        schema = described["200"]["content"]["application/json"]["schema"]
        (body,) = (json.loads(body) for status, body in found if status == 200)
        for other, is_valid in ((body, True), ({}, False), ({"status": "?"}, False), ({**body, "more": 1}, False)):
            assert Draft202012Validator(schema).is_valid(other) == is_valid


def examples(described: dict[str, Any]) -> list[dict[str, Any]]:
    (content,) = described["content"].values()
    return [content["example"]] if "example" in content else [each["value"] for each in content["examples"].values()]


def kinds(bodies: Iterable[dict[str, Any]]) -> set[str]:
    """Return the types of problems, or what else tells one body from another."""
    return {body.get("type", str(body)) for body in bodies}
