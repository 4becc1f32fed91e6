"""Migrations on PostgreSQL: reversible, and safe to interrupt or to run twice at once."""

import hashlib
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest

from api.database import migrations
from api.database.files import MIGRATIONS_DIRECTORY
from api.database.migrations import MigrationStatus
from api.database.yoyo_backend import connect
from api.errors import MigrationError
from api.neon.url import parse_url
from tests.support.database import MIGRATIONS, NewDatabase, execute, wait_until_waiting
from tests.support.waiting import wait_until

# Every name in the schema with its definition, but for the tables that record migrations.
CATALOG = r"""
with relation as (
    select oid, relname, relkind from pg_class
    where relnamespace = 'public'::regnamespace and relname !~ '^(_yoyo|yoyo_|_users_api_)'
)
select 'relation', relname, relkind::text from relation
union all
select 'column', relname || '.' || attname, concat_ws(
    ' ', row_number() over (partition by relname order by attnum), format_type(atttypid, atttypmod), attnotnull,
    attidentity, attgenerated, attcollation::regcollation, pg_get_expr(adbin, adrelid))
from relation join pg_attribute on attrelid = relation.oid left join pg_attrdef on (adrelid, adnum) = (attrelid, attnum)
where attnum > 0 and not attisdropped and relkind = 'r'
union all
select 'constraint', conname, pg_get_constraintdef(pg_constraint.oid) from relation
join pg_constraint on conrelid = relation.oid
-- A "not null" is a constraint since PostgreSQL 18, named by PostgreSQL; no error and no migration speaks of that name.
where contype <> 'n'
union all
select 'index', relname, pg_get_indexdef(oid) from relation where relkind = 'i'
union all
select 'trigger', tgname, pg_get_triggerdef(pg_trigger.oid) from relation
join pg_trigger on tgrelid = relation.oid where not tgisinternal
union all
select 'function', proname, pg_get_functiondef(oid) from pg_proc where pronamespace = 'public'::regnamespace
order by 1, 2, 3
"""

MIGRATE = """
import sys
from pathlib import Path
from api.database.migrations import migrate
from api.neon.url import parse_url

print(migrate(parse_url(sys.argv[1]), directory=Path(sys.argv[2]), report=lambda line: print(line, flush=True)))
"""

# Waits until the test lets it go on, which is surer than a sleep.
BLOCKED = "select pg_advisory_lock(1);"


def tables(url: str) -> set[str]:
    rows = execute(url, "select relname from pg_class where relnamespace = 'public'::regnamespace")
    return {str(name) for (name,) in rows}


class Migrations:
    """A directory of migrations for one database, and what a run on it reports."""

    def __init__(self, url: str, directory: Path) -> None:
        self.url = parse_url(url)
        self.directory = directory
        self.reported: list[str] = []

    def write(self, id: str, sql: str, rollback: str | None = None) -> Path:
        file = self.directory / f"{id}.sql"
        file.write_text(sql)
        if rollback is not None:
            file.with_suffix(".rollback.sql").write_text(rollback)
        return file

    def migrate(self) -> list[str]:
        return migrations.migrate(self.url, directory=self.directory, report=self.reported.append)

    def rollback(self) -> str | None:
        return migrations.rollback(self.url, directory=self.directory, report=self.reported.append)

    def states(self) -> dict[str, str]:
        return {each.id: each.state for each in migrations.status(self.url, directory=self.directory)}


@pytest.fixture
def here(empty_database: str, tmp_path: Path) -> Migrations:
    """An empty database and an empty directory, whose name would be a pattern to yoyo."""
    directory = tmp_path / "migrations[1]"
    directory.mkdir()
    return Migrations(empty_database, directory)


Start = Callable[[], subprocess.Popen[str]]


@pytest.fixture
def start(empty_database: str, here: Migrations) -> Iterator[Start]:
    """Start a migrating process of its own."""
    started: list[subprocess.Popen[str]] = []

    def start_one() -> subprocess.Popen[str]:
        command = [sys.executable, "-W", "error", "-c", MIGRATE, empty_database, str(here.directory)]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
        return started[-1]

    yield start_one
    for process in started:
        with process:
            process.kill()


@contextmanager
def holding_back(url: str) -> Iterator[None]:
    """Let the migrations that are BLOCKED wait."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("select pg_advisory_lock(1)")
        yield


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().rstrip()


def test_up_down_up_leaves_the_same_schema(empty_database: str) -> None:
    url = parse_url(empty_database)
    ids = migrations.migrate(url)
    schema = execute(empty_database, CATALOG)
    undone = []
    while id := migrations.rollback(url):
        undone.append(id)
    assert undone == ids[::-1]
    assert execute(empty_database, CATALOG) == []
    assert migrations.migrate(url) == ids
    assert execute(empty_database, CATALOG) == schema
    assert {"users", "users_pkey", "users_email_key", "user_body"} <= {name for _, name, _ in schema}


def test_every_constraint_and_index_has_a_name_given_by_hand(database: str) -> None:
    written = set(re.findall(r"\w+", "".join(file.read_text("utf-8") for file in MIGRATIONS_DIRECTORY.glob("*.sql"))))
    names = [name for kind, name, _ in execute(database, CATALOG) if kind in {"constraint", "index"}]
    assert names
    assert [name for name in names if name not in written] == []


@pytest.mark.parametrize("search_path", ["''", "trap, public"])
def test_the_search_path_of_a_role_moves_nothing(empty_database: str, database: str, search_path: str) -> None:
    """The tables of the service and of yoyo are in public, where the server looks for them."""
    name = str(execute(empty_database, "select current_database()")[0][0])
    execute(empty_database, "create schema trap; create table trap.users (); create table trap._yoyo_migration ()")
    execute(empty_database, f"alter role postgres in database {name} set search_path to {search_path}")
    url = parse_url(empty_database)
    assert migrations.migrate(url) == MIGRATIONS
    assert {each.state for each in migrations.status(url)} == {"applied"}
    assert migrations.rollback(url) == MIGRATIONS[-1]
    assert migrations.migrate(url) == MIGRATIONS[-1:]
    assert tables(empty_database) == tables(database)
    execute(empty_database, f"alter role postgres in database {name} reset search_path")
    assert execute(empty_database, CATALOG) == execute(database, CATALOG)


def test_tables_in_another_schema_are_not_built_anew_in_public(empty_database: str) -> None:
    """Earlier releases went by the role's search_path."""
    url = parse_url(empty_database)
    migrations.migrate(url)
    execute(empty_database, "create schema ours")
    for (name,) in execute(empty_database, "select tablename from pg_tables where schemaname = 'public'"):
        execute(empty_database, f"alter table {name} set schema ours")
    with pytest.raises(
        MigrationError, match=r"recorded in the schema ours, .* alter table ours\.NAME set schema public"
    ):
        migrations.migrate(url)
    assert tables(empty_database) == set()
    for (moved,) in execute(empty_database, "select tablename from pg_tables where schemaname = 'ours'"):
        execute(empty_database, f"alter table ours.{moved} set schema public")
    assert migrations.migrate(url) == []


def test_a_migration_that_fails_quotes_no_row(database: str, tmp_path: Path) -> None:
    execute(database, "insert into users (email, name) values ('ada@example.com', 'x'), ('bob@example.com', 'x')")
    (tmp_path / "0001.one.sql").write_text("create unique index one on users (name, (position('@' in email)))")
    with pytest.raises(MigrationError, match='could not create unique index "one"') as raised:
        migrations.migrate(parse_url(database), directory=tmp_path)
    assert "(x, 4)" not in str(raised.value)


def test_a_temporary_table_takes_no_name_of_a_migration(empty_database: str) -> None:
    with connect(parse_url(empty_database).psycopg_arguments()) as backend:
        backend.execute("create temporary table users ()")
        backend.execute((MIGRATIONS_DIRECTORY / f"{MIGRATIONS[0]}.sql").read_text("utf-8"))
        backend.rollback()  # after which yoyo prepares the connection again
        assert backend.execute("select 'users'::regclass = 'public.users'::regclass").fetchone() == (True,)


def test_status_before_and_after(here: Migrations) -> None:
    here.write("0001.one", "create table one ()", "drop table one")
    here.write("0002.two", "create table two ()")
    assert migrations.status(here.url, directory=here.directory) == [
        MigrationStatus("0001.one", "pending", None),
        MigrationStatus("0002.two", "pending", None),
    ]
    assert here.migrate() == ["0001.one", "0002.two"]
    assert here.reported[0] == "applying 0001.one"
    assert re.fullmatch(r"applied in \d+\.\d s", here.reported[1])
    after = migrations.status(here.url, directory=here.directory)
    assert [(each.id, each.state) for each in after] == [("0001.one", "applied"), ("0002.two", "applied")]
    assert all(each.applied_at and abs(each.applied_at - datetime.now(UTC)) < timedelta(minutes=5) for each in after)
    assert here.migrate() == []


def test_status_lists_in_the_order_applied(here: Migrations) -> None:
    here.write("0002.two", "select 1")
    here.migrate()
    here.write("0001.late", "select 1")
    here.write("0003.three", "select 1")
    assert list(here.states()) == ["0002.two", "0001.late", "0003.three"]
    here.migrate()
    assert list(here.states()) == ["0002.two", "0001.late", "0003.three"]


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_a_database_of_another_encoding_is_refused(new_database: NewDatabase, encoding: str) -> None:
    with new_database(f"template0 encoding {encoding} locale 'C'") as url:
        with pytest.raises(MigrationError, match=rf"is {encoding}, and it has to be UTF8: create another one, `create"):
            migrations.migrate(parse_url(url), report=lambda line: None)
        assert tables(url) == set()


def test_status_creates_nothing(empty_database: str) -> None:
    assert {each.state for each in migrations.status(parse_url(empty_database))} == {"pending"}
    assert tables(empty_database) == set()


def test_status_needs_no_more_than_select(database: str) -> None:
    execute(database, "create role migrations_reader login; grant select on all tables in schema public to public")
    try:
        url = parse_url(re.sub("//.*?/", "//migrations_reader@/", database))
        assert {each.state for each in migrations.status(url)} == {"applied"}
    finally:
        execute(database, "drop role migrations_reader")


def test_an_edited_migration_is_refused(here: Migrations) -> None:
    file = here.write("0001.one", "create table one ()", "drop table one")
    here.migrate()
    file.write_text("create table one (id int)")
    here.write("0002.two", "create table two ()")
    assert here.states() == {"0001.one": "edited", "0002.two": "pending"}
    with pytest.raises(MigrationError, match=rf"{re.escape(str(file))} was edited .* restore it, and write a new"):
        here.migrate()
    with pytest.raises(MigrationError, match="was edited"):
        here.rollback()
    assert here.states() == {"0001.one": "edited", "0002.two": "pending"}
    file.write_text("create table one ()")
    assert here.migrate() == ["0002.two"]


def test_line_ends_are_no_edit_and_neither_is_another_rollback(here: Migrations) -> None:
    file = here.write("0001.one", "create table one (\n)\n;\n")
    here.migrate()
    file.write_bytes(b"create table one (\r\n)\r\n;\r\n")
    here.write("0001.one", file.read_text(), "drop table one")
    assert here.states() == {"0001.one": "applied"}
    assert here.migrate() == []


@pytest.mark.parametrize("header", ["", "-- transactional: false\n"])
def test_a_byte_order_mark_is_no_part_of_the_file(here: Migrations, empty_database: str, header: str) -> None:
    file = here.write("0001.one", f"\ufeff{header}create table one ()", "\ufeffdrop table one")
    assert here.migrate() == ["0001.one"]
    with connect(here.url.psycopg_arguments()) as backend:
        ((recorded,),) = backend.execute("select checksum from _users_api_migration_checksum").fetchall()
    assert recorded == hashlib.sha256(f"{header}create table one ()".encode()).hexdigest()
    file.write_text(f"{header}create table one ()")
    assert here.states() == {"0001.one": "applied"}
    file.write_text(f"\ufeff{header}create table one ()")
    assert here.states() == {"0001.one": "applied"}
    assert here.rollback() == "0001.one"
    assert "one" not in tables(empty_database)


def test_a_missing_checksum_is_recorded(here: Migrations, empty_database: str) -> None:
    file = here.write("0001.one", "create table one ()")
    here.migrate()
    execute(empty_database, "drop table _users_api_migration_checksum")
    assert here.states() == {"0001.one": "applied"}
    assert here.migrate() == []
    assert execute(empty_database, "select * from _users_api_migration_checksum") == [
        ("0001.one", hashlib.sha256(b"create table one ()").hexdigest())
    ]
    file.write_text("create table another ()")
    assert here.states() == {"0001.one": "edited"}


def test_a_migration_without_its_file(here: Migrations) -> None:
    here.write("0001.one", "create table one ()", "drop table one")
    here.write("0002.two", "create table two ()", "drop table two")
    here.migrate()
    (here.directory / "0002.two.sql").unlink()
    assert here.states() == {"0001.one": "applied", "0002.two": "missing"}
    here.reported.clear()
    assert here.migrate() == []
    assert [line for line in here.reported if line.startswith("0002.two was applied and is not in ")]
    with pytest.raises(
        MigrationError, match=r"0002\.two was applied last and is not in .*migrations\[1\]: use the rel"
    ):
        here.rollback()


@pytest.mark.parametrize(
    "sql",
    [
        f"create table made (id int); {BLOCKED}",
        # A concurrent index waits for every snapshot in the database, so the run that waits must not hold one.
        f"-- transactional: false\ncreate table made (id int); {BLOCKED} create index concurrently by_id on made (id);",
    ],
    ids=["transaction", "concurrent index"],
)
def test_two_runs_at_once(here: Migrations, empty_database: str, start: Start, sql: str) -> None:
    here.write("0001.slow", sql)
    with holding_back(empty_database):
        first = start()
        assert first_line(first) == "applying 0001.slow"
        second = start()
        assert re.match(
            r"waiting up to 60 s for the lock of migrations, held by process \d+, users-api migrate, role ",
            first_line(second),
        )
    assert first.communicate(timeout=30)[0].endswith("['0001.slow']\n")
    assert second.communicate(timeout=30)[0] == "[]\n"
    assert here.states() == {"0001.slow": "applied"}


def test_a_killed_run_leaves_nothing_in_the_way(here: Migrations, empty_database: str, start: Start) -> None:
    here.write("0001.slow", f"create table made (); {BLOCKED}")
    with holding_back(empty_database):
        process = start()
        assert first_line(process) == "applying 0001.slow"
        wait_until_waiting(empty_database, 1)
        process.kill()
        process.wait()
        assert here.states() == {"0001.slow": "pending"}
    assert here.migrate() == ["0001.slow"]


def test_a_lock_row_left_by_yoyo_is_cleared(here: Migrations, empty_database: str) -> None:
    here.write("0001.one", "create table one ()")
    execute(
        empty_database, "create table yoyo_lock (locked int default 1 primary key, ctime timestamp, pid int not null)"
    )
    execute(empty_database, "insert into yoyo_lock values (1, now(), 4711)")
    assert here.migrate() == ["0001.one"]
    assert here.reported[0] == "clearing the lock of a run that was killed (process 4711)"
    assert execute(empty_database, "select * from yoyo_lock") == []


def test_what_ran_and_was_not_recorded_runs_again(empty_database: str, database: str) -> None:
    first, *_ = ids = [each.id for each in migrations.status(parse_url(empty_database))]
    execute(empty_database, (MIGRATIONS_DIRECTORY / f"{first}.sql").read_text("utf-8"))
    assert migrations.migrate(parse_url(empty_database)) == ids
    assert execute(empty_database, CATALOG) == execute(database, CATALOG)


def test_every_migration_runs_twice(here: Migrations, empty_database: str, database: str) -> None:
    """Each right after itself, as after a crash between its end and the record of it."""
    for id in MIGRATIONS:
        for file in MIGRATIONS_DIRECTORY.glob(f"{id}.*"):
            shutil.copy(file, here.directory)
        assert here.migrate() == [id]
        execute(empty_database, f"delete from _yoyo_migration where migration_id = '{id}'")
        assert here.migrate() == [id]
    assert execute(empty_database, CATALOG) == execute(database, CATALOG)


def test_broken_sql_names_the_file_and_leaves_nothing_behind(here: Migrations, empty_database: str) -> None:
    here.write("0001.one", "create table one ()")
    file = here.write("0002.two", "create table two ();\nselect * from nowhere;")
    here.write("0003.three", "create table three ()")
    with pytest.raises(MigrationError) as raised:
        here.migrate()
    assert str(raised.value).startswith(f'{file}: relation "nowhere" does not exist\n')
    assert "fix the cause" in str(raised.value)
    assert here.states() == {"0001.one": "applied", "0002.two": "pending", "0003.three": "pending"}
    assert "one" in tables(empty_database)
    assert not {"two", "three"} & tables(empty_database)
    file.write_text("create table two ();")
    assert here.migrate() == ["0002.two", "0003.three"]


def test_a_lost_connection_is_told_by_its_cause(here: Migrations) -> None:
    file = here.write(
        "0001.one",
        "select pg_terminate_backend(pid) from pg_stat_activity where application_name = 'users-api migrate'",
    )
    with pytest.raises(MigrationError, match=f"{re.escape(str(file))}: terminating connection due to administrator"):
        here.migrate()


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("-- depends: 0000.nowhere\nselect 1", "Could not resolve dependencies"),
        ("-- depends: 0001.one\nselect 1", "loop"),
        ("-- transactional: perhaps\nselect 1", "perhaps"),
    ],
)
def test_a_faulty_header_is_reported(here: Migrations, empty_database: str, sql: str, message: str) -> None:
    here.write("0000.zero", "select 1")
    here.write("0001.one", sql)
    with pytest.raises(MigrationError, match=rf"cannot be read as a migration: .*{message}.*"):
        here.migrate()
    assert tables(empty_database) == set()


def test_what_yoyo_skips_is_an_error(here: Migrations, monkeypatch: pytest.MonkeyPatch) -> None:
    here.write("0001.one", "select 1")
    monkeypatch.setattr("api.database.migrations.Backend.apply_one", lambda self, migration: None)
    with pytest.raises(MigrationError, match=r"still not applied, although nothing failed: 0001\.one"):
        here.migrate()


def test_a_directory_without_migrations_is_an_error(here: Migrations) -> None:
    with pytest.raises(MigrationError, match="must have migrations in it"):
        here.migrate()


def test_dependencies_come_first(here: Migrations) -> None:
    here.write("0001.one", "-- depends: 0002.two\ncreate table one (id int references two)")
    here.write("0002.two", "create table two (id int primary key)")
    assert list(here.states()) == ["0002.two", "0001.one"]
    assert here.migrate() == ["0002.two", "0001.one"]


def test_needs_neither_a_user_name_nor_dns(here: Migrations, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a numeric UID without a passwd entry, which is what many containers run as."""

    def fail(*_: object) -> str:
        raise KeyError("getpwuid(): uid not found: 54321")

    for name in ("getpass.getuser", "socket.getfqdn"):
        monkeypatch.setattr(name, fail)
    here.write("0001.one", "create table one ()", "drop table one")
    assert here.migrate() == ["0001.one"]
    assert here.rollback() == "0001.one"


def test_selected_rows_are_not_printed(here: Migrations, capsys: pytest.CaptureFixture[str]) -> None:
    here.write("0001.one", "select '100%' as share;\n-- The end.", "select 1")
    here.migrate()
    here.rollback()
    assert capsys.readouterr() == ("", "")


def test_rollback_runs_its_statements_in_order(here: Migrations, empty_database: str) -> None:
    steps = "create table step_1 (); alter table step_1 rename to step_2; alter table step_2 rename to step_3;"
    here.write("0001.more", "select 1", steps)
    here.write("0002.fewer", "select 1; select 2; select 3; select 4", steps.replace("step", "stage"))
    here.migrate()
    assert [here.rollback(), here.rollback(), here.rollback()] == ["0002.fewer", "0001.more", None]
    assert {"step_3", "stage_3"} <= tables(empty_database)
    assert execute(empty_database, "select * from _users_api_migration_checksum") == []


def test_rollback_without_a_file_is_refused(here: Migrations) -> None:
    here.write("0001.one", "create table one ()")
    here.migrate()
    with pytest.raises(MigrationError, match=r"0001\.one cannot be undone without .*0001\.one\.rollback\.sql"):
        here.rollback()
    assert here.states() == {"0001.one": "applied"}


def test_a_broken_rollback_undoes_nothing(here: Migrations, empty_database: str) -> None:
    here.write("0001.one", "create table one ()", "drop table one; drop table nowhere")
    here.migrate()
    with pytest.raises(MigrationError, match=r'0001\.one\.rollback\.sql: table "nowhere" does not exist'):
        here.rollback()
    assert here.states() == {"0001.one": "applied"}
    assert "one" in tables(empty_database)


def test_a_pooled_url_is_refused() -> None:
    url = parse_url("postgresql://app:sesame@ep-cool-sea-1-pooler.eu-central-1.aws.neon.tech/app?sslmode=require")
    for command in (migrations.migrate, migrations.rollback):
        with pytest.raises(MigrationError, match="set DIRECT_URL") as raised:
            command(url)
        assert "sesame" not in str(raised.value)


@pytest.fixture
def password_asked(postgres: str) -> Iterator[None]:
    """The server asks the role `migrations_guest` for its password, where it trusts every other one."""
    [row] = execute(postgres, "select name, pg_read_file(name) from current_setting('hba_file') as name")
    name, content = map(str, row)

    def load(rules: str) -> None:
        loaded = execute(postgres, "select pg_conf_load_time()")
        Path(name).write_text(rules)
        execute(postgres, "select pg_reload_conf()")
        wait_until(lambda: execute(postgres, "select pg_conf_load_time()") != loaded)

    execute(postgres, "create role migrations_guest login password 'right'")
    load(f"local all migrations_guest scram-sha-256\nhost all migrations_guest all scram-sha-256\n{content}")
    yield
    load(content)
    execute(postgres, "drop role migrations_guest")


@pytest.mark.usefixtures("password_asked")
@pytest.mark.parametrize(
    ("authority", "reason"),
    [
        ("//migrations_guest:sesame@/postgres", 'password authentication failed for user "migrations_guest"'),
        ("//postgres:sesame@/nowhere", 'database "nowhere" does not exist'),
    ],
)
def test_a_failed_connection_is_one_line_without_the_password(postgres: str, authority: str, reason: str) -> None:
    url = parse_url(re.sub("//.*?/postgres", authority, postgres))
    for command in (migrations.migrate, migrations.rollback, migrations.status):
        with pytest.raises(MigrationError, match=f"^cannot connect to the database: .*{reason}") as raised:
            command(url)
        assert "\n" not in str(raised.value)
        assert "sesame" not in str(raised.value)
