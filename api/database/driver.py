"""The private parts of asyncpg that the service relies on, in one place; `tests/database/test_driver.py` checks them.

A write may be sent again only if it was never executed, and no public part of asyncpg tells that. None sets the options
of a socket either. So pyproject.toml caps asyncpg below its next minor release: raise the cap together with a passing
run of that test.
"""

import socket
from typing import Any, Protocol, cast

import asyncpg


class ExecutionCounter(Protocol):
    """Counts the statements that a connection was asked to execute: asyncpg/protocol/protocol.pyx, BaseProtocol."""

    @property
    def queries_count(self) -> int:
        """Goes up by one right after Execute is sent, and not for the preparation of a statement."""


def counter_of(connection: asyncpg.Connection) -> ExecutionCounter:
    """Return the counter of an open connection, which can still be read after the connection is closed.

    `Connection._protocol` (asyncpg/connection.py), which `terminate()` sets to None: so take the counter beforehand.
    """
    counter: ExecutionCounter = cast(Any, connection)._protocol
    return counter


def socket_of(connection: asyncpg.Connection) -> socket.socket:
    """Return the socket of an open connection: uvloop's has the same methods. `Connection._transport`."""
    found: socket.socket = cast(Any, connection)._transport.get_extra_info("socket")
    return found
