"""The application as a worker makes it, and the environment that `serve` prepares for its workers.

Workers are new processes. They read the settings when they start, so SIGHUP applies changed ones. What `serve` decided
once for all workers is in environment variables that only this module sets and reads.
"""

import gc
import logging
import os
from pathlib import Path

from starlette.types import ASGIApp

from api.app import create_app
from api.auth.loopback import is_loopback
from api.environment import warn_of_misspelt_names
from api.settings import VARIABLES, Settings, load_settings
from api.telemetry.directory import open_metrics
from api.telemetry.otel import tracing_from_environment

logger = logging.getLogger("api.workers")

_LOOPBACK = "USERS_API_LOOPBACK"
_METRICS_DIRECTORY = "USERS_API_METRICS_DIRECTORY"
_METRICS_PORT = "USERS_API_METRICS_PORT"


def prepare_environment(
    settings: Settings, *, host: str, is_embedded: bool = False, metrics_directory: Path | None = None
) -> None:
    """Set the variables that workers read: what `serve` decided, and they cannot derive from their settings.

    With `is_embedded` the settings are those of the embedded database, which the environment does not name.
    """
    os.environ[_LOOPBACK] = "yes" if is_loopback(host) else ""
    os.environ[_METRICS_DIRECTORY] = str(metrics_directory or "")
    os.environ[_METRICS_PORT] = str(settings.metrics_port or "")
    if is_embedded and settings.database_url is not None:
        os.environ["DATABASE_URL"] = os.environ["DIRECT_URL"] = settings.database_url.get_secret_value()


def warn_without_authentication(settings: Settings, where: str) -> None:
    """Log one warning if authentication is not configured. `where` names the server."""
    if not settings.authentication_configured:
        reason = "AUTH=off" if settings.auth == "off" else "neither API_KEYS nor JWT_ISSUER is set"
        logger.warning("%s: anybody who reaches %s, through a proxy too, may read and write every user", reason, where)


def worker_settings() -> Settings:
    """Return the current settings, except for what `serve` decided. Under another server nothing is decided."""
    settings = load_settings()
    if _LOOPBACK not in os.environ:
        warn_of_misspelt_names(VARIABLES)
        warn_without_authentication(settings, "this server")
    if os.environ.get(_LOOPBACK) and not settings.authentication_configured:
        # Only this machine can connect, so authentication may be off.
        settings = settings.model_copy(update={"auth": "off"})
    served = os.environ.get(_METRICS_PORT)
    if served is not None and served != str(settings.metrics_port or ""):
        logger.warning("a change of METRICS_PORT needs a restart: it stays %s until then", served or "unset")
        settings = settings.model_copy(update={"metrics_port": int(served) if served else None})
    return settings


def app_from_environment() -> ASGIApp:
    """Return the application with the environment's settings: the factory that uvicorn calls in each worker."""
    directory = os.environ.get(_METRICS_DIRECTORY)
    app = create_app(
        worker_settings(), open_metrics(Path(directory) if directory else None), tracing_from_environment()
    )
    # The objects so far live as long as the process, so the garbage collector need not scan them again. Nor need it
    # scan the requests in flight after every 700 new objects: that took a sixth of the time of a batched GET.
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000)
    return app
