"""The definition by which an index is recognised, and the position of the log, as PostgreSQL tells them."""

import asyncpg
import pytest

from api.database.indexes import SELECT_INDEX
from api.database.statements import declared_statements
from api.neon.url import parse_url
from tests.support.database import execute

ODD = """
    create schema "Odd"; create table "Odd"."Two words" (a int, "B" text, c int);
    create unique index "An index" on "Odd"."Two words" (a, lower("B")) include (c) where a > 1
"""


@pytest.mark.parametrize(
    ("schema", "name", "definition"),
    [
        ("public", "users_pkey", "public.users (id)"),
        ("public", "idempotency_keys_pkey", "public.idempotency_keys (caller, key)"),
        ("public", "users_email_key", "public.users (lower(email COLLATE pg_c_utf8))"),
        ("Odd", "An index", "Odd.Two words (a, lower(B)) where (a > 1)"),
        ("public", "An index", None),
        ("Odd", "users_pkey", None),
    ],
)
@pytest.mark.parametrize("quotes", ["off", "on"])
async def test_the_definition_of_an_index(
    database: str, schema: str, name: str, definition: str | None, quotes: str
) -> None:
    """With the keys alone, neither the columns beside them nor quotes, which a setting decides about."""
    execute(database, ODD)
    connection = await asyncpg.connect(**parse_url(database).asyncpg_arguments())
    try:
        await connection.execute(f"set quote_all_identifiers = {quotes}")
        found = await connection.fetch(SELECT_INDEX.sql, schema, name)
    finally:
        await connection.close()
    assert [row["definition"] for row in found] == ([] if definition is None else [definition])


async def test_the_position_of_a_primary_is_behind_each_write(database: str) -> None:
    (position,) = (each for each in declared_statements() if each.name == "wal/select_position.sql")
    connection = await asyncpg.connect(**parse_url(database).asyncpg_arguments())
    try:
        before = await connection.fetchval(position.sql)
        execute(database, "insert into users (email) values ('ada@example.com')")
        assert before < await connection.fetchval(position.sql)
    finally:
        await connection.close()
