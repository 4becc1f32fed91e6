"""An open-loop load: requests are sent on schedule, whether or not earlier ones were answered.

A closed loop sends a request only after the last answer. It never offers more than a service can do, and a stall
delays the very requests that would show it. Here all requests that are due are sent every TICK_SECONDS, and latency
counts from that moment, also where this generator itself is late.
"""

import asyncio
import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from statistics import quantiles
from typing import cast

TICK_SECONDS = 0.001
"""The resolution of uvloop's timers."""
CLIENT_LIMIT = 4000
"""Maximum connections; a request without a free one is counted as unsent."""


@dataclass(frozen=True)
class Phase:
    """A period with one rate."""

    name: str
    requests_per_second: float
    seconds: float


@dataclass
class Outcome:
    """The outcome of a request. Status 0: no answer."""

    due: float  # seconds since the start of the load
    status: int
    seconds: float  # from due to answered
    has_retry_after: bool


@dataclass
class Trace:
    """Every request of a load, in the order of the answers."""

    outcomes: list[Outcome] = field(default_factory=list)
    unsent: int = 0


@dataclass(frozen=True)
class Summary:
    """The results of one phase."""

    name: str
    offered: float  # requests a second
    goodput: float  # answers 2xx a second
    refused: int  # answers 503
    refused_with_retry_after: int
    failed: int  # any other answer outside 2xx, and none at all
    p50_ms: float  # of the answers 2xx
    p99_ms: float
    p999_ms: float

    @property
    def has_clean_refusals(self) -> bool:
        """True if every failure is a 503 with Retry-After."""
        return not self.failed and self.refused == self.refused_with_retry_after


def summarise_phase(phase: Phase, outcomes: Sequence[Outcome]) -> Summary:
    """Summarise the requests that were due in a phase."""
    good = [outcome.seconds * 1000 for outcome in outcomes if 200 <= outcome.status < 300]
    refused = [outcome for outcome in outcomes if outcome.status == 503]
    permille = quantiles(good, n=1000) if len(good) > 1 else [math.nan] * 999
    return Summary(
        phase.name,
        phase.requests_per_second,
        len(good) / phase.seconds,
        len(refused),
        sum(outcome.has_retry_after for outcome in refused),
        len(outcomes) - len(good) - len(refused),
        permille[499],
        permille[989],
        permille[998],
    )


def split(trace: Trace, phases: Sequence[Phase]) -> list[list[Outcome]]:
    """Return the requests grouped by the phase in which they were due."""
    found: list[list[Outcome]] = []
    begins = 0.0
    for phase in phases:
        ends = begins + phase.seconds
        found.append([outcome for outcome in trace.outcomes if begins <= outcome.due < ends])
        begins = ends
    return found


class _Client(asyncio.Protocol):
    """One keep-alive connection with at most one request in flight."""

    def __init__(self, load: "_Load") -> None:
        self._load = load
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._due: float | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def send(self, due: float, request: bytes) -> None:
        """Send a request that was due at `due`."""
        assert self._transport is not None
        self._due = due
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, end, body = self._buffer.partition(b"\r\n\r\n")
        if not end:
            return
        lines = head.lower().split(b"\r\n")
        headers = dict(line.split(b":", 1) for line in lines[1:])
        if len(body) < int(headers.get(b"content-length", b"0")):
            return
        self._buffer = b""
        self._settle(int(lines[0].split()[1]), b"retry-after" in headers)
        if headers.get(b"connection", b"").strip() == b"close":
            self.stop()
        else:
            self._load.idle.append(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._load.forget(self)
        self._settle(0, False)

    def stop(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.abort()

    def _settle(self, status: int, has_retry_after: bool) -> None:
        if self._due is not None:
            self._load.settle(self._due, status, has_retry_after)
            self._due = None


class _Load:
    def __init__(self, port: int) -> None:
        self.trace = Trace()
        self.idle: list[_Client] = []
        self._clients: set[_Client] = set()
        self._connecting = 0
        self._port = port
        self._loop = asyncio.get_running_loop()
        self._start = time.perf_counter()  # uvloop's own time counts whole milliseconds
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def now(self) -> float:
        return time.perf_counter() - self._start

    @property
    def is_busy(self) -> bool:
        return bool(self._tasks) or len(self.idle) < len(self._clients)

    def offer(self, due: float, request: bytes) -> None:
        if self.idle:
            self.idle.pop().send(due, request)
        elif len(self._clients) + self._connecting < CLIENT_LIMIT:
            self._connecting += 1
            task = self._loop.create_task(self._connect(due, request))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            self.trace.unsent += 1

    async def _connect(self, due: float, request: bytes) -> None:
        try:
            _, client = await self._loop.create_connection(lambda: _Client(self), "127.0.0.1", self._port)
        except OSError:
            self.settle(due, 0, False)
            return
        finally:
            self._connecting -= 1
        self._clients.add(client)
        client.send(due, request)

    def settle(self, due: float, status: int, has_retry_after: bool) -> None:
        self.trace.outcomes.append(Outcome(due, status, self.now - due, has_retry_after))

    def forget(self, client: _Client) -> None:
        self._clients.discard(client)
        if client in self.idle:
            self.idle.remove(client)

    def stop(self) -> None:
        for client in list(self._clients):
            client.stop()


def http_request(method: str, path: str, body: str = "") -> bytes:
    """Return the bytes of a request; the body is JSON."""
    body_headers = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n" if body else ""
    return f"{method} /api/v1/users{path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{body_headers}\r\n{body}".encode()


def gets(rows: int) -> Iterator[bytes]:
    """Return GETs of random users without end."""
    return cycle([http_request("GET", f"/{random.randint(1, rows)}") for _ in range(10_000)])


async def run_phases(
    port: int, phases: Sequence[Phase], requests: Iterator[bytes], timeout_seconds: float = 10.0
) -> Trace:
    """Offer requests at the rates of the phases, one after the other; return their outcomes.

    Waits up to `timeout_seconds` for the last answers; requests still open then count as unanswered.
    """
    load, begins = _Load(port), 0.0
    for phase in phases:
        offered, ends = 0, begins + phase.seconds
        while (now := load.now) < ends:
            expected = int((now - begins) * phase.requests_per_second)
            for number in range(offered, expected):
                # A late tick, of a busy generator, is a part of what a request waits. One in time adds nothing.
                scheduled = begins + (number + 1) / phase.requests_per_second
                load.offer(min(now, scheduled + TICK_SECONDS), next(requests))
            offered = max(offered, expected)
            await asyncio.sleep(TICK_SECONDS)
        begins = ends
    deadline = load.now + timeout_seconds
    while load.is_busy and load.now < deadline:  # noqa: ASYNC110 - a poll is simple, and nothing waits for it
        await asyncio.sleep(0.05)
    load.stop()
    await asyncio.sleep(0.05)
    return load.trace
