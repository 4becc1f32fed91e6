"""Arrays: how a statement takes many keys, and how its rows come back in their order.

Arrays of text travel as text[], the one array that asyncpg can encode without asking the server for the type first
(asyncpg/protocol/codecs/array.pyx). That would cost each new connection round trips and change its session. Arrays of
numbers travel as one text, `{1,2,3}`, which both sides parse faster than an array of texts.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from asyncpg import Record

from api.database.fetch import Database
from api.database.slots import SLOT_SECONDS


def array(values: Iterable[int]) -> str:
    """Return numbers or booleans as the text of a PostgreSQL array."""
    return f"{{{','.join(map(str, values))}}}"


def columns(records: Iterable[Sequence[Any]]) -> list[tuple[Any, ...]]:
    """Transpose records to the arrays that unnest joins again."""
    return list(zip(*records, strict=True))


def versions(if_match: list[int] | None) -> str | None:
    """Return the versions of one If-Match as the text of an array, None for any version.

    PostgreSQL's arrays of arrays are rectangular, so each of many lists travels as a text.
    """
    return None if if_match is None else array(if_match)


def in_order(rows: Sequence[Record], column: str, wanted: Iterable[int]) -> list[Record | None]:
    """Return the row of each wanted number, by `column`; None if there is none."""
    found = {row[column]: row for row in rows}
    return [found.get(number) for number in wanted]


def lock_timeout(database: Database, writes: Sequence[object]) -> str:
    """Return the statement's lock_timeout: several writes wait only briefly for a row that one of them needs."""
    seconds = SLOT_SECONDS if len(writes) > 1 else database.lock_timeout
    return f"{round(seconds * 1000)}ms"
