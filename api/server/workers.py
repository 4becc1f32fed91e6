"""What `serve` tells its workers. They read the settings when they start, which may have changed since it did."""

import gc
import logging
import os

from starlette.types import ASGIApp

from api.app import create_app
from api.auth.loopback import is_loopback
from api.settings import Settings, load_settings
from api.telemetry.setup import metrics_from_environment, tracing_from_environment

logger = logging.getLogger("api.workers")

_LOOPBACK = "USERS_API_LOOPBACK"
_METRICS_PORT = "USERS_API_METRICS_PORT"


def tell_workers(settings: Settings, host: str) -> None:
    """Note in the environment, for the workers that are started, what they cannot see from their settings."""
    os.environ[_LOOPBACK] = "yes" if is_loopback(host) else ""
    os.environ[_METRICS_PORT] = str(settings.metrics_port or "")


def worker_settings() -> Settings:
    """The settings now, but for what `serve` decided when it began. Under another server there is nothing of that."""
    settings = load_settings()
    if os.environ.get(_LOOPBACK) and not settings.authentication_configured:
        # Nobody is asked who they are, since only this machine can come.
        settings = settings.model_copy(update={"auth": "off"})
    served = os.environ.get(_METRICS_PORT)
    if served is not None and served != str(settings.metrics_port or ""):
        logger.warning("METRICS_PORT has changed, which takes a restart: it stays %s until then", served or "unset")
        settings = settings.model_copy(update={"metrics_port": int(served) if served else None})
    return settings


def app_from_environment() -> ASGIApp:
    """The application with the environment's settings: what each uvicorn worker calls."""
    app = create_app(worker_settings(), metrics_from_environment(), tracing_from_environment())
    # What there is by now stays, so that the garbage collector need not look at it again; nor need it look at the
    # requests under way each time that there are 700 objects more. It took a sixth of the time of a batched GET.
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000)
    return app
