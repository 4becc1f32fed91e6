"""A network between the application and PostgreSQL's socket."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path


class Distance:
    """A network between the application and PostgreSQL with random delays, which loses its contents when cut.

    So reads can be stale on arrival, and a write can be committed whose answer is lost.
    """

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self._chance = random.Random(0)
        self._ends: set[asyncio.StreamWriter] = set()

    @asynccontextmanager
    async def between(self, directory: Path) -> AsyncIterator[None]:
        """Listen in `directory` in place of the PostgreSQL of the socket."""
        async with await asyncio.start_unix_server(self._connect, directory / self.socket.name):
            yield
            await self.cut()

    async def cut(self) -> None:
        """End every connection."""
        for end in self._ends:
            end.transport.abort()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_unix_connection(self.socket)
        ends = {writer, far_writer}
        self._ends |= ends
        await asyncio.gather(self._carry(reader, far_writer), self._carry(far_reader, writer))
        self._ends -= ends

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while piece := await reader.read(2**16):
                await asyncio.sleep(0.01 * self._chance.random())
                writer.write(piece)
        writer.close()
