"""The private parts of asyncpg that the service relies on, in one place; `tests/database/test_driver.py` checks them.

A write may be sent again only if it was never executed, and no public part of asyncpg tells that. None sets the options
of a socket either, and the public way to a prepared statement is a long one. So pyproject.toml caps asyncpg below its
next minor release: raise the cap together with a passing run of that test.
"""

import socket
from collections.abc import Sequence
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


async def fetch(
    connection: asyncpg.Connection, sql: str, arguments: Sequence[Any], seconds: float
) -> list[asyncpg.Record]:
    """Return the rows of a statement, as `Connection.fetch` does: within `seconds`, or twice that if it is prepared
    anew. Raises the same errors.

    That one calls seven functions to execute a statement that is prepared already. This one takes it out of asyncpg's
    cache: `Connection._stmt_cache` (asyncpg/connection.py) and `BaseProtocol.bind_execute`. It saves a lone GET a
    fourteenth of its instructions.
    """
    internals = cast(Any, connection)
    prepared = internals._stmt_cache.get((sql, asyncpg.Record, False))  # as Connection._get_statement asks for it
    if prepared is not None:
        try:
            rows: list[asyncpg.Record] = await internals._protocol.bind_execute(
                prepared, arguments, "", 0, False, seconds
            )
        except asyncpg.InvalidCachedStatementError:
            # It was not run, since a migration has changed what it returns: Connection.fetch prepares it again.
            internals._drop_global_statement_cache()
        except asyncpg.OutdatedSchemaCacheError:
            await connection.reload_schema_state()  # as Connection.fetch does
            raise
        else:
            return rows
    rows = await connection.fetch(sql, *arguments, timeout=seconds)
    return rows
