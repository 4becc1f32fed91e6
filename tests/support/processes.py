"""Worker processes that are simulated: they start, serve, obey signals and end in the supervisor's own event loop."""

import asyncio
import os
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any

KILL_SECONDS = 0.0625
"""How long a process takes to end once it is killed."""

STOPS: Mapping[signal.Signals, float] = {signal.SIGTERM: 0.5, signal.SIGINT: 0.25, signal.SIGHUP: 0.75}


@dataclass(frozen=True)
class Plan:
    """The life of a process: times in seconds, from its start or from a signal."""

    lacks: Exception | None = None
    """Why it cannot be started."""
    serves_after: float | None = 1.0
    """None: never."""
    grace: float = 5.0
    ends_after: float | None = None
    code: int = 3
    """The exit code with which it ends by itself."""
    stops: Mapping[signal.Signals, float] = field(default_factory=lambda: STOPS)
    """How long it takes to stop after a signal; it ignores those that are missing."""


class Process:
    """In place of multiprocessing's: the supervisor has the other end of its pipe."""

    def __init__(self, plan: Plan, target: Callable[..., None] | None, args: tuple[Any, ...], daemon: bool) -> None:
        self.plan = plan
        self.target = target
        self.args = args
        self.daemon = daemon
        self.pid: int | None = None
        self.exitcode: int | None = None
        self.mask: set[signal.Signals] = set()
        """The signals that were blocked when it started: a process inherits them."""
        self.signals: list[tuple[signal.Signals, float]] = []
        """What its supervisor sent, and when."""
        self.began = self.ended = -1.0
        self.served = self.is_joined = False

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        resource_tracker.ensure_running()  # as multiprocessing does
        self.mask = {signal.Signals(each) for each in signal.pthread_sigmask(signal.SIG_BLOCK, ())}
        if self.plan.lacks:
            raise self.plan.lacks
        self.pid = id(self)
        self.began = self._loop.time()
        self._pipe = Connection(os.dup(self.args[2].fileno()))
        self.sentinel, self._open = os.pipe()
        self._loop.add_reader(self._pipe.fileno(), self._receive)
        if self.plan.serves_after is not None:
            self._loop.call_later(self.plan.serves_after, self._serve)
        if self.plan.ends_after is not None:
            self._loop.call_later(self.plan.ends_after, self.end, self.plan.code)

    @property
    def is_running(self) -> bool:
        return self.pid is not None and self.exitcode is None

    def end(self, code: int) -> None:
        """End with an exit code."""
        if self.exitcode is None:
            self.exitcode = code
            self.ended = self._loop.time()
            os.close(self._open)
            self.close_pipe()

    def close_pipe(self) -> None:
        """Close its end of the pipe to the supervisor."""
        if not self._pipe.closed:
            self._loop.remove_reader(self._pipe.fileno())
            self._pipe.close()

    def kill(self) -> None:
        self._loop.call_later(KILL_SECONDS, self.end, -signal.SIGKILL)

    def join(self) -> None:
        assert self.exitcode is not None
        os.close(self.sentinel)
        self.is_joined = True

    def _serve(self) -> None:
        if self.exitcode is None:
            self.served = True
            self._pipe.send_bytes(b"%f" % self.plan.grace)

    def _receive(self) -> None:
        with suppress(EOFError):
            (number,) = self._pipe.recv_bytes()
            sig = signal.Signals(number)
            self.signals.append((sig, self._loop.time()))
            if sig in self.plan.stops:
                self._loop.call_later(self.plan.stops[sig], self.end, 0)


class Processes:
    """Makes a process for each call, after a list of plans of which the last one is used again and again."""

    def __init__(self, *plans: Plan) -> None:
        self._plans = list(plans)
        self.made: list[Process] = []
        self.watch: Callable[[Process], None] = lambda process: None

    def __call__(
        self, *, target: Callable[..., None] | None = None, args: tuple[Any, ...] = (), daemon: bool = False
    ) -> Process:
        plan = self._plans.pop(0) if len(self._plans) > 1 else self._plans[0]
        process = Process(plan, target, args, daemon)
        self.made.append(process)
        self.watch(process)
        return process

    @property
    def running(self) -> list[Process]:
        return [each for each in self.made if each.is_running]
