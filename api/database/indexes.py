"""Unique indexes, recognised by their definition: one that is being replaced has another name for a while.

PostgreSQL names the index that a statement violates. `reindex concurrently`, and `create unique index concurrently`
beside an index that is then dropped, let that be any name. The database is asked only for a name that is unknown.
"""

from collections.abc import Awaitable, Callable

import asyncpg

from api.database.statements import declare

SELECT_INDEX = declare(
    "indexes/select_index.sql",
    ["text", "text"],
    {"definition": "text"},
    example=lambda ids: ["pg_catalog", "pg_class_oid_index"],
)

_names: dict[str, str] = {}  # by definition


def register_index(name: str, definition: str) -> None:
    """Give a violation of any unique index with this definition the constraint name `name`.

    The definition is written as PostgreSQL writes it, such as `public.NAME (lower(name))`.
    """
    _names[definition] = name


async def identify(
    fetch: Callable[..., Awaitable[list[asyncpg.Record]]], known: dict[str, str], error: asyncpg.UniqueViolationError
) -> bool:
    """Give `error` the registered name of the index that it names, if that has a registered definition.

    `known` has the names found before, and is added to. Return False if the index is gone: it was renamed or dropped
    meanwhile, so another attempt is told another name. Raises what `fetch` raises.
    """
    name = error.constraint_name
    if name is None or error.schema_name is None or name in _names.values():
        return True  # without a schema, a function raised it
    if name not in known:
        rows = await fetch(SELECT_INDEX, error.schema_name, name)
        if not rows:
            return False
        registered = _names.get(rows[0]["definition"])
        if registered is None:
            return True
        known[name] = registered
    error.constraint_name = known[name]
    return True
