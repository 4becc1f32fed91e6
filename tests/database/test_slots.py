"""The number of statements in flight, over simulated time and distance, against the best constant number."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from itertools import count, pairwise
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.app import create_app
from api.database import batching, slots
from api.database.batching import Batcher
from api.database.options import Limits
from api.database.slots import Slots
from tests.support.database import locked, wait_until_waiting
from tests.support.metrics import scrape
from tests.support.serving import serve, settings_for
from tests.support.simulated import SimulatedLoop
from tests.support.waiting import wait_until

MOST = 6
LIMITS = Limits(MOST, max_size=128, max_waiting=1000, max_wait_seconds=60)


class World:
    """A service of one core, a database of two, and the distance between them; the costs are those of a GET."""

    def __init__(self, distance_ms: float) -> None:
        self.loop = SimulatedLoop()
        self.distance = distance_ms / 1000
        self.cores = [0.0, 0.0]  # when each has done its work
        self.in_flight = 0
        self.sizes: list[int] = []
        self.starts: list[tuple[float, int]] = []  # with the number of statements in flight then
        self.answered = 0

    async def run(self, items: Sequence[object]) -> Sequence[object]:
        self.starts.append((self.loop.time(), self.in_flight))
        self.sizes.append(len(items))
        self.in_flight += 1
        try:
            await self._answer(len(items))
        finally:
            self.in_flight -= 1
        return items

    async def _answer(self, number: int) -> None:
        self.loop.spend(40e-6)
        now = self.loop.time()
        core = self.cores.index(min(self.cores))
        self.cores[core] = max(now + self.distance / 2, self.cores[core]) + 60e-6 + 3e-6 * number
        await asyncio.sleep(self.cores[core] + self.distance / 2 - now)
        self.loop.spend(40e-6)

    async def request(self, batcher: Batcher[object, object]) -> None:
        self.loop.spend(13e-6)
        await batcher(None)
        self.loop.spend(13e-6)
        self.answered += 1
        await asyncio.sleep(100e-6)

    def batcher(self, most: int = MOST, has_room: Callable[[], bool] = lambda: True) -> Batcher[object, object]:
        return Batcher.read(self.run, LIMITS._replace(in_flight=most), has_room=has_room)

    def rate(self, load: Coroutine[Any, Any, None], periods: float = 12) -> float:
        """Requests a second under a load, after it has gone on for as long."""
        seconds = periods * max(self.distance, 0.01)

        async def measure() -> float:
            task = asyncio.ensure_future(load)
            await asyncio.sleep(seconds)
            before, since = self.answered, self.loop.time()
            await asyncio.sleep(seconds)
            rate = (self.answered - before) / (self.loop.time() - since)
            task.cancel()
            await asyncio.wait([task])
            await asyncio.sleep(1)  # all statements end
            return rate

        return self.loop.run_until_complete(measure())


async def steady(world: World, batcher: Batcher[object, object], clients: int) -> None:
    async def client() -> None:
        while not is_over:
            await world.request(batcher)

    is_over = False
    try:
        await asyncio.gather(*(client() for _ in range(clients)))
    finally:
        is_over = True  # a call whose result is there swallows its cancellation


async def bursts(world: World, batcher: Batcher[object, object], clients: int) -> None:
    while True:
        await asyncio.gather(*(world.request(batcher) for _ in range(clients)))
        await asyncio.sleep(0.01)


LOADS = {load.__name__: load for load in (steady, bursts)}


@pytest.fixture
def new_world(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[float], World]]:
    worlds: list[World] = []

    def make(distance_ms: float) -> World:
        worlds.append(World(distance_ms))
        monkeypatch.setattr(batching, "perf_counter", worlds[-1].loop.time)
        monkeypatch.setattr(slots, "perf_counter", worlds[-1].loop.time)
        return worlds[-1]

    yield make
    for world in worlds:
        world.loop.close()


@contextmanager
def unspaced() -> Iterator[None]:
    """Make the number of statements in flight a constant."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slots, "SPACING_SECONDS", 0.0)
        yield


@pytest.mark.parametrize("clients", [64, 256])
@pytest.mark.parametrize("distance_ms", [0, 1, 10, 80])
@pytest.mark.parametrize("load", LOADS)
def test_no_constant_number_serves_many_more(
    new_world: Callable[[float], World], load: str, distance_ms: float, clients: int
) -> None:
    rates = {}
    with unspaced():
        for most in (1, 2, 4, MOST):
            world = new_world(distance_ms)
            rates[most] = world.rate(LOADS[load](world, world.batcher(most), clients))
    world = new_world(distance_ms)
    assert world.rate(LOADS[load](world, world.batcher(), clients)) >= 0.95 * max(rates.values())


@pytest.mark.parametrize(("before", "after"), [(0, 10), (10, 0), (1, 80), (80, 1)])
def test_the_number_follows_a_distance_that_changes(
    new_world: Callable[[float], World], before: float, after: float
) -> None:
    fresh = new_world(after)
    expected = fresh.rate(steady(fresh, fresh.batcher(), 64))
    world = new_world(before)
    batcher = world.batcher()
    world.rate(steady(world, batcher, 64))
    world.distance = after / 1000
    if after > before:  # what the shortest statement was is forgotten
        world.rate(steady(world, batcher, 64), periods=1.5 * slots.WINDOW_SECONDS / world.distance)
    assert world.rate(steady(world, batcher, 64)) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("distance_ms", [1, 10, 80])
def test_statements_that_overlap_start_apart_and_are_no_more_than_the_limit(
    new_world: Callable[[float], World], distance_ms: float
) -> None:
    world = new_world(distance_ms)
    world.rate(steady(world, world.batcher(), 64))
    assert max(in_flight for _, in_flight in world.starts) <= MOST - 1
    gaps = [at - earlier for (earlier, _), (at, in_flight) in pairwise(world.starts) if in_flight]
    assert len(gaps) > 10
    assert min(gaps) >= slots.SPACING_SECONDS


async def _call(batcher: Batcher[object, object], *groups: int) -> list[asyncio.Future[object]]:
    """Make calls in groups, each after the one before could be sent. No time passes."""
    calls: list[asyncio.Future[object]] = []
    for number in groups:
        calls += [asyncio.ensure_future(batcher(None)) for _ in range(number)]
        for _ in range(5):
            await asyncio.sleep(0)
    return calls


def test_a_batch_beside_a_single_call_does_not_wait(new_world: Callable[[float], World]) -> None:
    world = new_world(80)

    async def main() -> None:
        calls = await _call(world.batcher(), 1, 3)
        assert world.sizes == [1, 3]
        await asyncio.gather(*calls)

    world.loop.run_until_complete(main())


@pytest.mark.parametrize("writes", [False, True])
def test_a_call_finds_a_slot_half_a_millisecond_after_a_read_and_a_whole_one_after_a_write(
    new_world: Callable[[float], World], writes: bool
) -> None:
    world = new_world(80)
    keys = count()
    batcher = Batcher.write(world.run, LIMITS, key=lambda _: next(keys)) if writes else world.batcher()

    async def main() -> None:
        calls = await _call(batcher, 1, 3, 3)
        await asyncio.sleep(0.0006)
        calls += await _call(batcher, 1)
        assert world.sizes == ([1, 3] if writes else [1, 3, 4])
        await asyncio.gather(*calls)

    world.loop.run_until_complete(main())


def test_a_statement_that_ends_within_a_pause_leaves_its_slot(new_world: Callable[[float], World]) -> None:
    world = new_world(80)
    batcher: Batcher[object, object] = Batcher.read(world.run, LIMITS._replace(in_flight=2, max_size=3))

    async def main() -> None:
        calls = await _call(batcher, 1, 3, 5)
        assert world.sizes == [1, 3]
        await asyncio.sleep(0.085)
        assert world.sizes == [1, 3, 3, 2]  # not only after 0.1 s, when a slot is given back
        await asyncio.gather(*calls)

    world.loop.run_until_complete(main())


def test_a_full_batch_does_not_wait(new_world: Callable[[float], World]) -> None:
    world = new_world(80)

    async def main() -> None:
        calls = await _call(world.batcher(), 1, 3, LIMITS.max_size)
        assert world.sizes == [1, 3, LIMITS.max_size]
        await asyncio.gather(*calls)

    world.loop.run_until_complete(main())


def test_a_batch_beside_others_leaves_without_a_further_call_or_answer(new_world: Callable[[float], World]) -> None:
    world = new_world(80)

    async def main() -> None:
        calls = await _call(world.batcher(), 1, 3, 3)
        await asyncio.sleep(0.005)
        assert world.sizes == [1, 3, 3]
        assert slots.SPACING_SECONDS <= world.starts[2][0] - world.starts[1][0] < 0.002
        await asyncio.gather(*calls)

    world.loop.run_until_complete(main())


def test_a_stuck_statement_holds_up_the_next_one_for_a_moment(new_world: Callable[[float], World]) -> None:
    world = new_world(0)
    batcher = world.batcher()
    world.rate(steady(world, batcher, 64))
    assert {in_flight for _, in_flight in world.starts[-20:]} == {0}

    async def main() -> None:
        del world.starts[:], world.sizes[:]
        world.distance = 60
        calls = await _call(batcher, 1, 3, 3)
        world.distance = 0
        assert world.sizes == [1, 3]
        await asyncio.sleep(1)
        assert world.sizes == [1, 3, 3]
        assert slots.STUCK_SECONDS <= world.starts[2][0] - world.starts[1][0] < slots.SLOT_SECONDS / 2
        await asyncio.gather(*calls)

    world.loop.run_until_complete(main())


def test_a_statement_that_is_cancelled_says_nothing_about_the_distance(new_world: Callable[[float], World]) -> None:
    world = new_world(80)
    batcher = world.batcher()

    async def main() -> None:
        calls = await _call(batcher, 1, 3)
        await asyncio.sleep(0.001)
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
        calls = await _call(batcher, 1, 3, 3)
        await asyncio.sleep(0.005)
        assert world.sizes == [1, 3, 1, 3, 3]
        await asyncio.gather(*calls)

    world.loop.run_until_complete(main())


def test_without_a_connection_for_it_no_statement_starts_beside_another(new_world: Callable[[float], World]) -> None:
    """Else its batch is closed, and calls that could still join it wait for another."""
    world = new_world(80)
    world.rate(steady(world, world.batcher(has_room=lambda: False), 64))
    assert {in_flight for _, in_flight in world.starts} == {0}
    assert world.answered > 100


def test_no_batch_waits_for_a_connection_beside_another_of_its_kind(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slots, "SLOT_SECONDS", 60)
    monkeypatch.setattr(slots, "SPACING_SECONDS", 0.0)
    with serve(create_app(settings_for(database, pool_max_size=2))) as url:
        asyncio.run(_create_while_locked(database, url))


def _are_under_way(url: str, requests: int) -> bool:
    return scrape(url).value("users_api_requests_under_way") == requests


async def _create_while_locked(database: str, url: str) -> None:
    async with httpx.AsyncClient(base_url=f"{url}/api/v1", timeout=60) as client:
        with locked(database):
            posts = []
            for n in range(10):
                posts.append(asyncio.ensure_future(client.post("/users", json={"email": f"{n}@example.com"})))
                await asyncio.to_thread(wait_until, partial(_are_under_way, url, n + 1))
                # However long a connection takes to open: those of the first two are there before the next request.
                await asyncio.to_thread(wait_until_waiting, database, min(n + 1, 2))
            assert scrape(url).value("users_api_pool_in_use") == 2
            assert scrape(url).value("users_api_pool_waiting") == 0
        assert {answer.status_code for answer in await asyncio.gather(*posts)} == {201}


# The slots alone


class Alone:
    """Slots without a batcher: what may start, and the times at which they ask for the next batch."""

    def __init__(self, loop: SimulatedLoop, *, writes: bool = False, has_room: bool = True) -> None:
        self.loop = loop
        self.waiting = [None]
        self.resumed: list[float] = []
        self.slots = Slots(self.waiting, lambda: has_room, self._resume, writes=writes)

    def _resume(self, limits: Limits, now: float) -> None:
        assert limits is LIMITS
        assert now == self.loop.time()
        self.resumed.append(now)

    def is_free(self, after: float, others: int = 1) -> bool:
        """Return True if a statement may start beside others, so many seconds after the last one."""
        return self.slots.has_free(self.slots.started + after, others, LIMITS)


@pytest.fixture
def alone(new_world: Callable[[float], World]) -> Callable[..., Alone]:
    return partial(Alone, new_world(0).loop)


# Reads that took 10 ms at least: other statements in flight, calls that wait, whether the last statement serves a
# single one, and the seconds since it was sent: is a slot free?
READS: list[tuple[int, int, bool, float, bool]] = [
    (0, 1, False, 0.0, True),
    (1, 1, False, 0.0004, False),  # half a millisecond apart
    (1, 1, False, 0.0005, True),
    (1, 127, False, 0.0, False),
    (1, 128, False, 0.0, True),  # a full batch cannot grow
    (MOST - 1, 128, False, 0.0, True),
    (MOST, 128, False, 0.0, False),  # as many as BATCH_IN_FLIGHT
    (1, 1, True, 0.0, True),  # beside a single call
    (2, 1, True, 0.0, False),
    (2, 1, True, 0.0005, True),
]


@pytest.mark.parametrize("has_room", [True, False])
@pytest.mark.parametrize(("others", "waiting", "is_single", "after", "expected"), READS)
async def test_when_a_slot_is_free(
    alone: Callable[..., Alone],
    others: int,
    waiting: int,
    is_single: bool,
    after: float,
    expected: bool,
    has_room: bool,
) -> None:
    found = alone(has_room=has_room)
    found.slots.note(0.01, 0.0)
    found.slots.is_single = is_single
    found.waiting *= waiting
    assert found.is_free(after, others) is (expected and (has_room or not others))


@pytest.mark.parametrize(("writes", "spacing"), [(False, 0.0005), (True, 0.001)])
async def test_statements_start_apart_by_what_they_cost(
    alone: Callable[..., Alone], writes: bool, spacing: float
) -> None:
    """Beside one that takes longer than two such times; else it is taken for stuck after 10 ms."""
    found = alone(writes=writes)
    assert found.is_free(spacing)
    assert not found.is_free(0.9 * spacing)
    found.slots.note(2 * spacing, 0.0)
    assert found.is_free(spacing)
    assert not found.is_free(0.9 * spacing)
    assert not found.is_free(spacing, others=2)
    found.slots.note(1.9 * spacing, 0.0)
    assert not found.is_free(0.0099)
    assert found.is_free(0.01)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([0.0, 0.25, 0.75, 1.0, 2.5]), st.sampled_from([0.0004, 0.001, 0.0018, 0.0026])),
        min_size=1,
        max_size=12,
    )
)
def test_the_shortest_of_the_last_one_or_two_seconds_counts(notes: list[tuple[float, float]]) -> None:
    found = Slots([None], lambda: True, lambda _limits, _now: None, writes=False)
    windows: list[list[float]] = [[]]
    now, ends = 0.0, 0.0
    for gap, seconds in notes:
        now += gap
        found.note(seconds, now)
        if now >= ends:
            windows.append([])
            ends = now + 1.0
        windows[-1].append(seconds)
    shortest = min(windows[-1] + windows[-2])

    async def overlapping() -> list[int]:
        return [others for others in range(1, MOST) if found.has_free(0.0005, others, LIMITS)]

    with closing(SimulatedLoop()) as loop:
        counted = loop.run_until_complete(overlapping())
    assert counted == [others for others in range(1, MOST) if others + 1 <= shortest / 0.0005]


def test_one_timer_ends_a_pause(alone: Callable[..., Alone]) -> None:
    """It is not shorter than the millisecond that uvloop counts in."""
    found = alone()

    async def main() -> None:
        for after in (0.0, 0.0002):
            assert not found.is_free(after)
        await asyncio.sleep(0.0009)
        assert found.resumed == []
        await asyncio.sleep(1)
        assert found.resumed == [pytest.approx(0.001)]
        del found.resumed[:]
        found.slots.note(0.0001, 0.0)
        assert not found.is_free(0.002)
        await asyncio.sleep(0.0079)
        assert found.resumed == []
        await asyncio.sleep(1)
        assert found.resumed == [pytest.approx(1.0009 + 0.008)]

    found.loop.run_until_complete(main())


def test_a_slot_is_given_back_after_a_tenth_of_a_second(alone: Callable[..., Alone]) -> None:
    found = alone()

    async def until(at: float) -> set[object]:
        await asyncio.sleep(at - found.loop.time())
        return set(found.slots.held)

    async def main() -> None:
        for sent in (5.0, 5.03):
            await until(sent)
            found.slots.held[sent] = found.loop.time()
            found.slots.watch(LIMITS)
        assert await until(5.099) == {5.0, 5.03}
        assert await until(5.101) == {5.03}
        assert await until(5.129) == {5.03}
        assert await until(5.131) == set()
        assert {round(at, 3) for at in found.resumed} == {5.1, 5.13}

    found.loop.run_until_complete(main())


def test_the_timer_of_the_slots_goes_on_while_a_call_waits(alone: Callable[..., Alone]) -> None:
    """The wait of a call for its key is bounded, though no statement holds a slot."""
    found = alone()

    async def main() -> None:
        found.slots.watch(LIMITS)
        await asyncio.sleep(0.35)
        assert found.resumed == [pytest.approx(seconds) for seconds in (0.1, 0.2, 0.3)]
        found.waiting.clear()
        await asyncio.sleep(60)
        assert len(found.resumed) == 4
        assert found.slots.timer is None

    found.loop.run_until_complete(main())
