"""The directory in which the workers of one `serve` share their counters."""

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from api.telemetry import counters
from api.telemetry.metrics import Metrics

logger = logging.getLogger("api.telemetry")

_PREFIX = "users-api-metrics-"
_START_SECONDS = 60.0


@contextmanager
def shared_directory() -> Iterator[Path | None]:
    """Make a directory for the counters of the workers, and remove it at the end. None if it cannot be made."""
    if not hasattr(os, "pwrite"):  # Windows
        yield None
        return
    try:
        # In memory where there is such a file system: it is writable in a container whose root is not.
        parent = "/dev/shm" if os.access("/dev/shm", os.W_OK) else tempfile.gettempdir()  # noqa: S108 - see _PREFIX
        _remove_leftovers(Path(parent))
        directory = tempfile.TemporaryDirectory(prefix=_PREFIX, dir=parent, ignore_cleanup_errors=True)
    except OSError as error:
        logger.warning("/metrics has only the counters of one worker: %s", error)
        yield None
        return
    with directory as name:
        yield Path(name)


def open_metrics(directory: Path | None) -> Metrics:
    """Return the metrics of this worker, shared with the others in `directory` where that is possible."""
    if directory is not None:
        try:
            return Metrics(directory)
        except OSError as error:
            logger.warning("/metrics of this worker has only its own counters: %s", error)
    return Metrics()


def _remove_leftovers(parent: Path) -> None:
    """Remove the directories of servers that were killed: memory that the containers of a pod share outlives them."""
    for directory in parent.glob(f"{_PREFIX}*"):
        with suppress(OSError):  # Another server is removing it too.
            found = directory.lstat()
            # Directories of other users are not opened. A young one may belong to a server that starts its workers.
            ours = found.st_uid == os.geteuid() and time.time() - found.st_mtime > _START_SECONDS
            if ours and not any(is_alive for is_alive, _ in counters.read(directory)):
                shutil.rmtree(directory)
