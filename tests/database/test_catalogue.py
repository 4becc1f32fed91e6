"""Every constraint of the migrated database has its problem, and every foreign key its index."""

from dataclasses import replace

import pytest

from api.app import RESOURCES
from tests.support.catalogue import empty, find_gaps
from tests.support.database import execute

OWNERS = """
    create table gadgets (id bigint constraint gadgets_pkey primary key, name text);
    create unique index gadgets_name_key on gadgets (lower(name));
    create table owners (
        gadget_id bigint constraint owners_gadget_id_fkey references gadgets on delete cascade,
        user_id bigint constraint owners_user_id_fkey references users on delete cascade,
        during tstzrange,
        constraint owners_pkey primary key (gadget_id, user_id),
        constraint owners_during_excl exclude using gist (during with &&)
    )
"""
NAMES = [
    "gadgets_name_key",
    "gadgets_pkey",
    "owners_during_excl",
    "owners_gadget_id_fkey",
    "owners_pkey",
    "owners_user_id_fkey",
]


def test_every_constraint_has_its_problem_and_every_foreign_key_its_index(database: str) -> None:
    gaps = find_gaps(database, RESOURCES)
    assert not gaps, "\n".join(gaps)


def test_a_reason_is_a_sentence() -> None:
    assert all(" " in reason for each in RESOURCES for reason in each.unreachable.values())


def test_constraints_that_no_resource_names_are_found(database: str) -> None:
    execute(database, OWNERS)
    gaps = find_gaps(database, RESOURCES)
    assert [gap.partition(":")[0] for gap in gaps if "no resource names it" in gap] == NAMES


@pytest.mark.parametrize(
    ("index", "unindexed"),
    [
        ("", True),
        ("create index owners_user on owners (user_id)", False),
        ("create index owners_user on owners (user_id, gadget_id)", False),
        ("create index owners_user on owners (user_id) where user_id is not null", False),
        ("create index owners_user on owners (user_id) where gadget_id > 0", True),
        ("create index owners_user on owners (lower(user_id::text))", True),
    ],
)
def test_a_foreign_key_without_an_index_is_found(database: str, index: str, unindexed: bool) -> None:
    """The primary key begins with gadget_id, and is no help to who deletes a user."""
    execute(database, f"{OWNERS}; {index}")
    gaps = [gap for gap in find_gaps(database, RESOURCES) if "no index" in gap]
    expected = (
        "owners_user_id_fkey: no index begins with its columns, so a delete reads the table: "
        "create index concurrently on public.owners (user_id)"
    )
    assert gaps == ([expected] if unindexed else [])


@pytest.mark.parametrize("indexes", [{}, {"users_email_key": "public.users (email)"}])
def test_a_unique_index_that_is_not_recognised_by_its_definition_is_found(
    database: str, indexes: dict[str, str]
) -> None:
    """While it is replaced it has another name, under which its violation would have no problem."""
    users, *others = RESOURCES
    (gap,) = find_gaps(database, [replace(users, indexes=indexes), *others])
    assert gap.startswith("users_email_key: its definition is public.users (lower(email COLLATE pg_c_utf8)); expected")


def test_a_unique_constraint_that_has_a_problem_is_recognised_by_its_definition_too(database: str) -> None:
    execute(database, "alter table users add constraint users_id_name_key unique (id, name)")
    users, *others = RESOURCES
    problems = {**users.constraints, "users_id_name_key": users.constraints["users_email_key"]}
    (gap,) = find_gaps(database, [replace(users, constraints=problems), *others])
    assert gap.startswith("users_id_name_key: its definition is public.users (id, name); expected nothing")
    definitions = {**users.indexes, "users_id_name_key": "public.users (id, name)"}
    assert find_gaps(database, [replace(users, constraints=problems, indexes=definitions), *others]) == []
    reasons = {**users.unreachable, "users_id_name_key": "an id is unique"}
    assert find_gaps(database, [replace(users, unreachable=reasons), *others]) == []


def test_names_that_the_database_does_not_have_are_found(database: str) -> None:
    users = RESOURCES[0]
    more = replace(users, name="gadgets", constraints={}, unreachable={"gadgets_key": "none", "users_pkey": "none"})
    assert find_gaps(database, (*RESOURCES, more)) == [
        "users_pkey: named twice",
        "gadgets_key: the database has no such constraint, and the resource gadgets names it",
    ]


@pytest.mark.parametrize(
    "replacing",
    [
        "create unique index users_email_key_ccnew on users (lower(email collate pg_c_utf8))",
        "alter index users_email_key rename to users_email_key_ccold",
    ],
)
def test_an_index_that_is_being_replaced_is_recognised(database: str, replacing: str) -> None:
    execute(database, replacing)
    assert find_gaps(database, RESOURCES) == []


def test_what_refers_to_a_table_is_emptied_with_it(database: str) -> None:
    execute(database, OWNERS)
    for _ in range(2):
        execute(database, "insert into users (email) values ('ada@example.com')")
        execute(database, "insert into gadgets values (1); insert into owners select 1, id from users")
        empty(database)
        assert execute(database, "select (select count(*) from owners), (select count(*) from gadgets)") == [(0, 0)]
    execute(database, "insert into users (email) values ('ada@example.com')")
    assert execute(database, "select id from users") == [(1,)]
