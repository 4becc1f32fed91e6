"""The private parts of asyncpg that the service relies on, all in one place; `tests/test_driver.py` checks them.

A write may be sent again only if it was never executed, and no public part of asyncpg tells that. So pyproject.toml
caps asyncpg below its next minor release: raise the cap together with a passing run of that test.
"""

from typing import Any, cast

import asyncpg
from asyncpg.pool import PoolConnectionProxy


def connection_of(borrowed: PoolConnectionProxy) -> asyncpg.Connection | None:
    """Return the connection behind a pool's proxy; None if it ended before it was handed over.

    `PoolConnectionProxy._con` (asyncpg/pool.py). The proxy has no way to the counter below, and wraps every call.
    """
    return borrowed._con  # type: ignore[attr-defined, no-any-return]


def executions(connection: asyncpg.Connection) -> int:
    """Return how many statements the connection has been asked to execute.

    `Connection._protocol` (asyncpg/connection.py) and its `queries_count` (asyncpg/protocol/protocol.pyx), which counts
    up right after Execute is sent, and not for the preparation of a statement. It can be read on a closed connection.
    """
    return cast(Any, connection)._protocol.queries_count  # type: ignore[no-any-return]
