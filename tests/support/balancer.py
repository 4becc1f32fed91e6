"""A TCP balancer as small as can be: connections go in turn to the servers whose /ready says 200.

It knows nothing of HTTP but its probes. A connection that a server refuses is tried at the next one; once one is made,
what becomes of it is for the client to see.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

_PROBE_EVERY_SECONDS = 0.05


class Balancer:
    """Balances between servers on ports of the loopback address."""

    def __init__(self, ports: Sequence[int]) -> None:
        self._ports = list(ports)
        self.ready = {port: asyncio.Event() for port in ports}
        self.unready = Counter[int]()  # by port, how often a server that answered was not
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
            # The first goes to the end: it is the next one's turn.
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
    """The status of /ready; None where nobody answers."""
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
