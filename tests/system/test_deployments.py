"""A deployment: two releases serve side by side behind one pooler while migrations run.

Three things could fail: a statement prepared before a migration, on a server connection that the pooler keeps and
shares between both releases; a lock that is held for too long; an index that is missing for a moment.
"""

import asyncio
import shutil
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path

import httpx
import pytest

from api.app import create_app
from api.database import migrations
from api.neon.url import parse_url
from api.users import statements
from tests.support import ROOT
from tests.support.commands import USERS_API, run_program, served
from tests.support.database import execute
from tests.support.rig import NeonDatabase, Rig
from tests.support.serving import serve
from tests.support.waiting import wait_until

USERS = "/api/v1/users"
CHANGES = Path(__file__).parent / "deployment"


class Release:
    """The next release: a copy of the source with another statement in it, and room for migrations."""

    def __init__(self, directory: Path, database: NeonDatabase) -> None:
        self.directory = directory
        for part in ("api", "sql", "migrations"):
            shutil.copytree(ROOT / part, directory / part)
        shutil.copy(ROOT / "pyproject.toml", directory)
        shutil.copytree(CHANGES / "sql", directory / "sql", dirs_exist_ok=True)
        self.program = (sys.executable, "-P", "-m", "api")
        self.environment = {"PYTHONPATH": str(directory), **database.environment()}

    def migrate(self, changes: str) -> list[str]:
        """Apply the migrations of a directory below CHANGES, and return the lines that tell so."""
        shutil.copytree(CHANGES / changes, self.directory / "migrations", dirs_exist_ok=True)
        done = run_program(self.program, "migrate", **self.environment)
        assert done.returncode == 0, done.stderr
        return [line for line in done.stdout.splitlines() if line.startswith("applying")]


class Traffic:
    """Clients of both releases that run every statement again and again, and count each answer."""

    def __init__(self) -> None:
        self.servers: list[str] = []  # the traffic ends where there is none
        self.answers: Counter[tuple[str, int]] = Counter()  # what was asked, status
        self._done: Counter[str] = Counter()  # rounds of each server
        self._numbers = count()

    @asynccontextmanager
    async def flowing(self, clients: int) -> AsyncIterator[None]:
        """Keep so many clients going for the length of the block; each ends with a whole round."""
        async with httpx.AsyncClient(timeout=30) as client, asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(self._flow(client))
            try:
                yield
            finally:
                self.servers = []

    async def rounds(self, number: int) -> None:
        """Return when every server has answered so many more rounds."""
        wanted = {server: self._done[server] + number for server in self.servers}
        await asyncio.to_thread(wait_until, lambda: all(self._done[server] >= wanted[server] for server in wanted))

    async def _flow(self, client: httpx.AsyncClient) -> None:
        while self.servers:
            n = next(self._numbers)
            server = self.servers[n % len(self.servers)]
            await self._round(client, server, f"user{n}@example.com")
            self._done[server] += 1

    async def _round(self, client: httpx.AsyncClient, server: str, email: str) -> None:
        async def ask(what: str, method: str, path: str, **arguments: object) -> httpx.Response:
            response = await client.request(method, f"{server}{path}", **arguments)  # type: ignore[arg-type]
            self.answers[what, response.status_code] += 1
            return response

        created = await ask("create", "POST", USERS, json={"email": email})
        path = created.headers.get("location", f"{USERS}/1")
        await ask("get", "GET", path)
        await ask("taken", "POST", USERS, json={"email": "Taken@example.com"})
        await ask("patch", "PATCH", path, json={"name": "Ada"}, headers={"if-match": '"1"'})
        await ask("patch to taken", "PATCH", path, json={"email": "taken@example.com"})
        await ask("list", "GET", f"{USERS}?after=0&limit=5")
        await ask("skip", "GET", f"{USERS}?skip=1&limit=5")
        await ask("find", "GET", f"{USERS}?email={email}")
        await ask("delete", "DELETE", path)


EXPECTED = {"create": 201, "taken": 409, "patch to taken": 409, "delete": 204}


@pytest.fixture
def shared_sessions(rig: Rig) -> Iterator[None]:
    """Few sessions, so that both releases meet the statements that the other one has prepared."""
    rig.pgbouncer.run("set default_pool_size = 4")
    yield
    rig.pgbouncer.run("set default_pool_size = 60")


@pytest.mark.heavy
@pytest.mark.usefixtures("shared_sessions")
async def test_no_request_fails_while_releases_and_schema_change(neon: NeonDatabase, tmp_path: Path) -> None:
    release, traffic = Release(tmp_path / "next", neon), Traffic()
    execute(neon.superuser, "insert into users (email) values ('taken@example.com')")
    with serve(create_app(neon.settings())) as old:
        traffic.servers = [old]
        async with traffic.flowing(8):
            await traffic.rounds(20)
            assert len(await asyncio.to_thread(release.migrate, "first")) == 3
            await traffic.rounds(20)
            with served(cwd=tmp_path, ends_with=0, program=release.program, **release.environment) as (
                new,
                _,
            ):
                traffic.servers = [old, new]
                await traffic.rounds(20)
                assert len(await asyncio.to_thread(release.migrate, "second")) == 2
                await traffic.rounds(20)
                traffic.servers = [old]
                await traffic.rounds(20)
    failed = {key: n for key, n in traffic.answers.items() if key[1] != EXPECTED.get(key[0], 200)}
    assert not failed, failed
    for program in ((USERS_API,), release.program):  # Both releases' statements fit what it has become.
        assert run_program(program, "check-sql", **release.environment).returncode == 0


@pytest.mark.parametrize("name", ["users_email_key_ccnew", "users_email_key_ccold", "users_email_key_ccold1"])
def test_a_taken_address_is_told_while_its_index_is_rebuilt(client: httpx.Client, database: str, name: str) -> None:
    """`reindex concurrently` renames the index for a moment in which it still refuses."""
    client.post(USERS, json={"email": "taken@example.com"})
    path = client.post(USERS, json={"email": "ada@example.com"}).headers["location"]
    execute(database, f"alter index users_email_key rename to {name}")
    assert client.patch(path, json={"email": "taken@example.com"}).status_code == 409


Create = Callable[[str, str], httpx.Response]


@pytest.fixture
def create(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> Create:
    """Create a user with a key and that name, by this release or by the one `before` it."""
    before = replace(statements.INSERT_USERS_ONCE, sql=(CHANGES / "before/insert_users_once.sql").read_text("utf-8"))
    by = {"before": before, "this": statements.INSERT_USERS_ONCE}

    def create(release: str, name: str) -> httpx.Response:
        monkeypatch.setattr(statements, "INSERT_USERS_ONCE", by[release])
        return client.post(USERS, json={"email": f"{name}@example.com"}, headers={"idempotency-key": name})

    return create


@pytest.mark.parametrize(("first", "second"), [("before", "this"), ("this", "before"), ("this", "this")])
def test_a_creation_that_is_sent_again_to_a_server_of_the_other_release(
    client: httpx.Client, create: Create, first: str, second: str
) -> None:
    client.post(USERS, json={"email": "taken@example.com"})
    for name, status in (("ada", 201), ("taken", 409)):
        created, again = create(first, name), create(second, name)
        assert (created.status_code, again.status_code) == (status, status)
        assert (again.content, again.headers.get("location")) == (created.content, created.headers.get("location"))
        assert again.headers["idempotency-replayed"] == "true"


def test_the_release_before_replays_after_a_rollback_of_the_schema(database: str, create: Create) -> None:
    created = create("this", "ada")
    while migrations.rollback(parse_url(database)) != "0004.key-any-resource":
        pass
    again = create("before", "ada")
    assert (again.status_code, again.content) == (201, created.content)
    assert create("before", "grace").status_code == 201
