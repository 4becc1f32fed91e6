"""Statements without an answer: the idle connections beside them are checked, and a read is sent again.

A connection can die without a sign: the network loses its packets, or a proxy hangs while its kernel acknowledges every
byte. PostgreSQL sends nothing before a statement ends, so a dead connection and a slow statement look alike.
Invariants, each held by a test:

1. When a statement has had no answer for SILENT_SECONDS, every idle connection is checked before it serves.
2. Then one read is sent again, the trial: over a connection that was opened or checked since. Its old one is closed.
3. If the trial is answered within SILENT_SECONDS, connecting not counted, all other reads without an answer for so
   long are sent again too. Else there is no trial for _REST_SECONDS: a slow database gets one more statement.
4. A write is never sent again. It waits for STATEMENT_TIMEOUT_SECONDS, since it may wait for a lock.

If the network is what is silent, the kernel ends every statement, writes too: see `connecting.watch_network`.
"""

import asyncio
import logging
from collections.abc import Callable

import asyncpg

logger = logging.getLogger("api.database")

SILENT_SECONDS = 2.0
_REST_SECONDS = 30.0
_TICK_SECONDS = 0.25
_SILENT_TICKS = round(SILENT_SECONDS / _TICK_SECONDS)
_REST_TICKS = round(_REST_SECONDS / _TICK_SECONDS)


class Silence:
    """The statements in flight on the connections of one database. `name` is that of its URL, for the log.

    `check_idle` is called when a statement has had no answer for SILENT_SECONDS.
    """

    def __init__(self, name: str, check_idle: Callable[[], None]) -> None:
        self._name = name
        self._check_idle = check_idle
        self._reads: dict[asyncpg.Connection, int] = {}
        self._writes: dict[asyncpg.Connection, int] = {}
        self.in_flight = (self._reads, self._writes)
        """The connections with a read in flight, oldest first, and `ticks` when it was sent; the same for writes."""
        self.ticks = 0
        """Counts time while a statement is in flight: a tick for all of them costs less than a clock for each."""
        self.sent = 0
        """`ticks` when the statement that ended last was sent."""
        self.timer: asyncio.TimerHandle | None = None
        self._next_trial = 0

    def watch(self) -> None:
        """Count time from now on, until no statement is in flight."""
        self.timer = asyncio.get_running_loop().call_later(_TICK_SECONDS, self._tick)

    def confirm(self) -> None:
        """Note that the statement that ended last was answered, and was sent again: the trial, if one is made."""
        if self.ticks < self._next_trial and self.ticks - self.sent <= _SILENT_TICKS:
            self._next_trial = self.ticks
            for connection in self._silent_reads():
                self._give_up(connection)

    def stop(self) -> None:
        """Count no more."""
        if self.timer is not None:
            self.timer.cancel()

    def _tick(self) -> None:
        self.ticks += 1
        if self._reads or self._writes:
            self.watch()
        else:
            self.timer = None
        sent = self.ticks - _SILENT_TICKS - 1  # sent since that tick began
        if sent in self._reads.values() or sent in self._writes.values():
            self._check_idle()
        if self.ticks >= self._next_trial and (silent := self._silent_reads()):
            self._next_trial = self.ticks + _REST_TICKS
            self._give_up(silent[0])

    def _silent_reads(self) -> list[asyncpg.Connection]:
        return [each for each, since in self._reads.items() if self.ticks - since > _SILENT_TICKS]

    def _give_up(self, connection: asyncpg.Connection) -> None:
        """Close a connection, so that its read is sent again."""
        logger.info("%s: no answer to a read for %g s: it is sent again", self._name, SILENT_SECONDS)
        del self._reads[connection]
        connection.terminate()
