"""What is set up once, at the start of `serve` and of each of its workers."""

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import start_http_server

from api.settings import SettingsError
from api.telemetry.metrics import Metrics, shared_registry

if TYPE_CHECKING:
    from api.telemetry.tracing import Tracing

logger = logging.getLogger("api.telemetry")

_DIRECTORY = "USERS_API_METRICS_DIRECTORY"
"""Where the workers of one `serve` count, which tells them by this variable."""
_WANTS_TRACES = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_TRACES_EXPORTER")


def metrics_from_environment() -> Metrics:
    """What this worker counts, where its siblings do."""
    directory = os.environ.get(_DIRECTORY)
    if directory:
        try:
            return Metrics(Path(directory))
        except OSError as error:
            logger.warning("this worker counts for itself alone: %s", error)
    return Metrics()


def tracing_from_environment() -> "Tracing | None":
    """Tracing where a standard variable of OpenTelemetry asks for it, and it is installed."""
    asked = [name for name in _WANTS_TRACES if os.environ.get(name)]
    off = os.environ.get("OTEL_TRACES_EXPORTER") == "none" or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    if not asked or off:
        return None
    try:
        from api.telemetry import tracing

        return tracing.tracing_from_environment()
    except (ImportError, LookupError) as error:
        # A platform may set them for every container, so that this is no reason not to serve.
        logger.warning("%s is set, but there are no traces: %s; pip install 'users-api[otel]'", asked[0], error)
        return None


@contextmanager
def shared_metrics() -> Iterator[Path | None]:
    """A directory for what the workers that are started meanwhile count; None where there cannot be one."""
    if not hasattr(os, "pwrite"):  # Windows
        yield None
        return
    # In memory where the system has such a place, which can be written in a container whose root cannot.
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108 - the name below it is random
    try:
        directory = tempfile.TemporaryDirectory(prefix="users-api-metrics-", dir=memory, ignore_cleanup_errors=True)
    except OSError as error:
        logger.warning("each worker counts for itself alone: %s", error)
        yield None
        return
    with directory as name:
        os.environ[_DIRECTORY] = name
        yield Path(name)


def serve_metrics(directory: Path | None, host: str, port: int) -> None:
    """Serve what the workers count, from a thread of this process. Raises SettingsError where that cannot be."""
    if directory is None:
        raise SettingsError("METRICS_PORT: the workers cannot share what they count here; leave it out, for /metrics")
    try:
        start_http_server(port, host, shared_registry(directory))
    except OSError as error:
        raise SettingsError(f"METRICS_PORT: cannot listen on port {port} of {host}: {error.strerror}") from None
