"""Pages in another order than that of the ids: prefix search, and the order of creation."""

from urllib.parse import urlencode

from asyncpg import Record

from api.database.fetch import Database
from api.users import queries
from api.users.cursors import MAX_ID, Position, write_cursor
from api.users.schemas import ListQuery


async def read_page(database: Database, query: ListQuery) -> tuple[bytes, bytes | None]:
    """Return a page as a JSON array, and the query string of the next page, None after the last."""
    if query.q is not None:
        row = await queries.search_users(database, query.q, query.cursor or Position("", 0), query.limit)
        end = Position(row["last_key"], row["last_id"]) if row["has_more"] else None
    else:
        row = await _read_by_creation(database, query)
        end = Position(row["last_created_at"].isoformat(), row["last_id"]) if row["size"] == query.limit else None
    return row["body"].encode(), end and _write_query(query, end)


async def _read_by_creation(database: Database, query: ListQuery) -> Record:
    after = query.created_after.isoformat() if query.created_after else "-infinity"
    before = query.created_before.isoformat() if query.created_before else "infinity"
    if query.order == "-created_at":
        return await queries.list_users_newest(database, query.cursor or Position(before, 0), after, query.limit)
    return await queries.list_users_oldest(database, query.cursor or Position(after, MAX_ID), before, query.limit)


def _write_query(query: ListQuery, end: Position) -> bytes:
    sent = {"q": query.q, "order": query.order}
    times = {"created_after": query.created_after, "created_before": query.created_before}
    sent |= {name: time.isoformat() for name, time in times.items() if time}
    sent |= {"limit": str(query.limit), "cursor": write_cursor(end)}
    return urlencode({name: value for name, value in sent.items() if value}).encode()
