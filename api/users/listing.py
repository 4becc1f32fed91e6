"""The pages of GET /api/v1/users: which statement reads one, and the query string of the next."""

from urllib.parse import urlencode

from asyncpg import Record

from api.database.fetch import Database
from api.resources.cursors import MAX_ID, Position, write_cursor
from api.resources.pages import Page, next_page
from api.resources.services import Services
from api.users import queries
from api.users.emails import stored_form
from api.users.schemas import ListQuery


class Listing:
    """The pages of users. Requests share the statements of those in the order of ids."""

    def __init__(self, services: Services) -> None:
        self._database = services.database
        self._list_after = services.read(queries.list_users_after)
        self._list_before = services.read(queries.list_users_before)

    async def read(self, query: ListQuery) -> tuple[bytes, bytes | None]:
        """Return a page as a JSON array, and the query string of the next page, None after the last."""
        if query.is_search:
            return await _read_search(self._database, query)
        backwards = query.order == "-id"
        if query.after is None and query.skip:
            page = await queries.list_users_skip(self._database, query.skip, query.limit)
        elif backwards:
            bound = MAX_ID if query.after is None else query.after - 1
            page = await self._list_before(Page(bound, query.limit))
        else:
            page = await self._list_after(Page(query.after or 0, query.limit))
        next_query = next_page(page, query.limit)
        if next_query and backwards:
            next_query += b"&order=-id"
        return page["body"].encode(), next_query


async def _read_search(database: Database, query: ListQuery) -> tuple[bytes, bytes | None]:
    """Return a page in another order than that of the ids: by prefix, or by creation."""
    if query.q is not None:
        row = await queries.search_users(database, query.q, query.cursor or Position("", 0), query.limit)
        if row["last_key"] is None and query.cursor is None and (stored := stored_form(query.q)) != query.q:
            # What it found nothing with may be the beginning of an address in another form.
            query.q = stored
            row = await queries.search_users(database, stored, Position("", 0), query.limit)
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
