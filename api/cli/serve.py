"""`users-api serve`."""

import logging
import sys

import click
import uvicorn
from uvicorn.supervisors import ChangeReload, Multiprocess

from api.auth.loopback import is_loopback
from api.cli.common import explain_errors, settings_with_database
from api.database import migrations
from api.server.lifecycle import Server
from api.server.supervisor import Supervisor
from api.server.workers import tell_workers
from api.settings import AUTHENTICATION_MISSING, Settings, SettingsError, load_settings
from api.telemetry.logs import log_config
from api.telemetry.setup import serve_metrics, shared_metrics

_WINDOWS = sys.platform == "win32"


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0 for every one.")
@click.option(
    "--port",
    envvar="PORT",
    show_envvar=True,
    default=8000,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="Port to listen on.",
)
@click.option(
    "--workers",
    default=1,
    show_default=True,
    type=click.IntRange(1, 256),
    help="Processes that serve; one for each core. Each has a pool of its own of POOL_MAX_SIZE connections.",
)
@click.option("--reload", is_flag=True, help="Restart when a file of the source changes: for development, one worker.")
@explain_errors
def serve(host: str, port: int, workers: int, reload: bool) -> None:
    """Serve the API.

    On the embedded PostgreSQL the migrations are applied first; on any other database run `users-api migrate` before.
    The database may be asleep or down at the start: requests wait for it, /health answers at once.

    Without API_KEYS or JWT_ISSUER nobody is asked who they are: then only an address of this machine alone is served.

    SIGTERM stops without losing a request: /ready says no for DRAIN_SECONDS, and all of it takes GRACE_SECONDS at most.
    SIGHUP replaces two workers or more one by one, with the code and the .env that are there then. The options here and
    METRICS_PORT stay as they are until a restart.

    \b
    Examples:
      users-api serve
      users-api serve --host 0.0.0.0 --port 8080 --workers 2
    """
    if reload and workers > 1:
        raise click.UsageError("--reload works with one worker: leave out --workers")
    _check_who_can_come_in(load_settings(), host)
    settings, is_embedded = settings_with_database()
    if is_embedded:
        migrations.migrate(settings.direct, report=click.echo)
    for variable, url in (("DATABASE_URL", settings.pooled), ("READ_DATABASE_URL", settings.replica)):
        for note in url.notes if url else ():
            logging.getLogger("api").warning("%s: %s", variable, note)
    directory = click.get_current_context().with_resource(shared_metrics())
    if settings.metrics_port is not None:
        if settings.metrics_port == port:
            raise SettingsError(f"METRICS_PORT: the API itself is served on port {port}: name another one")
        serve_metrics(directory, host, settings.metrics_port)
    tell_workers(settings, host)
    click.echo(f"users-api serves on http://{host}:{port}; try:")
    key = "-H 'Authorization: Bearer KEY' " if settings.authentication_configured else ""
    click.echo(f"  curl -s {key}http://{host}:{port}/api/v1/users")
    config = uvicorn.Config(
        "api.server.workers:app_from_environment",
        factory=True,
        host=host,
        port=port,
        workers=workers,
        reload=reload,
        # Named, since uvicorn falls back to slower ones in silence where they are missing.
        loop="auto" if _WINDOWS else "uvloop",
        http="auto" if _WINDOWS else "api.server.protocol:HTTPProtocol",
        lifespan="on",
        log_config=log_config(settings.log_level),
        ws="none",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        # Above the idle time of the usual load balancers (60 s), which would see a reset as a 502 otherwise.
        timeout_keep_alive=75,
    )
    sys.exit(_run(config, settings))


def _run(config: uvicorn.Config, settings: Settings) -> int:
    """Serve until a signal ends it. Returns the exit code."""
    drain, grace = settings.drain_seconds, settings.grace_seconds
    if config.reload:  # for somebody who waits for it
        server = Server(config, drain_seconds=0, grace_seconds=grace)
        ChangeReload(config, target=server.run, sockets=[config.bind_socket()]).run()
    elif config.workers == 1:
        Server(config, drain_seconds=drain, grace_seconds=grace).run()
    elif _WINDOWS:  # which lacks the signals of our own supervisor
        Multiprocess(config, sockets=[config.bind_socket()]).run()
    else:
        return Supervisor(config, grace_seconds=grace).run()
    return 0


def _check_who_can_come_in(settings: Settings, host: str) -> None:
    """Raises SettingsError where nobody would be asked who they are, and others than this machine can come."""
    if settings.authentication_configured or is_loopback(host):
        return
    if settings.auth != "off":
        raise SettingsError(f"--host {host}: others can reach it, and {AUTHENTICATION_MISSING}")
    logging.getLogger("api").warning("AUTH=off: whoever reaches %s can read and change every user", host)
