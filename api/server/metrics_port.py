"""METRICS_PORT: a second server for /metrics alone, in a thread of the process that serves or supervises."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from prometheus_client import CollectorRegistry

from api.environment import SettingsError
from api.http.resource import Routes
from api.server.listening import bind
from api.server.protocol import HTTPProtocol
from api.service.metrics import metrics_route
from api.telemetry.metrics import shared_registry

MAX_CONNECTIONS = 16
MAX_SECONDS = 10.0
_STOP_SECONDS = 2.0


class MetricsProtocol(HTTPProtocol):
    """HTTPProtocol for at most MAX_CONNECTIONS at once, each closed `max_seconds` after it was opened.

    The port needs no credentials. Clients that send or read nothing must not use up the descriptors of the process,
    which serves the API too, or supervises it.
    """

    max_seconds = MAX_SECONDS

    def connection_made(self, transport: Any) -> None:
        """Start the timer of a new connection, or close it if there are too many."""
        super().connection_made(transport)
        self._deadline = self.loop.call_later(self.max_seconds, transport.abort)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer of a connection."""
        self._deadline.cancel()
        super().connection_lost(exc)


class MetricsServer(uvicorn.Server):
    """uvicorn's server for a registry, at /metrics. It closes without waiting for a client."""

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__(
            uvicorn.Config(
                Routes([metrics_route(registry, compresses=True)]),
                loop="uvloop",
                http=MetricsProtocol,
                lifespan="off",
                log_config=None,  # as it is
                ws="none",
                access_log=False,
                proxy_headers=False,
                server_header=False,
                headers=[("server", "users-api"), ("connection", "close")],
                backlog=MAX_CONNECTIONS,
            )
        )

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close, and abort every connection."""
        for connection in self.server_state.connections:
            connection.transport.abort()
        await super().shutdown(sockets)


@contextmanager
def serve_metrics(directory: Path | None, host: str, port: int) -> Iterator[MetricsServer]:
    """Serve the counters of a directory from a thread, until the context ends. Raises SettingsError if that fails."""
    if directory is None:
        raise SettingsError(
            "METRICS_PORT: the workers have no directory to share their counters in: make /dev/shm, or the directory "
            "that TMPDIR names, writable, or unset METRICS_PORT to have /metrics on the port of the API"
        )
    with bind(host, port, "METRICS_PORT") as sockets:
        server = MetricsServer(shared_registry(directory))
        thread = threading.Thread(target=server.run, args=(sockets,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.should_exit = True
            thread.join(_STOP_SECONDS)
