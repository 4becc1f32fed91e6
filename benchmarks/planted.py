"""The service with a bug planted in it, which `torture.py` must find: uvicorn's factories, one for each.

The bugs are those that tests of single requests never see: every answer is right until something fails.
"""

import asyncio
from contextlib import suppress
from typing import Any

import asyncpg
from starlette.types import ASGIApp

from api import app
from api.database.fetch import PooledDatabase
from api.database.options import DatabaseOptions
from api.database.statements import Statement
from api.errors import DatabaseUnavailableError, OutcomeUnknownError
from api.settings import load_settings

_BROKEN = (OSError, asyncpg.InterfaceError, asyncpg.InternalClientError, asyncpg.PostgresError)


class _AcknowledgesBeforeCommit(PooledDatabase):
    """Answers a write when its statement has run, and commits a moment later, on connections of its own."""

    def __init__(self, options: DatabaseOptions, **more: Any) -> None:
        super().__init__(options, **more)
        self._arguments = options.url.asyncpg_arguments()
        self._committing: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        await super().open()
        self._writers = await asyncpg.create_pool(**self._arguments, min_size=0, command_timeout=1)

    async def close(self) -> None:
        self._writers.terminate()
        await super().close()

    async def fetch(self, statement: Statement, *arguments: Any) -> list[asyncpg.Record]:
        if not statement.writes:
            return await super().fetch(statement, *arguments)
        try:
            connection = await self._writers.acquire(timeout=2)
        except _BROKEN as error:
            raise DatabaseUnavailableError from error
        transaction = connection.transaction()
        try:
            await transaction.start()
            rows: list[asyncpg.Record] = await connection.fetch(statement.sql, *arguments)
        except _BROKEN as error:
            connection.terminate()
            await self._writers.release(connection)
            raise OutcomeUnknownError from error
        task = asyncio.create_task(self._commit(connection, transaction))
        self._committing.add(task)
        task.add_done_callback(self._committing.discard)
        return rows

    async def _commit(self, connection: Any, transaction: Any) -> None:
        await asyncio.sleep(0.02)
        with suppress(*_BROKEN):  # nobody hears of it any more
            await transaction.commit()
        await self._writers.release(connection)


class _SendsAgain(PooledDatabase):
    """Sends a write again that was sent, and whose answer never came."""

    async def fetch(self, statement: Statement, *arguments: Any) -> list[asyncpg.Record]:
        try:
            return await super().fetch(statement, *arguments)
        except OutcomeUnknownError:
            return await super().fetch(statement, *arguments)


def acknowledges_before_commit() -> ASGIApp:
    """The application that says that a write is done before it is."""
    return _with(_AcknowledgesBeforeCommit)


def sends_again() -> ASGIApp:
    """The application that repeats a write of which nobody knows whether it happened."""
    return _with(_SendsAgain)


def _with(database: type[PooledDatabase]) -> ASGIApp:
    # The one place where the application makes its database; nothing else in this process makes an application.
    app.PooledDatabase = database  # type: ignore[attr-defined]
    return app.create_app(load_settings())
