"""When the issuer's keys are fetched, over simulated time, and what is taken from its host, which is a local server."""

import asyncio
import json
import logging
import time
import urllib.error
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from types import SimpleNamespace
from typing import Any, TypeVar

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519

from api.auth import tokens
from api.auth.tokens import SigningKeys
from api.errors import Problem
from tests.support.simulated import SimulatedLoop

T = TypeVar("T")
PRIVATE = ed25519.Ed25519PrivateKey.generate()


def key(kid: str) -> dict[str, Any]:
    made: dict[str, Any] = jwt.get_algorithm_by_name("EdDSA").to_jwk(PRIVATE.public_key(), as_dict=True)
    return {**made, "alg": "EdDSA", "kid": kid}


# When


class Simulation:
    """A host of keys that answers after `latency` seconds, and the times at which it was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.loop = SimulatedLoop()
        self.latency = 0.0
        self.kids = ["one"]
        self.is_down = False
        self.asked: list[float] = []
        self.keys = SigningKeys("https://issuer.example.com/jwks.json")
        monkeypatch.setattr(tokens, "monotonic", self.loop.time)
        monkeypatch.setattr(tokens, "in_daemon_thread", self._later)
        monkeypatch.setattr(tokens, "_fetch_keys", self._fetch)

    async def _later(self, function: Callable[[], T]) -> T:
        self.asked.append(self.loop.time())
        await asyncio.sleep(self.latency)
        return function()

    def _fetch(self, url: str) -> dict[str, list[jwt.PyJWK]]:
        assert url == "https://issuer.example.com/jwks.json"
        if self.is_down:
            raise OSError("the host is down")
        return {kid: [jwt.PyJWK(key(kid))] for kid in self.kids}

    async def find(self, kid: str) -> str:
        """Return `found`, `unknown`, or the status of the problem."""
        try:
            return "found" if await self.keys.find(kid) else "unknown"
        except Problem as problem:
            return str(problem.status)

    def run(self, work: Awaitable[T]) -> T:
        return self.loop.run_until_complete(work)


@pytest.fixture
def simulation(monkeypatch: pytest.MonkeyPatch) -> Iterator[Simulation]:
    simulation = Simulation(monkeypatch)
    yield simulation
    simulation.loop.close()


def test_the_keys_are_fetched_every_ten_minutes(simulation: Simulation) -> None:
    """Whether the host is there or not."""

    async def run() -> None:
        fresh = asyncio.create_task(simulation.keys.keep_fresh())
        await asyncio.sleep(500)
        simulation.is_down = True
        await asyncio.sleep(1400)
        fresh.cancel()

    simulation.run(run())
    assert simulation.asked == [0, 600, 1200, 1800]


def test_an_unknown_key_is_asked_for_once_in_ten_seconds(simulation: Simulation) -> None:
    async def run() -> None:
        assert await simulation.find("two") == "unknown"
        simulation.kids.append("two")
        await asyncio.sleep(10)
        assert await simulation.find("two") == "unknown"
        await asyncio.sleep(0.001)
        assert await simulation.find("two") == "found"
        assert await simulation.find("three") == "unknown"

    simulation.run(run())
    assert simulation.asked == [0, 10.001]


def test_a_fetch_in_progress_is_shared(simulation: Simulation) -> None:
    """The last of the callers comes when the first would not be asked for again: it waits for the same answer."""
    simulation.latency = 4.0

    async def run() -> None:
        first = asyncio.create_task(simulation.find("one"))
        await asyncio.sleep(3)
        assert await simulation.find("one") == "found"
        assert await first == "found"

    simulation.run(run())
    assert simulation.asked == [0]
    assert simulation.loop.time() == 4.0


def test_a_known_key_waits_for_no_fetch(simulation: Simulation) -> None:
    async def run() -> None:
        await simulation.find("one")
        simulation.latency = 4.0
        await asyncio.sleep(60)
        unknown = asyncio.create_task(simulation.find("two"))
        await asyncio.sleep(1)
        assert await simulation.find("one") == "found"
        assert not unknown.done()
        assert await unknown == "unknown"

    simulation.run(run())
    assert simulation.asked == [0, 60]


def test_a_fetch_is_given_up_after_ten_seconds(simulation: Simulation) -> None:
    simulation.latency = 9.999
    assert simulation.run(simulation.find("one")) == "found"
    simulation.loop.spend(3600)
    began = simulation.loop.time()
    simulation.latency = 3600
    assert simulation.run(simulation.find("two")) == "503"
    assert simulation.loop.time() - began == pytest.approx(10)


def test_while_the_host_is_down_the_known_keys_are_kept(
    simulation: Simulation, caplog: pytest.LogCaptureFixture
) -> None:
    async def run() -> None:
        simulation.kids = ["one", "two"]
        assert await simulation.find("two") == "found"
        simulation.is_down = True
        await asyncio.sleep(60)
        assert await simulation.find("three") == "503"
        assert await simulation.find("one") == "found"
        assert await simulation.find("three") == "503"
        simulation.is_down = False
        await asyncio.sleep(60)
        assert await simulation.find("three") == "unknown"

    with caplog.at_level(logging.WARNING):
        simulation.run(run())
    assert simulation.asked == [0, 60, 120]
    (record,) = caplog.records
    assert (record.name, record.getMessage()) == (
        "api.tokens",
        "JWT_JWKS_URL: the keys cannot be fetched, the 2 known keys are kept: OSError: the host is down",
    )


# What


@contextmanager
def hosting(answer: Callable[[BaseHTTPRequestHandler], object]) -> Iterator[str]:
    """Serve what `answer` sends, and yield the URL of the keys."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/jwks.json"
        finally:
            server.shutdown()
            thread.join()


def reply(handler: BaseHTTPRequestHandler, body: bytes, status: int = 200, **headers: str) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)


JWKS = json.dumps({"keys": [key("one")]}).encode()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(status: int) -> None:
    """It could leave https, or the host that was configured."""
    paths = []

    def answer(handler: BaseHTTPRequestHandler) -> None:
        paths.append(handler.path)
        if handler.path == "/jwks.json":
            reply(handler, b"", status, Location="/elsewhere.json")
        else:
            reply(handler, JWKS)

    with hosting(answer) as url:
        with pytest.raises(urllib.error.HTTPError) as refused:
            tokens._fetch_keys(url)
        with pytest.raises(urllib.error.HTTPError):
            tokens._fetch_keys(url)
    assert refused.value.code == status
    assert refused.value.closed  # it would hold the connection
    assert paths == ["/jwks.json"] * 2


def test_an_answer_of_256_kib_is_read_and_none_that_is_longer() -> None:
    behind = iter([b"", b" "])

    def answer(handler: BaseHTTPRequestHandler) -> None:
        reply(handler, JWKS.ljust(256 * 1024))
        time.sleep(0.05)  # What comes behind is read on its own.
        handler.wfile.write(next(behind))

    with hosting(answer) as url:
        assert set(tokens._fetch_keys(url)) == {"one"}
        with pytest.raises(ValueError, match="longer than 262144 bytes"):
            tokens._fetch_keys(url)


def test_an_answer_without_end_is_not_read_to_its_end() -> None:
    """Less than twice the bound is read; then the connection is closed."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        reply(handler, b"")
        while True:
            try:
                handler.wfile.write(b" " * 65_536)
            except OSError:
                return

    with hosting(answer) as url, pytest.raises(ValueError, match="longer than 262144 bytes"):
        tokens._fetch_keys(url)


def test_an_answer_without_a_key_for_us_is_an_error() -> None:
    """Otherwise it would replace the keys that are known."""
    others = [{**key("one"), "use": "enc"}, {**key("one"), "kid": ""}]
    answer = json.dumps({"keys": others}).encode()
    with hosting(lambda handler: reply(handler, answer)) as url, pytest.raises(ValueError, match="no key has a kid"):
        tokens._fetch_keys(url)


def test_a_host_that_sends_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the thread that waits for it would be the last to fetch."""
    assert tokens._FETCH_SECONDS == 5
    monkeypatch.setattr(tokens, "_FETCH_SECONDS", 0.02)
    ended = Event()
    with hosting(lambda _: ended.wait(60)) as url:
        with pytest.raises(TimeoutError):
            tokens._fetch_keys(url)
        ended.set()


def test_a_host_that_sends_ever_so_little_is_left_after_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock on which each byte takes a second: after ten the keys are still read, after eleven they are not."""
    ended = Event()

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        while not ended.wait(0.002):
            try:
                handler.wfile.write(b" ")
            except OSError:
                return

    times = iter(range(100))
    monkeypatch.setattr(tokens, "monotonic", lambda: float(next(times)))
    with hosting(answer) as url:
        with pytest.raises(TimeoutError, match="does not end"):
            tokens._fetch_keys(url)
        ended.set()
    assert next(times) == 12


def test_a_request_for_keys_says_what_it_is_and_what_it_takes() -> None:
    """Some hosts refuse urllib's own name."""
    seen = SimpleNamespace(headers={})

    def answer(handler: BaseHTTPRequestHandler) -> None:
        seen.headers = dict(handler.headers)
        reply(handler, JWKS)

    with hosting(answer) as url:
        tokens._fetch_keys(url)
    assert (seen.headers["User-Agent"], seen.headers["Accept"]) == ("users-api", "application/json")
