"""The report of an import: a bounded queue of JSON lines between the import and its response."""

import asyncio
from collections.abc import Mapping
from typing import Any

import orjson

MAX_REFUSALS = 10_000
MAX_REFUSAL_BYTES = 4 * 1024 * 1024
"""An import lists up to MAX_REFUSALS refusals, of up to MAX_REFUSAL_BYTES together. The rest is only counted.

Most take 170 to 350 bytes, so that the number is reached first. A few take up to 30 KiB: email-validator's message
lists every character that an address may not contain.
"""

_PIECE_BYTES = 64 * 1024


class Report:
    """The lines that the client of an import has not read yet, in memory.

    `write` never waits. A client may send its whole file before it reads anything, as httpx does: if the import waited
    for it, the two would wait for each other. Instead the queue is bounded: MAX_REFUSAL_BYTES of refusals, one line
    of progress, and the summary.
    """

    def __init__(self) -> None:
        self.unreported = 0
        """Refusals that were counted but not listed."""
        self._refusals = 0
        self._refusal_bytes = 0
        self._waiting = bytearray()
        self._progress = b""  # the last line of it, while it is unread
        self._is_ended = False
        self._is_readable = asyncio.Event()

    def write(self, line: Mapping[str, Any]) -> None:
        """Add a line: `Import` describes them. The summary is always added.

        A refusal is only counted once the list is full. Progress replaces an unread line of it.
        """
        data = orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)
        if "problem" in line and not self._list(len(data)):
            self.unreported += 1
            return
        if "progress" in line:
            self._progress = data
        elif "summary" in line:
            self._waiting += self._progress + data
            self._progress = b""
        else:
            self._waiting += data
        self._is_readable.set()

    def end(self) -> None:
        """Mark the end: no line follows."""
        self._is_ended = True
        self._is_readable.set()

    async def wait(self) -> None:
        """Wait for a line or the end."""
        await self._is_readable.wait()

    async def read(self) -> bytes:
        """Wait for a line or the end; return the next bytes, at most 64 KiB, and b"" at the end."""
        await self._is_readable.wait()
        if not self._waiting:
            self._waiting += self._progress
            self._progress = b""
        piece = bytes(self._waiting[:_PIECE_BYTES])
        del self._waiting[:_PIECE_BYTES]
        if not (self._waiting or self._progress or self._is_ended):
            self._is_readable.clear()
        return piece

    def _list(self, size: int) -> bool:
        """Return whether a refusal of `size` bytes is listed. After the first that is not, none is."""
        if self.unreported or self._refusals == MAX_REFUSALS or self._refusal_bytes + size > MAX_REFUSAL_BYTES:
            return False
        self._refusals += 1
        self._refusal_bytes += size
        return True
