"""PostgreSQL's verdicts: no SQLSTATE without a row, and what a client and the log see of each."""

import asyncio
import json
import logging
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from itertools import count
from pathlib import Path

import asyncpg
import httpx
import pytest

from api.app import create_app
from api.database.verdicts import TABLE, Next, verdict_of
from api.neon.url import parse_url
from tests.support.database import execute, locked, wait_until_true
from tests.support.serving import serve, settings_for
from tests.support.users import USERS, assert_problem, create

NDJSON = "application/x-ndjson"
REFUSED = "urn:problem:users-api:refused-by-database"
ROWS = [code for codes, _ in TABLE for code in codes.split()]


@pytest.fixture(scope="module")
def codes(postgres: str) -> list[str]:
    """Every SQLSTATE that the installed PostgreSQL has for an error or a warning, in the order of its own list."""
    ((share,),) = execute(postgres, "select setting from pg_config where name = 'SHAREDIR'")
    listed = (Path(str(share)) / "errcodes.txt").read_text()
    return list(dict.fromkeys(re.findall(r"^([0-9A-Z]{5})\s+[EW]\s", listed, re.MULTILINE)))


def test_no_code_of_postgresql_is_without_a_row(codes: list[str]) -> None:
    assert len(codes) > 250
    assert [code for code in codes if code not in ROWS and code[:2] not in ROWS] == []


def test_no_row_is_dead_or_there_twice(codes: list[str]) -> None:
    assert [row for row in ROWS if not any(code.startswith(row) for code in codes)] == []
    assert [row for row, number in Counter(ROWS).items() if number > 1] == []


def test_the_table_is_documented() -> None:
    """docs/operations.md has a row for each row of the table, in its order."""
    heading = "| SQLSTATE | the client sees | run again | what to do |\n|---|---|---|---|\n"
    document = Path("docs/operations.md").read_text()
    table = "".join(
        f"| {codes.replace(' ', ', ')} | {seen_by(codes, verdict.step)} | "
        f"{'yes' if verdict.step is Next.REPEAT else 'no'} | {verdict.remedy} |\n"
        for codes, verdict in TABLE
    )
    assert heading + table + "\n" in document, heading + table


def seen_by(codes: str, step: Next) -> str:
    status, kind = (503, "locked") if codes == "55P03" else SEEN[step]
    return f"{status} `{kind}`"


SEEN = {
    Next.RAISE: (409, "refused-by-database"),
    Next.FAILED: (503, "unavailable"),
    Next.UNAVAILABLE: (503, "unavailable"),
    Next.REPEAT: (503, "locked"),
    Next.UNKNOWN: (503, "outcome-unknown"),
}
RAISES = """
    create function refuse() returns trigger language plpgsql as
    $$ begin raise exception 'no: %', new.email using errcode = coalesce(new.name, 'P0001'), detail = new.email; end $$;
    create trigger refuse before insert or update on users for each row
    when (new.email not like 'ok%') execute function refuse()
"""


def test_what_a_client_sees_of_each(database: str, codes: list[str], caplog: pytest.LogCaptureFixture) -> None:
    """A trigger answers a creation with each code in turn: never a 500, never the trigger's text in the log."""
    execute(database, RAISES)
    caplog.set_level(logging.INFO)
    # How long a statement is tried again that PostgreSQL rolls back; and every one has to get a connection in it.
    settings = settings_for(database, acquire_timeout_seconds=0.5)
    with serve(create_app(settings)) as url, httpx.Client(base_url=url) as client:
        for code in [*codes, "ZZ123"]:
            # What 42501 means depends on who raises it. RAISE refuses the content.
            error = asyncpg.PostgresError.new({"C": code, "M": "", "R": "exec_stmt_raise"})
            status, kind = (503, "locked") if code == "55P03" else SEEN[verdict_of(error).step]
            response = client.post(USERS, json={"email": "ada@example.com", "name": code})
            assert (response.status_code, response.json()["type"]) == (status, f"urn:problem:users-api:{kind}"), code
            (line,) = [line for line in caplog.messages if f"request {response.json()['request_id']}" in line]
            caplog.clear()
            assert f"SQLSTATE {code}, function refuse" in line, line
            assert "no:" not in line
        assert client.get(USERS).json() == []


# Rules of the operator's that refuse bad@example.com in a creation and in a change, and what the log says of each.
RULES = {
    "a trigger": (RAISES, "(SQLSTATE P0001, function refuse)"),
    "a trigger that fails": (
        RAISES.replace("raise exception 'no: %', new.email using", "perform new.email::int; raise exception using"),
        "(SQLSTATE 22P02, function refuse)",
    ),
    "CHECK": (
        "alter table users add constraint good check (email like 'ok%')",
        "(SQLSTATE 23514, table users, constraint good)",
    ),
    "a cast in CHECK": (
        "alter table users add constraint good check (email like 'ok%' or email::int > 0)",
        "(SQLSTATE 22P02)",
    ),
    "a domain": (
        """create domain good as text check (value like 'ok%');
        alter table users add column copy good generated always as (email) stored""",
        "(SQLSTATE 23514, constraint good_check)",
    ),
    "a shorter type": (
        "alter table users add column copy varchar(14) generated always as (lower(email)) stored",
        "(SQLSTATE 22001)",
    ),
    "EXCLUDE": (
        "alter table users add constraint one_domain exclude using btree (split_part(email, '@', 2) with =)",
        "(SQLSTATE 23P01, table users, constraint one_domain)",
    ),
    "a trigger that names an index": (
        RAISES.replace("detail =", "schema = 'public', constraint = 'none', detail =").replace("P0001", "23505"),
        "(SQLSTATE 23505, constraint none, function refuse)",
    ),
    "UNIQUE": (
        "create unique index one_domain on users (split_part(email, '@', 2))",
        "(SQLSTATE 23505, table users, constraint one_domain)",
    ),
    "FOREIGN KEY": (
        """create table mails as select 'ok' || n || '@' || n || '.com' as email from generate_series(0, 7) n;
        insert into mails select email from users; alter table mails add primary key (email);
        alter table users add constraint mail foreign key (email) references mails""",
        "(SQLSTATE 23503, table users, constraint mail)",
    ),
}
BAD, GOOD = "bad@example.com", [f"ok{n}@{n}.com" for n in range(8)]


def assert_refused(response: httpx.Response, words: str, caplog: pytest.LogCaptureFixture) -> None:
    assert_problem(
        response, 409, "refused-by-database", "A rule of the database refuses the change; nothing was changed"
    )
    (line,) = [line for line in caplog.messages if f"request {response.json()['request_id']}" in line]
    assert line.endswith(words), line


@pytest.mark.parametrize(("rule", "words"), RULES.values(), ids=RULES)
def test_what_a_rule_of_the_operators_refuses(
    client: httpx.Client, database: str, rule: str, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A creation, with and without a key, a change, and a line of an import; and nobody else's request."""
    caplog.set_level(logging.INFO)
    create(client, "ok@example.com")
    path = f"{USERS}/{create(client, 'ok@b.com')['id']}"
    execute(database, rule)
    for response in (
        client.post(USERS, json={"email": BAD}),
        client.post(USERS, json={"email": BAD}, headers={"idempotency-key": "1"}),
        client.patch(path, json={"email": BAD}),
    ):
        assert_refused(response, words, caplog)
    # The key stored nothing: a creation that is sent again is judged again.
    headers = {"idempotency-key": "1"}
    assert_refused(client.post(USERS, json={"email": BAD}, headers=headers), words, caplog)
    file = "".join(f'{{"email": "{email}"}}\n' for email in [*GOOD[:4], BAD, *GOOD[4:]])
    *refusals, last = client.post(f"{USERS}/import", content=file, headers={"content-type": NDJSON}).text.splitlines()
    assert [(each["line"], each["problem"]["type"]) for each in map(json.loads, refusals)] == [(5, REFUSED)]
    assert json.loads(last)["summary"]["created"] == 8
    assert client.get(path).json()["email"] == "ok@b.com"


async def test_a_rule_refuses_one_of_a_batch(database: str) -> None:
    """A row that others refer to stays, and the requests beside its own succeed."""
    execute(
        database,
        """insert into users (email) select n || '@example.com' from generate_series(1, 20) n;
        create table orders (user_id bigint references users); insert into orders values (7)""",
    )
    with serve(create_app(settings_for(database, batch_in_flight=1))) as url:
        async with httpx.AsyncClient(base_url=url) as client:
            removals = await asyncio.gather(*(client.delete(f"{USERS}/{n}") for n in range(1, 21)))
            assert [response.status_code for response in removals] == [204] * 6 + [409] + [204] * 13
            assert removals[6].json()["type"] == REFUSED
            execute(database, RAISES)
            for code, status in (("P0001", 409), ("XX001", 503)):
                emails = [*(f"ok{code}{email}" for email in GOOD), BAD]
                bodies = [{"email": email, "name": code} for email in emails]
                creations = await asyncio.gather(*(client.post(USERS, json=body) for body in bodies))
                assert [response.status_code for response in creations] == [201] * 8 + [status]


@pytest.fixture
def as_role(database: str) -> Iterator[str]:
    """The URL of the database as a role that owns nothing, and may do what its test grants."""
    execute(database, "create role tenant login; grant usage on schema public to tenant")
    yield database.replace("://postgres:", "://tenant:")
    execute(database, "drop owned by tenant; drop role tenant")


POLICY = """
    grant select on all tables in schema public to tenant; -- which /ready asks for
    grant select, insert, update, delete on users, idempotency_keys to tenant;
    alter table users enable row level security;
    create policy readers on users for select using (true);
    create policy writers on users for insert with check (email like 'ok%')
"""


def test_a_policy_refuses_and_a_missing_privilege_fails(
    database: str, as_role: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Both are SQLSTATE 42501. The first is about the content, the second about the deployment."""
    caplog.set_level(logging.INFO)
    with serve(create_app(settings_for(as_role))) as url, httpx.Client(base_url=url) as client:
        assert_problem(client.get(USERS), 503, "unavailable")
        assert "permission denied for table users (SQLSTATE 42501); GRANT the privilege" in caplog.text
        assert_problem(client.get("/ready"), 503, "unavailable")
        execute(database, POLICY)
        assert client.get("/ready").status_code == 200
        assert client.post(USERS, json={"email": "ok@example.com"}).status_code == 201
        keyed = {"idempotency-key": "1"}
        for headers in ({}, keyed):
            assert_refused(client.post(USERS, json={"email": BAD}, headers=headers), "(SQLSTATE 42501)", caplog)


async def test_one_row_that_cannot_be_read_fails_no_other_of_a_batch(database: str, as_role: str) -> None:
    execute(
        database,
        """insert into users (email) select n || '@example.com' from generate_series(1, 20) n;
        grant select on users to tenant; alter table users enable row level security;
        create policy readers on users using (1 / (id - 7) <= 1)""",
    )
    with serve(create_app(settings_for(as_role, batch_in_flight=1))) as url:
        async with httpx.AsyncClient(base_url=url) as client:
            reads = await asyncio.gather(*(client.get(f"{USERS}/{n}") for n in range(1, 21)))
    assert [response.status_code for response in reads] == [200] * 6 + [503] + [200] * 13


PLACES = [
    "drop schema public cascade",
    "drop table users cascade",
    "alter table users drop column body",
    "drop function user_body cascade",
    "drop table idempotency_keys",
]


@pytest.mark.parametrize("sabotage", PLACES)
def test_a_schema_that_does_not_fit_is_the_deployments(
    database: str, sabotage: str, caplog: pytest.LogCaptureFixture
) -> None:
    execute(database, sabotage)
    with serve(create_app(settings_for(database))) as url, httpx.Client(base_url=url) as client:
        response = client.post(USERS, json={"email": BAD}, headers={"idempotency-key": "1"})
        assert_problem(response, 503, "unavailable")
        (line,) = [line for line in caplog.messages if response.json()["request_id"] in line]
        assert "`users-api migrate`" in line
        assert "\n" not in line  # no traceback


HELD = """
    update users set name = 'held';
    insert into users (email) values ('new1@example.com'), ('new2@example.com'), ('new3@example.com')
"""
IS_HELD = "select count(*) >= 4 from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"


@pytest.mark.parametrize("batching", [True, False])
@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
async def test_conflicts_of_a_stricter_isolation_are_repeated(
    database: str, level: str, batching: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Each statement waits for another transaction. Once that commits, each fails with 40001, and runs again."""
    caplog.set_level(logging.INFO)
    execute(database, "insert into users (email) select n || '@example.com' from generate_series(1, 3) n")
    execute(database, f"alter database {parse_url(database).database} set default_transaction_isolation = '{level}'")
    with serve(create_app(settings_for(database, batching=batching))) as url:
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            with locked(database, HELD):
                key = {"idempotency-key": "1"}
                line = '{"email": "new3@example.com", "name": "new"}\n'
                requests = [
                    *(client.patch(f"{USERS}/{n}", json={"name": "new"}) for n in (1, 2, 3)),
                    client.post(USERS, json={"email": "new1@example.com"}),
                    client.post(USERS, json={"email": "new2@example.com"}, headers=key),
                    client.post(f"{USERS}/import?on_conflict=update", content=line, headers={"content-type": NDJSON}),
                ]
                under_way = [asyncio.create_task(request) for request in requests]
                await asyncio.to_thread(wait_until_true, database, IS_HELD)
            *responses, load = await asyncio.gather(*under_way)
    assert [response.status_code for response in responses] == [200] * 3 + [409] * 2
    assert [response.headers["etag"] for response in responses[:3]] == ['"2"'] * 3  # each change once
    assert json.loads(load.text)["summary"]["updated"] == 1
    # Changes that are batched share a statement, and its failure.
    assert caplog.text.count("SQLSTATE 40001") >= (1 if batching else 3)


REPLACEMENT = [
    "create unique index concurrently users_email_key_new on users (lower(email collate pg_c_utf8))",
    "drop index users_email_key",
    "alter index users_email_key_new rename to users_email_key",
    "create unique index concurrently keys_new on idempotency_keys (caller, key)",
    "alter table idempotency_keys drop constraint idempotency_keys_pkey",
    "alter table idempotency_keys add constraint anything primary key using index keys_new",
    "reindex index concurrently users_email_key",
]


async def test_a_taken_address_is_told_while_indexes_are_replaced(database: str, batching: bool) -> None:
    """A unique index is recognised by its definition: its name is another one for as long as the operator likes."""
    answers: Counter[tuple[str, int, str]] = Counter()
    done = asyncio.Event()
    with serve(create_app(settings_for(database, batching=batching))) as url:
        async with httpx.AsyncClient(base_url=url, timeout=60, limits=httpx.Limits(max_connections=50)) as client:
            await client.post(USERS, json={"email": "taken@example.com"})
            path = (await client.post(USERS, json={"email": "ada@example.com"})).headers["location"]

            async def patch(n: int) -> httpx.Response:
                return await client.patch(path, json={"email": "TAKEN@example.com"})

            async def post(n: int) -> httpx.Response:
                return await client.post(USERS, json={"email": "Taken@example.com"})

            async def keyed(n: int) -> httpx.Response:
                headers = {"idempotency-key": f"{n}"}
                return await client.post(USERS, json={"email": "taken@example.com"}, headers=headers)

            async def race(n: int) -> httpx.Response:
                """Two creations with one key, of which one waits for the other."""
                new, key = {"email": f"new{n}@example.com"}, {"idempotency-key": f"new{n}"}
                first, second = await asyncio.gather(*(client.post(USERS, json=new, headers=key) for _ in range(2)))
                assert first.text == second.text
                return first

            async def load(n: int) -> httpx.Response:
                return await client.post(
                    f"{USERS}/import", content='{"email": "taken@example.com"}\n', headers={"content-type": NDJSON}
                )

            async def repeat(act: Callable[[int], Awaitable[httpx.Response]]) -> None:
                for n in count():
                    response = await act(n)
                    body = json.loads(response.text.splitlines()[0])
                    answers[act.__name__, response.status_code, body.get("problem", body).get("type", "")] += 1
                    if done.is_set():
                        return

            acts = [asyncio.create_task(repeat(act)) for act in (patch, post, keyed, race, load) for _ in range(2)]
            for step in REPLACEMENT:
                await asyncio.to_thread(execute, database, step)
                await asyncio.sleep(0.05)
            done.set()
            await asyncio.gather(*acts)
    taken = "urn:problem:users-api:email-taken"
    expected = {("patch", 409, taken), ("post", 409, taken), ("keyed", 409, taken), ("load", 200, taken)}
    assert set(answers) == expected | {("race", 201, "")}, answers
