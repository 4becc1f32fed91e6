"""Clients that create, read, change and remove users, count what fails, and know what every user must be at the end."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import orjson

from tests.support.database import execute
from tests.support.history import USERS, Connection

LONGEST_PAUSE_SECONDS = 0.2


@dataclass
class Load:
    """The requests of the clients, and the outcome of each."""

    at_least: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    # By address: the names that it may have, None for no user. A write that was acknowledged leaves one, and one that
    # failed adds another: its outcome is unknown.
    names: dict[str, set[str | None]] = field(default_factory=dict)
    acknowledged: int = 0
    enough: asyncio.Event = field(default_factory=asyncio.Event)
    over: bool = False

    @property
    def requests(self) -> int:
        """The number of requests that were answered, or failed."""
        return self.answers.total() + len(self.failures)

    @asynccontextmanager
    async def running(self, port: int, clients: int) -> AsyncIterator[None]:
        """Keep so many clients going for the length of the block, and until there were `at_least` so many requests."""
        async with asyncio.TaskGroup() as group:
            for number in range(clients):
                group.create_task(self._run_client(port, number))
            try:
                yield
                await self.enough.wait()
            finally:
                self.over = True

    def lost(self, database: str) -> dict[str, str | None]:
        """Return what the database has that contradicts an acknowledged write, by address."""
        found: dict[str, str | None] = dict(execute(database, "select email, name from users"))  # type: ignore[arg-type]
        return {address: found.get(address) for address, names in self.names.items() if found.get(address) not in names}

    async def _run_client(self, port: int, number: int) -> None:
        """One after the other, as on a connection of a pool: now and then it is idle."""
        connection = Connection(f"http://127.0.0.1:{port}")
        count = 0
        while not self.over:
            count += 1
            await self._one_user(connection, f"client{number}-{count}@example.com", removed=count % 4 == 0)
        await connection.aclose()

    async def _one_user(self, connection: Connection, address: str, *, removed: bool) -> None:
        created = await self._write(connection, "POST", USERS, 201, address, "new")
        if not created:
            return
        target = f"{USERS}/{orjson.loads(created)['id']}"
        for n in range(10):
            await self._ask(connection, "GET", target, 200)
            if n % 5 == 0:
                await self._write(connection, "PATCH", target, 200, address, f"name {n}")
        if removed:
            await self._write(connection, "DELETE", target, 204, address, None)

    async def _write(
        self, connection: Connection, method: str, target: str, status: int, address: str, name: str | None
    ) -> bytes:
        document = {"email": address} if method == "POST" else {}
        body = b"" if name is None else orjson.dumps({**document, "name": name})
        answer = await self._ask(connection, method, target, status, body)
        if answer:
            self.names[address] = {name}
            self.acknowledged += 1
        else:
            self.names.setdefault(address, {None}).add(name)
        return answer

    async def _ask(self, connection: Connection, method: str, target: str, status: int, body: bytes = b"") -> bytes:
        # Starting workers needs the processors too, and a connection that is idle now and then tells more.
        await asyncio.sleep(
            random.uniform(0, LONGEST_PAUSE_SECONDS) if random.random() < 0.1 else random.uniform(0, 0.02)
        )
        try:
            answer = await connection.request(method, target, body, {"content-type": "application/json"})
        except (OSError, EOFError) as error:
            self.failures.append(f"{method} {target}: {error!r}")
            return b""
        if answer.status != status:
            self.failures.append(f"{method} {target}: {answer.status} {answer.body!r}")
            return b""
        self.answers[method] += 1
        if self.requests >= self.at_least:
            self.enough.set()
        return answer.body or b"{}"
