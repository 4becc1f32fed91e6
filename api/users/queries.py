"""The statements of `sql/users/`: one function per statement, which owns the order of its parameters.

Each statement takes many keys at once, with the same plan: it serves a single request as well as a batch.

Arrays of text travel as text[], the one array that asyncpg can encode without asking the server for the type first
(asyncpg/protocol/codecs/array.pyx). That would cost each new connection round trips and change its session. Arrays of
numbers travel as one text, `{1,2,3}`, which both sides parse faster than an array of texts.

The first array is in a sub-select, which hides its length from the planner. Otherwise PostgreSQL would plan each
execution anew: a generic plan, made for ten elements, seems more expensive than one made for the actual length.
Planning takes up to four times as long as the PATCH or DELETE itself. Only imports, of 1,000 rows, are worth planning.

Every column is cast to the type declared here. A transaction pooler keeps a statement prepared on its own connections.
There it fails for ever once a migration changes its result types ("cached plan must not change result type").
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from asyncpg import Record

from api.database.batching import SLOT_SECONDS
from api.database.fetch import Database
from api.database.statements import Statement, declare
from api.users.cursors import Position

_USER = {"id": "int8", "version": "int8", "body": "text"}
_PAGE = {"last_id": "int8", "size": "int8", "body": "text"}

_SELECT_USERS = declare("users/select_users.sql", ["text"], _USER)
_SELECT_USERS_BY_EMAIL = declare("users/select_users_by_email.sql", ["text[]"], {"n": "int8", **_USER})
_INSERT_USERS = declare("users/insert_users.sql", ["text[]", "text[]", "text"], {"n": "int8", **_USER}, writes=True)
_INSERT_USERS_ONCE = declare(
    "users/insert_users_once.sql",
    [*["text[]"] * 6, "text", "text"],
    {"n": "int8", "user_id": "int8", "body": "text", "is_replayed": "bool", "is_reused": "bool"},
    writes=True,
)
DELETE_EXPIRED_KEYS = declare("users/delete_expired_keys.sql", ["int8"], {"deleted": "int8"}, writes=True)
_UPDATE_USERS = declare(
    "users/update_users.sql", ["text", "text[]", "text", "text[]", "text[]", "text"], _USER, writes=True
)
_DELETE_USERS = declare("users/delete_users.sql", ["text", "text[]", "text"], _USER, writes=True)
_LIST_USERS_AFTER = declare("users/list_users_after.sql", ["text", "text"], {"n": "int8", **_PAGE})
_LIST_USERS_BEFORE = declare("users/list_users_before.sql", ["text", "text"], {"n": "int8", **_PAGE})
_LIST_USERS_SKIP = declare("users/list_users_skip.sql", ["int8", "int8"], _PAGE)
_PAGE_BY_CREATION = {"last_created_at": "timestamptz", **_PAGE}
_LIST_USERS_OLDEST = declare("users/list_users_oldest.sql", ["text", "int8", "text", "int8"], _PAGE_BY_CREATION)
_LIST_USERS_NEWEST = declare("users/list_users_newest.sql", ["text", "int8", "text", "int8"], _PAGE_BY_CREATION)
_SEARCH_USERS = declare(
    "users/search_users.sql",
    ["text", "text", "int8", "int8"],
    {"last_key": "text", "last_id": "int8", "has_more": "bool", "body": "text"},
)
_OUTCOME = {"n": "int8", "outcome": "text"}
_IMPORT_USERS = declare("users/import_users.sql", ["text[]", "text[]", "text"], _OUTCOME, writes=True)
_IMPORT_USERS_UPDATE = declare(
    "users/import_users_update.sql", ["text[]", "text[]", "bool", "text"], _OUTCOME, writes=True
)
ESTIMATE_USERS = declare("users/estimate_users.sql", [], {"users": "int8"})
EXPORT_USERS = declare("users/export_users.sql", [], {"body": "text"})
_CSV = {"id": "int8", **dict.fromkeys(("email", "name", "created_at", "updated_at"), "text")}
EXPORT_USERS_CSV = declare("users/export_users_csv.sql", [], _CSV)
EXPORT_USERS_CSV_SAFE = declare("users/export_users_csv_safe.sql", [], _CSV)


class Page(NamedTuple):
    """At most `limit` users: after the id `bound`, or backwards from it, inclusive."""

    bound: int
    limit: int


class NewUser(NamedTuple):
    """A user to create."""

    email: str
    name: str | None


class KeyedUser(NamedTuple):
    """A user to create once for a caller's key; `conflict` is the body of the 409 if the address is or `is_taken`."""

    caller: str
    key: str
    fingerprint: str
    conflict: str
    email: str
    name: str | None
    is_taken: bool = False


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
    rows = await database.fetch(_SELECT_USERS, _array(ids))
    return _in_order(rows, "id", ids)


async def select_users_by_email(database: Database, emails: Sequence[str]) -> list[Record | None]:
    """Return the user of each address (n, id, version, body), ignoring case, None if there is none."""
    rows = await database.fetch(_SELECT_USERS_BY_EMAIL, emails)
    return _in_order(rows, "n", range(1, len(emails) + 1))


async def insert_users(database: Database, users: Sequence[NewUser]) -> list[Record | None]:
    """Create users; return the row of each (n, id, version, body), None if a rule of the database refused it.

    The row's body is None if the address is taken. Raises asyncpg.UniqueViolationError, and creates none, if one of
    the addresses is taken while the statement runs, or as a trigger rewrites it.
    """
    rows = await database.fetch(_INSERT_USERS, *_columns(users), _lock_timeout(database, users))
    return _in_order(rows, "n", range(1, len(users) + 1))


async def insert_users_once(database: Database, users: Sequence[KeyedUser]) -> list[Record | None]:
    """Create users, or find the stored responses; return the row of each (n, user_id, body, is_replayed, is_reused).

    As insert_users; it also raises UniqueViolationError if another session has used one of the keys meanwhile.
    """
    *texts, taken = _columns(users)
    rows = await database.fetch(_INSERT_USERS_ONCE, *texts, _array(taken), _lock_timeout(database, users))
    return _in_order(rows, "n", range(1, len(users) + 1))


async def update_users(database: Database, changes: Sequence[UserChange]) -> list[Record | None]:
    """Change users, each at most once per call; return the row of each (id, version, body), None if there is no user.

    The row's body is None if the user kept this version: if_match does not name it, another session changed or deleted
    the user meanwhile, or a rule of the database refused the change. Raises asyncpg.UniqueViolationError, and changes
    none, if one of the new addresses belongs to another user.
    """
    rows = await database.fetch(
        _UPDATE_USERS,
        _array([change.id for change in changes]),
        [change.email for change in changes],
        _array([change.set_name for change in changes]),
        [change.name for change in changes],
        [_versions(change.if_match) for change in changes],
        _lock_timeout(database, changes),
    )
    return _in_order(rows, "id", [change.id for change in changes])


async def delete_users(database: Database, removals: Sequence[UserRemoval]) -> list[Record | None]:
    """Delete users, each at most once per call; return rows as update_users does."""
    rows = await database.fetch(
        _DELETE_USERS,
        _array([removal.id for removal in removals]),
        [_versions(removal.if_match) for removal in removals],
        _lock_timeout(database, removals),
    )
    return _in_order(rows, "id", [removal.id for removal in removals])


async def list_users_after(database: Database, pages: Sequence[Page]) -> list[Record]:
    """Return each page of users after its bound: n, last_id, size, body (a JSON array)."""
    return await _list_pages(database, _LIST_USERS_AFTER, pages)


async def list_users_before(database: Database, pages: Sequence[Page]) -> list[Record]:
    """Return each page of users up to its bound, largest id first; rows as in list_users_after."""
    return await _list_pages(database, _LIST_USERS_BEFORE, pages)


async def _list_pages(database: Database, statement: Statement, pages: Sequence[Page]) -> list[Record]:
    # Equal pages are read once.
    distinct = list(dict.fromkeys(pages))
    bounds, limits = [page.bound for page in distinct], [page.limit for page in distinct]
    rows = await database.fetch(statement, _array(bounds), _array(limits))
    found = {distinct[row["n"] - 1]: row for row in rows}
    return [found[page] for page in pages]


async def list_users_skip(database: Database, skip: int, limit: int) -> Record:
    """Return the page after the first `skip` users: last_id, size, body (a JSON array)."""
    return (await database.fetch(_LIST_USERS_SKIP, skip, limit))[0]


async def list_users_oldest(database: Database, after: Position, before: str, limit: int) -> Record:
    """Return users created after a position and before a time: last_created_at, last_id, size, body.

    A time is RFC 3339, "infinity" or "-infinity".
    """
    return (await database.fetch(_LIST_USERS_OLDEST, after.key, after.id, before, limit))[0]


async def list_users_newest(database: Database, before: Position, after: str, limit: int) -> Record:
    """Return users created before a position and after a time, newest first; see list_users_oldest."""
    return (await database.fetch(_LIST_USERS_NEWEST, before.key, before.id, after, limit))[0]


async def search_users(database: Database, text: str, after: Position, limit: int) -> Record:
    """Return users after a position whose address or name begins with a text: last_key, last_id, has_more, body."""
    return (await database.fetch(_SEARCH_USERS, text, after.key, after.id, limit))[0]


async def import_users(database: Database, users: Sequence[NewUser]) -> dict[int, str]:
    """Create users with distinct addresses; return what became of the others, by their index in `users`.

    "taken", or "refused" by a rule of the database. Raises asyncpg.UniqueViolationError as insert_users does.
    """
    rows = await database.fetch(_IMPORT_USERS, *_columns(users), _lock_timeout(database, users))
    return {row["n"] - 1: row["outcome"] for row in rows}


async def import_users_update(database: Database, users: Sequence[NewUser], *, set_name: bool) -> dict[int, str]:
    """Create users with distinct addresses, or change the existing users; `set_name` changes their names too.

    Return what became of those that were not created, by their index in `users`: "updated", "unchanged" or "refused".
    Raises asyncpg.UniqueViolationError as insert_users.
    """
    rows = await database.fetch(_IMPORT_USERS_UPDATE, *_columns(users), set_name, _lock_timeout(database, users))
    return {row["n"] - 1: row["outcome"] for row in rows}


def _in_order(rows: Sequence[Record], column: str, wanted: Iterable[int]) -> list[Record | None]:
    """Return the row of each wanted number, by `column`; None if there is none."""
    found = {row[column]: row for row in rows}
    return [found.get(number) for number in wanted]


def _columns(records: Iterable[Sequence[Any]]) -> list[tuple[Any, ...]]:
    """Transpose records to the arrays that unnest joins again."""
    return list(zip(*records, strict=True))


def _lock_timeout(database: Database, writes: Sequence[object]) -> str:
    """Return the statement's lock_timeout: several writes wait only briefly for a row that one of them needs."""
    seconds = SLOT_SECONDS if len(writes) > 1 else database.lock_timeout
    return f"{round(seconds * 1000)}ms"


def _versions(if_match: list[int] | None) -> str | None:
    # PostgreSQL's arrays of arrays are rectangular, so each list travels as the text of an array.
    return None if if_match is None else _array(if_match)


def _array(values: Iterable[int]) -> str:
    """Return numbers or booleans as the text of a PostgreSQL array."""
    return f"{{{','.join(map(str, values))}}}"
