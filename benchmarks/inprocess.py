"""`users-api serve` with requests fed from inside the process, for `benchmarks.instructions`, which counts its work.

Protocol, application and pool are those of `users-api serve`. Only the clients' sockets are replaced: bytes go straight
to the protocol. It announces the end of each stage with a line on standard output, and waits for a line of input: WARM,
START, then the name of each cell. PLANT=N plants a loop of N iterations in front of the application.
"""

import asyncio
import gc
import os
import sys
from collections.abc import Iterator
from itertools import count, repeat
from typing import Any, NamedTuple

from starlette.types import ASGIApp, Receive, Scope, Send

import api.server.run
import api.server.workers
from api.cli import main as users_api
from api.server.lifecycle import Server
from api.server.protocol import HTTPProtocol

ANNOUNCED = "stage: "
WARM, START = "warm", "start"
CONNECTIONS = 64


class Cell(NamedTuple):
    """One kind of request, alone or batched: `at_once` requests in each of `rounds`."""

    workload: str
    at_once: int
    rounds: int

    @property
    def name(self) -> str:
        """The name in the committed figures, such as `get alone`."""
        return f"{self.workload} {'alone' if self.at_once == 1 else 'batched'}"

    @property
    def requests(self) -> int:
        """The number of measured requests."""
        return self.at_once * self.rounds


CELLS = [
    Cell(workload, at_once, rounds)
    for at_once, rounds in ((1, 100), (CONNECTIONS, 6))
    for workload in ("get", "list", "create", "patch")
]

_HEAD = "{} HTTP/1.1\r\nHost: localhost:8000\r\nUser-Agent: benchmarks\r\nAccept: */*\r\n"
_WARM_UP_ROUNDS = 4  # Statements are prepared on each connection, and Python specialises its bytecode.
_TIMERS = {"SLOT_SECONDS", "SUSPECT_SECONDS", "_SAMPLE_SECONDS", "_TICK_SECONDS", "_ERASE_TICK_SECONDS"}


def _render(line: str, body: str = "") -> bytes:
    head = _HEAD.format(line)
    if body:
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return f"{head}\r\n{body}".encode()


def _request(workload: str, n: int) -> bytes:
    """Return the request number `n`; all of one workload are equally long."""
    user = 100 + n % 800
    if workload == "get":
        return _render(f"GET /api/v1/users/{user}")
    if workload == "list":
        return _render(f"GET /api/v1/users?limit=20&after={user}")
    if workload == "create":
        return _render("POST /api/v1/users", f'{{"email":"new{n + 100_000}@example.com","name":"Ada Lovelace"}}')
    return _render(f"PATCH /api/v1/users/{user}", f'{{"name":"Ada {n + 100_000}"}}')


class _Transport(asyncio.Transport):
    """The server's end of a connection: each write is one whole response."""

    def __init__(self, clients: "_Clients") -> None:
        super().__init__({"sockname": ("127.0.0.1", 8000), "peername": ("127.0.0.1", 9)})
        self._clients = clients

    def write(self, data: Any) -> None:
        self._clients.receive(data)

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return False

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def close(self) -> None:
        pass


class _Clients:
    """Connections that each send one request at a time."""

    def __init__(self, server: Server) -> None:
        self._awaited = 0
        self._all_came: asyncio.Future[None]
        self._protocols: list[Any] = []
        make: Any = server.config.http_protocol_class
        for _ in range(CONNECTIONS):
            state = server.lifespan.state
            protocol = make(config=server.config, server_state=server.server_state, app_state=state)
            protocol.connection_made(_Transport(self))
            self._protocols.append(protocol)

    def receive(self, response: bytes) -> None:
        if response[9:11] != b"20":
            raise RuntimeError(response.decode())
        self._awaited -= 1
        if not self._awaited:
            self._all_came.set_result(None)

    def leave(self) -> None:
        """Close the connections."""
        for protocol in self._protocols:
            protocol.connection_lost(None)

    async def send(self, requests: list[bytes]) -> None:
        """Send one request on each of as many connections, at once, and wait for the responses."""
        self._all_came = asyncio.get_running_loop().create_future()
        self._awaited = len(requests)
        for protocol, request in zip(self._protocols, requests, strict=False):
            protocol.data_received(request)
        await self._all_came


class _Driven(Server):
    """The server; instead of waiting for a signal it serves the cells and stops."""

    async def main_loop(self) -> None:
        """Serve the cells."""
        gc.disable()  # One object more or less would shift a collection into another cell.
        await self.on_tick(0)  # makes the headers of every response
        clients = _Clients(self)
        numbers = {cell.workload: count() for cell in CELLS}
        rounds = [(cell, _rounds(cell, numbers[cell.workload])) for cell in CELLS]
        for stage in (WARM, START):
            for _, requests in rounds:
                for _ in range(_WARM_UP_ROUNDS):
                    await clients.send(next(requests))
            # The rounds before START let valgrind begin: it instruments nothing until its time slice ends.
            gc.collect()
            _announce(stage)
        for cell, requests in rounds:
            measured = [next(requests) for _ in range(cell.rounds)]
            for each in measured:
                await clients.send(each)
            _announce(cell.name)
        clients.leave()


def _rounds(cell: Cell, numbers: Iterator[int]) -> Iterator[list[bytes]]:
    while True:
        yield [_request(cell.workload, next(numbers)) for _ in range(cell.at_once)]


def _announce(stage: str) -> None:
    """Print the end of a stage and wait for the answer; the event loop stands still meanwhile."""
    os.write(1, f"{ANNOUNCED}{stage}\n".encode())
    if not os.read(0, 64):
        sys.exit("the counting process has ended")


def _stop_timers() -> None:
    """Let no work depend on the time that passes, which is 50 times as long under valgrind."""
    HTTPProtocol.period = 3600.0
    found = set()
    for module in [each for name, each in sys.modules.items() if name.startswith("api.")]:
        for name in _TIMERS & vars(module).keys():
            setattr(module, name, 3600.0)
            found.add(name)
    if found != _TIMERS:
        raise LookupError(f"no module of api has {_TIMERS - found}: benchmarks/inprocess.py names its timers")


def _planted(app: ASGIApp, iterations: int) -> ASGIApp:
    async def looping(scope: Scope, receive: Receive, send: Send) -> None:
        for _ in repeat(None, iterations):  # range would make a new int each time
            pass
        await app(scope, receive, send)

    return looping


def main() -> None:
    """Serve the cells."""
    _stop_timers()
    make_app = api.server.workers.app_from_environment
    if plant := int(os.environ.get("PLANT", "0")):
        api.server.workers.app_from_environment = lambda: _planted(make_app(), plant)
    api.server.run.Server = _Driven  # type: ignore[attr-defined]
    users_api(["serve", "--port", "0"])


if __name__ == "__main__":
    main()
