"""Imports users in chunks: while PostgreSQL writes one, the next is parsed.

A chunk is written as a whole or not at all, so what an import that ends in the middle leaves behind is whole chunks.
Users of one address are written one after the other, as if each line were a request of its own.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from operator import attrgetter
from typing import Any

import asyncpg

from api.database import Database
from api.errors import email_taken, problem_body, to_problem
from api.users import queries
from api.users.parsing import Parser, Refusal, Row
from api.users.schemas import OnConflict

# A third of a millisecond of parsing, after which others get their turn.
_ROWS_A_TURN = 100
_PROGRESS_SECONDS = 1.0
# What a row can be to blame for. Anything else concerns the next rows as well, and ends the import.
_ROW_ERRORS = (
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.DataError,
    asyncpg.LockNotAvailableError,
    asyncpg.DeadlockDetectedError,
)


@dataclass
class Counts:
    """What an import has come to: the last line that is done with, and what became of the users up to there."""

    lines: int = 0
    created: int = 0
    updated: int = 0
    skipped: int = 0  # they exist, and were left as they are
    refused: int = 0


WriteRows = Callable[[Sequence[Row], Counts], Awaitable[list[Refusal]]]
"""Writes rows, adds up what was created, updated and skipped, and returns the refusals of the others."""


class Import:
    """One import. `write` writes a chunk of `chunk_rows` lines; `report` gets the lines of the answer as they come up.

    A refusal is `{"line": …, "problem": {…}}`, and now and then there is a `{"progress": {…}}` with the counts.
    """

    def __init__(
        self,
        parser: Parser,
        write: WriteRows,
        report: Callable[[dict[str, Any]], None],
        *,
        chunk_rows: int,
        request_id: str,
    ) -> None:
        self.counts = Counts()
        self._parser = parser
        self._write = write
        self._report = report
        self._chunk_rows = chunk_rows
        self._request_id = request_id
        self._rows: list[Row] = []
        self._refusals: list[Refusal] = []
        self._writing: asyncio.Task[None] | None = None
        self._reported = self._started = time.monotonic()

    async def feed(self, data: bytes) -> None:
        """Take a piece of the file. Raises Problem where the file cannot be read, and what writing a chunk raised."""
        await self._take(self._parser.feed(data))

    async def flush(self) -> None:
        """Write what has come so far, where it is less than a chunk too. Raises what writing a chunk raised."""
        if self._rows or self._refusals:
            await self._send()

    async def end(self) -> None:
        """Take the end of the file and wait until all is written. Raises as feed does."""
        await self._take(self._parser.end())
        await self.flush()
        await self._settle()
        self.counts.lines = self._parser.line

    async def abandon(self) -> None:
        """Cancel the chunk that is being written, unless it was written already."""
        if self._writing is not None:
            self._writing.cancel()
            await asyncio.wait([self._writing])

    def summarise(self, error: Exception | None = None) -> dict[str, Any]:
        """The last line of the answer; `error` is what ended the import."""
        seconds = round(time.monotonic() - self._started, 3)
        summary = {"complete": error is None, **asdict(self.counts), "seconds": seconds}
        if error is not None:
            summary["problem"] = problem_body(to_problem(error, self._request_id), self._request_id)
        return {"summary": summary}

    async def _take(self, events: Iterable[Row | Refusal]) -> None:
        for event in events:
            if isinstance(event, Row):
                self._rows.append(event)
            else:
                self._refusals.append(event)
            taken = len(self._rows) + len(self._refusals)
            if taken >= self._chunk_rows:
                await self._send()
            elif taken % _ROWS_A_TURN == 0:
                await asyncio.sleep(0)

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
            refusals = refusals + await self._write(rows, counts)
        for line, problem in sorted(refusals, key=attrgetter("line")):
            self._report({"line": line, "problem": problem_body(problem, self._request_id)})
        counts.refused += len(refusals)
        counts.lines = last_line
        if time.monotonic() - self._reported >= _PROGRESS_SECONDS:
            self._reported = time.monotonic()
            self._report({"progress": asdict(counts)})


async def write_rows(
    database: Database, on_conflict: OnConflict, request_id: str, rows: Sequence[Row], counts: Counts
) -> list[Refusal]:
    """Write rows as `WriteRows` has it, a statement for each group. Raises what `Database.fetch` does for all rows."""
    refusals: list[Refusal] = []
    for group in _group(rows, by_name=on_conflict == "update"):
        refusals += await _write_group(database, on_conflict, request_id, group, counts)
    return refusals


def _group(rows: Sequence[Row], *, by_name: bool) -> list[list[Row]]:
    """Rows that can share a statement: each address once, the second row of one in a later group than the first.

    `by_name` separates those that leave the name alone from those that set it.
    """
    groups: dict[tuple[int, bool], list[Row]] = {}
    times: dict[str, int] = {}
    for row in rows:
        address = row.email.lower()
        before = times[address] = times.get(address, -1) + 1
        groups.setdefault((before, by_name and row.set_name), []).append(row)
    return [groups[key] for key in sorted(groups)]


async def _write_group(
    database: Database, on_conflict: OnConflict, request_id: str, rows: list[Row], counts: Counts
) -> list[Refusal]:
    users = [queries.NewUser(row.email, row.name) for row in rows]
    try:
        if on_conflict == "update":
            created, updated = await queries.import_users_update(database, users, set_name=rows[0].set_name)
            taken = []
        else:
            taken = await queries.import_users(database, users)
            created, updated = len(rows) - len(taken), 0
    except _ROW_ERRORS as error:
        # It left nothing behind. The halves tell whose fault it was.
        if len(rows) == 1:
            return [Refusal(rows[0].line, to_problem(error, request_id))]
        middle = len(rows) // 2
        return [
            *await _write_group(database, on_conflict, request_id, rows[:middle], counts),
            *await _write_group(database, on_conflict, request_id, rows[middle:], counts),
        ]
    counts.created += created
    counts.updated += updated
    if on_conflict == "error":
        problem = email_taken()
        return [Refusal(rows[place].line, problem) for place in taken]
    counts.skipped += len(rows) - created - updated
    return []
