"""The read replica: answers reads as soon as it has what the client wrote; the primary answers if it is late or down.

The answer to a write carries `Read-After`, a position in the write-ahead log (PostgreSQL's pg_lsn) that is not before
the write's commit record. The writing statement itself cannot tell it, since it commits afterwards. So a separate
statement asks after the commit, once for all the writes of a batch. The replica answers a read that sends the position
back once it has replayed the log up to it.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from functools import partial
from typing import Any

import asyncpg

from api.database.batching import Batcher, Limits
from api.database.fetch import PooledDatabase
from api.database.statements import Statement, declare
from api.errors import DatabaseUnavailableError, OverloadedError, StatementTimeoutError, describe

logger = logging.getLogger("api.database")

_SELECT_POSITION = declare("wal/select_position.sql", [], {"position": "int8"})

BEYOND = b"FFFFFFFF/FFFFFFFF"
"""A position that no log reaches. It stands for an unknown position, so that the primary answers."""

_REST_SECONDS = 1.0
_POLL_SECONDS = 0.005
_UNANSWERED = (DatabaseUnavailableError, StatementTimeoutError)


class Replica:
    """A read replica, with the primary behind it, which answers what the replica cannot.

    A replica that failed is left alone for a second. Then a statement of its own tries it, when the next request comes.
    """

    def __init__(
        self, replica: PooledDatabase, primary: PooledDatabase, wait_seconds: float, limits: Limits | None
    ) -> None:
        self._replica = replica
        self._primary = primary
        self._wait = wait_seconds
        self._ask_primary = Batcher(partial(_select_position, primary.fetch), limits)
        self._ask_replica = Batcher(partial(_select_position, replica.fetch), limits)
        # The position that the replica had replayed, and the epoch in which it said so: a server that restarts may
        # begin further back.
        self._replayed = 0
        self._seen_in = 0
        self._is_behind = False
        self._rests_until = 0.0
        self._trial: asyncio.Task[None] | None = None

    @property
    def lock_timeout(self) -> float:
        """As Database.lock_timeout."""
        return self._replica.lock_timeout

    @property
    def epoch(self) -> int:
        """A number that changes if the server may have restarted: a new connection is then opened before all others."""
        return self._replica.opened

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
        if not self._rests():
            try:
                return await self._replica.fetch(statement, *arguments)
            except _UNANSWERED as error:
                self._leave_alone(error.__cause__)
            except asyncpg.PostgresError as error:
                # Such as a conflict with what is replayed: it says nothing about the next read.
                logger.info("READ_DATABASE_URL: the primary answers instead: %s", describe(error))
        return await self._primary.fetch(statement, *arguments)

    async def position(self) -> bytes:
        """Return a position in the primary's log that follows every commit acknowledged before the call.

        BEYOND if it is not known in time.
        """
        try:
            async with asyncio.timeout(self._wait):
                return b"%X/%X" % divmod(await self._ask_primary(None), 2**32)
        except (TimeoutError, asyncio.CancelledError, OverloadedError, *_UNANSWERED, asyncpg.PostgresError):
            return BEYOND  # The write was committed, so it must not fail.

    async def reaches(self, position: int) -> int | None:
        """Return the epoch in which the replica had replayed the log up to `position`; None if the primary must answer.

        Waits for the replica, REPLICA_WAIT_SECONDS at most, unless the last wait was in vain.
        """
        answers = 0
        try:
            async with asyncio.timeout(self._wait):
                while not self._rests():
                    epoch = self.epoch
                    if position <= self._replayed and epoch == self._seen_in:
                        self._is_behind = False
                        return epoch
                    if answers and self._is_behind:
                        return None
                    if answers:
                        await asyncio.sleep(_POLL_SECONDS)
                    replayed = await self._ask_replica(None)
                    if epoch == self.epoch:
                        self._replayed, self._seen_in = replayed, epoch
                        answers += 1
        except TimeoutError as error:
            if answers:
                self._is_behind = True
            else:
                self._leave_alone(error)
        except _UNANSWERED as error:
            self._leave_alone(error.__cause__)
        except (OverloadedError, asyncpg.PostgresError) as error:
            logger.info("READ_DATABASE_URL: the primary answers instead: %s", describe(error))
        return None

    def _rests(self) -> bool:
        if not self._rests_until:
            return False
        loop = asyncio.get_running_loop()
        if self._trial is None and loop.time() >= self._rests_until:
            self._trial = loop.create_task(self._try(), context=Context())  # belongs to no request
        return True

    def _leave_alone(self, cause: BaseException | None) -> None:
        if cause is None:
            return  # every connection was in use: the replica is busy, not down
        if not self._rests_until:
            logger.warning("READ_DATABASE_URL: the primary answers instead: %s", describe(cause))
        self._rests_until = asyncio.get_running_loop().time() + _REST_SECONDS

    async def _try(self) -> None:
        try:
            await self._replica.fetch(_SELECT_POSITION)
        except (*_UNANSWERED, asyncpg.PostgresError) as error:
            self._leave_alone(error.__cause__ or error)
        else:
            self._rests_until = 0.0
            logger.info("READ_DATABASE_URL: the replica answers again")
        finally:
            self._trial = None


async def _select_position(
    fetch: Callable[[Statement], Awaitable[list[asyncpg.Record]]], calls: Sequence[None]
) -> list[int]:
    rows = await fetch(_SELECT_POSITION)
    return [rows[0]["position"]] * len(calls)
