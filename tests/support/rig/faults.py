"""What the fault proxy can do to a connection: a fault is a point in its life and an action."""

from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Literal

Route = Literal["pooled", "direct"]


class Point(StrEnum):
    """When a fault strikes. From REQUEST on it waits for a statement: a simple query or an Execute."""

    ACCEPT = "accept"
    """The TCP connection is made; no byte was read, TLS included."""
    CONNECT = "connect"
    """The startup packet was read: where Neon's proxy reports that it cannot reach the compute."""
    REQUEST = "request"
    """A statement has come; the server never sees it."""
    TORN_REQUEST = "torn-request"
    """Half of the statement's bytes reach the server, which therefore rolls back."""
    ANSWER = "answer"
    """The server has answered and committed; the client sees nothing of it."""
    TORN_ANSWER = "torn-answer"
    """The server has committed; the client sees half of the answer's bytes."""
    ANSWERED = "answered"
    """The client has the whole answer; the connection ends while nothing is on its way."""


class Cut(Enum):
    """How a connection ends, or does not, without a word."""

    RESET = "reset"
    """RST: a host that crashed or a NAT that forgot."""
    CLOSE = "close"
    """FIN: an orderly end."""
    STALL = "stall"
    """Half open: nothing flows any more and nothing closes, until the client gives up or the rig is reset."""


@dataclass(frozen=True, slots=True)
class Farewell:
    """An ErrorResponse, after which the connection is closed."""

    sqlstate: str
    message: str
    severity: str = "FATAL"


Action = Cut | Farewell


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that happens to one connection. `via` limits it to a route, None takes the first that comes."""

    point: Point
    action: Action
    via: Route | None = None

    def __str__(self) -> str:
        action = self.action.value if isinstance(self.action, Cut) else self.action.sqlstate
        return f"{self.point} {action}"


STATEMENT_POINTS = tuple(Point)[2:]

SHUTDOWN = Farewell("57P01", "terminating connection due to administrator command")
"""What PostgreSQL says to each session when it stops, as a compute does that falls asleep or restarts."""

POOLER_FULL = Farewell("08P01", "no more connections allowed (max_client_conn)")
SERVER_FULL = Farewell("53300", "sorry, too many clients already")


def _neon(message: str) -> Farewell:
    # Neon's proxy has one SQLSTATE for every failure of its own, and calls each an ERROR. The texts are those of
    # https://neon.com/docs/connect/connection-errors and of its users' reports.
    return Farewell("XX000", message, "ERROR")


INSECURE = _neon("connection is insecure (try using `sslmode=require`)")
"""What Neon's proxy says to a client that does not ask for TLS."""

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
