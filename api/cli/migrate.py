"""`users-api migrate`, `migrate status` and `migrate rollback`."""

import click

from api.cli.common import explain_errors, settings_with_database
from api.database import migrations
from api.database.migration_session import LOCK_TIMEOUT_SECONDS

_lock_timeout = click.option(
    "--lock-timeout",
    default=LOCK_TIMEOUT_SECONDS,
    show_default=True,
    type=click.FloatRange(0, 86400),
    help="Seconds to wait for another run to end.",
)


@click.group(invoke_without_command=True)
@_lock_timeout
@click.pass_context
@explain_errors
def migrate(context: click.Context, lock_timeout: float) -> None:
    """Apply the pending migrations over DIRECT_URL; DATABASE_URL need not be set.

    Safe to run concurrently: one run applies them, the others wait and find nothing to do. After --lock-timeout a run
    that still waits names the session that holds the lock, and the statement that ends it. Safe to interrupt: the next
    run continues. A migration that was edited after it was applied is refused.

    DIRECT_URL must lead to PostgreSQL itself, or through a pooler in session mode. A transaction pooler is refused
    before anything is changed: it would keep the lock and the settings of migrations on sessions that others share.

    Exit code 1 if a migration fails or the lock is not free in time, 2 if the settings cannot be used, else 0.

    \b
    Examples:
      users-api migrate
      users-api migrate --lock-timeout 600
    """
    if context.invoked_subcommand is None:
        settings, _ = settings_with_database()
        if not migrations.migrate(settings.direct, report=click.echo, lock_timeout=lock_timeout):
            click.echo("nothing to apply: the database is up to date")


@migrate.command("status")
@explain_errors
def migrate_status() -> None:
    """Show which migrations are applied, pending, edited since, or missing. It only reads, and takes no lock."""
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
@_lock_timeout
@explain_errors
def migrate_rollback(yes: bool, lock_timeout: float) -> None:
    """Undo the newest migration, and lose the data in its tables, after a confirmation.

    It needs the lock that `users-api migrate` needs, waits for it in the same way, and has the same exit codes.
    """
    settings, _ = settings_with_database()
    applied = [row.id for row in migrations.status(settings.direct) if row.applied_at]
    if not applied:
        click.echo("nothing to roll back: no migration is applied")
        return
    if not yes:
        click.confirm(f"Undo {applied[-1]}? The data in its tables will be lost", abort=True)
    migrations.rollback(settings.direct, report=click.echo, lock_timeout=lock_timeout)
