"""A statement means the same in every session: a transaction pooler lends one that other clients have changed."""

from collections.abc import Iterator
from pathlib import Path

import asyncpg
import httpx
import pytest
from click.testing import CliRunner

from api.app import RESOURCES, create_app
from api.cli.check_sql import check_sql
from api.cli.export_users import export_users
from api.cli.import_users import import_users
from api.database import statements
from api.database.statements import Statement
from api.neon.url import parse_url
from tests.support import ROOT
from tests.support.database import execute
from tests.support.rig import ROLE, NeonDatabase, Rig
from tests.support.serving import serve
from tests.support.statements import arguments
from tests.support.users import USERS

NDJSON = {"content-type": "application/x-ndjson"}

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


async def every_other_value(connection: asyncpg.Connection) -> list[tuple[str, str]]:
    """Return each setting of a session that is on or off, or one of a list, with every value that it does not have."""
    rows = await connection.fetch(
        """
        select name, value from pg_settings, unnest(coalesce(enumvals, array['on', 'off'])) as value
        where context in ('user', 'superuser') and vartype in ('bool', 'enum') and value <> setting
            and name !~ '^transaction_'  -- those of the transaction that the test is in
            and name !~ '^(log|debug|trace|track|wal|enable|jit|geqo)'  -- what is recorded, and how it is planned
        order by name, value
        """
    )
    return [(row["name"], row["value"]) for row in rows]


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
        " select '', i, 'f', 'b', now() - i * interval '1 hour' from generate_series(1, 100) i;",
    )
    for each in RESOURCES[1:]:
        execute(url, (ROOT / "tests" / each.name / "fill.sql").read_text().replace("100000", "300"))
    execute(url, f"analyze; create schema trap; {TRAPS.format(kind='', schema='trap')}")
    yield url
    execute(postgres, "drop database sessions with (force)")


Answers = dict[str, list[str]]


async def answers(connection: asyncpg.Connection) -> Answers:
    """Run each statement as if no other had run, with the same ids for the rows that it creates.

    The caller's transaction makes now() stand still. The position of the log goes on, and is left out.
    """
    found = {}
    # A function that was altered is compiled again, under the settings that now hold.
    functions = await connection.fetch(
        "select oid::regprocedure::text as name from pg_catalog.pg_proc where pronamespace = 'public'::regnamespace"
    )
    anew = "; ".join(f"alter function {each['name']} cost 100" for each in functions)
    for statement in statements.declared_statements():
        if statement.name == "wal/select_position.sql":
            continue
        await connection.execute(
            "savepoint each; select setval(format('public.%I', sequencename)::regclass, 1000)"
            f" from pg_catalog.pg_sequences where schemaname = 'public'; {anew}"
        )
        rows = await connection.fetch(statement.sql, *arguments(statement, 3))
        found[statement.name] = sorted(str(tuple(row)) for row in rows)
        await connection.execute("rollback to each")
    return found


async def test_no_setting_of_a_session_changes_an_answer(populated: str) -> None:
    # Without the cache each statement is parsed under the settings that now hold.
    connection = await asyncpg.connect(**parse_url(populated).asyncpg_arguments(), statement_cache_size=0)
    try:
        await connection.execute("begin")
        expected = await answers(connection)
        assert [name for name, rows in expected.items() if not rows] == ["users/import_users.sql"]  # none is taken
        for name, value in HOSTILE + await every_other_value(connection):
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


# What every dump begins with: https://github.com/postgres/postgres/blob/REL_18_STABLE/src/bin/pg_dump/pg_dump.c,
# setup_connection.
DUMP = """
    select pg_catalog.set_config('search_path', '', false);
    set datestyle = iso; set intervalstyle = postgres; set extra_float_digits to 3; set synchronize_seqscans to off;
    set statement_timeout = 0; set lock_timeout = 0; set idle_in_transaction_session_timeout = 0;
    set transaction_timeout = 0; set row_security = off;
    select set_config('restrict_nonsystem_relation_kind', 'view, foreign-table', false)
"""


def use_everything(client: httpx.Client) -> None:
    """Send a request for each statement of the API."""
    path = client.post(USERS, json={"email": "ada@example.com"}).headers["location"]
    keyed = [
        client.post(USERS, json={"email": "grace@example.com"}, headers={"Idempotency-Key": "one"}) for _ in range(2)
    ]
    assert [answer.status_code for answer in keyed] == [201, 201]
    assert client.patch(path, json={"name": "Ada"}).json()["name"] == "Ada"
    assert client.get(path).json()["name"] == "Ada"
    for query in ("", "?skip=0", "?email=ADA@example.com", "?q=a", "?order=created_at", "?order=-created_at"):
        found = client.get(f"{USERS}{query}")
        assert (found.status_code, "ada@example.com" in found.text) == (200, True), query
    for conflict in ("skip", "update"):
        lines = '{"email":"ada@example.com","name":"A"}\n{"email":"' + conflict + '@example.com"}'
        imported = client.post(f"{USERS}/import?on_conflict={conflict}", content=lines, headers=NDJSON)
        assert '"created":1' in imported.text, imported.text
    for kind in ("application/x-ndjson", "text/csv"):
        assert "ada@example.com" in client.get(f"{USERS}/export", headers={"accept": kind}).text
    assert client.delete(path).status_code == 204
    assert client.get("/ready").status_code == 200


@pytest.fixture
def one_session(rig: Rig) -> Iterator[None]:
    """The pooler has one session of PostgreSQL for each database, which it lends to every client."""
    rig.pgbouncer.run("set default_pool_size = 1")
    yield
    rig.pgbouncer.run("set default_pool_size = 60")


def assert_served(neon: NeonDatabase, left: str) -> None:
    """Every request succeeds, and check-sql does, while the pooler's session is as it was left."""
    with serve(create_app(neon.settings(readiness_probe_seconds=1))) as url, httpx.Client(base_url=url) as client:
        use_everything(client)
    assert execute(neon.superuser, "select count(*) from public.users") == [(3,)]
    assert execute(neon.pooled, left) == [(True,)]
    checked = CliRunner(env=neon.environment()).invoke(check_sql)
    assert checked.output == f"{len(statements.declared_statements())} statements fit the database\n"


NO_PATH = "select current_setting('search_path') in ('', '\"\"')"


@pytest.mark.usefixtures("one_session")
@pytest.mark.parametrize(
    ("poison", "left"),
    [
        (DUMP, NO_PATH),
        (TRAPS.format(kind="temporary", schema="pg_temp"), "select 'users'::regclass::oid <> 'public.users'::regclass"),
    ],
    ids=["a dump", "temporary tables"],
)
def test_a_session_of_the_pooler_that_others_have_changed(neon: NeonDatabase, poison: str, left: str) -> None:
    execute(neon.pooled, poison)
    assert_served(neon, left)


@pytest.mark.usefixtures("one_session")
def test_a_role_without_a_search_path(neon: NeonDatabase, tmp_path: Path) -> None:
    name = parse_url(neon.direct).database
    execute(neon.superuser, f"alter role {ROLE} in database {name} set search_path to ''")
    assert_served(neon, NO_PATH)
    commands = CliRunner(env=neon.environment())
    file = tmp_path / "users.ndjson"
    file.write_text('{"email":"new@example.com"}')
    assert "1 created" in commands.invoke(import_users, [str(file)]).output
    assert commands.invoke(export_users, [str(file)]).exit_code == 0
    assert "new@example.com" in file.read_text()


@pytest.mark.parametrize("statement", statements.declared_statements(), ids=lambda statement: statement.name)
async def test_every_relation_is_named_with_its_schema(populated: str, statement: Statement) -> None:
    connection = await asyncpg.connect(**parse_url(populated).asyncpg_arguments())
    try:
        await connection.execute("set search_path to ''")
        await connection.prepare(statement.sql)
    finally:
        await connection.close()
