"""Write the rows of an import: by COPY, or if addresses are taken, by a statement that returns which ones."""

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import asyncpg

from api.database.fetch import Database, link_errors
from api.errors import (
    DatabaseUnavailableError,
    OutcomeUnknownError,
    Problem,
    RefusedError,
    problem_of,
    to_problem,
)
from api.users import queries
from api.users.bulk.parsing import Refusal, Row
from api.users.emails import email_key
from api.users.problems import email_taken
from api.users.schemas import OnConflict

_COPY_SECONDS = 60.0


@dataclass
class Written:
    """The result of writing rows: numbers as in Counts, and the refusals."""

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
    """Return a function that writes rows by COPY, at half the cost, over several connections in parallel.

    Rows with the same address use the same connection, so that they are written in the order of the file. If COPY
    fails because of a row, or a rule of the database leaves one out, `write` writes that part of the chunk.
    """
    expects_conflicts = False

    async def copy_part(connection: asyncpg.Connection, rows: Sequence[Row]) -> Written:
        nonlocal expects_conflicts
        if not expects_conflicts:
            with suppress(asyncpg.PostgresError), link_errors(writes=True):
                if await _copy(connection, rows):
                    return Written(created=len(rows))
        written = await write(rows)
        # After one chunk with conflicts the next has some too: COPY would only fail first.
        expects_conflicts = written.created < len(rows)
        return written

    async def copy(rows: Sequence[Row]) -> Written:
        parts: list[list[Row]] = [[] for _ in connections]
        for row in rows:
            parts[hash(email_key(row)) % len(parts)].append(row)
        # If one part fails, the others are still awaited. Empty parts are left out: they say nothing about conflicts.
        copying = [copy_part(connection, part) for connection, part in zip(connections, parts, strict=True) if part]
        ends = await asyncio.gather(*copying, return_exceptions=True)
        total = Written()
        for end in ends:
            if isinstance(end, BaseException):
                raise end
            total += end
        return total

    return copy


async def _copy(connection: asyncpg.Connection, rows: Sequence[Row]) -> bool:
    """Create the users of all rows, or of none: COPY tells how many rows it has written, but not which."""
    # asyncpg's own timeout would bound neither its question for the columns' types nor the other statements.
    async with asyncio.timeout(_COPY_SECONDS):
        await connection.execute("begin")
        try:
            status = await connection.copy_records_to_table(
                "users",
                schema_name="public",
                columns=["email", "name"],
                records=[(row.email, row.name) for row in rows],
            )
        except asyncpg.PostgresError:
            await connection.execute("rollback")
            raise
        is_complete: bool = status == f"COPY {len(rows)}"
        await connection.execute("commit" if is_complete else "rollback")
        return is_complete


async def write_rows(database: Database, on_conflict: OnConflict, request_id: str, rows: Sequence[Row]) -> Written:
    """Write rows, by a single statement if possible. Raises the exceptions of `Database.fetch` for all rows together.

    If several statements are needed and a later one fails, raises OutcomeUnknownError.
    """
    total = Written()
    is_begun = False
    repeated = None
    waiting = deque(_group(rows, by_name=on_conflict == "update"))
    while waiting:
        group = waiting.popleft()
        try:
            total += await _write_group(database, on_conflict, group)
            is_begun = True
        except asyncpg.PostgresError as error:
            # A row was refused, and the statement changed nothing. Its halves show which row it was.
            if len(group) > 1:
                middle = len(group) // 2
                waiting.extendleft((group[middle:], group[:middle]))
            elif isinstance(error, asyncpg.UniqueViolationError) and repeated is not group:
                # Another session has created the address meanwhile: the next statement sees it.
                repeated = group
                waiting.appendleft(group)
            else:
                problem = to_problem(error, request_id)
                total += _refused(on_conflict, {group[0].line: problem})
        except (DatabaseUnavailableError, asyncio.CancelledError) as error:
            # Each of these means that nothing was changed, but only by this statement.
            if is_begun:
                raise OutcomeUnknownError from error
            raise
    return total


def _group(rows: Sequence[Row], *, by_name: bool) -> list[list[Row]]:
    """Group rows that can share a statement: each address once, its second row in a later group than the first.

    `by_name` separates rows that keep the name from rows that set it.
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
        outcomes = await queries.import_users_update(database, users, set_name=rows[0].set_name)
    else:
        outcomes = await queries.import_users(database, users)
    numbers = Counter(outcomes.values())
    problems = {"taken": email_taken(), "refused": problem_of(RefusedError)}
    refused = {rows[index].line: problems[outcome] for index, outcome in outcomes.items() if outcome in problems}
    written = Written(len(rows) - len(outcomes), numbers["updated"], numbers["unchanged"])
    return written + _refused(on_conflict, refused)


def _refused(on_conflict: OnConflict, problems: Mapping[int, Problem]) -> Written:
    """Return what became of the lines with these problems."""
    taken = email_taken().kind
    is_skipped = on_conflict == "skip"
    refusals = [Refusal(*each) for each in problems.items() if not (is_skipped and each[1].kind == taken)]
    return Written(skipped=len(problems) - len(refusals), refusals=refusals)
