"""Connecting to PostgreSQL: a second attempt beside one that is stuck, and the back-off."""

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import asyncpg

from api.database.faults import DATABASE_ERRORS
from api.database.options import DatabaseOptions
from api.errors import describe

logger = logging.getLogger("api.database")

# Longer than a compute usually takes to wake, and shorter than clients like to wait.
STUCK_SECONDS = 1.0
_CHECK_SECONDS = 2.0
_FIRST_DELAY = 0.05
_LONGEST_DELAY = 0.3


async def connect(name: str, attempt: Callable[[], Coroutine[Any, Any, asyncpg.Connection]]) -> asyncpg.Connection:
    """Return the connection of an attempt, or of a second one if the first is stuck.

    The first to succeed counts, and the other is closed. `name` is the URL's variable, for the log. Raises the first
    attempt's error if both fail.
    """
    attempts = [asyncio.create_task(attempt())]
    chosen: asyncio.Task[asyncpg.Connection] | None = None
    try:
        await asyncio.wait(attempts, timeout=STUCK_SECONDS)
        if not attempts[0].done():
            logger.info("%s: no answer to an attempt to connect: another is made beside it", name)
            attempts.append(asyncio.create_task(attempt()))
        pending = set(attempts)
        while pending:
            ended, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            if chosen := next((each for each in ended if each.exception() is None), None):
                return chosen.result()
        return attempts[0].result()  # raises its error
    finally:
        # Not awaited: a cancellation during the wait would leave the chosen connection open.
        for each in attempts:
            if each is not chosen:
                each.cancel()
                each.add_done_callback(_discard)


def _discard(attempt: "asyncio.Task[asyncpg.Connection]") -> None:
    if not attempt.cancelled() and attempt.exception() is None:
        attempt.result().terminate()


def delay(failures: int) -> float:
    """Return the seconds to wait after `failures` in a row, at least one: exponential back-off with jitter.

    The longest is short, since a request may wait that long after the database is back.
    """
    longest: float = min(_FIRST_DELAY * 2 ** min(failures - 1, 10), _LONGEST_DELAY)
    return longest * random.uniform(0.5, 1)  # noqa: S311 - not a secret


async def open_connection(options: DatabaseOptions) -> asyncpg.Connection:
    """Open a connection for the pool, within `connect_timeout`. Raises one of DATABASE_ERRORS."""
    arguments = options.url.asyncpg_arguments() | {"timeout": options.connect_timeout}
    return await asyncpg.connect(
        **arguments,
        statement_cache_size=options.statement_cache_size,
        # Bounds the cancellation of a statement too: a stuck connection would never acknowledge it.
        command_timeout=options.statement_timeout,
    )


async def is_usable(connection: asyncpg.Connection) -> bool:
    """Return whether a connection whose statement has no answer answers another, else terminate it.

    asyncpg sends the other once PostgreSQL has acknowledged the cancellation of the first.
    """
    try:
        await connection.execute("select 1", timeout=_CHECK_SECONDS)
    except (*DATABASE_ERRORS, asyncio.CancelledError) as error:
        logger.info("a connection was dropped: %s", describe(error))
        connection.terminate()
        return False
    return True


async def close_connection(connection: asyncpg.Connection) -> None:
    """Close a connection that no statement uses, by force if PostgreSQL does not answer."""
    with suppress(*DATABASE_ERRORS):  # asyncpg has closed it by force
        await connection.close(timeout=_CHECK_SECONDS)
