"""Workers on one listening socket: kept alive, replaced one by one on SIGHUP, and stopped within a bound.

uvicorn has a supervisor too. It cannot be stopped while it replaces workers, which takes as long as the slowest request
of each; it waits for ever for one that hangs; it tells a worker that is replaced what it tells one that stops, which
then says that the service is not ready; and workers whose supervisor was killed go on by themselves.
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

from api.server.lifecycle import Server
from api.settings import SettingsError, load_settings
from api.telemetry.logs import log_config

logger = logging.getLogger("api.supervisor")

_spawn = multiprocessing.get_context("spawn")

_START_SECONDS = 60.0
_PAUSE_SECONDS = 1.0
_MARGIN_SECONDS = 2.0

_FROM_TERMINAL = {each for each in signal.Signals if each.name in ("SIGINT", "SIGHUP")}  # Windows lacks one.

_End = asyncio.Future[tuple[signal.Signals, int]]
"""What ends it: the signal that the workers get, and the exit code."""


class Supervisor:
    """Runs `config.workers` processes.

    A worker that has not ended 2 s after its GRACE_SECONDS is killed, so that the whole ends within that time too. It
    reads them when it starts; `grace_seconds` are for one that has not done so yet.
    """

    def __init__(self, config: uvicorn.Config, *, grace_seconds: float) -> None:
        self._config = config
        self._grace_seconds = grace_seconds
        self._listener: socket
        self._workers: list[_Worker] = []  # one for each place
        self._living: set[_Worker] = set()  # these, the next that starts, and those that finish what they have

    def run(self) -> int:
        """Serve until a signal ends it. The exit code: 0, but where no worker starts or one had to be killed."""
        with self._config.bind_socket() as self._listener:
            return asyncio.run(self._run())

    async def _run(self) -> int:
        loop = asyncio.get_running_loop()
        end: _End = loop.create_future()
        for each in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(each, self._stop, end, each)
        hang_up = asyncio.Event()
        loop.add_signal_handler(signal.SIGHUP, hang_up.set)
        for _ in range(self._config.workers):
            if (worker := self._start()) is None:
                self._stop(end, signal.SIGINT, 1)
                break
            self._workers.append(worker)
        tasks = [loop.create_task(self._keep(place, end)) for place in range(len(self._workers))]
        tasks.append(loop.create_task(self._replace_on(hang_up)))
        for task in tasks:
            task.add_done_callback(partial(self._notice_failure, end))
        sig, code = await end
        # While this process had it, clients would be let in that no worker turns to any more.
        self._listener.close()
        for task in tasks:
            task.cancel()  # Nobody is started from here on, so that all are told.
        self._tell(sig)
        return code if await self._see_off(self._living) else 1

    def _start(self) -> "_Worker | None":
        """Start a worker. None where the system has no room for it."""
        try:
            worker = _Worker(self._config, self._listener, self._grace_seconds)
        except OSError as error:
            logger.error("a worker cannot be started: %s", error)  # noqa: TRY400 - no defect: where it was says nothing
            return None
        self._living.add(worker)
        worker.ended.add_done_callback(lambda _: self._living.discard(worker))
        return worker

    def _stop(self, end: _End, sig: signal.Signals, code: int = 0) -> None:
        if end.done():
            self._tell(sig)
        else:
            end.set_result((sig, code))

    def _notice_failure(self, end: _End, task: asyncio.Task[None]) -> None:
        """Stop everything: a place would stay empty, or SIGHUP without an effect, and nobody would see why."""
        if not task.cancelled() and (error := task.exception()):
            logger.critical("the supervisor has failed: the workers stop", exc_info=error)
            self._stop(end, signal.SIGTERM, 1)

    def _tell(self, sig: signal.Signals) -> None:
        for worker in self._living:
            worker.tell(sig)

    async def _see_off(self, workers: Collection["_Worker"]) -> bool:
        """Wait for the end of workers that were told to stop. False where that had to be forced."""
        if not workers:
            return True
        longest = max(worker.grace_seconds for worker in workers) + _MARGIN_SECONDS
        _, late = await asyncio.wait([worker.ended for worker in workers], timeout=longest)
        for worker in [worker for worker in workers if worker.ended in late]:
            logger.error("worker %d does not end: it is killed", worker.pid)
            worker.kill()
        if late:
            await asyncio.wait(late)
        return not late

    async def _keep(self, place: int, end: _End) -> None:
        """See to it that somebody serves in a place."""
        while True:
            worker = self._workers[place]
            await asyncio.wait([worker.ended, worker.replaced], return_when=asyncio.FIRST_COMPLETED)
            if self._workers[place] is not worker:
                continue
            logger.error("worker %d ended by itself, with exit code %d", worker.pid, worker.ended.result())
            if not worker.has_served:
                # One that was killed, for its memory or by hand, does not show that none can start.
                killed = worker.ended.result() == -signal.SIGKILL
                if not killed and not any(each.has_served for each in self._workers):
                    self._stop(end, signal.SIGTERM, worker.ended.result() or 1)
                    return
                await asyncio.sleep(_PAUSE_SECONDS)
            while self._workers[place] is worker:
                if (successor := self._start()) is None:
                    await asyncio.sleep(_PAUSE_SECONDS)
                else:
                    self._workers[place] = successor

    async def _replace_on(self, hang_up: asyncio.Event) -> None:
        while True:
            await hang_up.wait()
            hang_up.clear()
            logger.info("SIGHUP: the workers are replaced one by one")
            for place in range(len(self._workers)):
                if not await self._replace(place):
                    logger.error("a new worker does not start: the others stay as they are")
                    break
            else:
                logger.info("the workers are replaced")

    async def _replace(self, place: int) -> bool:
        """Put a new worker into a place, and let the old one finish. False, and nothing changes, where it cannot."""
        if (successor := self._start()) is None:
            return False
        await asyncio.wait([successor.serves], timeout=_START_SECONDS)
        if not successor.has_served:
            successor.kill()
            return False
        old, self._workers[place] = self._workers[place], successor
        old.replaced.set_result(None)
        old.tell(signal.SIGHUP)
        logger.info("worker %d serves instead of worker %d, which finishes what it has", successor.pid, old.pid)
        # The next has to wait: each of those that finish holds connections to the database beyond the budget.
        await self._see_off([old])
        return True


class _Worker:
    """A process, and what is known of it: that it serves, or did, that another one has its place, and its exit code.

    Raises OSError where the system has no room for it.
    """

    def __init__(self, config: uvicorn.Config, listener: socket, grace_seconds: float) -> None:
        self.grace_seconds = grace_seconds
        self._loop = asyncio.get_running_loop()
        self.serves: asyncio.Future[bool] = self._loop.create_future()
        self.replaced: asyncio.Future[Any] = self._loop.create_future()
        self.ended: asyncio.Future[int] = self._loop.create_future()
        self._pipe, its_end = _spawn.Pipe()
        self._process = _spawn.Process(target=_work, args=(config, listener, its_end), daemon=True)
        # What a terminal sends to each process has to wait until the worker, which inherits this, can ignore it.
        resource_tracker.ensure_running()  # Its start, a part of the first worker's otherwise, lets SIGINT through.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _FROM_TERMINAL)
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        its_end.close()
        self.pid: int = self._process.pid  # type: ignore[assignment] # it has one from its start on
        self._loop.add_reader(self._pipe.fileno(), self._hear)
        self._loop.add_reader(self._process.sentinel, self._bury)

    @property
    def has_served(self) -> bool:
        return self.serves.done() and self.serves.result()

    def tell(self, sig: signal.Signals) -> None:
        """Send a signal the way that a terminal and a process manager do not, which send theirs to every process."""
        with suppress(OSError):  # It has ended.
            self._pipe.send_bytes(bytes([sig]))

    def kill(self) -> None:
        self._process.kill()

    def _hear(self) -> None:
        self._loop.remove_reader(self._pipe.fileno())
        with suppress(EOFError, OSError):
            self.grace_seconds = float(self._pipe.recv_bytes())
            self.serves.set_result(True)

    def _bury(self) -> None:
        self._loop.remove_reader(self._process.sentinel)
        self._loop.remove_reader(self._pipe.fileno())
        self._pipe.close()
        self._process.join()
        if not self.serves.done():
            self.serves.set_result(False)
        self.ended.set_result(self._process.exitcode or 0)


def _work(config: uvicorn.Config, listener: socket, parent: Connection) -> None:
    for each in _FROM_TERMINAL:
        signal.signal(each, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _FROM_TERMINAL)
    try:
        settings = load_settings()
        config.log_config = log_config(settings.log_level)
        config.configure_logging()
        drain, grace = settings.drain_seconds, settings.grace_seconds
        Server(config, drain_seconds=drain, grace_seconds=grace, parent=parent).run([listener])
    except SettingsError as error:  # What they say now is not what they said when the supervisor started.
        sys.exit(f"users-api: {error}")
