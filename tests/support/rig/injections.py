"""Fault injections: each is a point in a connection's life and an action."""

import os
import sys
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Literal

Route = Literal["pooled", "direct"]


class Point(StrEnum):
    """When an injection strikes. From REQUEST on it waits for a statement: a simple query or an Execute."""

    ACCEPT = "accept"
    """The TCP connection is open; no byte was read, not even of TLS."""
    CONNECT = "connect"
    """The startup packet was read: where Neon's proxy reports that it cannot reach the compute."""
    REQUEST = "request"
    """A statement has arrived; the server never receives it."""
    TORN_REQUEST = "torn-request"
    """Half of the statement's bytes reach the server, which therefore rolls back."""
    ANSWER = "answer"
    """The server has answered and committed; the client receives nothing."""
    TORN_ANSWER = "torn-answer"
    """The server has committed; the client receives half of the answer's bytes."""
    ANSWERED = "answered"
    """The client has the whole answer; the connection ends with nothing in flight."""


LOSES_PACKETS = sys.platform == "linux" and os.geteuid() == 0
"""Whether Cut.LOSS works here: some kernels attach filters to sockets for root alone."""


class Cut(Enum):
    """How a connection ends, or stalls, without a message."""

    RESET = "reset"
    """RST: a host that crashed or a NAT that forgot."""
    CLOSE = "close"
    """FIN: an orderly end."""
    STALL = "stall"
    """Half open: no bytes and no close, until the client gives up or the rig is reset. The kernel acknowledges."""
    LOSS = "packet loss"
    """The network loses every packet from the client, so nothing is acknowledged. Needs Linux, and root on most."""


@dataclass(frozen=True, slots=True)
class Farewell:
    """An ErrorResponse, after which the connection is closed."""

    sqlstate: str
    message: str
    severity: str = "FATAL"


Action = Cut | Farewell


@dataclass(frozen=True, slots=True)
class Injection:
    """One action on one connection. `via` limits it to a route; None takes the first connection of either."""

    point: Point
    action: Action
    via: Route | None = None

    def __str__(self) -> str:
        action = self.action.value if isinstance(self.action, Cut) else self.action.sqlstate
        return f"{self.point} {action}"


STATEMENT_POINTS = tuple(Point)[2:]

SHUTDOWN = Farewell("57P01", "terminating connection due to administrator command")
"""PostgreSQL's message to each session when it stops, as when a compute is suspended or restarts."""

STARTING = Farewell("57P03", "the database system is starting up")
SHUTTING_DOWN = Farewell("57P03", "the database system is shutting down")
CRASHED = Farewell("57P02", "terminating connection because of crash of another server process")
SERVER_FULL = Farewell("53300", "sorry, too many clients already")

# PgBouncer's texts, from its source.
QUERY_WAIT_TIMEOUT = Farewell("08P01", "query_wait_timeout")
CACHED_STARTING = Farewell(
    "08P01", "server login has been failing, cached error: the database system is starting up (server_login_retry)"
)
CACHED_PASSWORD = Farewell(
    "08P01",
    'server login has been failing, cached error: password authentication failed for user "ada" (server_login_retry)',
)
CACHED_DATABASE = Farewell(
    "08P01", 'server login has been failing, cached error: database "none" does not exist (server_login_retry)'
)
SERVER_CRASHED = Farewell("08P01", "server conn crashed?")
POOLER_FULL = Farewell("08P01", "no more connections allowed (max_client_conn)")


def _neon(message: str) -> Farewell:
    # Neon's proxy has one SQLSTATE for every failure of its own, and calls each an ERROR. The texts are those of
    # https://neon.com/docs/connect/connection-errors and of its users' reports.
    return Farewell("XX000", message, "ERROR")


INSECURE = _neon("connection is insecure (try using `sslmode=require`)")
"""Neon's message to a client that does not ask for TLS."""

NEON_TRANSIENT = (
    _neon("Couldn't connect to compute node"),
    _neon("Control plane request failed"),
    _neon(
        "Failed to acquire permit to connect to the database. "
        "Too many database connection attempts are currently ongoing."
    ),
    _neon("Too many connections"),
)
NEON_PERMANENT = (
    _neon("The endpoint has been disabled. Enable it using Neon API and retry."),
    _neon("Your account or project has exceeded the compute time quota. Upgrade your plan to increase limits."),
    _neon(
        "The requested endpoint could not be found, or you don't have access to it. "
        "Please check the provided ID and try again."
    ),
)
