"""The services that the handlers of a resource are made with."""

from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from asyncpg import Record

from api.database.batching import Batcher
from api.database.fetch import Database, PooledDatabase
from api.database.options import Limits
from api.database.statements import Statement
from api.http.gate import Gate

Item = TypeVar("Item")
Result = TypeVar("Result")
Query = Callable[[Database, Sequence[Item]], Awaitable[Sequence[Result]]]
"""A query function that takes many items, and returns one result for each."""


@dataclass(frozen=True)
class Services:
    """The services of one set of handlers.

    `database` runs their statements: the primary, or a replica with the primary behind it. `primary` opens connections
    outside the pool, for streams: at most `bulk_max_requests` at once, each until it stands still for
    `bulk_idle_seconds`. Without `batch_limits` requests share no statements.
    """

    database: Database
    primary: PooledDatabase
    gate: Gate
    batch_limits: Limits | None
    bulk_max_requests: int
    bulk_idle_seconds: float

    def read(self, query: Query[Item, Result]) -> Batcher[Item, Result]:
        """Return a batcher of a query that reads."""
        run = partial(query, _Checked(self.database, writes=False))
        return Batcher.read(run, self.batch_limits, has_room=self.database.has_room)

    def write(self, query: Query[Item, Result], *, key: Callable[[Item], Any]) -> Batcher[Item, Result]:
        """Return a batcher of a query that writes; `key` as in Batcher.write."""
        run = partial(query, _Checked(self.database, writes=True))
        return Batcher.write(run, self.batch_limits, key=key, has_room=self.database.has_room)


class _Checked:
    """The database of one batcher, which refuses a statement that belongs into another, or into none.

    A query function has one statement, so only the first call is checked: later ones cost nothing.
    """

    def __init__(self, database: Database, *, writes: bool) -> None:
        self._fetch = database.fetch
        self._writes = writes
        self.lock_timeout = database.lock_timeout
        self.has_room = database.has_room
        self.fetch: Callable[..., Coroutine[Any, Any, list[Record]]] = self._check_and_fetch
        """Run one statement; see `Database.fetch`. Raises TypeError if its declaration does not fit the batcher."""

    def _check_and_fetch(self, statement: Statement, *arguments: Any) -> Coroutine[Any, Any, list[Record]]:
        if statement.writes is not self._writes or not statement.batched:
            raise TypeError(f"sql/{statement.name} needs {_needs(statement)}")
        self.fetch = self._fetch
        return self._fetch(statement, *arguments)


def _needs(statement: Statement) -> str:
    if not statement.batched:
        return "batched=True in its declaration, since a batcher runs it"
    return f"a batcher made by `{'write' if statement.writes else 'read'}`"
