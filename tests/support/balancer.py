"""A minimal TCP load balancer: connections go round-robin to the servers whose /ready answers 200.

It speaks HTTP only in its probes. Where a server refuses a connection, the next one is tried; an established connection
that breaks is the client's to handle.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

_PROBE_EVERY_SECONDS = 0.05


class Balancer:
    """Balance between servers on ports of the loopback address."""

    def __init__(self, ports: Sequence[int]) -> None:
        self._ports = list(ports)
        self.ready = {port: asyncio.Event() for port in ports}
        self.unready = Counter[int]()  # by port: how many probes were answered with anything but 200
        self.port = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Balancer"]:
        """Listen on `port`, and probe the servers."""
        server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        probes = [asyncio.create_task(self._probe(port)) for port in self._ports]
        try:
            yield self
        finally:
            for probe in probes:
                probe.cancel()
            server.close()

    async def _probe(self, port: int) -> None:
        while True:
            status = await _ask(port)
            if status == 200:
                self.ready[port].set()
            else:
                self.ready[port].clear()
                self.unready[port] += status is not None
            await asyncio.sleep(_PROBE_EVERY_SECONDS)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in self._ports:
            # Round-robin: the first goes to the end.
            self._ports.append(port := self._ports.pop(0))
            if self.ready[port].is_set():
                with suppress(ConnectionRefusedError):
                    to_server = await asyncio.open_connection("127.0.0.1", port)
                    break
        else:
            writer.close()
            return
        await asyncio.gather(_pump(reader, to_server[1]), _pump(to_server[0], writer))


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(1 << 16):
            writer.write(data)
    writer.close()


async def _ask(port: int) -> int | None:
    """Return the status of /ready, or None without an answer."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return None
    try:
        writer.write(b"GET /ready HTTP/1.1\r\nhost: balancer\r\nconnection: close\r\n\r\n")
        answer = await reader.readline()
        return int(answer.split()[1]) if answer else None
    except OSError:
        return None
    finally:
        writer.close()
