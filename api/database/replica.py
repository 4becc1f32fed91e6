"""Reads from a replica that has what the client wrote, and from the primary where it has not, or is down.

The answer to a write carries `Read-After`, a position in the write-ahead log (PostgreSQL's pg_lsn) that is not before
the write's commit record. One that the writing statement took itself would be: it commits after that. So a statement of
its own asks after the commit, once for all the writes of a batch. A read that sends the position back is answered by
the replica once that has replayed the log up to it.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from functools import partial
from typing import TYPE_CHECKING, Any

import asyncpg

from api.database.batching import Batcher, Limits
from api.database.fetch import Database
from api.database.statements import Statement, declare
from api.errors import DatabaseUnavailableError, OverloadedError, StatementTimeoutError, describe
from api.settings import Settings
from api.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from api.telemetry.tracing import Tracing

logger = logging.getLogger("api.database")

_SELECT_POSITION = declare("wal/select_position.sql", [], {"position": "int8"})

BEYOND = b"FFFFFFFF/FFFFFFFF"
"""A position that no log reaches: it stands for one that is not known, and has the primary answer."""

_REST_SECONDS = 1.0
_POLL_SECONDS = 0.005
_UNANSWERED = (DatabaseUnavailableError, StatementTimeoutError)


class Replica(Database):
    """The database behind READ_DATABASE_URL. What it cannot answer, the primary answers.

    One that fails is left alone for a second; then a statement of nobody's tries it, when a request comes.
    """

    def __init__(
        self,
        settings: Settings,
        primary: Database,
        limits: Limits | None,
        metrics: Metrics | None = None,
        tracing: "Tracing | None" = None,
    ) -> None:
        # What cannot be had within the wait the primary has, so that connecting is given no more time.
        own = {"database_url": settings.read_database_url, "acquire_timeout_seconds": settings.replica_wait_seconds}
        super().__init__(settings.model_copy(update=own), "READ_DATABASE_URL", metrics=metrics, tracing=tracing)
        self._primary = primary
        self._wait = settings.replica_wait_seconds
        self._ask_primary = Batcher(partial(_select_position, primary.fetch), limits)
        self._ask_replica = Batcher(partial(_select_position, super().fetch), limits)
        # What it had replayed, and in which epoch that was seen: a server that restarts may begin further back.
        self._replayed = 0
        self._seen_in = 0
        self._is_behind = False
        self._rests_until = 0.0
        self._trial: asyncio.Task[None] | None = None

    @property
    def epoch(self) -> int:
        """Changes whenever the server may have been restarted: then a new connection is opened, before all others."""
        return self._pool.opened

    async def close(self) -> None:
        """Close the pool, as Database.close does."""
        if self._trial is not None:
            self._trial.cancel()
        await super().close()

    async def fetch(self, statement: Statement, *arguments: Any) -> list[asyncpg.Record]:
        """Run a read here, or on the primary where that fails. Raises what Database.fetch raises there."""
        if not self._rests():
            try:
                return await super().fetch(statement, *arguments)
            except _UNANSWERED as error:
                self._leave_alone(error.__cause__)
            except asyncpg.PostgresError as error:
                # Such as a conflict with what is replayed: it says nothing about the next read.
                logger.info("READ_DATABASE_URL: the primary answers instead: %s", describe(error))
        return await self._primary.fetch(statement, *arguments)

    async def position(self) -> bytes:
        """A position in the primary's log that follows every commit which was acknowledged before the call."""
        try:
            async with asyncio.timeout(self._wait):
                return b"%X/%X" % divmod(await self._ask_primary(None), 2**32)
        except (TimeoutError, asyncio.CancelledError, OverloadedError, *_UNANSWERED, asyncpg.PostgresError):
            return BEYOND  # The write has happened, and is acknowledged.

    async def reaches(self, position: int) -> int | None:
        """The epoch in which it is known to have replayed the log up to `position`; None where the primary must answer.

        Waits for it, REPLICA_WAIT_SECONDS at most, unless the last wait was in vain.
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
            self._trial = loop.create_task(self._try(), context=Context())  # of no request
        return True

    def _leave_alone(self, cause: BaseException | None) -> None:
        if cause is None:
            return  # It is busy: every connection that it may have was in use.
        if not self._rests_until:
            logger.warning("READ_DATABASE_URL: the primary answers instead: %s", describe(cause))
        self._rests_until = asyncio.get_running_loop().time() + _REST_SECONDS

    async def _try(self) -> None:
        try:
            await super().fetch(_SELECT_POSITION)
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
