"""The supervisor: workers on the same listening sockets, restarted when they die, replaced one by one on SIGHUP.

uvicorn has a supervisor too. It cannot be stopped while it replaces workers, which takes as long as the slowest request
of each. It waits for ever for a worker that hangs. A replaced worker gets the same signal as a stopping one, so /ready
is 503 although the service continues. And its workers outlive it when it is killed.
"""

import asyncio
import logging
import multiprocessing
import signal
import sys
from collections.abc import Collection
from contextlib import suppress
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from socket import socket
from typing import Any

import uvicorn

from api.environment import SettingsError
from api.server.lifecycle import Server
from api.server.sharing import Share, make_shares
from api.settings import load_settings
from api.telemetry.logs import log_config

logger = logging.getLogger("api.supervisor")

_spawn = multiprocessing.get_context("spawn")

_START_SECONDS = 60.0
_PAUSE_SECONDS = 1.0
_MARGIN_SECONDS = 2.0

_FROM_TERMINAL = {each for each in signal.Signals if each.name in ("SIGINT", "SIGHUP")}  # Windows lacks SIGHUP.

_End = asyncio.Future[tuple[signal.Signals, int]]
"""The end of the supervisor: the signal that the workers get, and its exit code."""


class Supervisor:
    """Runs `config.workers` processes on bound sockets, which it closes.

    A worker that has not exited 2 s after its GRACE_SECONDS is killed, so the supervisor exits within that time too. A
    worker reads GRACE_SECONDS when it starts; `grace_seconds` count until it has done so.
    """

    def __init__(self, config: uvicorn.Config, sockets: list[socket], *, grace_seconds: float) -> None:
        self._config = config
        self._sockets = sockets
        self._grace_seconds = grace_seconds
        self._shares: list[Share | None] = []  # one for each slot
        self._workers: list[_Worker] = []  # one for each slot
        self._alive: set[_Worker] = set()  # all running: in a slot, starting, or replaced and draining

    def run(self) -> int:
        """Serve until a signal ends it. Returns the exit code: not 0 if no worker starts or one had to be killed."""
        return asyncio.run(self._run())

    async def _run(self) -> int:
        loop = asyncio.get_running_loop()
        end: _End = loop.create_future()
        for each in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(each, self._stop, end, each)
        hang_up = asyncio.Event()
        loop.add_signal_handler(signal.SIGHUP, hang_up.set)
        self._shares = make_shares(self._config.workers)
        for slot in range(self._config.workers):
            if (worker := self._start(slot)) is None:
                self._stop(end, signal.SIGINT, 1)
                break
            self._workers.append(worker)
        tasks = [loop.create_task(self._keep(slot, end)) for slot in range(len(self._workers))]
        tasks.append(loop.create_task(self._replace_on(hang_up)))
        for task in tasks:
            task.add_done_callback(partial(self._stop_on_failure, end))
        sig, code = await end
        # While this process has them open, the kernel accepts connections that no worker serves any more.
        for listener in self._sockets:
            listener.close()
        for task in tasks:
            task.cancel()  # No worker starts after this, so the signal reaches all of them.
        self._signal_all(sig)
        return code if await self._wait_for_exit(self._alive) else 1

    def _start(self, slot: int) -> "_Worker | None":
        """Start a worker for a slot. Returns None if the system lacks the resources."""
        try:
            worker = _Worker(self._config, self._sockets, self._grace_seconds, self._shares[slot])
        except OSError as error:
            # A traceback would say nothing more.
            logger.error("cannot start a worker (%s): check the limits on files, processes and memory", error)  # noqa: TRY400
            return None
        self._alive.add(worker)
        worker.ended.add_done_callback(lambda _: self._alive.discard(worker))
        return worker

    def _stop(self, end: _End, sig: signal.Signals, code: int = 0) -> None:
        if end.done():
            self._signal_all(sig)
        else:
            end.set_result((sig, code))

    def _stop_on_failure(self, end: _End, task: asyncio.Task[None]) -> None:
        """Stop everything if a task fails: otherwise a slot stays empty, or SIGHUP has no effect, unnoticed."""
        if not task.cancelled() and (error := task.exception()):
            logger.critical("the supervisor has failed: the workers stop", exc_info=error)
            self._stop(end, signal.SIGTERM, 1)

    def _signal_all(self, sig: signal.Signals) -> None:
        for worker in self._alive:
            worker.send_signal(sig)

    async def _wait_for_exit(self, workers: Collection["_Worker"]) -> bool:
        """Wait for workers that were signalled to stop. Returns False if any had to be killed."""
        if not workers:
            return True
        longest = max(worker.grace_seconds for worker in workers) + _MARGIN_SECONDS
        _, late = await asyncio.wait([worker.ended for worker in workers], timeout=longest)
        for worker in [worker for worker in workers if worker.ended in late]:
            logger.error("worker %d exceeded GRACE_SECONDS: killing it", worker.pid)
            worker.kill()
        if late:
            await asyncio.wait(late)
        return not late

    async def _keep(self, slot: int, end: _End) -> None:
        """Keep a worker running in a slot."""
        while True:
            worker = self._workers[slot]
            await asyncio.wait([worker.ended, worker.replaced], return_when=asyncio.FIRST_COMPLETED)
            if self._workers[slot] is not worker:
                continue
            logger.error("worker %d exited unexpectedly, with exit code %d", worker.pid, worker.ended.result())
            if not worker.has_served:
                # A kill, by hand or for lack of memory, does not prove that no worker can start.
                killed = worker.ended.result() == -signal.SIGKILL
                if not killed and not any(each.has_served for each in self._workers):
                    self._stop(end, signal.SIGTERM, worker.ended.result() or 1)
                    return
                await asyncio.sleep(_PAUSE_SECONDS)
            while self._workers[slot] is worker:
                if (successor := self._start(slot)) is None:
                    await asyncio.sleep(_PAUSE_SECONDS)
                else:
                    self._workers[slot] = successor

    async def _replace_on(self, hang_up: asyncio.Event) -> None:
        while True:
            await hang_up.wait()
            hang_up.clear()
            logger.info("SIGHUP: replacing the workers one by one")
            for slot in range(len(self._workers)):
                if not await self._replace(slot):
                    logger.error("a new worker did not start: the others keep running")
                    break
            else:
                logger.info("the workers are replaced")

    async def _replace(self, slot: int) -> bool:
        """Put a new worker into a slot and drain the old one. Returns False, and changes nothing, if none starts."""
        if (successor := self._start(slot)) is None:
            return False
        await asyncio.wait([successor.serves])  # Awaited itself, it would be cancelled with this task.
        if not successor.has_served:
            return False
        old, self._workers[slot] = self._workers[slot], successor
        old.replaced.set_result(None)
        old.send_signal(signal.SIGHUP)
        logger.info("worker %d replaces worker %d, which finishes its requests", successor.pid, old.pid)
        # One at a time: a worker that drains holds connections to the database beyond the budget.
        await self._wait_for_exit([old])
        return True


class _Worker:
    """A worker process, with three futures: it serves, it is replaced, it has ended with an exit code.

    It is killed if it neither serves nor ends within a minute, unless it is told to stop. Raises OSError if the system
    lacks the resources for it.
    """

    def __init__(
        self, config: uvicorn.Config, sockets: list[socket], grace_seconds: float, share: Share | None
    ) -> None:
        self.grace_seconds = grace_seconds
        self._loop = asyncio.get_running_loop()
        self.serves: asyncio.Future[bool] = self._loop.create_future()
        self.replaced: asyncio.Future[Any] = self._loop.create_future()
        self.ended: asyncio.Future[int] = self._loop.create_future()
        self._pipe, its_end = _spawn.Pipe()
        self._process = _spawn.Process(target=_work, args=(config, sockets, its_end, share), daemon=True)
        # Signals of a terminal stay blocked until the worker, which inherits the mask, can ignore them. Start the
        # resource tracker first: starting it unblocks SIGINT.
        resource_tracker.ensure_running()
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _FROM_TERMINAL)
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        its_end.close()
        self.pid: int = self._process.pid  # type: ignore[assignment] # set once it has started
        self._loop.add_reader(self._pipe.fileno(), self._receive_report)
        self._loop.add_reader(self._process.sentinel, self._reap)
        self._start_timer = self._loop.call_later(_START_SECONDS, self._give_up)

    @property
    def has_served(self) -> bool:
        return self.serves.done() and self.serves.result()

    def send_signal(self, sig: signal.Signals) -> None:
        """Send a signal over the pipe: terminals and process managers send real ones to every process."""
        self._start_timer.cancel()  # From now on its grace counts.
        with suppress(OSError):  # It has ended.
            self._pipe.send_bytes(bytes([sig]))

    def kill(self) -> None:
        self._process.kill()

    def _give_up(self) -> None:
        logger.error("worker %d does not serve %d s after its start: killing it", self.pid, _START_SECONDS)
        self.kill()

    def _receive_report(self) -> None:
        """Receive the worker's GRACE_SECONDS, which it sends once it serves."""
        self._loop.remove_reader(self._pipe.fileno())
        with suppress(EOFError, OSError):
            self.grace_seconds = float(self._pipe.recv_bytes())
            self._start_timer.cancel()
            self.serves.set_result(True)

    def _reap(self) -> None:
        self._start_timer.cancel()
        self._loop.remove_reader(self._process.sentinel)
        self._loop.remove_reader(self._pipe.fileno())
        self._pipe.close()
        self._process.join()
        if not self.serves.done():
            self.serves.set_result(False)
        self.ended.set_result(self._process.exitcode or 0)


def _work(config: uvicorn.Config, sockets: list[socket], parent: Connection, share: Share | None) -> None:
    """Serve, as the main function of a worker process."""
    for each in _FROM_TERMINAL:
        signal.signal(each, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _FROM_TERMINAL)
    try:
        settings = load_settings()
        config.log_config = log_config(settings.log_level)
        config.configure_logging()
        drain, grace = settings.drain_seconds, settings.grace_seconds
        Server(config, drain_seconds=drain, grace_seconds=grace, parent=parent, share=share).run(sockets)
    except SettingsError as error:  # They have changed since the supervisor started.
        sys.exit(f"users-api: {error}")
