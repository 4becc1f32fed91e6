"""The roles of docs/neon.md: each can do its work and no more, and what a role lacks is named by the GRANT to run."""

import asyncio
from typing import Any

import asyncpg
import psycopg
import pytest

import api.app  # noqa: F401 - declares the statements
from api.database import migrations
from api.database.statements import Findings, check_statements
from api.neon.url import parse_url
from tests.support.commands import run
from tests.support.database import MIGRATIONS, execute
from tests.support.rig import NeonDatabase
from tests.support.roles import GRANTS_SQL, OWNER, READER, SERVER, as_role

GRANTED = f"""
    select relname, privilege_type from pg_class, aclexplode(relacl) where grantee = '{SERVER}'::regrole order by 1, 2
"""


def check(url: str, **arguments: Any) -> Findings:
    async def run() -> Findings:
        connection = await asyncpg.connect(**parse_url(url).asyncpg_arguments(), **arguments)
        try:
            return await check_statements(connection)
        finally:
            await connection.close()

    return asyncio.run(run())


def test_each_privilege_that_the_server_has_is_needed_and_missed(database: str) -> None:
    """The catalogue is the list: without any one of them the check names that one, and running its GRANT suffices."""
    server, owner = as_role(database, SERVER), as_role(database, OWNER)
    assert check(server) == Findings([], [])
    granted = execute(database, GRANTED)
    documented = [(table, privilege) for table, privilege in granted if f"public.{table}" in GRANTS_SQL]
    assert len(documented) == 8
    for table, privilege in documented:
        execute(owner, f"revoke {privilege} on {table} from {SERVER}")
        mismatches, grants = check(server)
        assert f"permission denied for table {table} (SQLSTATE 42501)" in mismatches[0]
        assert grants == [f"grant {str(privilege).lower()} on public.{table} to {SERVER}"]
        execute(owner, grants[0])
    assert execute(database, GRANTED) == granted
    assert check(server) == Findings([], [])


def test_a_role_without_any_privilege_gets_what_the_document_grants(database: str) -> None:
    granted = execute(database, GRANTED)
    execute(
        database,
        f"revoke all on users, idempotency_keys from {SERVER}; revoke usage on schema public from {SERVER}, public;"
        "revoke execute on function user_body from public",
    )
    _, grants = check(as_role(database, SERVER))
    assert [grant.split(" to ")[0].split("(")[0] for grant in grants] == [
        "grant usage on schema public",
        "grant select, insert, update, delete on public.idempotency_keys",
        "grant select, insert, update, delete on public.users",
        "grant execute on function public.user_body",
    ]
    execute(database, "; ".join(grants))
    assert execute(database, GRANTED) == granted
    assert check(as_role(database, SERVER)) == Findings([], [])


def test_columns_that_are_granted_one_by_one_suffice(database: str) -> None:
    """PostgreSQL judges, not a list of privileges: the same right can be granted in several ways."""
    execute(database, f"revoke select on users from {SERVER}")
    columns = "id, email, name, version, created_at, updated_at, body"
    execute(database, f"grant select ({columns}) on users to {SERVER}")
    assert check(as_role(database, SERVER)) == Findings([], [])


def test_the_owner_migrates(database: str) -> None:
    owner = parse_url(as_role(database, OWNER))
    assert migrations.rollback(owner) == MIGRATIONS[-1]
    assert migrations.migrate(owner) == [MIGRATIONS[-1]]


@pytest.mark.parametrize(
    "sql",
    ["create table mine ()", "drop table users", "truncate users", "alter table users add mine int", "table yoyo_lock"],
)
def test_the_server_reads_and_writes_rows_and_nothing_else(database: str, sql: str) -> None:
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        execute(as_role(database, SERVER), sql)


def test_the_reader_exports_and_writes_nothing(database: str) -> None:
    execute(database, "insert into users (email) values ('ada@example.com')")
    reader = as_role(database, READER)
    assert '"email":"ada@example.com"' in run("export", DIRECT_URL=reader).stdout
    for sql in ("insert into users (email) values ('b@example.com')", "delete from users", "table idempotency_keys"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            execute(reader, sql)


def test_check_sql_names_the_grant(database: str) -> None:
    execute(database, f"revoke delete on users from {SERVER}")
    url = as_role(database, SERVER)
    ended = run("check-sql", DATABASE_URL=url)
    assert ended.returncode == 1
    lines = ended.stderr.splitlines()
    assert lines[0].startswith("sql/users/delete_users.sql, declared at api/users/statements.py:")
    assert lines[0].endswith("PostgreSQL refuses it: permission denied for table users (SQLSTATE 42501)")
    assert f"a privilege is missing: run as the owner of the tables: grant delete on public.users to {SERVER};" in lines


def test_through_a_pooler_that_cannot_prepare_statements(neon: NeonDatabase) -> None:
    assert check(neon.pooled, statement_cache_size=0) == Findings([], [])
