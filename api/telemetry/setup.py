"""What is set up once, at the start of `serve` and of each of its workers."""

import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from api.settings import SettingsError
from api.telemetry import counters
from api.telemetry.metrics import Metrics, shared_registry
from api.telemetry.port import MetricsServer

if TYPE_CHECKING:
    from api.telemetry.tracing import Tracing

logger = logging.getLogger("api.telemetry")

_DIRECTORY = "USERS_API_METRICS_DIRECTORY"
"""Where the workers of one `serve` count, which tells them by this variable."""
_PREFIX = "users-api-metrics-"
_START_SECONDS = 60.0
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
    off = (
        os.environ.get("OTEL_TRACES_EXPORTER", "").strip().lower() == "none"
        or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    )
    if not asked or off:
        return None
    try:
        from api.telemetry import tracing

        return tracing.tracing_from_environment()
    except (ImportError, LookupError) as error:
        # A platform may set them for every container, so that this is no reason not to serve.
        logger.warning("%s is set, but there are no traces: %s; pip install 'users-api[otel]'", asked[0], error)
    except ValueError as error:  # of a variable
        logger.warning("%s is set, but there are no traces: %s", asked[0], error)
    return None


@contextmanager
def shared_metrics() -> Iterator[Path | None]:
    """A directory for what the workers that are started meanwhile count; None where there cannot be one."""
    if not hasattr(os, "pwrite"):  # Windows
        yield None
        return
    try:
        # In memory where the system has such a place, which can be written in a container whose root cannot.
        place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else tempfile.gettempdir()  # noqa: S108 - see _PREFIX
        _remove_leftovers(Path(place))
        directory = tempfile.TemporaryDirectory(prefix=_PREFIX, dir=place, ignore_cleanup_errors=True)
    except OSError as error:
        logger.warning("each worker counts for itself alone: %s", error)
        yield None
        return
    with directory as name:
        os.environ[_DIRECTORY] = name
        yield Path(name)


def _remove_leftovers(place: Path) -> None:
    """Remove the directories of servers that were killed. Memory that a pod's containers share outlives them."""
    for directory in place.glob(f"{_PREFIX}*"):
        with suppress(OSError):  # Another server removes it too.
            found = directory.lstat()
            # What is in those of others is not even looked at; a young one's server may be about to start its workers.
            ours = found.st_uid == os.geteuid() and time.time() - found.st_mtime > _START_SECONDS
            if ours and not any(lives for lives, _ in counters.read(directory)):
                shutil.rmtree(directory)


def serve_metrics(directory: Path | None, host: str, port: int) -> None:
    """Serve what the workers count, from a thread of this process. Raises SettingsError where that cannot be."""
    if directory is None:
        raise SettingsError(
            "METRICS_PORT: there is no directory to share what the workers count in: let /dev/shm, or what TMPDIR "
            "names, be written, or leave METRICS_PORT out, for /metrics"
        )
    try:
        server = MetricsServer(shared_registry(directory), host, port)
    except OSError as error:
        raise SettingsError(f"METRICS_PORT: cannot listen on port {port} of {host}: {error.strerror}") from None
    threading.Thread(target=server.serve_forever, daemon=True).start()
