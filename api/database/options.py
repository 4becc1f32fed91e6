"""The options of a database, made from the settings here, and nowhere else in `api/database/`."""

from dataclasses import dataclass
from typing import NamedTuple

from api.neon.drivers import DatabaseURL
from api.settings import Settings


@dataclass(frozen=True, slots=True)
class DatabaseOptions:
    """The options of one database and its pool; durations in seconds. `name` is the URL's variable, for the log."""

    name: str
    url: DatabaseURL
    acquire_timeout: float
    connect_timeout: float
    statement_timeout: float
    statement_cache_size: int
    pool_min_size: int
    pool_max_size: int
    pool_idle_seconds: float


class Limits(NamedTuple):
    """The bounds of one batcher: statements in flight, calls in one of them, calls in the queue, and seconds in it."""

    in_flight: int
    max_size: int
    max_waiting: int
    max_wait_seconds: float


def batch_limits(settings: Settings) -> Limits | None:
    """Return the bounds of each batcher; None if requests share no statements."""
    if not settings.batching:
        return None
    return Limits(
        settings.batch_in_flight,
        settings.batch_max_size,
        settings.batch_max_waiting,
        max_wait_seconds=settings.acquire_timeout_seconds,
    )


def database_options(settings: Settings) -> DatabaseOptions:
    """Return the options of the primary, behind DATABASE_URL. Raises SettingsError if that is not set."""
    return _options(settings, "DATABASE_URL", settings.pooled, settings.acquire_timeout_seconds)


def replica_options(settings: Settings) -> DatabaseOptions | None:
    """Return the options of the replica, behind READ_DATABASE_URL; None if that is not set.

    It waits no longer for a connection than REPLICA_WAIT_SECONDS: the primary answers after that.
    """
    if settings.replica is None:
        return None
    return _options(settings, "READ_DATABASE_URL", settings.replica, settings.replica_wait_seconds)


def _options(settings: Settings, name: str, url: DatabaseURL, acquire_timeout: float) -> DatabaseOptions:
    return DatabaseOptions(
        name=name,
        url=url,
        acquire_timeout=acquire_timeout,
        # Shorter than a request waits, so that an attempt that gets stuck leaves time for another.
        connect_timeout=min(url.connect_timeout or acquire_timeout, acquire_timeout * 2 / 3),
        statement_timeout=settings.statement_timeout_seconds,
        statement_cache_size=settings.statement_cache_size,
        pool_min_size=settings.pool_min_size,
        pool_max_size=settings.pool_max_size,
        pool_idle_seconds=settings.pool_idle_seconds,
    )
