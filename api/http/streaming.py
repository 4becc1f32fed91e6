"""Answers that are sent while they are made."""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from tempfile import SpooledTemporaryFile, gettempdir
from typing import Any

import orjson
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.errors import describe

logger = logging.getLogger("api")

_PIECE_BYTES = 64 * 1024
_MEMORY_BYTES = 1024 * 1024
_SPOOL_BYTES = 256 * 1024 * 1024


class Stream(Response):
    """An answer whose body comes in pieces.

    `resources` are closed at the end, whatever it is. A client that takes nothing for `idle_seconds` is given up; that
    does not count before `until` is done, where it may still be busy with sending. A body that fails in the middle
    breaks off without its end, since its status was sent already, and HTTP has no other way to say so.
    """

    def __init__(
        self,
        body: AsyncIterator[bytes],
        resources: AsyncExitStack,
        *,
        media_type: str,
        idle_seconds: float,
        headers: Mapping[str, str] | None = None,
        until: "asyncio.Task[None] | None" = None,
    ) -> None:
        super().__init__(headers=headers, media_type=media_type)
        del self.headers["content-length"]
        self._body = body
        self._resources = resources
        self._idle_seconds = idle_seconds
        self._until = until

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer."""
        async with self._resources:
            try:
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                async for data in self._body:
                    await self._send_in_time(send, {"type": "http.response.body", "body": data, "more_body": True})
                await send({"type": "http.response.body", "body": b""})
            except ClientDisconnect:
                pass
            except asyncio.CancelledError:  # Nobody but the server cancels a request.
                logger.warning("a streamed answer broke off: the server is stopping")
            except Exception as error:  # Whatever it is, only the log can be told.
                logger.warning("a streamed answer broke off: %s", describe(error))

    async def _send_in_time(self, send: Send, message: dict[str, Any]) -> None:
        sending = asyncio.ensure_future(send(message))
        try:
            if self._until is not None:
                await asyncio.wait({sending, self._until}, return_when=asyncio.FIRST_COMPLETED)
            done, _ = await asyncio.wait({sending}, timeout=self._idle_seconds)
            if not done:
                raise TimeoutError(f"the client has taken nothing for {self._idle_seconds:g} s")
            sending.result()
        finally:
            sending.cancel()


class Lines:
    """Lines of JSON on their way to a client that may not read them before it has sent all it has.

    They wait in memory, and in a temporary file beyond 1 MiB: were they to wait in the writer, it and the client would
    wait for each other. Where no such file can be made, as in a container without /tmp, 1 MiB is all that has room.
    """

    def __init__(self) -> None:
        try:
            gettempdir()
            in_memory, self._most = _MEMORY_BYTES, _SPOOL_BYTES
        except FileNotFoundError:
            in_memory, self._most = 0, _MEMORY_BYTES  # 0: all of it
        self._spool = SpooledTemporaryFile(max_size=in_memory)  # noqa: SIM115 - closed by close()
        self._read = 0  # bytes of the spool
        self._written = 0
        self._is_ended = False
        self._is_readable = asyncio.Event()
        self._has_room = asyncio.Event()
        self._has_room.set()

    def write(self, line: Mapping[str, Any]) -> None:
        """Add a line. Raises OSError where the disk has no room for it."""
        data = orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)
        self._spool.seek(self._written)
        self._spool.write(data)
        self._written += len(data)
        self._is_readable.set()
        if self._written > self._most:
            self._has_room.clear()

    def end(self) -> None:
        """Say that no line will follow."""
        self._is_ended = True
        self._is_readable.set()

    async def wait_for_room(self) -> None:
        """Wait while so much lies here that the client must read first."""
        await self._has_room.wait()

    async def wait(self) -> None:
        """Wait until there is a line to read, or the end."""
        await self._is_readable.wait()

    async def read(self) -> bytes:
        """What has come up, or a part of it; b"" at the end."""
        await self._is_readable.wait()
        self._spool.seek(self._read)
        data = self._spool.read(_PIECE_BYTES)
        self._read += len(data)
        if self._read == self._written:
            self._spool.seek(0)
            self._spool.truncate()
            self._read = self._written = 0
            self._has_room.set()
            if not self._is_ended:
                self._is_readable.clear()
        return data

    def close(self) -> None:
        """Remove the file."""
        self._spool.close()
