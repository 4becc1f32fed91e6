"""Import users in chunks: while PostgreSQL writes one chunk, the next is parsed.

A chunk is written as a whole or not at all, so an import that is cut off leaves whole chunks behind. Users with the
same address are written one after the other, as if each line were a request of its own.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import asdict, dataclass
from operator import attrgetter
from typing import Any

from starlette.requests import ClientDisconnect

from api.errors import OutcomeUnknownError, problem_body, to_problem
from api.http.request import MIN_BYTES_A_SECOND
from api.users.bulk.parsing import Parser, Refusal, Row
from api.users.bulk.problems import client_silent, client_slow
from api.users.bulk.writing import WriteRows

# Parsing yields to other requests after this many bytes (about 0.2 ms), or after this much time for slow rows, such as
# those with international addresses.
_YIELD_BYTES = 4 * 1024
_YIELD_SECONDS = 0.001
_FLUSH_SECONDS = 1.0
_PROGRESS_SECONDS = 1.0


@dataclass
class Counts:
    """The progress of an import: the last line that was processed, and the results up to there."""

    lines: int = 0
    created: int = 0
    updated: int = 0
    skipped: int = 0  # they exist and were left unchanged
    refused: int = 0

    @property
    def users(self) -> int:
        """All users that were processed."""
        return self.created + self.updated + self.skipped + self.refused


class Import:
    """One import. `write` writes up to `chunk_rows` rows; `report` receives each line of the report.

    A refusal is `{"line": …, "problem": {…}}`. At most once a second follows `{"progress": {…}}` with the current
    `counts`, which the import updates.
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
        # Bytes and seconds since the client last kept the pace. The time in which the import reads nothing is not its.
        self._came, self._waited = 0, 0.0

    async def run(self, pieces: AsyncIterator[bytes], idle_seconds: float | None = None) -> None:
        """Import a file that arrives in pieces. After a second without a piece, the rows so far are written.

        Raises Problem if nothing arrives for `idle_seconds`, or less than MIN_BYTES_A_SECOND in that time, or if the
        file as a whole cannot be parsed, and any exception of `pieces` and `write`. `counts` then covers the chunks
        written before. If a chunk that may have been written is in flight at the end, raises OutcomeUnknownError
        instead, from the exception that ended the import.
        """
        try:
            while (piece := await self._wait_for(pieces, idle_seconds)) is not None:
                for start in range(0, len(piece), _YIELD_BYTES):
                    await self._take(self._parser.feed(piece[start : start + _YIELD_BYTES]))
            await self._take(self._parser.end())
            await self._flush()
            await self._settle()
        except BaseException as error:
            if self._writing is not None:
                # The chunk in flight is cancelled: it is written as a whole or not at all.
                self._writing.cancel()
                try:
                    await asyncio.gather(self._writing, return_exceptions=True)
                finally:  # even if the import is cancelled meanwhile, once its chunk has ended
                    end = None if self._writing.cancelled() else self._writing.exception()
                    # After a disconnect no client is left to inform, and the log would report a false failure.
                    is_connected = not isinstance(error, ClientDisconnect)
                    if is_connected and isinstance(end, OutcomeUnknownError) and end is not error:
                        raise end from error
            raise
        self.counts.lines = self._parser.line

    def summarise(self, error: Exception | None = None, *, unreported: int = 0) -> dict[str, Any]:
        """Return the last line of the report: `error` ended the import, `unreported` refusals were not listed."""
        seconds = round(time.monotonic() - self._started, 3)
        summary: dict[str, Any] = {"complete": error is None, **asdict(self.counts), "seconds": seconds}
        if unreported:
            summary["unreported"] = unreported
        if error is not None:
            summary["problem"] = problem_body(to_problem(error, self._request_id), self._request_id)
        return {"summary": summary}

    async def _wait_for(self, pieces: AsyncIterator[bytes], idle_seconds: float | None) -> bytes | None:
        """Return the next piece, None at the end. Meanwhile the current chunk is written."""
        coming = asyncio.ensure_future(anext(pieces, None))
        silent = 0.0
        try:
            while True:
                awaited = {coming} if self._writing is None else {coming, self._writing}
                began = time.monotonic()
                done, _ = await asyncio.wait(awaited, timeout=_FLUSH_SECONDS, return_when=asyncio.FIRST_COMPLETED)
                silent += time.monotonic() - began if done else _FLUSH_SECONDS  # A timer may fire a little early.
                if self._writing is not None and self._writing.done():
                    await self._settle()
                elif coming.done():
                    piece = coming.result()
                    self._check_pace(piece, silent, idle_seconds)
                    return piece
                else:
                    await self._flush()
                    if idle_seconds is not None and silent >= idle_seconds:
                        raise client_silent(idle_seconds)
        finally:
            coming.cancel()

    def _check_pace(self, piece: bytes | None, seconds: float, idle_seconds: float | None) -> None:
        """Count a piece that took some seconds to come. Raises Problem if too little came in `idle_seconds`."""
        if piece is None or idle_seconds is None:
            return
        self._came += len(piece)
        self._waited += seconds
        if self._came >= MIN_BYTES_A_SECOND * idle_seconds:
            self._came, self._waited = 0, 0.0
        elif self._waited >= idle_seconds:
            raise client_slow(idle_seconds)

    async def _take(self, events: Iterator[Row | Refusal]) -> None:
        yield_at = time.monotonic() + _YIELD_SECONDS
        for event in events:
            if isinstance(event, Row):
                self._rows.append(event)
            else:
                self._refusals.append(event)
            if len(self._rows) + len(self._refusals) == self._chunk_rows:
                await self._send()
            if time.monotonic() >= yield_at:
                await asyncio.sleep(0)
                yield_at = time.monotonic() + _YIELD_SECONDS
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
