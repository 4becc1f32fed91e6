"""Responses that are sent while they are produced."""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.errors import describe

logger = logging.getLogger("api")


class Stream(Response):
    """A response whose body is produced piece by piece.

    `stack` is closed before the last chunk is sent, or when the response is cut off. A client that reads nothing for
    `idle_seconds` is disconnected. The timeout starts when `until` is done: until then the client may still be sending.
    If the body fails, the response ends without its last chunk: the status was sent already, and HTTP has no other way
    to report it.
    """

    def __init__(
        self,
        body: AsyncIterator[bytes],
        stack: AsyncExitStack,
        *,
        media_type: str,
        idle_seconds: float,
        headers: Mapping[str, str] | None = None,
        until: "asyncio.Task[None] | None" = None,
    ) -> None:
        super().__init__(headers=headers, media_type=media_type)
        del self.headers["content-length"]
        self._body = body
        self._stack = stack
        self._idle_seconds = idle_seconds
        self._until = until

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""
        try:
            async with self._stack:
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                async for data in self._body:
                    await self._send_in_time(send, {"type": "http.response.body", "body": data, "more_body": True})
            # A client that has the end may send its next request at once: what the stack held is free by then.
            await send({"type": "http.response.body", "body": b""})
        except ClientDisconnect:
            pass
        except asyncio.CancelledError:  # Only shutdown cancels a request.
            logger.warning("a streamed response was cut off: the server is stopping")
        except Exception as error:  # The status was sent, so the error can only be logged.
            logger.warning("a streamed response was cut off: %s", describe(error))

    async def _send_in_time(self, send: Send, message: dict[str, Any]) -> None:
        sending = asyncio.ensure_future(send(message))
        try:
            if self._until is not None:
                await asyncio.wait({sending, self._until}, return_when=asyncio.FIRST_COMPLETED)
            done, _ = await asyncio.wait({sending}, timeout=self._idle_seconds)
            if not done:
                raise TimeoutError(f"the client has read nothing for {self._idle_seconds:g} s")
            sending.result()
        finally:
            sending.cancel()
