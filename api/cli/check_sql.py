"""`users-api check-sql`."""

import asyncio
import sys

import asyncpg
import click

from api.app import RESOURCES
from api.cli.common import explain_errors, settings_with_database
from api.database import statements
from api.errors import MigrationError, describe
from api.resources.catalogue import Gaps, find_gaps
from api.settings import Settings


@click.command("check-sql")
@explain_errors
def check_sql() -> None:
    """Prepare every SQL file over DATABASE_URL and compare its types with those that the code declares.

    PostgreSQL also says whether the role may run each statement. A privilege that is missing is printed as the GRANT to
    run. Nothing is executed or changed.

    The unique indexes, exclusion constraints and foreign keys of these tables are compared with those that the code
    knows. One of your own is named, and so is a foreign key without an index, with the statement that creates it.

    Exit code 1 if a statement, or a constraint that the code knows, differs, since the schema is older or newer than
    the code, or if a privilege is missing; 2 if the settings cannot be used, else 0.
    """
    settings, _ = settings_with_database()
    (differences, grants), gaps = asyncio.run(_check_sql(settings))
    mismatches = [*differences, *gaps.misfits]
    for line in (*mismatches, *gaps.unnamed, *gaps.unindexed):
        click.echo(line, err=True)
    for grant in grants:
        click.echo(f"a privilege is missing: run as the owner of the tables: {grant};", err=True)
    if mismatches and not grants:
        click.echo("run `users-api migrate`; if none is pending, deploy the release that fits this database", err=True)
    if mismatches or grants:
        sys.exit(1)
    click.echo(f"{len(statements.declared_statements())} statements fit the database")


async def _check_sql(settings: Settings) -> tuple[statements.Findings, Gaps]:
    try:
        # Without the cache a statement is prepared without a name, which leaves nothing on a session of the pooler.
        connection = await asyncpg.connect(**settings.pooled.asyncpg_arguments(), statement_cache_size=0)
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise MigrationError(f"DATABASE_URL: cannot connect: {describe(error)}") from None
    try:
        findings = await statements.check_statements(connection)
        return findings, await find_gaps(connection, RESOURCES, statements.used_tables())
    finally:
        await connection.close()
