"""The statements of users, each for several rows at once: every row gets its own outcome, in the order of the call."""

import json
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from api.database.statements import Statement
from api.neon.url import parse_url
from api.resources.arrays import array
from api.resources.cursors import Position
from api.resources.idempotency import Creation
from api.resources.pages import Page
from api.users import queries
from api.users.queries import NewUser, UserChange, UserRemoval
from api.users.statements import ESTIMATE_USERS, EXPORT_USERS, EXPORT_USERS_CSV, EXPORT_USERS_CSV_SAFE, SELECT_USERS
from tests.support.database import execute


class OneConnection:
    """A database whose statements run one after the other."""

    lock_timeout = 1.0

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection

    def has_room(self) -> bool:
        return True

    async def fetch(self, statement: Statement, *arguments: Any) -> list[asyncpg.Record]:
        rows: list[asyncpg.Record] = await self._connection.fetch(statement.sql, *arguments)
        return rows


@pytest.fixture
async def users(database: str) -> AsyncIterator[OneConnection]:
    """A database with users of the ids 1 to 6, of which the first was written last."""
    execute(
        database,
        "insert into users (email, name)"
        " select 'User' || n || '@example.com', 'Name ' || n from generate_series(1, 6) n;"
        "update users set name = name where id = 1",
    )
    connection = await asyncpg.connect(**parse_url(database).asyncpg_arguments())
    yield OneConnection(connection)
    await connection.close()


def user(row: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(row["body"])
    return found


async def test_users_are_found_by_id_and_by_address(users: OneConnection) -> None:
    found = await queries.select_users(users, [3, 999, 1])
    assert [row and (row["id"], row["version"], user(row)["name"]) for row in found] == [
        (3, 1, "Name 3"),
        None,
        (1, 1, "Name 1"),
    ]
    assert len(await users.fetch(SELECT_USERS, array([3, 999]))) == 1
    found = await queries.select_users_by_email(users, ["USER2@example.com", "none@example.com", "user1@example.com"])
    assert [row and (row["id"], row["version"], user(row)["name"]) for row in found] == [
        (2, 1, "Name 2"),
        None,
        (1, 1, "Name 1"),
    ]


async def test_a_taken_address_costs_the_other_creations_nothing(users: OneConnection) -> None:
    """It is found before, in any case: a violation would undo them all."""
    new = [NewUser("USER1@EXAMPLE.com", None), NewUser("new@example.com", "New"), NewUser("user6@example.com", None)]
    rows = await queries.insert_users(users, new)
    assert [row and (row["id"], row["version"]) for row in rows] == [(None, None), (7, 1), (None, None)]
    assert [row and row["body"] and user(row)["name"] for row in rows] == [None, "New", None]


async def test_each_key_has_a_response_of_its_own(users: OneConnection) -> None:
    creations = [
        Creation("", "one", "f", "conflict 0", NewUser("USER1@example.com", None)),
        Creation("", "two", "f", "conflict 1", NewUser("two@example.com", "Two")),
        Creation("ada", "one", "f", "conflict 2", NewUser("one@example.com", None)),
        Creation("ada", "two", "f", "conflict 3", NewUser("user9@example.com", None), is_taken=True),
    ]
    first = await queries.insert_users_once(users, creations)
    assert [row and (row["row_id"], row["is_replayed"], row["is_reused"]) for row in first] == [
        (None, False, False),
        (7, False, False),
        (8, False, False),
        (None, False, False),
    ]
    bodies = [row["body"] for row in first if row]
    assert (bodies[0], bodies[3]) == ("conflict 0", "conflict 3")
    assert [json.loads(body)["email"] for body in bodies[1:3]] == ["two@example.com", "one@example.com"]
    # Another fingerprint is told, beside the other keys, and a new key is none of theirs.
    new = Creation("ada", "three", "f", "conflict 4", NewUser("three@example.com", None))
    again = [*creations[:2], creations[2]._replace(fingerprint="g"), creations[3], new]
    replayed = await queries.insert_users_once(users, again)
    assert [row and (row["row_id"], row["is_replayed"], row["is_reused"]) for row in replayed] == [
        (None, True, False),
        (7, True, False),
        (8, True, True),
        (None, True, False),
        (9, False, False),
    ]
    assert [row["body"] for row in replayed[:4] if row] == bodies


async def test_each_change_has_an_outcome_of_its_own(users: OneConnection) -> None:
    changes = [
        UserChange(5, "five@example.com", False, "unused", None),
        UserChange(1, None, True, "One", [7, 1]),
        UserChange(999, None, True, "Nobody", None),
        UserChange(2, None, True, None, None),
        UserChange(3, None, True, "Three", [7]),
        UserChange(4, "User4@example.com", True, "Name 4", None),
    ]
    rows = await queries.update_users(users, changes)
    assert [row and (row["id"], row["version"]) for row in rows] == [(5, 2), (1, 2), None, (2, 2), (3, 1), (4, 1)]
    found = [row and row["body"] and user(row) for row in rows]
    assert [each and (each["email"], each["name"]) for each in found] == [
        ("five@example.com", "Name 5"),
        ("User1@example.com", "One"),
        None,
        ("User2@example.com", None),
        None,
        ("User4@example.com", "Name 4"),
    ]
    changed = [each and each["updated_at"] > each["created_at"] for each in found]
    assert changed == [True, True, None, True, None, False]


async def test_each_removal_has_an_outcome_of_its_own(users: OneConnection) -> None:
    removals = [UserRemoval(5, [1]), UserRemoval(999, None), UserRemoval(1, None), UserRemoval(3, [7, 2])]
    rows = await queries.delete_users(users, removals)
    assert [row and (row["id"], row["version"], row["body"] is None) for row in rows] == [
        (5, 1, False),
        None,
        (1, 1, False),
        (3, 1, True),
    ]
    left = await queries.list_users_skip(users, 0, 100)
    assert [each["id"] for each in json.loads(left["body"])] == [2, 3, 4, 6]


def ids(page: Any) -> list[int]:
    found = [each["id"] for each in json.loads(page["body"])]
    assert page["size"] == len(found)
    assert page["last_id"] == (found[-1] if found else None)
    return found


async def test_each_page_begins_at_its_bound(users: OneConnection) -> None:
    pages = [Page(0, 2), Page(4, 100), Page(0, 2), Page(6, 2), Page(5, 1)]
    assert [ids(page) for page in await queries.list_users_after(users, pages)] == [[1, 2], [5, 6], [1, 2], [], [6]]
    pages = [Page(6, 2), Page(2, 100), Page(100, 1), Page(0, 2), Page(1, 1)]
    assert [ids(page) for page in await queries.list_users_before(users, pages)] == [[6, 5], [2, 1], [6], [], [1]]
    skips = [(0, 2), (4, 100), (6, 2), (5, 1)]
    assert [ids(await queries.list_users_skip(users, *page)) for page in skips] == [[1, 2], [5, 6], [], [6]]


async def test_users_of_one_time_have_an_order(users: OneConnection, database: str) -> None:
    """Of three at one time, and one before and after, whatever part of them a page has."""
    execute(database, "update users set created_at = timestamptz '2026-01-02Z' where id in (2, 3, 4)")
    execute(
        database, "update users set created_at = timestamptz '2026-01-03Z' where id = 1; delete from users where id > 5"
    )
    execute(database, "update users set created_at = timestamptz '2026-01-01Z' where id = 5")
    moment, last = "2026-01-02T00:00:00Z", "infinity"
    for after, before, limit, expected in [
        (Position("-infinity", 0), last, 100, [5, 2, 3, 4, 1]),
        (Position("-infinity", 0), last, 3, [5, 2, 3]),
        (Position(moment, 3), last, 100, [4, 1]),
        (Position("-infinity", 0), moment, 100, [5]),
        (Position(moment, 4), "2026-01-03T00:00:00Z", 100, []),
    ]:
        page = await queries.list_users_oldest(users, after, before, limit)
        assert ids(page) == expected
    for until, since, limit, expected in [
        (Position("infinity", 0), "-infinity", 100, [1, 4, 3, 2, 5]),
        (Position("infinity", 0), "-infinity", 3, [1, 4, 3]),
        (Position(moment, 3), "-infinity", 100, [2, 5]),
        (Position("infinity", 0), moment, 100, [1]),
        (Position(moment, 2), "2026-01-01T00:00:00Z", 100, []),
    ]:
        page = await queries.list_users_newest(users, until, since, limit)
        assert ids(page) == expected


PEOPLE = [
    ("ada@example.com", "ada"),
    ("b@example.com", "ADA"),
    ("Ada.b@example.com", "Zoe"),
    ("adb@example.com", None),
    ("ab@example.com", "ada@example.com"),
    ("ad@example.com", "ad"),
    ("c@example.com", "Adz"),
    ("ade@example.com", "adf"),
    ("adf@example.com", "ade"),
    ("d@example.com", "ada"),
    ("z@example.com", "b"),
    ("adg@example.com", "adg@example.com"),
    ("adh@example.com", "ADI"),
    ("ADK@example.com", "adj"),
    ("adl@example.com", "adl@example.com too"),
    ("e@example.com", "zoe\U0010fffe"),  # below the last code point alone
]


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 100])
@pytest.mark.parametrize("text", ["a", "ad", "Ada", "ADE@", "b", "ada@example.com", "adl@example.com", "zoe", "none"])
async def test_a_search_finds_each_user_once_in_the_order_of_what_matches(
    users: OneConnection, database: str, text: str, limit: int
) -> None:
    execute(database, "truncate users restart identity")
    await queries.insert_users(users, [NewUser(*each) for each in PEOPLE])
    expected = []
    for id, keys in enumerate(PEOPLE, 1):
        matching = [key.lower() for key in keys if key and key.lower().startswith(text.lower())]
        if matching:
            expected.append((min(matching), id))
    found: list[int] = []
    position, has_more = Position("", 0), True
    for _ in range(len(PEOPLE) * 2 // limit + 2):
        page = await queries.search_users(users, text, position, limit)
        assert len(json.loads(page["body"])) <= limit
        found += [each["id"] for each in json.loads(page["body"])]
        has_more = page["has_more"]
        if not has_more:
            break
        position = Position(page["last_key"], page["last_id"])
    assert found == [id for _, id in sorted(expected)]
    assert not has_more


async def test_an_import_says_what_became_of_each_user(users: OneConnection) -> None:
    new = [NewUser("new@example.com", None), NewUser("USER1@example.com", "x"), NewUser("user6@example.com", None)]
    assert await queries.import_users(users, new) == {1: "taken", 2: "taken"}
    new = [
        NewUser("USER1@example.com", "Name 1"),  # written otherwise
        NewUser("User2@example.com", "Name 2"),
        NewUser("other@example.com", "Other"),
        NewUser("User3@example.com", "Three"),
        NewUser("User4@example.com", None),
    ]
    outcomes = {0: "updated", 1: "unchanged", 3: "updated", 4: "updated"}
    assert await queries.import_users_update(users, new, set_name=True) == outcomes
    rows = await queries.select_users(users, [1, 2, 3, 4])
    assert [row and (row["version"], user(row)["email"], user(row)["name"]) for row in rows] == [
        (2, "USER1@example.com", "Name 1"),
        (1, "User2@example.com", "Name 2"),
        (2, "User3@example.com", "Three"),
        (2, "User4@example.com", None),
    ]
    assert [row and user(row)["updated_at"] > user(row)["created_at"] for row in rows] == [True, False, True, True]
    # Without the names, only addresses count.
    outcomes = {0: "unchanged", 1: "updated"}
    new = [NewUser("User3@example.com", None), NewUser("user4@example.com", "Four")]
    assert await queries.import_users_update(users, new, set_name=False) == outcomes
    rows = await queries.select_users(users, [3, 4])
    assert [row and (row["version"], user(row)["name"]) for row in rows] == [(2, "Three"), (3, None)]


async def test_an_export_is_in_the_order_of_ids(users: OneConnection) -> None:
    assert [user(row)["id"] for row in await users.fetch(EXPORT_USERS)] == list(range(1, 7))
    for statement in (EXPORT_USERS_CSV, EXPORT_USERS_CSV_SAFE):
        assert [row["id"] for row in await users.fetch(statement)] == list(range(1, 7))


async def test_the_number_of_users_is_estimated(users: OneConnection, database: str) -> None:
    assert [tuple(row) for row in await users.fetch(ESTIMATE_USERS)] == [(-1,)]
    execute(database, "analyze users")
    assert [tuple(row) for row in await users.fetch(ESTIMATE_USERS)] == [(6,)]
