"""`users-api check-sql`."""

import asyncio
import sys

import asyncpg
import click

import api.app  # noqa: F401 - declares the statements that check-sql checks
from api.cli.common import explain_errors, settings_with_database
from api.database import statements
from api.errors import MigrationError, describe
from api.settings import Settings


@click.command("check-sql")
@explain_errors
def check_sql() -> None:
    """Prepare every SQL file over DATABASE_URL and compare its types with those that the code declares.

    PostgreSQL also says whether the role may run each statement. A privilege that is missing is printed as the GRANT to
    run. Nothing is executed or changed.

    Exit code 1 if any differs, since the schema is older or newer than the code, or if a privilege is missing; 2 if the
    settings cannot be used, else 0.
    """
    settings, _ = settings_with_database()
    mismatches, grants = asyncio.run(_check_sql(settings))
    for mismatch in mismatches:
        click.echo(mismatch, err=True)
    for grant in grants:
        click.echo(f"a privilege is missing: run as the owner of the tables: {grant};", err=True)
    if mismatches and not grants:
        click.echo("run `users-api migrate`; if none is pending, deploy the release that fits this database", err=True)
    if mismatches or grants:
        sys.exit(1)
    click.echo(f"{len(statements.declared_statements())} statements fit the database")


async def _check_sql(settings: Settings) -> statements.Findings:
    try:
        # Without the cache a statement is prepared without a name, which leaves nothing on a session of the pooler.
        connection = await asyncpg.connect(**settings.pooled.asyncpg_arguments(), statement_cache_size=0)
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise MigrationError(f"DATABASE_URL: cannot connect: {describe(error)}") from None
    try:
        return await statements.check_statements(connection)
    finally:
        await connection.close()
