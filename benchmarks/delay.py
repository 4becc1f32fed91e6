"""A delay proxy in front of PostgreSQL, in a process of its own.

    python -m benchmarks.delay --socket /path/.s.PGSQL.5432 --round-trip 10

Each direction adds half of the round trip. Chunks get a due time when they arrive and are sent in order when it has
come, however many are in flight. As in a real network, distance costs time and not throughput.

The proxy uses the standard loop over select(), whose timers count microseconds. uvloop's timers and those of epoll
count whole milliseconds, longer than the delay of half a millisecond. It serves some hundred connections at most.
"""

import asyncio
import selectors
from collections import deque
from pathlib import Path
from typing import cast

import click


class Direction(asyncio.Protocol):
    """One direction of a connection: its `peer` sends the received data `seconds` later."""

    def __init__(self, seconds: float) -> None:
        self.peer: Direction
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._waiting: deque[tuple[float, bytes | None]] = deque()  # due time, data; None closes

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Hold the data until it is due."""
        self._hold(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Close the other side after all data that was sent before."""
        self._hold(None)

    def _hold(self, data: bytes | None) -> None:
        due = self._loop.time() + self._seconds
        self._waiting.append((due, data))
        if len(self._waiting) == 1:
            self._loop.call_at(due, self._release)

    def _release(self) -> None:
        if not hasattr(self, "peer"):
            return  # older versions of asyncio read although they were paused; `_connect` releases what came
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
        """Close after pending writes."""
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
            self._transport.pause_reading()  # until the connection to forward to is open
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
            if self._waiting and self._waiting[0][0] <= loop.time():
                self._release()

        def connection_lost(self, exc: Exception | None) -> None:
            if hasattr(self, "peer"):
                super().connection_lost(exc)

    return await loop.create_server(lambda: FromClient(round_trip / 2), "127.0.0.1", port)


def new_loop() -> asyncio.AbstractEventLoop:
    """Return an event loop whose timers are exact to some ten microseconds."""
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


@click.command()
@click.option("--socket", required=True, type=click.Path(path_type=Path), help="The Unix socket to forward to.")
@click.option("--round-trip", required=True, type=click.FloatRange(0, 10_000), help="Round trip in milliseconds.")
@click.option("--port", default=0, show_default=True, help="Port to listen on, which is printed; 0 picks a free one.")
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
