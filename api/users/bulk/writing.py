"""Writes the rows of an import: by COPY where no address is taken, else by a statement that tells which ones are."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import asyncpg

from api.database.fetch import Database, link_errors
from api.errors import DatabaseUnavailableError, OutcomeUnknownError, to_problem
from api.users import queries
from api.users.bulk.parsing import Refusal, Row
from api.users.emails import email_key
from api.users.problems import email_taken
from api.users.schemas import OnConflict

_COPY_SECONDS = 60.0
# What a row can be to blame for. Anything else concerns the next rows as well, and ends the import.
_ROW_ERRORS = (
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.DataError,
    asyncpg.LockNotAvailableError,
    asyncpg.DeadlockDetectedError,
    asyncpg.CardinalityViolationError,  # two rows have one key, of which `email_key` made two
)


@dataclass
class Written:
    """What became of some rows: numbers as in Counts, and the refusals of the others."""

    created: int = 0
    updated: int = 0
    skipped: int = 0
    refusals: list[Refusal] = field(default_factory=list)

    def __add__(self, other: "Written") -> "Written":
        return Written(
            self.created + other.created,
            self.updated + other.updated,
            self.skipped + other.skipped,
            self.refusals + other.refusals,
        )


WriteRows = Callable[[Sequence[Row]], Awaitable[Written]]


def copy_rows(connections: Sequence[asyncpg.Connection], write: WriteRows) -> WriteRows:
    """Write rows by COPY, at half the price, over several connections side by side.

    An address goes over the same one each time, so that what stands earlier in the file comes first. Where COPY refuses
    its part of a chunk for one of the rows, `write` writes that part.
    """
    expects_conflicts = False

    async def copy_part(connection: asyncpg.Connection, rows: Sequence[Row]) -> Written:
        nonlocal expects_conflicts
        if not expects_conflicts:
            with suppress(*_ROW_ERRORS), link_errors(writes=True):
                await connection.copy_records_to_table(
                    "users",
                    columns=["email", "name"],
                    records=[(row.email, row.name) for row in rows],
                    timeout=_COPY_SECONDS,
                )
                return Written(created=len(rows))
        written = await write(rows)
        # Where one chunk had some, the next will too: it does not pay to fail first.
        expects_conflicts = written.created < len(rows)
        return written

    async def copy(rows: Sequence[Row]) -> Written:
        parts: list[list[Row]] = [[] for _ in connections]
        for row in rows:
            parts[hash(email_key(row)) % len(parts)].append(row)
        # Neither is left alone where the other fails. What is empty says nothing of conflicts.
        copying = [copy_part(connection, part) for connection, part in zip(connections, parts, strict=True) if part]
        ends = await asyncio.gather(*copying, return_exceptions=True)
        total = Written()
        for end in ends:
            if isinstance(end, BaseException):
                raise end
            total += end
        return total

    return copy


async def write_rows(database: Database, on_conflict: OnConflict, request_id: str, rows: Sequence[Row]) -> Written:
    """Write rows, by one statement where nothing speaks against it. Raises what `Database.fetch` does for all of them.

    Where rows have to be written by several, and it ends between two, that is an OutcomeUnknownError.
    """
    total = Written()
    is_begun = False
    waiting = deque(_group(rows, by_name=on_conflict == "update"))
    while waiting:
        group = waiting.popleft()
        try:
            total += await _write_group(database, on_conflict, group)
            is_begun = True
        except _ROW_ERRORS as error:
            # It left nothing behind. The halves tell whose fault it was.
            if len(group) == 1:
                total.refusals.append(Refusal(group[0].line, to_problem(error, request_id)))
            else:
                middle = len(group) // 2
                waiting.extendleft((group[middle:], group[:middle]))
        except (DatabaseUnavailableError, asyncpg.PostgresError, asyncio.CancelledError) as error:
            # Each of them says that nothing was changed, which holds for this statement alone.
            if is_begun:
                raise OutcomeUnknownError from error
            raise
    return total


def _group(rows: Sequence[Row], *, by_name: bool) -> list[list[Row]]:
    """Rows that can share a statement: each address once, the second row of one in a later group than the first.

    `by_name` separates those that leave the name alone from those that set it.
    """
    groups: dict[tuple[int, bool], list[Row]] = {}
    times: dict[str, int] = {}
    for row in rows:
        address = email_key(row)
        before = times[address] = times.get(address, -1) + 1
        groups.setdefault((before, by_name and row.set_name), []).append(row)
    return [groups[key] for key in sorted(groups)]


async def _write_group(database: Database, on_conflict: OnConflict, rows: list[Row]) -> Written:
    users = [queries.NewUser(row.email, row.name) for row in rows]
    if on_conflict == "update":
        created, updated = await queries.import_users_update(database, users, set_name=rows[0].set_name)
        return Written(created, updated, len(rows) - created - updated)
    taken = await queries.import_users(database, users)
    created = len(rows) - len(taken)
    if on_conflict == "skip":
        return Written(created, skipped=len(taken))
    problem = email_taken()
    return Written(created, refusals=[Refusal(rows[place].line, problem) for place in taken])
