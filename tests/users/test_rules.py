"""Rules of the database's own: triggers and policies that rewrite a row, or leave it out without an error."""

import asyncio
import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from api.app import create_app
from tests.support.database import execute, locked, wait_until_waiting
from tests.support.rig import NeonDatabase
from tests.support.rig.rig import ROLE
from tests.support.serving import serve
from tests.support.users import USERS, assert_problem, create

REFUSED = (409, "refused-by-database", "A rule of the database refuses the change; nothing was changed")
LOWER = "new.email := lower(new.email)"
BOTH = f"{LOWER}; new.name := upper(new.name)"
WITHOUT_TAG = "new.email := regexp_replace(new.email, '[+].*@', '@')"
LEAVE_OUT = "if coalesce(new.email, old.email) like 'no%' then return null; end if"


def rule(database: str, body: str, events: str = "insert or update", returning: str = "new") -> None:
    """Make a trigger that runs before each row is written."""
    execute(
        database,
        f"create or replace function rule() returns trigger language plpgsql security definer as $$"
        f" begin {body}; return {returning}; end $$;"
        f" create trigger rule before {events} on users for each row execute function rule()",
    )


def keyed(client: httpx.Client, key: str, email: str, name: str | None = None) -> httpx.Response:
    return client.post(USERS, json={"email": email, "name": name}, headers={"idempotency-key": key})


def load(client: httpx.Client, *emails: str, on_conflict: str = "error") -> tuple[dict[int, str], tuple[int, ...]]:
    """Import addresses; return the type of each refused line's problem, and created, updated, skipped, refused."""
    file = "".join(json.dumps({"email": email, "name": "New"}) + "\n" for email in emails)
    headers = {"content-type": "application/x-ndjson"}
    answer = client.post(f"{USERS}/import", params={"on_conflict": on_conflict}, content=file, headers=headers)
    *lines, last = map(json.loads, answer.text.splitlines())
    summary = last["summary"]
    assert summary["complete"]
    return (
        {line["line"]: line["problem"]["type"].rpartition(":")[2] for line in lines},
        tuple(summary[name] for name in ("created", "updated", "skipped", "refused")),
    )


def emails(database: str) -> list[Any]:
    return [email for (email,) in execute(database, "select email from users order by id")]


@pytest.mark.parametrize("key", [None, "one"])
@pytest.mark.parametrize("body", [LOWER, BOTH])
def test_a_creation_answers_with_the_row_as_the_table_has_it(
    client: httpx.Client, database: str, body: str, key: str | None
) -> None:
    rule(database, body)
    sent = {"email": "Ada@example.com", "name": "Ada"}
    headers = {"idempotency-key": key} if key else {}
    created = client.post(USERS, json=sent, headers=headers)
    assert created.status_code == 201
    assert created.json()["email"] == "ada@example.com"
    found = client.get(created.headers["location"])
    assert (found.content, found.headers["etag"]) == (created.content, created.headers["etag"])
    again = client.post(USERS, json=sent, headers=headers)
    if key:
        assert (again.status_code, again.content) == (201, created.content)
        assert again.headers["idempotency-replayed"] == "true"
    else:
        assert_problem(again, 409, "email-taken")
    assert emails(database) == ["ada@example.com"]


def test_an_import_counts_what_a_rule_rewrites_as_created(client: httpx.Client, database: str) -> None:
    rule(database, BOTH)
    assert load(client, "Ada@example.com", "Grace@example.com") == ({}, (2, 0, 0, 0))
    assert load(client, "ADA@example.com", "New@example.com", on_conflict="skip") == ({}, (1, 0, 1, 0))
    assert load(client, "ADA@example.com", "Mary@example.com", on_conflict="update") == ({}, (1, 1, 0, 0))
    assert emails(database) == ["ada@example.com", "grace@example.com", "new@example.com", "mary@example.com"]


def test_a_creation_that_a_rule_leaves_out_is_refused(client: httpx.Client, database: str) -> None:
    rule(database, LEAVE_OUT)
    assert_problem(client.post(USERS, json={"email": "no@example.com"}), *REFUSED)
    assert_problem(keyed(client, "one", "no@example.com"), *REFUSED)
    assert client.get(USERS).json() == []
    # Nothing was created, so the key is free: the operator may correct the rule.
    assert execute(database, "select count(*) from idempotency_keys") == [(0,)]
    execute(database, "drop trigger rule on users")
    assert keyed(client, "one", "no@example.com").status_code == 201


@pytest.mark.parametrize("on_conflict", ["error", "skip", "update"])
def test_an_import_refuses_what_a_rule_leaves_out(client: httpx.Client, database: str, on_conflict: str) -> None:
    for email in ("no.old@example.com", "old@example.com", "same@example.com"):
        create(client, email, name="New" if email.startswith("same") else "Old")
    rule(database, LEAVE_OUT)
    lines = ("new@example.com", "no.new@example.com", "no.old@example.com", "old@example.com", "same@example.com")
    problems, counts = load(client, *lines, on_conflict=on_conflict)
    assert (problems, counts) == {
        "error": (dict(zip((2, 3, 4, 5), ("refused-by-database", *["email-taken"] * 3), strict=True)), (1, 0, 0, 4)),
        "skip": ({2: "refused-by-database"}, (1, 0, 3, 1)),
        "update": ({2: "refused-by-database", 3: "refused-by-database"}, (1, 1, 1, 2)),
    }[on_conflict]


async def test_each_of_many_concurrent_creations_gets_its_own_outcome(client: httpx.Client, database: str) -> None:
    rule(database, f"{LOWER}; {LEAVE_OUT}")
    create(client, "taken@example.com")
    wanted = {"New{}@example.com": 201, "no{}@example.com": 409, "Taken@example.com": 409}
    async with httpx.AsyncClient(base_url=client.base_url) as many:
        sent = [(email.format(n), status) for n in range(12) for email, status in wanted.items()]
        answers = await asyncio.gather(*(many.post(USERS, json={"email": email}) for email, _ in sent))
        with_keys = await asyncio.gather(
            *(many.post(USERS, json={"email": f"k{email}"}, headers={"idempotency-key": email}) for email, _ in sent)
        )
    assert [answer.status_code for answer in answers] == [status for _, status in sent]
    for (email, status), answer in zip(sent, answers, strict=True):
        if status == 201:
            assert answer.json()["email"] == email.lower()
    kinds = Counter(answer.json()["type"].rpartition(":")[2] for answer in answers if answer.status_code == 409)
    assert kinds == {"refused-by-database": 12, "email-taken": 12}
    assert {answer.json()["email"] for answer in with_keys} == {f"k{email}".lower() for email, _ in sent}


def test_an_address_that_a_rule_turns_into_a_taken_one_is_taken(client: httpx.Client, database: str) -> None:
    rule(database, WITHOUT_TAG)
    create(client, "ada@example.com")
    assert_problem(client.post(USERS, json={"email": "ada+1@example.com"}), 409, "email-taken")
    first = keyed(client, "one", "ada+1@example.com")
    assert_problem(first, 409, "email-taken")
    again = keyed(client, "one", "ada+1@example.com")
    assert (again.content, again.headers["idempotency-replayed"]) == (first.content, "true")
    new = "grace+1@example.com"
    assert load(client, "ada+2@example.com", new, on_conflict="skip") == ({}, (1, 0, 1, 0))
    assert load(client, "ada+2@example.com", on_conflict="error") == ({1: "email-taken"}, (0, 0, 0, 1))
    assert load(client, "ada+2@example.com", on_conflict="update") == ({1: "email-taken"}, (0, 0, 0, 1))
    assert emails(database) == ["ada@example.com", "grace@example.com"]


@pytest.mark.parametrize("ending", ["commit", "rollback"])
@pytest.mark.parametrize("on_conflict", ["error", "skip", "update", "POST", "key"])
def test_an_address_that_another_session_is_creating(
    client: httpx.Client, database: str, on_conflict: str, ending: str
) -> None:
    """The statement saw nothing of the address, and waits until it knows."""
    with (
        locked(database, "insert into users (email) values ('ada@example.com')") as other,
        ThreadPoolExecutor() as pool,
    ):
        if on_conflict in ("POST", "key"):
            headers = {"idempotency-key": "one"} if on_conflict == "key" else {}
            answer = pool.submit(client.post, USERS, json={"email": "Ada@example.com"}, headers=headers)
        else:
            answer = pool.submit(load, client, "Ada@example.com", on_conflict=on_conflict)  # type: ignore[arg-type]
        wait_until_waiting(database, 1)
        (other.commit if ending == "commit" else other.rollback)()
        result: Any = answer.result()
    taken = {
        "POST": 409,
        "key": 409,
        "error": ({1: "email-taken"}, (0, 0, 0, 1)),
        "skip": ({}, (0, 0, 1, 0)),
        "update": ({}, (0, 1, 0, 0)),
    }
    if isinstance(result, httpx.Response):
        assert result.status_code == (taken[on_conflict] if ending == "commit" else 201)
    else:
        assert result == (taken[on_conflict] if ending == "commit" else ({}, (1, 0, 0, 0)))
    assert len(emails(database)) == 1


COUNTED = "create table runs (n int); insert into runs values (0)"
COUNT = "update runs set n = n + 1"


@pytest.mark.parametrize("if_match", [None, '"1"', '"1", "2"', "*"])
@pytest.mark.parametrize("method", ["PATCH", "DELETE"])
def test_a_change_that_a_rule_leaves_out_is_refused(
    client: httpx.Client, database: str, method: str, if_match: str | None
) -> None:
    """With If-Match this was repeated for ever; without, it was 404 although the user is there."""
    user = create(client)
    url = f"{USERS}/{user['id']}"
    execute(database, COUNTED)
    rule(database, COUNT, "update or delete", "null")
    sent = {"json": {"name": "New"}} if method == "PATCH" else {}
    headers = {"if-match": if_match} if if_match else {}
    assert_problem(client.request(method, url, headers=headers, **sent), *REFUSED)  # type: ignore[arg-type]
    assert client.get(url).json() == user
    # The trigger may have written elsewhere: it runs once.
    assert execute(database, "select n from runs") == [(1,)]
    assert_problem(client.request(method, url, headers={"if-match": '"7"'}, **sent), 412, "version-mismatch")  # type: ignore[arg-type]
    assert_problem(client.request(method, f"{USERS}/999", headers=headers, **sent), 404)  # type: ignore[arg-type]


def test_a_change_answers_with_the_row_as_the_table_has_it(client: httpx.Client, database: str) -> None:
    rule(database, BOTH)
    url = f"{USERS}/{create(client)['id']}"
    changed = client.patch(url, json={"email": "Grace@example.com", "name": "Grace"})
    assert changed.status_code == 200
    assert (changed.json()["email"], changed.json()["name"]) == ("grace@example.com", "GRACE")
    found = client.get(url)
    assert (found.content, found.headers["etag"]) == (changed.content, changed.headers["etag"])


def test_a_rule_that_marks_instead_of_deleting(client: httpx.Client, database: str) -> None:
    execute(database, "alter table users add column deleted_at timestamptz")
    rule(database, "update users set deleted_at = now() where id = old.id", "delete", "null")
    url = f"{USERS}/{create(client)['id']}"
    assert_problem(client.delete(url), *REFUSED)
    assert client.get(url).status_code == 200


def test_policies_leave_rows_out_as_triggers_do(neon: NeonDatabase) -> None:
    """A policy for UPDATE or DELETE hides rows from the change alone: PostgreSQL reports no error."""
    execute(
        neon.superuser,
        f"""
        alter table users enable row level security; alter table users force row level security;
        create policy everything on users for select to {ROLE} using (true);
        create policy creation on users for insert to {ROLE} with check (true);
        create policy changing on users for update to {ROLE} using (email not like 'no%');
        create policy deletion on users for delete to {ROLE} using (email not like 'no%')
        """,
    )
    with serve(create_app(neon.settings())) as url, httpx.Client(base_url=url) as client:
        for email in ("no@example.com", "ada@example.com"):
            user = f"{USERS}/{create(client, email)['id']}"
            changed, deleted = client.patch(user, json={"name": "New"}), client.delete(user)
            if email.startswith("no"):
                assert_problem(changed, *REFUSED)
                assert_problem(deleted, *REFUSED)
            else:
                assert (changed.status_code, deleted.status_code) == (200, 204)
        assert load(client, "new@example.com", "NO@example.com", on_conflict="skip") == ({}, (1, 0, 1, 0))
