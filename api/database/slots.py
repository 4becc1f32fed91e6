"""The slots of a batcher: how many of its statements are in flight, and for how long one counts."""

import asyncio
from collections.abc import Callable, Sized
from math import inf
from time import perf_counter

from api.database.options import Limits

SLOT_SECONDS = 0.1
"""The longest that a batch keeps its slot, and that a batch of several calls waits for a row that is locked."""

SPACING_SECONDS = 0.0005
"""The time that an overlapping read has to save its calls, a few times the CPU that it costs. A write has it twice."""

STUCK_SECONDS = 0.01
"""A statement is taken for stuck after this time, if others of its kind are shorter."""

WINDOW_SECONDS = 1.0
_TIMER_SECONDS = 0.001  # uvloop's timers count whole milliseconds

HasRoom = Callable[[], bool]


class Slots:
    """The slots for the calls that are `waiting`. `resume` is called when there may be a free one.

    As many reads are in flight as the shortest of the last one or two seconds took half milliseconds, and they start
    half a millisecond apart; writes by whole ones. The shortest shows how far away the database is: the others waited
    for a CPU or a lock too. So beside the database statements run one by one, with the largest batches and the least
    CPU, and far away up to BATCH_IN_FLIGHT of them hide the round trip.

    Exceptions keep the latency low. A full batch starts at once, since it cannot grow, and so does a batch beside a
    single call, since the load is low. A stuck statement delays the next one by 10 ms at most. But none starts beside
    another without a connection for it: its batch would be closed, and wait.
    """

    def __init__(
        self, waiting: Sized, has_room: HasRoom, resume: Callable[[Limits, float], None], *, writes: bool
    ) -> None:
        self.held: dict[object, float] = {}
        """The time at which each holder's batch was sent."""
        self.started = 0.0
        """The time at which the last statement was sent."""
        self.is_single = False
        """True if the last statement serves a single call."""
        self.timer: asyncio.TimerHandle | None = None
        self._waiting = waiting
        self._cost = 2 if writes else 1
        self._has_room = has_room
        self._resume = resume
        self._pause: asyncio.TimerHandle | None = None
        self._shortest = inf  # seconds, in this window and the one before
        self._in_this_window = inf
        self._window_ends = 0.0

    def has_free(self, now: float, others: int, limits: Limits) -> bool:
        """Return True if a statement may start beside `others`."""
        if not others:
            return True
        if others >= limits.in_flight:
            return False  # the end of one asks again
        if len(self._waiting) < limits.max_size and not (self.is_single and others == 1):
            spacing = self._cost * SPACING_SECONDS
            overlaps = (others + 1) * spacing <= self._shortest
            rest = self.started + (spacing if overlaps else STUCK_SECONDS) - now
            if rest > 0:
                if self._pause is None:
                    delay = max(rest, _TIMER_SECONDS)
                    self._pause = asyncio.get_running_loop().call_later(delay, self._end_pause, limits)
                return False
        return self._has_room()

    def note(self, seconds: float, now: float) -> None:
        """Note how long a statement that was answered was in flight."""
        if now >= self._window_ends:
            self._window_ends = now + WINDOW_SECONDS
            self._shortest, self._in_this_window = self._in_this_window, seconds
        elif seconds < self._in_this_window:
            self._in_this_window = seconds
        self._shortest = min(self._shortest, seconds)

    def watch(self, limits: Limits) -> None:
        """Free the slots of batches that take too long. One timer serves all of them: a timer costs a microsecond."""
        if self.timer is None:
            self.timer = asyncio.get_running_loop().call_later(SLOT_SECONDS, self._give_back, limits)

    def _end_pause(self, limits: Limits) -> None:
        self._pause = None
        self._resume(limits, perf_counter())

    def _give_back(self, limits: Limits) -> None:
        too_old = perf_counter() - SLOT_SECONDS
        for slot in [slot for slot, sent in self.held.items() if sent <= too_old]:
            del self.held[slot]
        self.timer = None
        if self.held:
            rest = min(self.held.values()) - too_old
            self.timer = asyncio.get_running_loop().call_later(rest, self._give_back, limits)
        elif self._waiting:
            self.watch(limits)
        self._resume(limits, perf_counter())
