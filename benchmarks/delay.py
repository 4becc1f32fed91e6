"""Puts PostgreSQL further away: a proxy that delays what goes through it, in a process of its own.

    python -m benchmarks.delay --socket /path/.s.PGSQL.5432 --round-trip 10

Each direction waits half of the round trip. Chunks are stamped when they arrive and leave in order when their time has
come, however many are on their way: distance costs time, not throughput, as a real network does.

It runs on the standard loop over select(): uvloop's timers and those of epoll count whole milliseconds, which is all
of half a millisecond's way; select() counts microseconds. It serves some hundred connections at most.
"""

import asyncio
import selectors
from collections import deque
from pathlib import Path
from typing import cast

import click


class Direction(asyncio.Protocol):
    """One way of a connection: what it receives, its `peer` sends `seconds` later."""

    def __init__(self, seconds: float) -> None:
        self.peer: Direction
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._waiting: deque[tuple[float, bytes | None]] = deque()  # due time, data; None closes

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way out."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Stamp what came."""
        self._hold(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Close the other side, after everything that was sent before."""
        self._hold(None)

    def _hold(self, data: bytes | None) -> None:
        due = self._loop.time() + self._seconds
        self._waiting.append((due, data))
        if len(self._waiting) == 1:
            self._loop.call_at(due, self._release)

    def _release(self) -> None:
        now, due = self._loop.time(), list[bytes]()
        while self._waiting and self._waiting[0][0] <= now:
            data = self._waiting.popleft()[1]
            if data is None:
                self.peer.send(b"".join(due))
                self.peer.close()
                return
            due.append(data)
        if due:
            self.peer.send(b"".join(due))
        if self._waiting:
            self._loop.call_at(self._waiting[0][0], self._release)

    def send(self, data: bytes) -> None:
        """Send at once."""
        if data and self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def close(self) -> None:
        """Close after what is still to be written."""
        if self._transport is not None:
            self._transport.close()


async def start_proxy(socket: Path, round_trip: float, port: int = 0) -> asyncio.Server:
    """Listen on the loopback address and forward each connection to a Unix socket, `round_trip` seconds away."""
    loop = asyncio.get_running_loop()
    connecting: set[asyncio.Task[None]] = set()

    class FromClient(Direction):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            assert self._transport is not None
            self._transport.pause_reading()  # until there is somebody to forward to
            task = loop.create_task(self._connect())
            connecting.add(task)
            task.add_done_callback(connecting.discard)

        async def _connect(self) -> None:
            assert self._transport is not None
            try:
                _, self.peer = await loop.create_unix_connection(lambda: Direction(round_trip / 2), str(socket))
            except OSError:
                self._transport.abort()
                return
            self.peer.peer = self
            self._transport.resume_reading()

        def connection_lost(self, exc: Exception | None) -> None:
            if hasattr(self, "peer"):
                super().connection_lost(exc)

    return await loop.create_server(lambda: FromClient(round_trip / 2), "127.0.0.1", port)


def new_loop() -> asyncio.AbstractEventLoop:
    """Return an event loop whose timers are exact to some ten microseconds."""
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


@click.command()
@click.option("--socket", required=True, type=click.Path(path_type=Path), help="The Unix socket to forward to.")
@click.option("--round-trip", required=True, type=click.FloatRange(0, 10_000), help="Milliseconds, there and back.")
@click.option("--port", default=0, show_default=True, help="Port to listen on; 0 picks one, which is printed.")
def main(socket: Path, round_trip: float, port: int) -> None:
    """Forward 127.0.0.1 to a Unix socket, and delay each direction by half of the round trip."""

    async def serve() -> None:
        server = await start_proxy(socket, round_trip / 1000, port)
        click.echo(str(server.sockets[0].getsockname()[1]))
        await server.serve_forever()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        try:
            runner.run(serve())
        except KeyboardInterrupt:
            return


if __name__ == "__main__":
    main()
