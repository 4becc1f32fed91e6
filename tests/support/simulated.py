"""An event loop whose time is simulated: a sleep of an hour takes no time, and every run is the same."""

import asyncio
import functools
import selectors
import time
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any, ParamSpec, TypeVar, TypeVarTuple

import pytest

T = TypeVar("T")
P = ParamSpec("P")
Ts = TypeVarTuple("Ts")


class _Selector(selectors.DefaultSelector):
    """Advances the time of its loop by each wait, instead of waiting.

    A wait takes a little at least: a timer that is rounded to no time at all would be called again and again.
    """

    now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        ready = super().select(0)
        if not ready:
            if timeout is None:
                raise RuntimeError("the simulation waits for ever")
            self.now += max(timeout, 1e-10)
        return ready


class SimulatedLoop(asyncio.SelectorEventLoop):
    """An event loop for code that waits for timers, and for what this thread writes to pipes: that takes no time.

    It counts its callbacks. A step of a task, up to the next `await`, is one. `after` lets an event happen between two.
    """

    def __init__(self) -> None:
        self._clock = _Selector()
        self._callbacks = 0
        self._events: list[tuple[int, Callable[[], object]]] = []
        super().__init__(self._clock)

    def time(self) -> float:
        """Return the simulated time in seconds, to a microsecond."""
        return round(self._clock.now, 6)

    def spend(self, seconds: float) -> None:
        """Let time pass while the loop is busy."""
        self._clock.now += seconds

    def after(self, callbacks: int, event: Callable[[], object]) -> None:
        """Call `event` right after so many callbacks from now on, at least one: in the tick of the last one."""
        self._events.append((self._callbacks + callbacks, event))

    def call_soon(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        """Count the callback, too."""
        return super().call_soon(self._run, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Count the callback, too."""
        return super().call_at(when, self._run, callback, *args, context=context)

    def _run(self, callback: Callable[[*Ts], object], *args: *Ts) -> None:
        callback(*args)
        self._callbacks += 1
        for due in [each for each in self._events if each[0] <= self._callbacks]:
            self._events.remove(due)
            due[1]()

    def end(self) -> None:
        """Cancel every task, and those that are started meanwhile, and close the loop."""
        while tasks := asyncio.all_tasks(self):
            for task in tasks:
                task.cancel()
            self.run_until_complete(asyncio.wait(tasks))
        self.close()


def simulate(work: Coroutine[Any, Any, T]) -> T:
    """Run something over simulated time that begins at 0 and is `time.monotonic`'s too, and return its result."""
    loop = SimulatedLoop()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "monotonic", loop.time)
        try:
            return loop.run_until_complete(work)
        finally:
            loop.end()


def simulated(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run a test over simulated time that begins at 0."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        simulate(test(*args, **kwargs))

    return run
