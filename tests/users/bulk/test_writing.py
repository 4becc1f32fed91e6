"""How rows are written: as their lines one after the other would be, whichever statements that takes."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, NamedTuple, TypeVar

import asyncpg
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect

from api.database.fetch import PooledDatabase
from api.database.options import database_options
from api.database.statements import Statement
from api.errors import DatabaseUnavailableError, OutcomeUnknownError, RefusedError, problem_of
from api.neon.url import parse_url
from api.users.bulk import writing
from api.users.bulk.importing import Counts, Import
from api.users.bulk.parsing import NDJSONParser, Row
from api.users.bulk.problems import client_silent
from api.users.bulk.writing import WriteRows, Written, copy_rows, write_rows
from api.users.problems import email_taken
from api.users.schemas import OnConflict
from tests.support.catalogue import empty
from tests.support.database import execute, locked, wait_until_waiting
from tests.support.serving import settings_for

Result = TypeVar("Result")

TAKEN, REFUSED = email_taken().kind, problem_of(RefusedError).kind

RULES = """
    create function refuse() returns trigger language plpgsql as $$
        begin if new.name = 'left out' then return null; end if; raise 'no' using errcode = 'P0001'; end $$;
    create trigger refuse before insert or update on users for each row
        when (new.name in ('refused', 'left out')) execute function refuse()
"""


@pytest.fixture(scope="module")
def shared(postgres: str, template: str) -> Iterator[str]:
    """One database for all of these tests, whose owner's rules refuse two names."""
    execute(postgres, f"create database writing template {template}")
    url = postgres.replace("/postgres?", "/writing?")
    execute(url, RULES)
    yield url
    execute(postgres, "drop database writing with (force)")


class Rig:
    """Runs work in one event loop, with a pool, and two connections to copy by."""

    def __init__(self, url: str) -> None:
        self._runner = asyncio.Runner()
        self.users = PooledDatabase(database_options(settings_for(url, statement_timeout_seconds=1)))
        self.connections: list[asyncpg.Connection] = self.run(self._open(url))

    def run(self, work: Awaitable[Result]) -> Result:
        async def run() -> Result:
            return await work

        return self._runner.run(run())

    def close(self) -> None:
        self.run(self._close())
        self._runner.close()

    async def _open(self, url: str) -> list[asyncpg.Connection]:
        await self.users.open()
        arguments = parse_url(url).asyncpg_arguments()
        # The operator's search_path may be any.
        return [await asyncpg.connect(**arguments, server_settings={"search_path": ""}) for _ in range(2)]

    async def _close(self) -> None:
        for connection in self.connections:
            await connection.close()
        await self.users.close()


@pytest.fixture(scope="module")
def rig(shared: str) -> Iterator[Rig]:
    rig = Rig(shared)
    yield rig
    rig.close()


@pytest.fixture
def database(shared: str) -> str:
    empty(shared)
    return shared


class User(NamedTuple):
    email: str
    name: str | None


def people(number: int, start: int = 0) -> list[Row]:
    return [Row(n + 1, f"{n}@example.com", None, False) for n in range(start, start + number)]


def stored(database: str) -> dict[object, object]:
    return dict(execute(database, "select email, name from users"))  # type: ignore[arg-type]


def one_after_the_other(
    users: dict[str, User], on_conflict: OnConflict, rows: Sequence[Row]
) -> tuple[tuple[int, int, int], list[tuple[int, str | None]]]:
    """Write rows to `users` as requests of their own would be: what was created, updated, skipped and refused."""
    created = updated = skipped = 0
    refusals = []
    for row in rows:
        old = users.get(row.email.lower())
        new = User(row.email, old.name if old and not row.set_name else row.name)
        if old and on_conflict == "error":
            refusals.append((row.line, TAKEN))
        elif old and (on_conflict == "skip" or old == new):
            skipped += 1
        elif new.name in ("refused", "left out"):
            refusals.append((row.line, REFUSED))
        else:
            users[row.email.lower()] = new
            updated += old is not None
            created += old is None
    return (created, updated, skipped), refusals


emails = st.sampled_from([f"{name}@example.com" for name in ("ada", "ADA", "bob", "Bob", "eve", "dan", "Kim")])
names = st.sampled_from(["1", "2", "refused", "left out"])
values = st.tuples(emails, st.none() | names, st.booleans())


def rows_of(file: Sequence[tuple[str, str | None, bool]]) -> list[Row]:
    return [
        Row(line, email, name if sets_name else None, sets_name)
        for line, (email, name, sets_name) in enumerate(file, 1)
    ]


ADA, BOB = "ada@example.com", "bob@example.com"


@pytest.mark.parametrize("on_conflict", ["error", "skip", "update"])
@pytest.mark.parametrize("copies", [False, True])
@settings(max_examples=20, deadline=None)
@given(
    before=st.lists(
        st.tuples(emails, st.sampled_from([None, "1"])), unique_by=lambda user: user[0].lower(), max_size=3
    ),
    chunks=st.lists(st.lists(values, max_size=10).map(rows_of), min_size=1, max_size=3),
)
# Rows that keep the name are written apart from those that set it, and the second row of an address after the first.
@example([], [rows_of([(ADA, None, False), (ADA, "1", True), (BOB, "1", True), (BOB, "2", True)])])
# COPY has written all rows but one, and takes them back.
@example([], [rows_of([(BOB, "left out", True), *((f"{n}@example.com", "1", True) for n in range(8))])])
# A row that is refused costs no other one, and both halves of its group are written before the next group.
@example([], [rows_of([(ADA, "1", True), (BOB, "refused", True), (ADA, "2", True)])])
@example([], [rows_of([(ADA, "1", True), (BOB, "refused", True), ("dan@example.com", "refused", True)])])
def test_rows_are_written_as_if_each_were_a_request(
    rig: Rig,
    on_conflict: OnConflict,
    copies: bool,
    before: list[tuple[str, str | None]],
    chunks: list[list[Row]],
) -> None:
    write: WriteRows = partial(write_rows, rig.users, on_conflict, "")
    if copies:
        write = copy_rows(rig.connections, write)
    users = {email.lower(): User(email, name) for email, name in before}

    async def write_all() -> tuple[list[Written], list[asyncpg.Record]]:
        await rig.connections[0].execute("delete from public.users")
        await rig.connections[0].executemany("insert into public.users (email, name) values ($1, $2)", before)
        written = [await write(rows) for rows in chunks]
        return written, await rig.connections[0].fetch(
            'select email, name from public.users order by email collate "C"'
        )

    found, stored = rig.run(write_all())
    for written, rows in zip(found, chunks, strict=True):
        refusals = sorted((line, problem.kind) for line, problem in written.refusals)
        counts = written.created, written.updated, written.skipped
        assert (counts, refusals) == one_after_the_other(users, on_conflict, rows)
    assert [User(*row) for row in stored] == sorted(users.values())


@pytest.mark.parametrize(
    ("on_conflict", "written"),
    [("error", Written()), ("skip", Written(skipped=1)), ("update", Written(updated=1))],
)
def test_an_address_that_is_created_meanwhile_is_one_that_was_there(
    database: str, rig: Rig, on_conflict: OnConflict, written: Written
) -> None:
    async def run() -> Written:
        with locked(database, f"insert into users (email) values ('{ADA}')") as elsewhere:
            writing = asyncio.create_task(write_rows(rig.users, on_conflict, "", rows_of([(ADA, "1", True)])))
            await asyncio.to_thread(wait_until_waiting, database, 1)
            elsewhere.commit()
            return await writing

    found = rig.run(run())
    refusals = [(refusal.line, refusal.problem.kind) for refusal in found.refusals]
    assert refusals == ([(1, TAKEN)] if on_conflict == "error" else [])
    assert Written(found.created, found.updated, found.skipped) == written


def test_an_address_that_a_trigger_makes_a_taken_one_is_refused(database: str, rig: Rig) -> None:
    """However often it is tried."""
    execute(
        database,
        "create function rename() returns trigger language plpgsql as $$"
        f" begin new.email := '{ADA}'; return new; end $$;"
        "create trigger rename before insert on users for each row execute function rename()",
    )
    try:
        found = rig.run(write_rows(rig.users, "update", "", rows_of([(ADA, None, False), (BOB, None, False)])))
    finally:
        execute(database, "drop function rename cascade")
    assert (found.created, [(refusal.line, refusal.problem.kind) for refusal in found.refusals]) == (1, [(2, TAKEN)])


class Stalls:
    """A database whose connections are all in use, from its second statement on."""

    def __init__(self, users: PooledDatabase, ending: Exception | None) -> None:
        self.is_stalled = asyncio.Event()
        self.lock_timeout = users.lock_timeout
        self.has_room = users.has_room
        self._users = users
        self._ending = ending
        self._statements = 0

    async def fetch(self, statement: Statement, *arguments: Any) -> list[asyncpg.Record]:
        self._statements += 1
        if self._statements == 1:
            return await self._users.fetch(statement, *arguments)
        self.is_stalled.set()
        if self._ending:
            raise self._ending
        return await asyncio.sleep(3600, [])


@pytest.mark.parametrize("ending", [None, DatabaseUnavailableError("none is free")])
def test_between_two_statements_it_is_unknown_which_rows_were_written(
    database: str, rig: Rig, ending: Exception | None
) -> None:
    """Of a single one it is known that it changed nothing."""

    async def run(*files: list[Row]) -> BaseException:
        stalls = Stalls(rig.users, ending)
        for rows in files:
            stalls.is_stalled.clear()
            writing = asyncio.create_task(write_rows(stalls, "update", "", rows))
            await asyncio.wait({writing, asyncio.create_task(stalls.is_stalled.wait())}, return_when="FIRST_COMPLETED")
            if stalls.is_stalled.is_set():
                writing.cancel()
                (end,) = await asyncio.gather(writing, return_exceptions=True)
                assert isinstance(end, BaseException)
                return end
        raise AssertionError

    one, two = rows_of([(ADA, None, False)]), rows_of([(ADA, None, False), (ADA, "1", True)])
    unknown = rig.run(run(two))
    assert isinstance(unknown, OutcomeUnknownError)
    assert type(unknown.__cause__) is (type(ending) if ending else asyncio.CancelledError)
    known = rig.run(run(one, one))
    assert known is ending if ending else isinstance(known, asyncio.CancelledError)


@pytest.mark.parametrize(
    ("ending", "told"),
    [
        (client_silent(1), OutcomeUnknownError),
        (asyncio.CancelledError(), OutcomeUnknownError),
        (ClientDisconnect(), ClientDisconnect),
    ],
    ids=lambda end: type(end).__name__ if isinstance(end, BaseException) else "",
)
def test_what_ends_an_import_does_not_hide_that_a_chunk_was_sent(
    database: str, rig: Rig, ending: BaseException, told: type[Exception]
) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b'{"email":"ada@example.com"}\n'
        await asyncio.to_thread(wait_until_waiting, database, 1)
        raise ending

    async def run() -> None:
        write = partial(write_rows, rig.users, "error", "")
        work = Import(NDJSONParser(), write, lambda line: None, counts=Counts(), chunk_rows=1, request_id="")
        await work.run(pieces())

    with locked(database, f"insert into users (email) values ('{ADA}')"), pytest.raises(told) as raised:
        rig.run(run())
    # The log says what ended it.
    assert told is ClientDisconnect or isinstance(raised.value.__cause__, type(ending))


# By COPY


class Writes:
    """What COPY leaves to be written otherwise."""

    def __init__(self, created: Callable[[Sequence[Row]], int] = len) -> None:
        self.parts: list[list[str]] = []
        self._created = created

    async def __call__(self, rows: Sequence[Row]) -> Written:
        self.parts.append([row.email for row in rows])
        return Written(created=self._created(rows))


def test_copy_is_tried_until_an_address_is_taken_and_again_after_a_chunk_without_one(database: str, rig: Rig) -> None:
    writes = Writes(lambda rows: sum(row.name is None for row in rows))
    copy = copy_rows(rig.connections[:1], writes)
    taken = Row(0, "0@EXAMPLE.com", "taken", True)

    async def run() -> list[int]:
        created = []
        for rows in (
            people(10),
            [*people(10, 10), taken],
            [*people(5, 20), taken],
            people(5, 30),
            people(10, 40),
            [taken],
        ):
            created.append((await copy(rows)).created)
        return created

    assert rig.run(run()) == [10, 10, 5, 5, 10, 0]
    # A chunk of which COPY has written a part is written again as a whole.
    assert [len(part) for part in writes.parts] == [11, 6, 5, 1]
    assert len(stored(database)) == 20


def test_rows_of_one_address_are_written_by_one_connection_and_both_have_some(database: str, rig: Rig) -> None:
    writes = Writes()
    spellings = [f"{'x' * n}{'X' * (20 - n)}@example.com" for n in range(20)]
    others = [row.email for row in people(40)]
    execute(database, "insert into users (email) select n || '@example.com' from generate_series(0, 39) n")
    file = [Row(line, email, None, False) for line, email in enumerate([*spellings, *others], 1)]
    rig.run(copy_rows(rig.connections, writes)(file))
    assert len(writes.parts) == 2
    assert sorted(email for part in writes.parts for email in part) == sorted([*spellings, *others])
    (together,) = [part for part in writes.parts if spellings[0] in part]
    assert [email for email in together if email in spellings] == spellings


def test_if_one_part_fails_the_other_is_awaited(database: str, rig: Rig) -> None:
    execute(database, "insert into users (email) select n || '@example.com' from generate_series(0, 39) n")
    ended: list[str] = []

    async def write(rows: Sequence[Row]) -> Written:
        if not ended:
            ended.append("failed")
            raise DatabaseUnavailableError
        for _ in range(100):
            await asyncio.sleep(0)
        ended.append("written")
        return Written(created=len(rows))

    with pytest.raises(DatabaseUnavailableError):
        rig.run(copy_rows(rig.connections, write)(people(40)))
    assert ended == ["failed", "written"]


@asynccontextmanager
async def connecting(database: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(**parse_url(database).asyncpg_arguments())
    try:
        yield connection
    finally:
        connection.terminate()


@pytest.mark.parametrize("ending", ["breaks", "is silent"])
def test_a_copy_without_an_answer_may_have_been_written(
    database: str, rig: Rig, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    writes = Writes()
    if ending == "is silent":
        monkeypatch.setattr(writing, "_COPY_SECONDS", 0.1)

    async def run() -> None:
        async with connecting(database) as connection:
            with locked(database):
                copying = asyncio.ensure_future(copy_rows([connection], writes)(people(3)))
                if ending == "breaks":
                    await asyncio.to_thread(wait_until_waiting, database, 1)
                    connection._transport.abort()  # type: ignore[attr-defined]
                await copying

    with pytest.raises(OutcomeUnknownError):
        rig.run(run())
    assert writes.parts == []
