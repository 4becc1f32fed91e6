"""The schema: its constraints, and that no setting of the database changes a body."""

import httpx
import psycopg
import pytest

from tests.support.database import KILL_ALL, execute

USERS = "/api/v1/users"


@pytest.mark.parametrize(
    ("statement", "constraint"),
    [
        ("insert into users (email) values ('ADA@example.com')", "users_email_key"),
        ("insert into users (email) values (repeat('a', 243) || '@example.com')", "users_email_length"),
        ("insert into users (email) values ('nobody')", "users_email_has_at"),
        ("insert into users (email, name) values ('b@example.com', repeat('x', 256))", "users_name_length"),
        ("update users set email = '@'", "users_email_has_at"),
    ],
)
def test_no_other_writer_can_break_a_rule(database: str, statement: str, constraint: str) -> None:
    execute(database, "insert into users (email) values ('ada@example.com')")
    with pytest.raises(psycopg.IntegrityError) as refused:
        execute(database, statement)
    assert refused.value.diag.constraint_name == constraint


def test_the_longest_address_and_name_fit(database: str) -> None:
    execute(database, "insert into users (email, name) values (repeat('a', 242) || '@example.com', repeat('é', 255))")


def test_a_time_zone_changes_no_byte(client: httpx.Client, database: str) -> None:
    name = str(execute(database, "select current_database()")[0][0])
    path = client.post(USERS, json={"email": "ada@example.com", "name": "Ada"}).headers["location"]
    before = client.get(path).content, client.get(USERS).content
    execute(database, f"alter database {name} set timezone to 'America/New_York'")
    execute(database, f"alter database {name} set datestyle to 'German, DMY'")
    execute(database, KILL_ALL)
    client.get(path)
    assert execute(database, "show timezone") == [("America/New_York",)]
    assert (client.get(path).content, client.get(USERS).content) == before
    created = client.post(USERS, json={"email": "grace@example.com"})
    changed = client.patch(path, json={"name": "Countess"})
    for user in (created.json(), changed.json()):
        stored = execute(
            database, f"select to_json(updated_at at time zone 'UTC')#>>'{{}}' from users where id = {user['id']}"
        )
        assert user["updated_at"].endswith("+00:00")
        assert user["updated_at"].removesuffix("+00:00").rstrip("0") == str(stored[0][0]).rstrip("0")
    assert client.get(path).content == changed.content
