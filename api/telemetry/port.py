"""METRICS_PORT: /metrics from a thread of its own, for whoever reaches the port."""

import gzip
import logging
import socket
import sys
import threading
import time
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import gzip_accepted

from api.telemetry.families import render

logger = logging.getLogger("api.telemetry")

MAX_CONNECTIONS = 16
MAX_SECONDS = 10.0


class MetricsServer(ThreadingTCPServer):
    """Answers scrapes, each in a thread.

    prometheus_client's own server waits for ever for a client that says nothing, with a thread and a descriptor, and
    those are the API's where one process does both. Here a connection takes `max_seconds` at most, from its beginning
    to its end, and what comes beyond MAX_CONNECTIONS at once is closed.
    """

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = MAX_CONNECTIONS
    max_seconds = MAX_SECONDS

    def __init__(self, registry: CollectorRegistry, host: str, port: int) -> None:
        self.registry = registry
        self._lock = threading.Lock()  # Whoever ends a connection may not find another one in its place.
        self._accepted: dict[socket.socket, float] = {}
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        self.address_family, _, _, _, address = found[0]
        super().__init__(address, _Handler)  # type: ignore[arg-type] # an address of IPv6 has four parts

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Take a connection, if there are not too many."""
        with self._lock:
            if len(self._accepted) >= MAX_CONNECTIONS:
                return False
            self._accepted[request] = time.monotonic()
            return True

    def service_actions(self) -> None:
        """End the connections that take too long; called twice a second."""
        with self._lock:
            for connection, since in self._accepted.items():
                if time.monotonic() - since > self.max_seconds:
                    _end(connection)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection."""
        with self._lock:
            self._accepted.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log what went wrong, unless it is that the client went away."""
        error = sys.exception()
        if not isinstance(error, ConnectionError):
            logger.error("the metrics could not be told", exc_info=error)


class _Handler(BaseHTTPRequestHandler):
    """One request; the connection ends with its answer, as HTTP/1.0 has it."""

    server: MetricsServer

    def do_GET(self) -> None:
        """Answer a scrape."""
        if self.path.partition("?")[0] != "/metrics":
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        content, media_type = render(self.server.registry, self.headers.get("accept", ""))
        self.send_response(HTTPStatus.OK)
        self.send_header("content-type", media_type)
        if gzip_accepted(self.headers.get("accept-encoding", "")):
            content = gzip.compress(content)
            self.send_header("content-encoding", "gzip")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_HEAD = do_GET  # noqa: N815 - the name that http.server looks for

    def version_string(self) -> str:
        """What serves, not which Python."""
        return "users-api"

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: it would be no JSON, and hold what anybody sends."""


def _end(connection: socket.socket) -> None:
    """Have the thread that reads or writes find that the client has gone."""
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
