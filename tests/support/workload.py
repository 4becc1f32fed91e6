"""Many clients on few users: random operations of every kind, recorded."""

import asyncio
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count

from tests.support.history import Client, Fate, Kind, Operation, Recorder, Seen
from tests.support.waiting import wait_until

CLIENTS = 32
ADDRESSES = 8
"""The number of addresses in use at a time."""

USERS_LEFT = "select id, version, name, email from users"
"""The query for `final_reads`."""

_UNKNOWN_WEARS = 15


class World:
    """The clients' shared knowledge: the last user seen at each address, former users, and versions."""

    def __init__(self) -> None:
        self.current: dict[str, int] = {}
        # It starts with an id that no user gets. A user whose create got no answer is recognised by the first name that
        # is read: a patch of a guessed id before that would make it unrecognisable.
        self.former: deque[int] = deque([10**9], maxlen=8)
        self.versions: dict[int, int] = {}

    def learn(self, operation: Operation) -> None:
        """Learn from an answer."""
        seen = operation.seen
        if seen is not None:
            if seen.email is not None and seen.id >= self.current.get(seen.email, 0):
                self.current[seen.email] = seen.id
            self.versions[seen.id] = max(seen.version or 1, self.versions.get(seen.id, 1))
        elif operation.user_id is not None and operation.status in (204, 404):
            self.former.append(operation.user_id)
            gone = [address for address, user_id in self.current.items() if user_id == operation.user_id]
            for address in gone:
                del self.current[address]


class Workload:
    """Random operations of many clients on the users of a few addresses.

    With a `lifetime` an address is given up for a new one after about so many operations, after fewer where outcomes
    stay unknown: the longer its history and the more it leaves open, the longer it takes to find an order for it.
    """

    def __init__(self, url: str, lifetime: float = float("inf"), addresses: int = ADDRESSES) -> None:
        self.recorder = Recorder()
        self.answered = 0
        self._url = url
        self._lifetime = lifetime
        self._world = World()
        self._names = count(1)
        self._numbers = count(0)
        self._left: dict[str, float] = {}  # operations left for each address in use
        self._turns: dict[int, int] = {}  # of each client that runs
        self._addresses = [self._new_address() for _ in range(addresses)]

    async def run(self, wanted: Callable[[], object], clients: int = CLIENTS) -> None:
        """Run each client until `wanted` is false."""
        async with asyncio.TaskGroup() as group:
            for number in range(clients):
                group.create_task(self._act(number, wanted))

    async def settle(self) -> None:
        """Wait until every operation that is under way has ended. Call it while clients run."""
        begun = dict(self._turns)
        await asyncio.to_thread(wait_until, lambda: all(self._turns[each] > turn for each, turn in begun.items()))

    async def _act(self, number: int, wanted: Callable[[], object]) -> None:
        chance = random.Random(number)
        async with self.recorder.client(self._url, number) as client:
            while wanted():
                self._turns[number] = self._turns.get(number, 0) + 1
                done = await self._one(client, chance)
                # A read after one's own write shows staleness best.
                if done.status in (200, 204) and done.kind in (Kind.PATCH, Kind.DELETE) and chance.random() < 0.3:
                    assert done.user_id is not None
                    self._learn(await client.get(done.user_id))

    def _learn(self, done: Operation) -> None:
        self.answered += done.fate is Fate.ANSWERED
        self._world.learn(done)

    async def _one(self, client: Client, chance: random.Random) -> Operation:
        address = chance.choice(self._addresses)
        done = await self._ask(client, chance, address)
        self._learn(done)
        self._wear(address, _UNKNOWN_WEARS if done.fate is Fate.UNKNOWN else 1)
        return done

    async def _ask(self, client: Client, chance: random.Random, address: str) -> Operation:
        user_id = self._world.current.get(address)
        if user_id is None or chance.random() < 0.25:
            if chance.random() < 0.5:
                return await client.find(address)
            return await client.create(address, self._name(), hang_up=chance.random() < 0.02)
        if chance.random() < 0.03:
            user_id = chance.choice(self._world.former)
        return await self._change_or_get(client, chance, user_id)

    async def _change_or_get(self, client: Client, chance: random.Random, user_id: int) -> Operation:
        version: int | None = max(1, self._world.versions.get(user_id, 1) - chance.choice([0, 0, 0, 1]))
        conditional = version if chance.random() < 0.3 else None
        hang_up = chance.random() < 0.02
        choice = chance.random()
        if choice < 0.4:
            return await client.get(user_id, conditional)
        if choice < 0.93:
            return await client.patch(user_id, self._name(), conditional, hang_up=hang_up)
        return await client.delete(user_id, conditional, hang_up=hang_up)

    def _name(self) -> str:
        return f"name{next(self._names)}"

    def _new_address(self) -> str:
        address = f"user{next(self._numbers)}@example.com"
        self._left[address] = self._lifetime
        return address

    def _wear(self, address: str, operations: int) -> None:
        if address not in self._left:  # given up while this operation was on its way
            return
        self._left[address] -= operations
        if self._left[address] <= 0:
            del self._left[address]
            self._world.current.pop(address, None)
            self._addresses[self._addresses.index(address)] = self._new_address()


def final_reads(rows: Sequence[Sequence[object]], history: Sequence[Operation], now: float) -> list[Operation]:
    """The database's rows (USERS_LEFT) as answers to questions that come after every other, one after the other.

    Each address that the history or the database names is asked for, and each id.
    """
    users = [Seen(int(str(row[0])), int(str(row[1])), str(row[2]), str(row[3])) for row in rows]
    by_id = {user.id: user for user in users}
    by_address = {user.email: user for user in users}
    addresses = {operation.address for operation in history if operation.address is not None} | by_address.keys()
    ids = {operation.seen.id for operation in history if operation.seen is not None} | by_id.keys()
    finds = [Operation(Kind.FIND, 0, 0, 200, address=address, seen=by_address.get(address)) for address in addresses]
    gets = [
        Operation(Kind.GET, 0, 0, 200 if user_id in by_id else 404, user_id=user_id, seen=by_id.get(user_id))
        for user_id in ids
    ]
    return [
        replace(read, invoked=now + number / 1e6, returned=now + number / 1e6)
        for number, read in enumerate([*finds, *gets])
    ]
