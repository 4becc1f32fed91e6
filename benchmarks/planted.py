"""Applications with a planted bug that `torture.py` must find: one factory for uvicorn each.

Tests of single requests cannot find these bugs: every answer is correct until something fails.
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
    """Answer a write before its commit, which follows 20 ms later on a separate pool."""

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
        with suppress(*_BROKEN):  # the client has its answer already
            await transaction.commit()
        await self._writers.release(connection)


class _SendsAgain(PooledDatabase):
    """Retry a write whose outcome is unknown."""

    async def fetch(self, statement: Statement, *arguments: Any) -> list[asyncpg.Record]:
        try:
            return await super().fetch(statement, *arguments)
        except OutcomeUnknownError:
            return await super().fetch(statement, *arguments)


def acknowledges_before_commit() -> ASGIApp:
    """Return the application that acknowledges a write before its commit."""
    return _with(_AcknowledgesBeforeCommit)


def sends_again() -> ASGIApp:
    """Return the application that retries a write of unknown outcome."""
    return _with(_SendsAgain)


def _with(database: type[PooledDatabase]) -> ASGIApp:
    # The application creates its database here; nothing else in this process creates an application.
    app.PooledDatabase = database  # type: ignore[attr-defined]
    return app.create_app(load_settings())
