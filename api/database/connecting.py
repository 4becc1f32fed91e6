"""Connecting to PostgreSQL, the back-off, the options of the socket, and the check of a connection."""

import asyncio
import logging
import random
import socket
from contextlib import suppress

import asyncpg

from api.database.driver import socket_of
from api.database.faults import DATABASE_ERRORS
from api.database.options import DatabaseOptions
from api.errors import describe

logger = logging.getLogger("api.database")

# Longer than a compute usually takes to wake, and shorter than clients like to wait.
STUCK_SECONDS = 1.0
_CHECK_SECONDS = 2.0
SUSPECT_SECONDS = 0.5
"""The longest that an idle connection may take to answer once another has not. Meanwhile it keeps its place."""
_FIRST_DELAY = 0.05
_LONGEST_DELAY = 0.3
# Each system has some of these names: macOS calls the first one TCP_KEEPALIVE, and has no TCP_USER_TIMEOUT.
_SOCKET_OPTIONS = {
    "TCP_KEEPIDLE": 10,
    "TCP_KEEPALIVE": 10,
    "TCP_KEEPINTVL": 2,
    "TCP_KEEPCNT": 2,
    "TCP_USER_TIMEOUT": 2000,  # milliseconds
}


def log_second_attempt(name: str) -> None:
    """Log that an attempt to connect is stuck."""
    logger.info("%s: no answer to an attempt to connect: another is made beside it", name)


def delay(failures: int) -> float:
    """Return the seconds to wait after `failures` in a row, at least one: exponential back-off with jitter.

    The longest is short, since a request may wait that long after the database is back.
    """
    longest: float = min(_FIRST_DELAY * 2 ** min(failures - 1, 10), _LONGEST_DELAY)
    return longest * random.uniform(0.5, 1)  # noqa: S311 - not a secret


async def open_connection(options: DatabaseOptions) -> asyncpg.Connection:
    """Open a connection for the pool, within `connect_timeout`. Raises one of DATABASE_ERRORS."""
    arguments = options.url.asyncpg_arguments() | {"timeout": options.connect_timeout}
    connection: asyncpg.Connection = await asyncpg.connect(
        **arguments,
        statement_cache_size=options.statement_cache_size,
        # Bounds the cancellation of a statement too: a stuck connection would never acknowledge it.
        command_timeout=options.statement_timeout,
    )
    watch_network(connection)
    return connection


def watch_network(connection: asyncpg.Connection) -> None:
    """Let the kernel close a connection that the network has lost: an idle one after 12 s, else after 2 s.

    The 2 s count from the first byte that the peer's kernel does not acknowledge, or has no room for. Those of a slow
    statement are acknowledged at once, so this never ends it. The kernel of Neon's proxy answers a keepalive segment,
    which therefore keeps no compute awake. It also keeps a NAT from forgetting the connection.
    """
    if connection.is_closed():
        return  # its descriptor may be another socket's by now
    tcp = socket_of(connection)
    if tcp.family not in (socket.AF_INET, socket.AF_INET6):
        return
    with suppress(OSError):  # the connection was lost this moment
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _SOCKET_OPTIONS.items():
            if hasattr(socket, name):
                tcp.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


async def is_usable(connection: asyncpg.Connection, seconds: float = _CHECK_SECONDS) -> bool:
    """Return whether a connection answers within `seconds`, else terminate it.

    If its last statement had no answer, asyncpg first waits until PostgreSQL has acknowledged the cancellation.
    """
    # Not asyncpg's timeout, which would open a connection to cancel the check.
    timer = asyncio.get_running_loop().call_later(seconds, connection.terminate)
    try:
        await connection.execute("select 1", timeout=2 * seconds)
    except (*DATABASE_ERRORS, asyncio.CancelledError) as error:
        logger.info("a connection was dropped: %s", describe(error))
        connection.terminate()
        return False
    finally:
        timer.cancel()
    return True


async def close_connection(connection: asyncpg.Connection) -> None:
    """Close a connection that no statement uses, by force if PostgreSQL does not answer."""
    with suppress(*DATABASE_ERRORS):  # asyncpg has closed it by force
        await connection.close(timeout=_CHECK_SECONDS)
