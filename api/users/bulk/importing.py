"""Imports users in chunks: while PostgreSQL writes one, the next is parsed.

A chunk is written as a whole or not at all, so what an import that ends in the middle leaves behind is whole chunks.
Users of one address are written one after the other, as if each line were a request of its own.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import asdict, dataclass
from operator import attrgetter
from typing import Any

from starlette.requests import ClientDisconnect

from api.errors import OutcomeUnknownError, problem_body, to_problem
from api.users.bulk.parsing import Parser, Refusal, Row
from api.users.bulk.problems import client_silent
from api.users.bulk.writing import WriteRows

# Others get their turn after so much of the input, mostly a fifth of a millisecond, and where its users take longer, as
# those with international addresses do, after so much time.
_TURN_BYTES = 4 * 1024
_TURN_SECONDS = 0.001
_FLUSH_SECONDS = 1.0
_PROGRESS_SECONDS = 1.0


@dataclass
class Counts:
    """What an import has come to: the last line that is done with, and what became of the users up to there."""

    lines: int = 0
    created: int = 0
    updated: int = 0
    skipped: int = 0  # they exist, and were left as they are
    refused: int = 0

    @property
    def users(self) -> int:
        """All of them."""
        return self.created + self.updated + self.skipped + self.refused


class Import:
    """One import. `write` writes `chunk_rows` lines at most; `report` gets the lines of the answer as they come up.

    A refusal is `{"line": …, "problem": {…}}`, and now and then there is a `{"progress": {…}}` with the counts, which
    are kept in `counts`.
    """

    def __init__(
        self,
        parser: Parser,
        write: WriteRows,
        report: Callable[[dict[str, Any]], None],
        *,
        counts: Counts,
        chunk_rows: int,
        request_id: str,
    ) -> None:
        self.counts = counts
        self._parser = parser
        self._write = write
        self._report = report
        self._chunk_rows = chunk_rows
        self._request_id = request_id
        self._rows: list[Row] = []
        self._refusals: list[Refusal] = []
        self._writing: asyncio.Task[None] | None = None
        self._reported = self._started = time.monotonic()

    async def run(self, pieces: AsyncIterator[bytes], idle_seconds: float | None = None) -> None:
        """Import a file that comes in pieces. What has come is written after a second in which nothing more comes.

        Raises Problem where nothing comes for `idle_seconds` or the file as a whole cannot be read, what `pieces`
        raises, and what writing a chunk raised. `counts` says then what was written before. Where it ends while a chunk
        is on its way that may have been written, it raises OutcomeUnknownError, whatever it was that ended it.
        """
        try:
            while (piece := await self._wait_for(pieces, idle_seconds)) is not None:
                for start in range(0, len(piece), _TURN_BYTES):
                    await self._take(self._parser.feed(piece[start : start + _TURN_BYTES]))
            await self._take(self._parser.end())
            await self._flush()
            await self._settle()
        except BaseException as error:
            if self._writing is not None:
                # A chunk that nobody waits for any more: written whole, or not at all.
                self._writing.cancel()
                (end,) = await asyncio.gather(self._writing, return_exceptions=True)
                # A client that is gone is told nothing, and the log would speak of a failure that is none.
                is_told = not isinstance(error, ClientDisconnect) and end is not error
                if is_told and isinstance(end, OutcomeUnknownError):
                    raise end from error
            raise
        self.counts.lines = self._parser.line

    def summarise(self, error: Exception | None = None, *, unreported: int = 0) -> dict[str, Any]:
        """Return the last line of the answer: `error` ended the import, `unreported` refusals were not listed."""
        seconds = round(time.monotonic() - self._started, 3)
        summary: dict[str, Any] = {"complete": error is None, **asdict(self.counts), "seconds": seconds}
        if unreported:
            summary["unreported"] = unreported
        if error is not None:
            summary["problem"] = problem_body(to_problem(error, self._request_id), self._request_id)
        return {"summary": summary}

    async def _wait_for(self, pieces: AsyncIterator[bytes], idle_seconds: float | None) -> bytes | None:
        """The next piece, None at the end."""
        coming = asyncio.ensure_future(anext(pieces, None))
        silent = 0.0
        try:
            while True:
                awaited = {coming} if self._writing is None else {coming, self._writing}
                await asyncio.wait(awaited, timeout=_FLUSH_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                if self._writing is not None and self._writing.done():
                    await self._settle()
                elif coming.done():
                    return coming.result()
                else:
                    await self._flush()
                    silent += _FLUSH_SECONDS
                    if idle_seconds is not None and silent >= idle_seconds:
                        raise client_silent(idle_seconds)
        finally:
            coming.cancel()

    async def _take(self, events: Iterator[Row | Refusal]) -> None:
        turn_ends = time.monotonic() + _TURN_SECONDS
        for event in events:
            if isinstance(event, Row):
                self._rows.append(event)
            else:
                self._refusals.append(event)
            if len(self._rows) + len(self._refusals) == self._chunk_rows:
                await self._send()
            if time.monotonic() >= turn_ends:
                await asyncio.sleep(0)
                turn_ends = time.monotonic() + _TURN_SECONDS
        await asyncio.sleep(0)

    async def _flush(self) -> None:
        if self._rows or self._refusals:
            await self._send()

    async def _send(self) -> None:
        rows, refusals, last_line = self._rows, self._refusals, self._parser.line
        self._rows, self._refusals = [], []
        await self._settle()
        self._writing = asyncio.create_task(self._write_chunk(rows, refusals, last_line))

    async def _settle(self) -> None:
        if self._writing is not None:
            await self._writing
            self._writing = None

    async def _write_chunk(self, rows: list[Row], refusals: list[Refusal], last_line: int) -> None:
        counts = self.counts
        if rows:
            written = await self._write(rows)
            counts.created += written.created
            counts.updated += written.updated
            counts.skipped += written.skipped
            refusals = refusals + written.refusals
        counts.refused += len(refusals)
        counts.lines = last_line
        for line, problem in sorted(refusals, key=attrgetter("line")):
            self._report({"line": line, "problem": problem_body(problem, self._request_id)})
        if time.monotonic() - self._reported >= _PROGRESS_SECONDS:
            self._reported = time.monotonic()
            self._report({"progress": asdict(counts)})
