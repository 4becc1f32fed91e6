"""A statement means the same in every session: a transaction pooler lends one that other clients have changed."""

from collections.abc import Iterator

import asyncpg
import pytest

import api.app  # noqa: F401 - declares the statements
from api.database import statements
from api.database.statements import Statement
from api.neon.url import parse_url
from tests.support.database import execute
from tests.support.statements import arguments

# A plain name finds these first: in a schema of the search_path, and in that of temporary tables without being in it.
TRAPS = """
    create {kind} table {schema}.users (like public.users including all);
    create {kind} table {schema}.idempotency_keys (like public.idempotency_keys including all);
    create {kind} table {schema}.pg_class (like pg_catalog.pg_class);
"""

# Those with a text or a number for a value; `every_other_value` finds the rest. pg_dump sets several of them.
HOSTILE = [
    ("search_path", ""),
    ("search_path", "trap, public"),
    ("search_path", "trap, pg_catalog, public"),
    ("TimeZone", "America/New_York"),
    ("DateStyle", "German, DMY"),
    ("DateStyle", "SQL, MDY"),
    ("extra_float_digits", "-15"),
    ("lc_messages", "C"),
    ("lc_monetary", "C"),
    ("lc_numeric", "C"),
    ("lc_time", "C"),
    ("lock_timeout", "1"),
    ("restrict_nonsystem_relation_kind", "view, foreign-table"),
    ("default_text_search_config", "pg_catalog.german"),
    ("work_mem", "64"),
]


def every_other_value(url: str) -> list[tuple[str, str]]:
    """Return each setting of a session that is on or off, or one of a list, with every value that it does not have."""
    rows = execute(
        url,
        """
        select name, value from pg_settings, unnest(coalesce(enumvals, array['on', 'off'])) as value
        where context in ('user', 'superuser') and vartype in ('bool', 'enum') and value <> setting
            and name !~ '^transaction_'  -- those of the transaction that the test is in
            and name !~ '^(log|debug)_'  -- what is logged
        order by name, value
        """,
    )
    return [(str(name), str(value)) for name, value in rows]


@pytest.fixture(scope="module")
def populated(postgres: str, template: str) -> Iterator[str]:
    """The URL of a database with users that the statements' parameters match, and with traps in the schema `trap`."""
    execute(postgres, f"create database sessions template {template}")
    url = postgres.replace("/postgres?", "/sessions?")
    execute(
        url,
        "insert into users (email, name, created_at)"
        " select 'user' || i || '@example.com', 'User ' || i, timestamptz '2026-01-31T09:30Z' + i * interval '1 hour'"
        " from generate_series(1, 300) i;"
        "insert into idempotency_keys (caller, key, fingerprint, body, created_at)"
        " select '', i, 'f', 'b', now() - i * interval '1 hour' from generate_series(1, 100) i;"
        f"analyze; create schema trap; {TRAPS.format(kind='', schema='trap')}",
    )
    yield url
    execute(postgres, "drop database sessions with (force)")


Answers = dict[str, list[str]]


async def answers(connection: asyncpg.Connection) -> Answers:
    """Run each statement as if no other had run, with the same ids for the users that it creates.

    The caller's transaction makes now() stand still. The position of the log goes on, and is left out.
    """
    found = {}
    for statement in statements.declared_statements():
        if statement.name == "wal/select_position.sql":
            continue
        await connection.execute("savepoint each; select setval('public.users_id_seq', 1000)")
        rows = await connection.fetch(statement.sql, *arguments(statement, 3))
        found[statement.name] = sorted(str(tuple(row)) for row in rows)
        await connection.execute("rollback to each")
    return found


async def test_no_setting_of_a_session_changes_an_answer(populated: str) -> None:
    connection = await asyncpg.connect(**parse_url(populated).asyncpg_arguments())
    try:
        await connection.execute("begin")
        expected = await answers(connection)
        assert [name for name, rows in expected.items() if not rows] == ["users/import_users.sql"]  # none is taken
        for name, value in HOSTILE + every_other_value(populated):
            await connection.execute("savepoint before")
            before = await connection.fetchval("select current_setting($1)", name)
            after = await connection.fetchval("select set_config($1, $2, true)", name, value)
            assert before != after, f"{name} is {value} by default: choose another value"
            assert await answers(connection) == expected, f"{name} = {value}"
            await connection.execute("rollback to before")
    finally:
        await connection.close()


async def test_no_temporary_table_changes_an_answer(populated: str) -> None:
    connection = await asyncpg.connect(**parse_url(populated).asyncpg_arguments())
    try:
        await connection.execute("begin")
        expected = await answers(connection)
        await connection.execute(TRAPS.format(kind="temporary", schema="pg_temp"))
        assert await connection.fetchval("select count(*) from users") == 0  # the trap works
        assert await answers(connection) == expected
    finally:
        await connection.close()


@pytest.mark.parametrize("statement", statements.declared_statements(), ids=lambda statement: statement.name)
async def test_every_relation_is_named_with_its_schema(populated: str, statement: Statement) -> None:
    connection = await asyncpg.connect(**parse_url(populated).asyncpg_arguments())
    try:
        await connection.execute("set search_path to ''")
        await connection.prepare(statement.sql)
    finally:
        await connection.close()
