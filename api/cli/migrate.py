"""`users-api migrate`, `migrate status` and `migrate rollback`."""

import click

from api.cli.common import explain_errors, settings_with_database
from api.database import migrations


@click.group(invoke_without_command=True)
@click.pass_context
@explain_errors
def migrate(context: click.Context) -> None:
    """Apply the pending migrations over DIRECT_URL.

    Safe to run concurrently: one run applies them, the others wait and find nothing to do. Safe to interrupt: the
    next run continues. A migration that was edited after it was applied is refused.
    """
    if context.invoked_subcommand is None:
        settings, _ = settings_with_database()
        if not migrations.migrate(settings.direct, report=click.echo):
            click.echo("nothing to apply: the database is up to date")


@migrate.command("status")
@explain_errors
def migrate_status() -> None:
    """Show which migrations are applied, pending, edited since, or missing."""
    settings, _ = settings_with_database()
    rows = [
        (row.id, row.state, row.applied_at.strftime("%Y-%m-%d %H:%M:%S UTC") if row.applied_at else "-")
        for row in migrations.status(settings.direct)
    ]
    table = [("migration", "state", "applied at"), *rows]
    widths = [max(len(row[column]) for row in table) for column in range(3)]
    for row in table:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@migrate.command("rollback")
@click.option("--yes", is_flag=True, help="Skip the confirmation.")
@explain_errors
def migrate_rollback(yes: bool) -> None:
    """Undo the newest migration, and lose the data in its tables, after a confirmation."""
    settings, _ = settings_with_database()
    applied = [row.id for row in migrations.status(settings.direct) if row.applied_at]
    if not applied:
        click.echo("nothing to roll back: no migration is applied")
        return
    if not yes:
        click.confirm(f"Undo {applied[-1]}? The data in its tables will be lost", abort=True)
    migrations.rollback(settings.direct, report=click.echo)
