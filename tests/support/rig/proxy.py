"""The fault proxy: what stands between an application and the compute, as Neon's own proxy does.

It runs in a thread with an event loop of its own. Its methods may be called from any other thread, and return when
what they ask for has happened.
"""

import asyncio
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import uvloop

from tests.support.rig.injections import SHUTDOWN, Action, Cut, Farewell, Injection, Point, Route
from tests.support.rig.link import Link

T = TypeVar("T")

WAKE_SECONDS = 0.3
"""How long a sleeping compute takes to wake, where a test does not say."""


@dataclass
class Counts:
    """Counts of the traffic through the proxy since the last reset."""

    connections: int = 0  # TCP connections accepted
    tls_failures: int = 0  # handshakes that one side gave up
    cancels: int = 0  # cancel requests, each a connection of its own
    statements: int = 0  # simple queries and Executes
    round_trips: int = 0  # answers that a connected client waits for: Flushes, Syncs and simple queries
    wakes: int = 0
    dropped_parameters: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)  # injections that have struck, by name


class Proxy:
    """Listen on a port for each route and forward to a Unix socket. Settings may be assigned at any time."""

    def __init__(self, targets: dict[Route, Path], tls: ssl.SSLContext | None) -> None:
        self.targets = targets
        self.ports: dict[Route, int] = {}
        self.links: dict[Link, asyncio.Task[None]] = {}  # those that are open and not stalled
        self._default_tls = tls
        self.distance = 0.0  # seconds, there and back: the latency after a reset
        self._listening: list[asyncio.Task[None]] = []
        self._errors: list[BaseException] = []
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault proxy", daemon=True)
        self._restore()

    def _restore(self) -> None:
        self.counts = Counts()
        self.tls = self._default_tls  # None: clear text, as a server without TLS
        self.latency = self.distance  # seconds, there and back
        self.max_client_conn: int | None = None  # connections of both routes together; more are refused
        self.refusal: Farewell | None = None  # what every new connection gets instead of a server
        self.wake_seconds = WAKE_SECONDS
        self.asleep = False
        self._injections: list[Injection] = []
        self._waking: asyncio.Task[None] | None = None
        self._released = asyncio.Event()

    def start(self) -> None:
        """Listen on the loopback address, on free ports."""
        self._thread.start()
        self._run(self._listen())

    def stop(self) -> None:
        """End every connection and stop listening."""
        self.reset()

        async def stop_listening() -> None:
            for task in self._listening:
                task.cancel()
            await asyncio.wait(self._listening)

        self._run(stop_listening())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def reset(self) -> None:
        """Forget every injection, setting and count, wake the compute, and end the remaining connections.

        Raises the proxy's own error, if it had one.
        """

        async def reset() -> None:
            self._released.set()
            await self._end_all(Cut.RESET)
            self._restore()

        self._run(reset())
        if self._errors:
            raise self._errors.pop()

    def inject(self, injection: Injection, times: int = 1) -> None:
        """Let `injection` strike the next `times` connections that reach its point, each once."""
        self._call(lambda: self._injections.extend([injection] * times))

    def forget(self) -> None:
        """Drop the pending injections; those that have struck go on."""
        self._call(self._injections.clear)

    @property
    def pending(self) -> int:
        """The number of injections that have not struck yet."""
        return len(self._injections)

    def suspend(self, action: Action = SHUTDOWN) -> None:
        """Suspend the compute: end every connection by `action`. The next one wakes it in `wake_seconds`.

        PostgreSQL itself goes on: a statement in flight may still commit, as on Neon.
        """

        async def suspend() -> None:
            self.asleep = True
            self.counts.faults["suspend"] += 1
            await self._end_all(action)

        self._run(suspend())

    def cut(self, action: Action) -> None:
        """End every connection by `action`, even in the middle of a statement; the compute stays awake."""
        self._run(self._end_all(action))

    def take(self, route: Route, points: tuple[Point, ...]) -> Injection | None:
        """Return the injection that strikes now, or None. Called by a Link, in the proxy's thread."""
        for injection in self._injections:
            if injection.point in points and injection.via in (None, route):
                self._injections.remove(injection)
                self.counts.faults[str(injection)] += 1
                return injection
        return None

    async def awake(self) -> None:
        """Return once the compute is awake; the first Link to call wakes it, and the others wait with it."""
        if self.asleep:
            if self._waking is None:
                self._waking = asyncio.create_task(self._wake())
            await asyncio.shield(self._waking)

    async def released(self) -> None:
        """Return when the proxy is reset, which ends what is stalled."""
        await self._released.wait()

    async def _wake(self) -> None:
        self.counts.wakes += 1
        await asyncio.sleep(self.wake_seconds)
        self.asleep, self._waking = False, None

    async def _listen(self) -> None:
        for route in self.targets:
            listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
            listener.setblocking(False)
            self.ports[route] = listener.getsockname()[1]
            self._listening.append(self._loop.create_task(self._accept(route, listener)))

    async def _accept(self, route: Route, listener: socket.socket) -> None:
        with listener:
            while True:
                client, _ = await self._loop.sock_accept(listener)
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.counts.connections += 1
                link = Link(self, route, client)
                self.links[link] = task = self._loop.create_task(link.run())
                task.add_done_callback(partial(self._done, link))

    def _done(self, link: Link, task: asyncio.Task[None]) -> None:
        self.links.pop(link, None)
        if not task.cancelled() and (error := task.exception()):
            self._errors.append(error)

    async def _end_all(self, action: Action) -> None:
        ending = list(self.links.values())
        for link in self.links:
            link.end(action)
        if ending and action not in (Cut.STALL, Cut.LOSS):
            await asyncio.wait(ending)

    def _call(self, function: Callable[[], T]) -> T:
        async def call() -> T:
            return function()

        return self._run(call())

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=30)
