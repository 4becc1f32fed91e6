"""The read replica. The primary serves if it lags or is down.

The response to a write has the header Read-After: a position in the write-ahead log (PostgreSQL's pg_lsn) at or after
the write's commit record. The write cannot return it, because it commits afterwards. A second statement reads it, once
per batch. A read with Read-After waits for the replica to replay that position.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from functools import partial
from typing import Any

import asyncpg

from api.database.batching import Batcher
from api.database.fetch import PooledDatabase
from api.database.options import Limits
from api.database.statements import Statement, declare
from api.errors import (
    DatabaseUnavailableError,
    OverloadedError,
    StatementFailedError,
    StatementTimeoutError,
    describe,
)

logger = logging.getLogger("api.database")

_SELECT_POSITION = declare("wal/select_position.sql", [], {"position": "int8"})

BEYOND = b"FFFFFFFF/FFFFFFFF"
"""A position that no log reaches, for an unknown position: the primary serves the read."""

_SKIP_SECONDS = 1.0
_POLL_SECONDS = 0.005
_NO_REPLY = (DatabaseUnavailableError, StatementTimeoutError)


class Replica:
    """A read replica that falls back to the primary.

    After a failure the replica is skipped for one second. The next request then triggers a trial statement.
    """

    def __init__(
        self, replica: PooledDatabase, primary: PooledDatabase, wait_seconds: float, limits: Limits | None
    ) -> None:
        self._replica = replica
        self._primary = primary
        self._wait = wait_seconds
        self._read_primary = Batcher.read(partial(_select_position, primary.fetch), limits, has_room=primary.has_room)
        self._read_replica = Batcher.read(partial(_select_position, replica.fetch), limits, has_room=replica.has_room)
        # The position that the replica had replayed, and the epoch in which it was read. A restarted replica may resume
        # at an earlier position.
        self._replayed = 0
        self._seen_in = 0
        self._is_behind = False
        self._skipped_until = 0.0
        self._trial: asyncio.Task[None] | None = None

    @property
    def lock_timeout(self) -> float:
        """As Database.lock_timeout."""
        return self._replica.lock_timeout

    @property
    def epoch(self) -> int:
        """A number that changes if the server may have restarted: reconnecting increments it."""
        return self._replica.opened

    def has_room(self) -> bool:
        """As Database.has_room."""
        return (self._primary if self._skipped_until else self._replica).has_room()

    async def open(self) -> None:
        """Make the replica's pool, as PooledDatabase.open does."""
        await self._replica.open()

    async def close(self) -> None:
        """Close the replica's pool, as PooledDatabase.close does."""
        if self._trial is not None:
            self._trial.cancel()
        await self._replica.close()

    async def fetch(self, statement: Statement, *arguments: Any) -> list[asyncpg.Record]:
        """Run a read on the replica, or on the primary if that fails. Raises what Database.fetch raises there."""
        if not self._is_skipped():
            try:
                return await self._replica.fetch(statement, *arguments)
            except StatementFailedError as error:
                # For example recovery conflicts. The next read may succeed, so the replica stays in use.
                logger.info("READ_DATABASE_URL: the primary answers instead: %s", describe(error.__cause__ or error))
            except _NO_REPLY as error:
                self._skip_for_now(error.__cause__)
        return await self._primary.fetch(statement, *arguments)

    async def position(self) -> bytes:
        """Return a position in the primary's log that follows every commit acknowledged before the call.

        BEYOND if it is not known in time.
        """
        try:
            async with asyncio.timeout(self._wait):
                return b"%X/%X" % divmod(await self._read_primary(None), 2**32)
        except (TimeoutError, asyncio.CancelledError, OverloadedError, *_NO_REPLY):
            return BEYOND  # The write was committed, so it must not fail.

    async def reaches(self, position: int) -> int | None:
        """Return the epoch in which the replica had replayed the log up to `position`; None if the primary must serve.

        Waits for the replica, REPLICA_WAIT_SECONDS at most, unless it was still behind after the last wait.
        """
        replies = 0
        try:
            async with asyncio.timeout(self._wait):
                while not self._is_skipped():
                    epoch = self.epoch
                    if position <= self._replayed and epoch == self._seen_in:
                        self._is_behind = False
                        return epoch
                    if replies and self._is_behind:
                        return None
                    if replies:
                        await asyncio.sleep(_POLL_SECONDS)
                    replayed = await self._read_replica(None)
                    if epoch == self.epoch:
                        self._replayed, self._seen_in = replayed, epoch
                        replies += 1
        except TimeoutError as error:
            if replies:
                self._is_behind = True
            else:
                self._skip_for_now(error)
        except (OverloadedError, StatementFailedError) as error:
            logger.info("READ_DATABASE_URL: the primary answers instead: %s", describe(error.__cause__ or error))
        except _NO_REPLY as error:
            self._skip_for_now(error.__cause__)
        return None

    def _is_skipped(self) -> bool:
        if not self._skipped_until:
            return False
        loop = asyncio.get_running_loop()
        if self._trial is None and loop.time() >= self._skipped_until:
            self._trial = loop.create_task(self._try(), context=Context())  # belongs to no request
        return True

    def _skip_for_now(self, cause: BaseException | None) -> None:
        if cause is None:
            return  # every connection was in use: the replica is busy, not down
        if not self._skipped_until:
            logger.warning("READ_DATABASE_URL: the primary answers instead: %s", describe(cause))
        self._skipped_until = asyncio.get_running_loop().time() + _SKIP_SECONDS

    async def _try(self) -> None:
        try:
            await self._replica.fetch(_SELECT_POSITION)
        except _NO_REPLY as error:
            self._skip_for_now(error.__cause__ or error)
        else:
            self._skipped_until = 0.0
            logger.info("READ_DATABASE_URL: the replica answers again")
        finally:
            self._trial = None


async def _select_position(
    fetch: Callable[[Statement], Awaitable[list[asyncpg.Record]]], calls: Sequence[None]
) -> list[int]:
    rows = await fetch(_SELECT_POSITION)
    return [rows[0]["position"]] * len(calls)
