"""Pages in the order of ids (keyset pagination): the query string, the statement that reads them, the next page."""

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

from asyncpg import Record
from pydantic import BaseModel, Field

from api.database.fetch import Database
from api.database.statements import Statement
from api.resources.arrays import array, columns
from api.resources.fields import ID


class PageQuery(BaseModel):
    """The query string of a list in the order of ids."""

    limit: int = Field(default=100, ge=1, le=1000, description="Maximum rows in a page.")
    after: ID = Field(default=0, description="Only rows after this id: the last id of the previous page.")


class Page(NamedTuple):
    """At most `limit` rows: after the id `bound`, or backwards from it, inclusive."""

    bound: int
    limit: int


AnyPage = TypeVar("AnyPage", bound=tuple[int, ...])


async def fetch_pages(database: Database, statement: Statement, pages: Sequence[AnyPage]) -> list[Record]:
    """Return each page: n, last_id, size, body (a JSON array). The fields of the pages are the statement's arrays."""
    # Equal pages are read once.
    distinct = list(dict.fromkeys(pages))
    rows = await database.fetch(statement, *map(array, columns(distinct)))
    found = {distinct[row["n"] - 1]: row for row in rows}
    return [found[page] for page in pages]


def next_page(page: Record, limit: int) -> bytes | None:
    """Return the query string of the page behind a page, None behind the last."""
    return b"after=%d&limit=%d" % (page["last_id"], limit) if page["size"] == limit else None
