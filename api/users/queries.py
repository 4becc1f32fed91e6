"""The statements of `sql/users/`: one function per statement, which owns the order of its parameters.

Each statement takes many keys at once, with the same plan: it serves a single request as well as a batch.
"""

from collections.abc import Sequence
from typing import NamedTuple

from asyncpg import Record

from api.database.fetch import Database
from api.resources.arrays import array, columns, in_order, lock_timeout, versions
from api.resources.cursors import Position
from api.resources.idempotency import Creation
from api.resources.pages import Page, fetch_pages
from api.users import statements as sql


class NewUser(NamedTuple):
    """A user to create."""

    email: str
    name: str | None


class UserChange(NamedTuple):
    """The change of a PATCH: `email` None stays unchanged, `name` applies only with `set_name`.

    `if_match` has the versions that the user may have, None for any.
    """

    id: int
    email: str | None
    set_name: bool
    name: str | None
    if_match: list[int] | None


class UserRemoval(NamedTuple):
    """The removal of a DELETE; `if_match` as in UserChange."""

    id: int
    if_match: list[int] | None


async def select_users(database: Database, ids: Sequence[int]) -> list[Record | None]:
    """Return the user of each id (id, version, body), None if there is none."""
    rows = await database.fetch(sql.SELECT_USERS, array(ids))
    return in_order(rows, "id", ids)


async def select_users_by_email(database: Database, emails: Sequence[str]) -> list[Record | None]:
    """Return the user of each address (n, id, version, body), ignoring case, None if there is none."""
    rows = await database.fetch(sql.SELECT_USERS_BY_EMAIL, emails)
    return in_order(rows, "n", range(1, len(emails) + 1))


async def insert_users(database: Database, users: Sequence[NewUser]) -> list[Record | None]:
    """Create users; return the row of each (n, id, version, body), None if a rule of the database refused it.

    The row's body is None if the address is taken. Raises asyncpg.UniqueViolationError, and creates none, if one of
    the addresses is taken while the statement runs, or as a trigger rewrites it.
    """
    rows = await database.fetch(sql.INSERT_USERS, *columns(users), lock_timeout(database, users))
    return in_order(rows, "n", range(1, len(users) + 1))


async def insert_users_once(database: Database, creations: Sequence[Creation[NewUser]]) -> list[Record | None]:
    """Create users, or find the stored responses; return the row of each (n, row_id, body, is_replayed, is_reused).

    As insert_users; it also raises UniqueViolationError if another session has used one of the keys meanwhile.
    """
    *keys, users, taken = columns(creations)
    rows = await database.fetch(
        sql.INSERT_USERS_ONCE, *keys, *columns(users), array(taken), lock_timeout(database, creations)
    )
    return in_order(rows, "n", range(1, len(creations) + 1))


async def update_users(database: Database, changes: Sequence[UserChange]) -> list[Record | None]:
    """Change users, each at most once per call; return the row of each (id, version, body), None if there is no user.

    The row's body is None if the user kept this version: if_match does not name it, another session changed or deleted
    the user meanwhile, or a rule of the database refused the change. Raises asyncpg.UniqueViolationError, and changes
    none, if one of the new addresses belongs to another user.
    """
    rows = await database.fetch(
        sql.UPDATE_USERS,
        array([change.id for change in changes]),
        [change.email for change in changes],
        array([change.set_name for change in changes]),
        [change.name for change in changes],
        [versions(change.if_match) for change in changes],
        lock_timeout(database, changes),
    )
    return in_order(rows, "id", [change.id for change in changes])


async def delete_users(database: Database, removals: Sequence[UserRemoval]) -> list[Record | None]:
    """Delete users, each at most once per call; return rows as update_users does."""
    rows = await database.fetch(
        sql.DELETE_USERS,
        array([removal.id for removal in removals]),
        [versions(removal.if_match) for removal in removals],
        lock_timeout(database, removals),
    )
    return in_order(rows, "id", [removal.id for removal in removals])


async def list_users_after(database: Database, pages: Sequence[Page]) -> list[Record]:
    """Return each page of users after its bound: n, last_id, size, body (a JSON array)."""
    return await fetch_pages(database, sql.LIST_USERS_AFTER, pages)


async def list_users_before(database: Database, pages: Sequence[Page]) -> list[Record]:
    """Return each page of users up to its bound, largest id first; rows as in list_users_after."""
    return await fetch_pages(database, sql.LIST_USERS_BEFORE, pages)


async def list_users_skip(database: Database, skip: int, limit: int) -> Record:
    """Return the page after the first `skip` users: last_id, size, body (a JSON array)."""
    return (await database.fetch(sql.LIST_USERS_SKIP, skip, limit))[0]


async def list_users_oldest(database: Database, after: Position, before: str, limit: int) -> Record:
    """Return users created after a position and before a time: last_created_at, last_id, size, body.

    A time is RFC 3339, "infinity" or "-infinity".
    """
    return (await database.fetch(sql.LIST_USERS_OLDEST, after.key, after.id, before, limit))[0]


async def list_users_newest(database: Database, before: Position, after: str, limit: int) -> Record:
    """Return users created before a position and after a time, newest first; see list_users_oldest."""
    return (await database.fetch(sql.LIST_USERS_NEWEST, before.key, before.id, after, limit))[0]


async def search_users(database: Database, text: str, after: Position, limit: int) -> Record:
    """Return users after a position whose address or name begins with a text: last_key, last_id, has_more, body."""
    return (await database.fetch(sql.SEARCH_USERS, text, after.key, after.id, limit))[0]


async def import_users(database: Database, users: Sequence[NewUser]) -> dict[int, str]:
    """Create users with distinct addresses; return what became of the others, by their index in `users`.

    "taken", or "refused" by a rule of the database. Raises asyncpg.UniqueViolationError as insert_users does.
    """
    rows = await database.fetch(sql.IMPORT_USERS, *columns(users), lock_timeout(database, users))
    return {row["n"] - 1: row["outcome"] for row in rows}


async def import_users_update(database: Database, users: Sequence[NewUser], *, set_name: bool) -> dict[int, str]:
    """Create users with distinct addresses, or change the existing users; `set_name` changes their names too.

    Return what became of those that were not created, by their index in `users`: "updated", "unchanged" or "refused".
    Raises asyncpg.UniqueViolationError as insert_users.
    """
    rows = await database.fetch(sql.IMPORT_USERS_UPDATE, *columns(users), set_name, lock_timeout(database, users))
    return {row["n"] - 1: row["outcome"] for row in rows}
