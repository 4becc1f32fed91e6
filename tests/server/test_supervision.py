"""What the supervisor decides, over simulated time and processes: when a worker starts, is stopped, is killed."""

import asyncio
import errno
import json
import logging
import multiprocessing
import signal
import socket
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from multiprocessing.context import SpawnContext
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from hypothesis import example, given, settings
from hypothesis import strategies as st

from api.server.sharing import Share, make_shares
from api.server.supervisor import Supervisor
from tests.support.processes import KILL_SECONDS, STOPS, Plan, Process, Processes
from tests.support.serving import live
from tests.support.simulated import SimulatedLoop

PAUSE, MARGIN, START = 1.0, 2.0, 60.0
GRACE = 30.0
"""Of a worker that has not told its own."""
LACK = OSError(errno.EAGAIN, "Resource temporarily unavailable")
CONFIG = uvicorn.Config("nowhere:app", workers=2, log_config=None)


class Stage:
    """A supervisor with simulated processes, and what happens to it at which time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *plans: Plan) -> None:
        self.loop = SimulatedLoop()
        self.processes = Processes(*plans)
        self.sockets = [socket.socket()]
        self.ended = -1.0
        self.errors: list[dict[str, Any]] = []
        self.loop.set_exception_handler(lambda _, context: self.errors.append(context))
        monkeypatch.setattr(SpawnContext, "Process", self.processes)
        monkeypatch.setattr(asyncio.events, "new_event_loop", lambda: self.loop)
        monkeypatch.setattr(resource_tracker, "ensure_running", _Tracker())

    def at(self, seconds: float, do: Callable[..., object], *arguments: Any) -> None:
        self.loop.call_at(seconds, do, *arguments)

    def send(self, seconds: float, sig: signal.Signals) -> None:
        """Send this process, the supervisor, a signal."""
        self.at(seconds, signal.raise_signal, sig)

    def run(self) -> int:
        """Run the supervisor and return its exit code."""
        try:
            code = Supervisor(CONFIG, self.sockets, grace_seconds=GRACE).run()
        finally:
            self.ended = self.loop.time()
            for each in self.sockets:
                each.close()
        assert self.processes.running == []
        assert all(each.is_joined for each in self.processes.made if each.pid)
        assert self.errors == []
        return code

    def __getitem__(self, number: int) -> Process:
        return self.processes.made[number]

    @property
    def starts(self) -> list[float]:
        """When each process began, in order."""
        return [each.began for each in self.processes.made]


class _Tracker:
    """In place of multiprocessing's resource tracker, whose start unblocks SIGINT."""

    def __init__(self) -> None:
        self.runs = False

    def __call__(self) -> None:
        if not self.runs:
            self.runs = True
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


Stages = Callable[..., Stage]


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stages]:
    handled = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(sig, lambda *_: None) for sig in handled]  # a signal that is not handled does no harm
    yield lambda *plans: Stage(monkeypatch, *plans)
    for sig, handler in zip(handled, before, strict=True):
        signal.signal(sig, handler)


SERVES = Plan()
HANGS = Plan(stops={})
FAILS = Plan(serves_after=None, ends_after=0.5)


# The end


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_every_worker_once_the_sockets_are_closed(stage: Stages, sig: signal.Signals) -> None:
    found = stage(SERVES)
    found.send(10.0, sig)
    is_closed: list[bool] = []
    for at in (9.99, 10.01):
        found.at(at, lambda: is_closed.append(found.sockets[0].fileno() == -1))
    assert found.run() == 0
    assert found.ended == pytest.approx(10.0 + STOPS[sig])
    assert [each.signals for each in found.processes.made] == [[(sig, 10.0)]] * 2
    assert is_closed == [False, True]


def test_further_signals_reach_the_workers_too(stage: Stages) -> None:
    found = stage(HANGS, Plan(stops={signal.SIGTERM: 0.1, signal.SIGINT: 0.1}))
    found.send(10.0, signal.SIGTERM)
    found.send(11.0, signal.SIGINT)
    found.send(12.0, signal.SIGTERM)
    found.run()
    assert [sig for sig, _ in found[0].signals] == [signal.SIGTERM, signal.SIGINT, signal.SIGTERM]
    assert [sig for sig, _ in found[1].signals] == [signal.SIGTERM]


@pytest.mark.parametrize(("serves_after", "grace"), [(1.0, 5.0), (None, GRACE)])
def test_a_worker_that_hangs_is_killed_two_seconds_after_its_grace(
    stage: Stages, caplog: pytest.LogCaptureFixture, serves_after: float | None, grace: float
) -> None:
    found = stage(Plan(stops={}, serves_after=serves_after), SERVES)
    found.send(10.0, signal.SIGTERM)
    assert found.run() == 1
    assert found[0].exitcode == -signal.SIGKILL
    assert found[0].ended == found.ended == pytest.approx(10.0 + grace + MARGIN + KILL_SECONDS)
    assert f"worker {found[0].pid} exceeded GRACE_SECONDS: killing it" in caplog.text
    assert found[1].exitcode == 0


def test_the_longest_grace_of_those_that_run_counts(stage: Stages) -> None:
    found = stage(Plan(grace=50.0, stops={signal.SIGTERM: 51.9}), SERVES)
    found.send(10.0, signal.SIGTERM)
    assert found.run() == 0
    found = stage(Plan(grace=50.0, ends_after=9.0), HANGS)
    found.send(10.0, signal.SIGTERM)
    assert found.run() == 1
    assert found.ended <= 10.0 + 5.0 + MARGIN + 1.0


@pytest.mark.parametrize("others", [(signal.SIGHUP,), ()])
def test_no_worker_starts_after_the_end_has_begun(stage: Stages, others: tuple[signal.Signals, ...]) -> None:
    found = stage(Plan(stops={signal.SIGTERM: 4.0}))

    def all_at_once() -> None:
        for sig in (signal.SIGTERM, *others):
            signal.raise_signal(sig)
        found[0].end(1)

    found.at(9.9, all_at_once)
    found.at(11.0, lambda: found[1].end(1))
    assert found.run() == 0
    assert len(found.processes.made) == 2


def test_a_worker_that_is_starting_is_stopped_too(stage: Stages) -> None:
    found = stage(SERVES)
    found.send(10.0, signal.SIGHUP)
    found.send(10.5, signal.SIGTERM)
    assert found.run() == 0
    assert [each.signals for each in found.processes.made] == [[(signal.SIGTERM, 10.5)]] * 3


# Workers that end


@pytest.mark.parametrize("code", [0, 3, -signal.SIGKILL])
def test_a_worker_that_has_served_is_started_again_at_once(
    stage: Stages, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    found = stage(Plan(ends_after=10.0, code=code), SERVES)
    found.send(20.0, signal.SIGTERM)
    assert found.run() == 0
    assert found.starts == [0.0, 0.0, 10.0]
    assert f"worker {found[0].pid} exited unexpectedly, with exit code {code}" in caplog.text


@pytest.mark.parametrize("code", [0, 3, -signal.SIGKILL])
def test_a_worker_that_does_not_serve_is_started_again_a_second_later(stage: Stages, code: int) -> None:
    found = stage(Plan(ends_after=10.0), SERVES, Plan(serves_after=None, ends_after=0.5, code=code))
    found.send(20.0, signal.SIGTERM)
    assert found.run() == 0
    assert found.starts[2:] == [10.0 + number * (0.5 + PAUSE) for number in range(7)]


def test_workers_that_are_killed_before_they_serve_are_started_again(
    stage: Stages, caplog: pytest.LogCaptureFixture
) -> None:
    killed = Plan(serves_after=None, ends_after=0.5, code=-signal.SIGKILL)
    found = stage(killed, killed, killed, killed, SERVES)
    found.send(90.0, signal.SIGTERM)
    assert found.run() == 0
    assert found.starts == [0.0, 0.0, 1.5, 1.5, 3.0, 3.0]
    assert "does not serve" not in caplog.text


@pytest.mark.parametrize(("code", "result"), [(3, 3), (0, 1), (-signal.SIGSEGV, -signal.SIGSEGV)])
def test_a_supervisor_of_which_no_worker_starts_gives_up(stage: Stages, code: int, result: int) -> None:
    found = stage(Plan(serves_after=None, ends_after=0.5, code=code), Plan(serves_after=5.0))
    assert found.run() == result
    assert found.starts == [0.0, 0.0]
    assert found[1].signals == [(signal.SIGTERM, 0.5)]


def test_a_supervisor_of_which_all_workers_end_at_once_gives_up(stage: Stages) -> None:
    found = stage(FAILS)
    assert found.run() == FAILS.code
    assert found.starts == [0.0, 0.0]
    assert found.ended == 0.5


@pytest.mark.parametrize("closes_pipe", [False, True])
def test_a_worker_that_neither_serves_nor_ends_is_killed_after_a_minute_and_started_again(
    stage: Stages, caplog: pytest.LogCaptureFixture, closes_pipe: bool
) -> None:
    hangs = Plan(serves_after=None, stops={})
    found = stage(hangs, Plan(ends_after=90.0), hangs, SERVES)
    if closes_pipe:
        found.at(1.0, lambda: found[0].close_pipe())
    found.send(200.0, signal.SIGTERM)
    assert found.run() == 0
    starts = [0.0, 0.0, START + KILL_SECONDS + PAUSE, 90.0, 2 * (START + KILL_SECONDS + PAUSE)]
    assert found.starts == pytest.approx(starts)
    for number in (0, 2):
        assert f"worker {found[number].pid} does not serve 60 s after its start: killing it" in caplog.text
    assert caplog.text.count("killing it") == 2


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGHUP])
def test_a_worker_that_is_told_to_stop_before_it_serves_has_its_grace(stage: Stages, sig: signal.Signals) -> None:
    found = stage(Plan(serves_after=None, stops={sig: 31.0}), SERVES)
    found.send(START - 3.0, sig)
    found.send(150.0, signal.SIGTERM)
    assert found.run() == 0
    assert found[0].exitcode == 0


# The lack of resources


def test_a_supervisor_that_cannot_start_its_workers_ends(stage: Stages, caplog: pytest.LogCaptureFixture) -> None:
    found = stage(SERVES, Plan(lacks=LACK))
    assert found.run() == 1
    assert f"cannot start a worker ({LACK}): check the limits on files, processes and memory" in caplog.text
    assert found[0].signals == [(signal.SIGINT, 0.0)]
    assert len(found.processes.made) == 2


def test_a_worker_that_cannot_be_started_is_tried_each_second(stage: Stages) -> None:
    lacks = Plan(lacks=LACK)
    found = stage(Plan(ends_after=10.0), SERVES, lacks, lacks, lacks, SERVES)
    found.send(20.0, signal.SIGTERM)
    assert found.run() == 0
    assert found.starts == [0.0, 0.0, -1.0, -1.0, -1.0, 13.0]


def test_a_supervisor_that_fails_stops_its_workers(stage: Stages, caplog: pytest.LogCaptureFixture) -> None:
    found = stage(Plan(ends_after=10.0), SERVES, Plan(lacks=LookupError("a defect")))
    assert found.run() == 1
    assert found[1].signals == [(signal.SIGTERM, 10.0)]
    assert "the supervisor has failed: the workers stop" in caplog.text
    assert "LookupError: a defect" in caplog.text


# Replacement


def test_workers_are_replaced_one_by_one(stage: Stages, caplog: pytest.LogCaptureFixture) -> None:
    found, most = stage(SERVES), []
    found.processes.watch = lambda process: most.append(len(found.processes.running) + 1)
    found.send(10.0, signal.SIGHUP)
    found.send(30.0, signal.SIGTERM)
    with caplog.at_level("INFO", "api.supervisor"):
        assert found.run() == 0
    stops = STOPS[signal.SIGHUP]
    assert found.starts == [0.0, 0.0, 10.0, 11.0 + stops]
    assert [each.signals for each in found.processes.made[:2]] == [
        [(signal.SIGHUP, 11.0)],
        [(signal.SIGHUP, 12.0 + stops)],
    ]
    assert max(most) == 3
    assert f"worker {found[2].pid} replaces worker {found[0].pid}" in caplog.text
    assert caplog.text.count("SIGHUP: replacing the workers one by one") == 1
    assert caplog.text.count("the workers are replaced") == 1
    assert "exited unexpectedly" not in caplog.text


def test_a_second_hang_up_replaces_the_new_workers_too(stage: Stages) -> None:
    found = stage(SERVES)
    found.send(10.0, signal.SIGHUP)
    found.send(10.5, signal.SIGHUP)
    found.send(11.5, signal.SIGHUP)
    found.send(60.0, signal.SIGTERM)
    assert found.run() == 0
    assert len(found.processes.made) == 6


def test_an_old_worker_that_hangs_is_killed_and_the_replacement_goes_on(stage: Stages) -> None:
    found = stage(HANGS, SERVES)
    found.send(10.0, signal.SIGHUP)
    found.send(60.0, signal.SIGTERM)
    assert found.run() == 0
    assert found[0].exitcode == -signal.SIGKILL
    assert found[0].ended == pytest.approx(11.0 + 5.0 + MARGIN + KILL_SECONDS)
    assert found.starts[3] == found[0].ended


@pytest.mark.parametrize(
    ("plan", "until"),
    [(FAILS, 10.5), (Plan(serves_after=None), 10.0 + START), (Plan(lacks=LACK), 10.0)],
)
def test_workers_stay_if_no_successor_serves(
    stage: Stages, caplog: pytest.LogCaptureFixture, plan: Plan, until: float
) -> None:
    found = stage(SERVES, SERVES, plan)
    found.send(10.0, signal.SIGHUP)
    found.send(90.0, signal.SIGTERM)
    found.at(until - 0.01, lambda: caplog.clear())
    found.at(until + 0.1, lambda: running.append(list(found.processes.running)))
    running: list[list[Process]] = []
    assert found.run() == 0
    assert "a new worker did not start: the others keep running" in caplog.text
    assert running == [found.processes.made[:2]]
    assert len(found.processes.made) == 3
    assert found[0].signals == [(signal.SIGTERM, 90.0)]


def test_a_successor_has_a_minute_to_start(stage: Stages) -> None:
    found = stage(SERVES, SERVES, Plan(serves_after=START - 0.01), SERVES)
    found.send(10.0, signal.SIGHUP)
    found.send(90.0, signal.SIGTERM)
    assert found.run() == 0
    ((sig, at),) = found[0].signals
    assert sig == signal.SIGHUP
    assert at == pytest.approx(70.0 - 0.01)


def test_a_hang_up_after_one_that_failed_is_tried(stage: Stages) -> None:
    found = stage(SERVES, SERVES, FAILS, SERVES)
    found.send(10.0, signal.SIGHUP)
    found.send(20.0, signal.SIGHUP)
    found.send(60.0, signal.SIGTERM)
    assert found.run() == 0
    assert found.starts[:4] == [0.0, 0.0, 10.0, 20.0]
    assert len(found.processes.made) == 5


def test_a_successor_that_ends_is_replaced_while_its_predecessor_finishes(stage: Stages) -> None:
    slow = Plan(stops={signal.SIGHUP: 4.0})
    found = stage(slow, SERVES, Plan(ends_after=2.0), SERVES)
    found.send(10.0, signal.SIGHUP)
    found.send(60.0, signal.SIGTERM)
    assert found.run() == 0
    assert found.starts == [0.0, 0.0, 10.0, 12.0, 15.0]


def test_a_worker_that_ends_while_its_successor_starts_is_started_again(stage: Stages) -> None:
    found = stage(Plan(ends_after=10.5), SERVES)
    found.send(10.0, signal.SIGHUP)
    found.send(60.0, signal.SIGTERM)
    assert found.run() == 0
    assert found.starts[:4] == [0.0, 0.0, 10.0, 10.5]
    assert found[3].signals[0] == (signal.SIGHUP, 11.0)  # The successor takes its place.


def test_a_successor_ends_the_wait_for_a_worker_to_be_tried_again(stage: Stages) -> None:
    """The worker ended before it served, just before the successor did."""
    found = stage(Plan(ends_after=10.0), SERVES, Plan(serves_after=None, ends_after=1.0), SERVES)
    found.send(10.5, signal.SIGHUP)
    found.send(60.0, signal.SIGTERM)
    assert found.run() == 0
    assert len(found.processes.made) == 5
    assert [each.signals[-1][0] for each in found.processes.made[3:]] == [signal.SIGTERM] * 2


# How a worker is started


def test_a_worker_starts_with_the_signals_of_a_terminal_blocked(stage: Stages) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    found, after = stage(SERVES, SERVES, Plan(lacks=LACK), SERVES), []
    found.at(5.0, lambda: found[0].end(1))
    for at in (1.0, 5.5):
        found.at(at, lambda: after.append(signal.pthread_sigmask(signal.SIG_BLOCK, ())))
    found.send(20.0, signal.SIGTERM)
    assert found.run() == 0
    for process in found.processes.made:
        assert process.mask - before == {signal.SIGINT, signal.SIGHUP}
        assert process.daemon
        assert process.args[2].closed or process.plan.lacks  # its end of the pipe, which the process has opened anew
    assert after == [before] * 2


def test_workers_share_their_connections_each_in_a_slot(stage: Stages) -> None:
    found = stage(Plan(ends_after=5.0), SERVES)
    found.send(20.0, signal.SIGTERM)
    assert found.run() == 0
    shares = [process.args[3] for process in found.processes.made]
    assert shares[0] is not shares[1]
    assert shares[2] is shares[0]
    assert [process.args[:2] for process in found.processes.made] == [(CONFIG, found.sockets)] * 3


# What a worker does


async def live_only(scope: Any, receive: Any, send: Any) -> None:
    await live(receive, send)


@pytest.fixture
def work(stage: Stages, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., float]]:
    """Do here what the supervisor has its workers do, with environment variables and signals from the supervisor."""
    found = stage(SERVES)
    found.send(1.0, signal.SIGTERM)
    found.run()
    root = logging.getLogger()
    handlers, level, mask = root.handlers[:], root.level, signal.pthread_sigmask(signal.SIG_BLOCK, ())
    monkeypatch.chdir(tmp_path)

    def work(application: Any, *signals: signal.Signals, share: Share | None = None, **variables: str) -> float:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        config = uvicorn.Config(
            application, loop="tests.support.simulated:SimulatedLoop", lifespan="on", log_config=None
        )
        ours, its = multiprocessing.Pipe()
        with ours, its:
            for sig in signals:
                ours.send_bytes(bytes([sig]))
            target = found[0].target
            assert target
            target(config, [], its, share)
            assert ours.poll()
            return float(ours.recv_bytes())

    yield work
    root.handlers[:] = handlers
    root.setLevel(level)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def test_a_worker_has_the_settings_that_are_there_when_it_starts(
    work: Callable[..., float], capsys: pytest.CaptureFixture[str]
) -> None:
    assert work(live_only, signal.SIGTERM, DRAIN_SECONDS="0.2", GRACE_SECONDS="2.5") == 2.5
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert "draining: requests are served for 0.2 s more, and /ready is 503" in [line["event"] for line in lines]
    for level in ("warning", "error"):
        work(live_only, signal.SIGINT, LOG_LEVEL=level)
        assert logging.getLogger().level == getattr(logging, level.upper())


def test_a_worker_ignores_what_a_terminal_sends(work: Callable[..., float]) -> None:
    from_terminal = {signal.SIGINT, signal.SIGHUP}
    signal.pthread_sigmask(signal.SIG_BLOCK, from_terminal)  # as the supervisor does
    seen: list[Any] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        seen.extend(map(signal.getsignal, from_terminal))
        seen.append(signal.pthread_sigmask(signal.SIG_BLOCK, ()) & from_terminal)
        await live(receive, send)

    work(application, signal.SIGINT)
    assert seen == [signal.SIG_IGN, signal.SIG_IGN, set()]


def test_a_worker_shares_connections(work: Callable[..., float]) -> None:
    first, second = make_shares(2)
    assert first
    assert second
    assert not second.is_ahead(9)
    work(live_only, signal.SIGINT, share=first)
    assert second.is_ahead(9)


def test_a_worker_whose_settings_are_wrong_says_so(work: Callable[..., float]) -> None:
    with pytest.raises(SystemExit, match=r"^users-api: POOL_MAX_SIZE: "):
        work(None, POOL_MAX_SIZE="0")


# Whatever happens

PLANS = st.builds(
    Plan,
    lacks=st.sampled_from([None, None, None, None, LACK]),
    serves_after=st.sampled_from([None, 0.0, 0.5, 1.0, 7.0, 61.0]),
    ends_after=st.sampled_from([None, None, 0.0, 0.5, 1.0, 1.5, 10.0]),
    code=st.sampled_from([0, 3, -signal.SIGKILL]),
    stops=st.sampled_from([STOPS, STOPS, {}, {signal.SIGINT: 0.5}]),
)


@settings(max_examples=40, deadline=None)
@example([Plan(serves_after=None)], [], 500.0)
@given(
    plans=st.lists(PLANS, max_size=8),
    hang_ups=st.lists(st.sampled_from([0.0, 0.5, 1.0, 1.5, 2.0, 7.0, 10.0]), max_size=4),
    ends=st.sampled_from([0.0, 1.0, 10.5, 62.0, 500.0]),
)
def test_the_supervisor_ends_in_time_and_leaves_no_worker(
    plans: list[Plan], hang_ups: list[float], ends: float
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        handled = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
        before = [signal.signal(sig, lambda *_: None) for sig in handled]
        found, most = Stage(patch, *plans, SERVES), [0]
        found.processes.watch = lambda process: most.append(len(found.processes.running) + (not process.plan.lacks))
        for at in hang_ups:
            found.send(at, signal.SIGHUP)
        found.send(ends, signal.SIGTERM)
        serving: list[int] = []
        found.at(ends - 0.001, lambda: serving.append(sum(each.served for each in found.processes.running)))
        found.run()
        for sig, handler in zip(handled, before, strict=True):
            signal.signal(sig, handler)
    assert max(most) <= 4  # two, one that drains or starts, and one that takes the place of one that ended
    assert found.ended <= ends + GRACE + MARGIN + KILL_SECONDS
    if ends == 500.0 and found.ended >= ends:
        assert serving == [2]
