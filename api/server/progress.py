"""Connections whose client sends or reads too slowly are closed."""

import asyncio
from typing import Any

from api.errors import Problem
from api.http.request import MIN_BYTES_A_SECOND
from api.server.cycle import CountingProtocol

PERIOD_SECONDS = 30.0
MIN_BYTES = int(PERIOD_SECONDS) * MIN_BYTES_A_SECOND
CHECKS = 4
"""The checks in a period. A client is too slow after as many without progress: after 1 to 1.25 periods."""


class TimedProtocol(CountingProtocol):
    """uvicorn's protocol with one timer for a connection, instead of one for each request.

    In every `period` (seconds) at least `min_bytes` of a request must arrive, or all of it. Once it has its response,
    the rest of its body has one period. The client must read at least some of a response in every period. Otherwise the
    connection is closed. Between requests uvicorn's keep-alive timeout applies instead; it is at least `period`.
    """

    period = PERIOD_SECONDS
    min_bytes = MIN_BYTES

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._received = 0  # bytes
        self._idle_since: float | None = None  # when the last response was complete, None once more bytes came
        self._timer: asyncio.TimerHandle | None = None
        self._awaited: object = None  # what the client had to send at the last check
        self._received_before = 0  # when the client had sent enough of it
        self._slow_checks = 0  # since then
        self._sent_last = self._received_last = 0  # at the last check
        self._unread_checks = 0  # in a row, in which the client has read nothing

    def connection_made(self, transport: Any) -> None:
        """Start the timer of a new connection."""
        super().connection_made(transport)
        self._timer = self.loop.call_later(self.period / CHECKS, self._check_progress)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def _check_progress(self) -> None:
        if self._reads_too_slowly():
            self.transport.abort()
        elif self._sends_too_slowly():
            if self.scope is None or (self.cycle is not None and self.cycle.scope is self.scope):
                self.transport.close()
            else:
                self._refuse(Problem(408, "The request did not come in time"))
        rest = self.period / CHECKS
        if self._idle_since is not None:
            rest = min(rest, self._idle_since + self.timeout_keep_alive - self.loop.time())
            if rest <= 0:
                self.transport.close()
                rest = self.period
        self._timer = self.loop.call_later(rest, self._check_progress)

    def _sends_too_slowly(self) -> bool:
        cycle, is_enough = self.cycle, self._received - self._received_before >= self.min_bytes
        awaited: object = self.scope or self
        if self._idle_since is not None:
            awaited = None
        elif cycle is not None and cycle.response_complete and cycle.more_body:
            awaited, is_enough = cycle, False  # the rest of a body that the handler did not read: no rate is enough
        elif cycle is not None and not cycle.response_complete and (self.flow.read_paused or not cycle.more_body):
            awaited = None  # The request has its whole body, or does not read yet what has come.
        if awaited is not self._awaited or is_enough:
            self._awaited, self._received_before, self._slow_checks = awaited, self._received, 0
        elif awaited is not None:
            self._slow_checks += 1
        return self._slow_checks == CHECKS

    def _reads_too_slowly(self) -> bool:
        unsent = self.transport.get_write_buffer_size()
        sent, received = self.written - unsent, self._received - self._received_last
        # Many clients read nothing before they have sent their whole body, while an import responds already.
        sends = self.cycle is not None and self.cycle.more_body and received >= self.min_bytes // CHECKS
        self._unread_checks = self._unread_checks + 1 if unsent and sent == self._sent_last and not sends else 0
        self._sent_last, self._received_last = sent, self._received
        return self._unread_checks == CHECKS

    def _refuse(self, problem: Problem) -> None:
        raise NotImplementedError
