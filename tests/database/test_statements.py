"""Every SQL file against a migrated database: its types, its plan, and what check-sql reports of a mismatch."""

import asyncio
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import asyncpg
import pytest

from api.app import RESOURCES
from api.database import statements
from api.database.statements import Mismatch, Statement
from api.neon.url import parse_url
from api.users.statements import SEARCH_USERS
from tests.support import ROOT
from tests.support.catalogue import vacuum
from tests.support.database import execute
from tests.support.statements import arguments

NAMES = [statement.name for statement in statements.declared_statements()]


def check(url: str, declared: Sequence[Statement] | None = None) -> list[Mismatch]:
    async def run() -> list[Mismatch | None]:
        connection = await asyncpg.connect(**parse_url(url).asyncpg_arguments())
        try:
            each_declared = statements.declared_statements() if declared is None else declared
            return [await statements.check_statement(connection, each) for each in each_declared]
        finally:
            await connection.close()

    return [mismatch for mismatch in asyncio.run(run()) if mismatch is not None]


def test_every_statement_fits_the_migrated_database(database: str) -> None:
    mismatches = check(database)
    assert not mismatches, "\n".join(map(str, mismatches))


def test_every_file_is_declared_and_none_twice() -> None:
    undeclared = statements.undeclared_files()
    assert not undeclared, "\n".join(undeclared)
    with pytest.raises(ValueError, match="declared twice"):
        statements.declare("users/select_users.sql", [], {})


def test_a_missing_file_is_named() -> None:
    with pytest.raises(FileNotFoundError, match=r"sql/users/no_such\.sql"):
        statements.declare("users/no_such.sql", [], {})


def test_a_renamed_column_is_named_with_its_file_and_declaration(database: str) -> None:
    execute(database, "alter table users rename column version to revision")
    mismatches = {mismatch.statement.name: str(mismatch) for mismatch in check(database)}
    assert "users/select_users.sql" in mismatches
    assert "users/list_users_after.sql" not in mismatches
    message = mismatches["users/select_users.sql"]
    assert message.startswith("sql/users/select_users.sql, declared at api/users/statements.py:")
    assert 'column "version" does not exist' in message


def test_a_type_that_differs_is_told_with_what_was_expected_and_found(database: str) -> None:
    (statement,) = (each for each in statements.declared_statements() if each.name == "users/select_users.sql")
    declared = replace(statement, columns=(("id", "int8"), ("version", "int4"), ("body", "text")))
    assert "expected (id int8, version int4, body text), found (id int8, version int8, body text)" in "".join(
        map(str, check(database, [declared]))
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_write_that_is_not_declared_as_one_is_found_and_the_other_way_round(database: str, name: str) -> None:
    """Undeclared, a write that was lost would be sent again, and never be `outcome-unknown`."""
    (statement,) = (each for each in statements.declared_statements() if each.name == name)
    (mismatch,) = check(database, [replace(statement, writes=not statement.writes)])
    assert mismatch.reason == f"declared with writes={not statement.writes}, but its plan says {statement.writes}"


OTHER_TYPES = """
    alter table users drop column body, alter column name type varchar(255), alter column email type varchar(254),
        alter column id type integer, alter column version type numeric;
    alter table users add column body varchar not null
        generated always as (user_body(id, email, name, created_at, updated_at)) stored
"""


def test_result_types_do_not_follow_the_columns(database: str) -> None:
    """A statement that is prepared already, by a pooler at the latest, fails for ever once its result types change."""
    execute(database, OTHER_TYPES)
    assert [str(mismatch) for mismatch in check(database)] == []


@pytest.fixture(scope="module")
def populated(postgres: str, template: str) -> Iterator[str]:
    """The URL of a database that each resource has filled."""
    execute(postgres, f"create database populated template {template}")
    url = postgres.replace("/postgres?", "/populated?")
    for each in RESOURCES:
        execute(url, (ROOT / "tests" / each.name / "fill.sql").read_text())
    vacuum(url)
    yield url
    execute(postgres, "drop database populated with (force)")


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from nodes(child)


@pytest.mark.parametrize("name", NAMES)
def test_every_statement_carries_the_arguments_of_its_test(name: str) -> None:
    """Without them its plan could not be tested."""
    statement = next(each for each in statements.declared_statements() if each.name == name)
    assert len(arguments(statement, 3)) == len(statement.parameters)


@pytest.mark.parametrize("keys", [1, 10, 100])
@pytest.mark.parametrize("mode", ["force_generic_plan", "force_custom_plan"])
@pytest.mark.parametrize("name", NAMES)
async def test_no_plan_reads_the_table_or_sorts(populated: str, name: str, mode: str, keys: int) -> None:
    """Both the plan that a prepared statement settles on and the one made for the parameters, for 1 to 100 keys."""
    statement = next(each for each in statements.declared_statements() if each.name == name)
    connection = await asyncpg.connect(**parse_url(populated).asyncpg_arguments())
    try:
        # What is never committed leaves the table as it was for the next plan.
        await connection.execute(f"begin; set local plan_cache_mode = {mode}")
        explain = f"explain (analyze, format json) {statement.sql}"
        plan = json.loads(await connection.fetchval(explain, *arguments(statement, keys)))[0]["Plan"]
    finally:
        await connection.close()
    if statement.sorts:
        assert all(node["Actual Rows"] <= statement.sorts for node in nodes(plan)), plan
        return
    reads = [f"{node['Node Type']} {node.get('Index Name', '')}" for node in nodes(plan)]
    assert not [read for read in reads if read.startswith(("Seq Scan", "Sort", "Incremental Sort", "Bitmap"))], reads
    if statement.reach is not None:
        # A few looks at the index for each key, never a scan of more.
        looks = [node["Actual Loops"] * node["Actual Rows"] for node in nodes(plan) if "Index Name" in node]
        assert all(reached <= statement.reach * keys for reached in looks), looks


async def test_a_search_reads_a_page_of_each_index(populated: str) -> None:
    connection = await asyncpg.connect(**parse_url(populated).asyncpg_arguments())
    try:
        explain = f"explain (analyze, format json) {SEARCH_USERS.sql}"
        plan = json.loads(await connection.fetchval(explain, *arguments(SEARCH_USERS, 1)))[0]["Plan"]
    finally:
        await connection.close()
    assert all(node["Actual Rows"] <= 200 for node in nodes(plan) if "Index Name" in node), plan


@pytest.mark.parametrize("name", ["insert_users", "insert_users_once"])
async def test_a_plan_from_when_the_table_was_small_serves_when_it_has_grown(database: str, name: str) -> None:
    """A session plans a creation once. PostgreSQL reads a table of two pages rather than its index."""
    execute(database, "insert into users (email) select i || '@example.com' from generate_series(1, 60) i")
    execute(database, "vacuum analyze users")
    statement = next(each for each in statements.declared_statements() if each.name == f"users/{name}.sql")
    connection = await asyncpg.connect(**parse_url(database).asyncpg_arguments())
    try:
        await connection.execute("set plan_cache_mode = force_generic_plan")
        plan = json.loads(await connection.fetchval(f"explain (format json) {statement.sql}", *arguments(statement, 1)))
    finally:
        await connection.close()
    found = [
        each for each in nodes(plan[0]["Plan"]) if each.get("Relation Name") == "users" and "Scan" in each["Node Type"]
    ]
    assert [each.get("Index Name") for each in found] == ["users_email_key"]


# Those that requests share, and so run with one key and with many.
BATCHED = [statement.name for statement in statements.declared_statements() if statement.batched]


@pytest.mark.parametrize("keys", [1, 10, 100])
@pytest.mark.parametrize("name", BATCHED)
async def test_a_statement_is_planned_once(populated: str, name: str, keys: int) -> None:
    """PostgreSQL plans the first five executions of a prepared statement; longer than it takes to execute them."""
    statement = next(each for each in statements.declared_statements() if each.name == name)
    connection = await asyncpg.connect(**parse_url(populated).asyncpg_arguments())
    try:
        prepared = await connection.prepare(statement.sql)
        for _ in range(8):
            await connection.execute("begin")
            await prepared.fetch(*arguments(statement, keys))
            await connection.execute("rollback")
        plans = await connection.fetchrow(
            "select generic_plans, custom_plans from pg_prepared_statements where statement = $1", statement.sql
        )
    finally:
        await connection.close()
    assert tuple(plans) == (3, 5)
