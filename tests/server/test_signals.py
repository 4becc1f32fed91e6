"""What a server does on each signal, in which order, and how long its end takes: over simulated time."""

import asyncio
import multiprocessing
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import uvicorn

from api.server.lifecycle import Server
from api.server.protocol import HTTPProtocol
from api.server.sharing import Listener, make_shares
from api.service.probes import DRAINING
from tests.support.simulated import SimulatedLoop

DRAIN, GRACE = 8.0, 20.0
TICK = 0.1
"""The time in which uvicorn notices a signal, and the time that it naps when it closes."""


class Busy:
    """A connection with a request in flight, which the end of the server leaves open."""

    def shutdown(self) -> None: ...


class Application:
    """Notes its lifespan, of which the end takes a while."""

    def __init__(self) -> None:
        self.closes_in = 0.0
        self.events: list[tuple[str, float]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        loop = asyncio.get_running_loop()
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
            await send({"type": "http.response.body"})
            return
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        self.events.append(("closes", loop.time()))
        await asyncio.sleep(self.closes_in)
        self.events.append(("closed", loop.time()))
        await send({"type": "lifespan.shutdown.complete"})


class Stage:
    """A server, what happens to it at which time, and what it did."""

    def __init__(self, loop: SimulatedLoop, parent: Connection | None = None, **arguments: Any) -> None:
        self.loop = loop
        self.application = Application()
        config = uvicorn.Config(self.application, lifespan="on", log_config=None)
        arguments = {"drain_seconds": DRAIN, "grace_seconds": GRACE, "parent": parent, **arguments}
        self.server = Server(config, **arguments)

    def at(self, seconds: float, do: Callable[..., object], *arguments: Any) -> None:
        self.loop.call_at(seconds, do, *arguments)

    def send(self, seconds: float, sig: signal.Signals) -> None:
        """Send this process a signal."""
        self.at(seconds, signal.raise_signal, sig)

    def handle(self, seconds: float, request_seconds: float) -> None:
        """Handle a request on a connection of its own from now on, for so long."""

        async def work() -> None:
            connection: Any = Busy()
            self.server.server_state.connections.add(connection)
            try:
                await asyncio.sleep(request_seconds)
                self.application.events.append(("answered", self.loop.time()))
            except asyncio.CancelledError:
                self.application.events.append(("cancelled", self.loop.time()))
            self.server.server_state.connections.discard(connection)

        def begin() -> None:
            task = self.loop.create_task(work())
            self.server.server_state.tasks.add(task)
            task.add_done_callback(self.server.server_state.tasks.discard)

        self.at(seconds, begin)

    def run(self) -> float:
        """Serve, and return the time at which it ends."""
        self.loop.run_until_complete(asyncio.wait_for(self.server.serve([]), timeout=300))
        return self.loop.time()

    @property
    def events(self) -> list[tuple[str, int]]:
        """What happened, each to a second: uvicorn looks ten times in one."""
        return [(name, round(at)) for name, at in self.application.events]


@pytest.fixture(autouse=True)
def _signals_are_as_before() -> Iterator[None]:
    handled = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(sig, lambda *_: None) for sig in handled]  # a signal that is not handled does no harm
    yield
    for sig, handler in zip(handled, before, strict=True):
        signal.signal(sig, handler)


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimulatedLoop]:
    loop = SimulatedLoop()
    loop.set_exception_handler(lambda loop, _: loop.stop())  # which fails the test
    monkeypatch.setattr("api.server.lifecycle.time", SimpleNamespace(monotonic=loop.time))
    yield loop
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()


@pytest.fixture
def pipe() -> Iterator[tuple[Connection, Connection]]:
    """The supervisor's end of a worker's pipe, and the worker's."""
    ours, its = multiprocessing.Pipe()
    yield ours, its
    ours.close()
    its.close()


def is_draining(server: Server) -> bool:
    return bool(server.lifespan.state.get(DRAINING))


# Without a supervisor


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_makes_a_server_drain_before_it_closes(
    loop: SimulatedLoop, caplog: pytest.LogCaptureFixture, sig: signal.Signals
) -> None:
    stage, seen = Stage(loop), []

    def look() -> None:
        closes = (b"connection", b"close") in stage.server.server_state.default_headers
        seen.append((is_draining(stage.server), closes))

    stage.send(10.05, sig)
    for at in (10.0, 10.2, 11.5, 10 + DRAIN - TICK):
        stage.at(at, look)
    with caplog.at_level("INFO", "api.lifecycle"):
        assert 10 + DRAIN <= stage.run() <= 10.05 + DRAIN + 3 * TICK
    assert seen == [(False, False), (True, True), (True, True), (True, True)]
    assert stage.server.config.encoded_headers.count((b"connection", b"close")) == 1
    assert caplog.text.count("draining: requests are served for 8 s more, and /ready is 503") == 1
    assert stage.events == [("closes", 18), ("closed", 18)]


def test_ctrl_c_skips_the_delay(loop: SimulatedLoop, caplog: pytest.LogCaptureFixture) -> None:
    stage = Stage(loop)
    stage.send(10.0, signal.SIGINT)
    with caplog.at_level("INFO", "api.lifecycle"):
        assert 10 <= stage.run() <= 10 + 3 * TICK
    assert is_draining(stage.server)
    assert "draining" not in caplog.text


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGHUP])
def test_ctrl_c_ends_a_delay_and_waits_for_requests(loop: SimulatedLoop, sig: signal.Signals) -> None:
    stage = Stage(loop)
    stage.handle(9.0, 6.0)
    stage.send(10.0, sig)
    stage.send(11.0, sig)  # changes nothing
    stage.send(12.0, signal.SIGINT)
    assert 15 <= stage.run() <= 15 + 3 * TICK
    assert stage.events == [("answered", 15), ("closes", 15), ("closed", 15)]


def test_a_second_ctrl_c_waits_for_nothing(loop: SimulatedLoop) -> None:
    stage = Stage(loop)
    stage.handle(9.0, 60.0)
    stage.send(10.0, signal.SIGINT)
    stage.send(12.0, signal.SIGINT)
    assert stage.run() == pytest.approx(12, abs=2 * TICK)
    assert stage.events == []


def test_requests_have_until_two_seconds_before_the_end_of_the_grace(loop: SimulatedLoop) -> None:
    stage = Stage(loop)
    stage.application.closes_in = 1.5
    stage.handle(9.0, 1.0 + GRACE - 2.5)
    stage.handle(9.0, 1.0 + GRACE - 1.5)
    stage.send(10.0, signal.SIGTERM)
    assert 10 + GRACE - 1 <= stage.run() <= 10 + GRACE
    names = [name for name, _ in stage.application.events]
    assert names == ["answered", "cancelled", "closes", "closed"]
    (_, at) = stage.application.events[1]
    assert 10 + GRACE - 2 <= at <= 10 + GRACE - 2 + 2 * TICK


@pytest.mark.parametrize(("grace", "lasts"), [(GRACE, GRACE), (1.0, DRAIN), (DRAIN, DRAIN)])
def test_the_grace_bounds_the_end_of_an_application_that_hangs(
    loop: SimulatedLoop, caplog: pytest.LogCaptureFixture, grace: float, lasts: float
) -> None:
    """The delay is never cut short: settings with a longer one than the grace are refused elsewhere."""
    stage = Stage(loop, grace_seconds=grace)
    stage.application.closes_in = 3600.0
    stage.handle(9.0, 3600.0)
    stage.send(10.0, signal.SIGTERM)
    assert 10 + lasts - TICK <= stage.run() <= 10 + lasts + 2 * TICK
    assert "GRACE_SECONDS is over: the connections to the database are cut off" in caplog.text


def test_an_application_that_closes_in_time_is_not_cut_off(
    loop: SimulatedLoop, caplog: pytest.LogCaptureFixture
) -> None:
    stage = Stage(loop)
    stage.send(10.0, signal.SIGTERM)
    stage.run()
    assert "GRACE_SECONDS" not in caplog.text


def test_a_short_grace_cancels_requests_at_once(loop: SimulatedLoop) -> None:
    stage = Stage(loop, drain_seconds=0.0, grace_seconds=1.5)
    stage.handle(9.0, 60.0)
    stage.send(10.0, signal.SIGTERM)
    assert stage.run() <= 10 + 4 * TICK
    assert stage.events == [("cancelled", 10), ("closes", 10), ("closed", 10)]


def test_a_server_in_another_thread_leaves_the_signals_alone(loop: SimulatedLoop) -> None:
    stage = Stage(loop)
    before = signal.getsignal(signal.SIGHUP)
    stage.at(1.0, setattr, stage.server, "should_exit", True)
    thread = threading.Thread(target=stage.run)
    thread.start()
    thread.join()
    assert stage.events == [("closes", 9), ("closed", 9)]
    assert signal.getsignal(signal.SIGHUP) is before


# With a supervisor


def test_a_worker_reports_that_it_serves_by_its_grace(loop: SimulatedLoop, pipe: tuple[Connection, Connection]) -> None:
    supervisor, parent = pipe
    stage = Stage(loop, parent, grace_seconds=12.5)
    stage.at(1.0, supervisor.send_bytes, bytes([signal.SIGINT]))
    stage.run()
    assert supervisor.poll()
    assert float(supervisor.recv_bytes()) == 12.5


def test_a_worker_leaves_ctrl_c_to_its_supervisor(loop: SimulatedLoop, pipe: tuple[Connection, Connection]) -> None:
    supervisor, parent = pipe
    stage = Stage(loop, parent)
    stage.send(1.0, signal.SIGINT)
    stage.send(2.0, signal.SIGHUP)
    stage.at(5.0, supervisor.send_bytes, bytes([signal.SIGINT]))
    assert 5 <= stage.run() <= 5 + 3 * TICK


@pytest.mark.parametrize("ends", [True, False])
def test_a_worker_drains_without_its_supervisor(
    loop: SimulatedLoop, pipe: tuple[Connection, Connection], caplog: pytest.LogCaptureFixture, ends: bool
) -> None:
    supervisor, parent = pipe
    stage = Stage(loop, parent)
    if not ends:
        stage.at(10.0, supervisor.send_bytes, bytes([signal.SIGTERM]))
    stage.at(10.0 if ends else 12.0, supervisor.close)
    assert 10 + DRAIN <= stage.run() <= 10 + DRAIN + 3 * TICK
    assert is_draining(stage.server)
    assert ("the supervisor is gone: this worker stops" in caplog.text) == ends


def test_a_worker_whose_supervisor_has_gone_before_it_serves_stops(
    loop: SimulatedLoop, pipe: tuple[Connection, Connection]
) -> None:
    supervisor, parent = pipe
    supervisor.close()
    assert DRAIN <= Stage(loop, parent).run() <= DRAIN + 3 * TICK


class Listening:
    """In place of a listening socket's server."""

    closed_at: float | None = None

    def close(self) -> None:
        self.closed_at = self.closed_at or asyncio.get_running_loop().time()

    async def wait_closed(self) -> None: ...


@pytest.mark.parametrize(
    ("signals", "has_successor"),
    [
        ([signal.SIGHUP], True),
        ([signal.SIGHUP, signal.SIGTERM], True),
        ([signal.SIGTERM], False),
        ([signal.SIGTERM, signal.SIGHUP], False),
    ],
)
def test_a_worker_with_a_successor_accepts_no_connection_and_stays_ready(
    loop: SimulatedLoop, pipe: tuple[Connection, Connection], signals: list[signal.Signals], has_successor: bool
) -> None:
    supervisor, parent = pipe
    stage, listening = Stage(loop, parent), Listening()
    stage.at(0.5, lambda: stage.server.servers.append(listening))  # type: ignore[arg-type]
    for number, sig in enumerate(signals):
        stage.at(10.0 + number, supervisor.send_bytes, bytes([sig]))
    assert 10 + DRAIN <= stage.run() <= 10 + DRAIN + 3 * TICK
    assert (b"connection", b"close") in stage.server.server_state.default_headers
    assert is_draining(stage.server) == (not has_successor)
    assert listening.closed_at == pytest.approx(10 if has_successor else 10 + DRAIN, abs=2 * TICK)


# Listening


@pytest.mark.parametrize("sig", [signal.SIGHUP, signal.SIGTERM])
def test_a_worker_publishes_its_connections_until_it_has_a_successor(
    loop: SimulatedLoop, pipe: tuple[Connection, Connection], sig: signal.Signals
) -> None:
    supervisor, parent = pipe
    first, second = make_shares(2)
    assert first is not None
    assert second is not None
    stage, ahead = Stage(loop, parent, share=first), []

    def look() -> None:
        ahead.append([number for number in (3, 4, 5) if second.is_ahead(number)])

    stage.handle(2.0, 60.0)
    for at in (1.0, 3.0, 5.0):
        stage.at(at, look)
    stage.handle(4.0, 60.0)
    stage.at(3.5, supervisor.send_bytes, bytes([sig]))
    stage.at(6.0, supervisor.send_bytes, bytes([signal.SIGINT]))
    stage.at(7.0, supervisor.send_bytes, bytes([signal.SIGINT]))
    stage.run()
    assert ahead == [[4, 5], [5], [5] if sig == signal.SIGHUP else []]


def free_socket() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


@pytest.mark.parametrize("is_shared", [True, False])
@pytest.mark.parametrize("is_bound", [True, False])
async def test_a_server_accepts_connections_with_and_without_a_share(is_shared: bool, is_bound: bool) -> None:
    share = make_shares(1)[0] if is_shared else None
    config = uvicorn.Config(Application(), port=0, http=HTTPProtocol, lifespan="on", log_config=None)
    server = Server(config, drain_seconds=0, grace_seconds=1, share=share)
    with free_socket() as bound:
        task = asyncio.create_task(server.serve([bound] if is_bound else None))
        while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.001)
        (listening,) = server.servers
        assert isinstance(listening, Listener) == (is_shared and is_bound)
        await asyncio.sleep(0)
        port = (bound if is_bound else listening.sockets[0]).getsockname()[1]
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            assert (await client.get("/")).status_code == 200
            assert len(server.server_state.connections) == 1
        server.handle_exit(signal.SIGINT, None)
        server.handle_exit(signal.SIGINT, None)
        await task
