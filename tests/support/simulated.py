"""An event loop whose time is simulated: a sleep of an hour takes no time, and every run is the same."""

import asyncio
import selectors
from typing import Any


class _Selector(selectors.DefaultSelector):
    """Advances the time of its loop by each wait, instead of waiting."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise RuntimeError("the simulation waits for ever")
        self.now += max(timeout, 0.0)
        return super().select(0)


class SimulatedLoop(asyncio.SelectorEventLoop):
    """An event loop for code that waits for timers alone."""

    def __init__(self) -> None:
        self._clock = _Selector()
        super().__init__(self._clock)

    def time(self) -> float:
        """Return the simulated time in seconds."""
        return self._clock.now

    def spend(self, seconds: float) -> None:
        """Let time pass while the loop is busy."""
        self._clock.now += seconds
