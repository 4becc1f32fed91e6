"""`users-api serve`."""

import logging.config
import shlex
import sys
from typing import Any

import click

from api.auth.loopback import is_loopback
from api.cli.common import explain_errors, read_settings, with_database
from api.environment import SettingsError, clean
from api.server.listening import bind, port_of, url_of
from api.server.run import run_server
from api.server.workers import prepare_environment, warn_without_authentication
from api.settings import AUTHENTICATION_MISSING, Settings
from api.telemetry.directory import shared_directory
from api.telemetry.logs import log_config

logger = logging.getLogger("api")


class _Port(click.IntRange):
    """The number of a port. PORT may be one of the addresses that Kubernetes sets."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            if isinstance(value, str):
                value = clean(value, "PORT")
        except ValueError as error:
            self.fail(f"PORT: {error}", param, ctx)
        return super().convert(value, param, ctx)


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 for all.")
@click.option(
    "--port",
    envvar="PORT",
    show_envvar=True,
    default=8000,
    show_default=True,
    type=_Port(0, 65535),
    help="Port to listen on.",
)
@click.option(
    "--workers",
    default=1,
    show_default=True,
    type=click.IntRange(1, 256),
    help="Worker processes, one for each core. Each has its own pool of POOL_MAX_SIZE connections.",
)
@click.option("--reload", is_flag=True, help="Restart when a source file changes: for development, with one worker.")
@explain_errors
def serve(host: str, port: int, workers: int, reload: bool) -> None:
    """Serve the API.

    On the embedded PostgreSQL the migrations are applied first. Run `users-api migrate` first for any other database.
    The database may be suspended or down at startup: requests wait for it, and /health responds at once.

    Without API_KEYS or JWT_ISSUER there is no authentication: anybody who reaches the port may read and write. Then
    --host must be a loopback address, unless AUTH=off is set.

    SIGTERM stops without losing a request: /ready is 503 for DRAIN_SECONDS, and the process exits within GRACE_SECONDS.
    SIGHUP replaces two or more workers one by one. New workers load the current code, .env and files in SECRETS_DIR.
    Changing these options or METRICS_PORT needs a restart.

    \b
    Examples:
      users-api serve
      users-api serve --host 0.0.0.0 --port 8080 --workers 2
    """
    if reload and workers > 1:
        raise click.UsageError("--reload works with one worker: leave out --workers")
    settings = read_settings()
    _check_authentication(settings, host)
    context = click.get_current_context()
    sockets = context.with_resource(bind(host, port, "--port"))
    port = port_of(sockets)
    url = url_of(host, port)
    settings, is_embedded = with_database(settings)
    if is_embedded:
        from api.database import migrations  # with psycopg and yoyo, a third of the time in which a server starts

        migrations.migrate(settings.direct, report=click.echo)
    for variable, database in (("DATABASE_URL", settings.pooled), ("READ_DATABASE_URL", settings.replica)):
        for note in database.notes if database else ():
            logger.warning("%s: %s", variable, note)
    directory = context.with_resource(shared_directory())
    if settings.metrics_port is not None:
        if settings.metrics_port == port:
            raise SettingsError(f"METRICS_PORT: the API itself is served on port {port}: name another one")
        if sys.platform == "win32":  # where neither httptools nor uvloop is a dependency
            raise SettingsError("METRICS_PORT: not available on Windows: unset it to have /metrics on the API's port")
        from api.server.metrics_port import serve_metrics

        # The metrics server logs before uvicorn has configured logging.
        logging.config.dictConfig(log_config(settings.log_level))
        context.with_resource(serve_metrics(directory, host, settings.metrics_port))
    prepare_environment(settings, host=host, is_embedded=is_embedded, metrics_directory=directory)
    key = "-H 'Authorization: Bearer KEY' " if settings.authentication_configured else ""
    warn_without_authentication(settings, url)
    click.echo(f"users-api serves on {url}; try:")
    click.echo(f"  curl -s {key}{shlex.quote(f'{url}/api/v1/users')}")
    sys.exit(run_server(settings, sockets, workers=workers, reload=reload))


def _check_authentication(settings: Settings, host: str) -> None:
    """Raise SettingsError if authentication is not configured and other machines can connect, unless AUTH=off."""
    if not settings.authentication_configured and settings.auth != "off" and not is_loopback(host):
        raise SettingsError(f"--host {host} is reachable from other machines, but {AUTHENTICATION_MISSING}")
