"""Migrations need a session, which is found out by behaviour, and a lock, for which they wait a bounded time."""

import re
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg
import pytest
from click.testing import CliRunner

from api.cli import main
from api.database import migrations
from api.database.migration_session import LOCK_KEY
from api.errors import MigrationError
from api.neon.url import parse_url
from tests.support.database import SESSION_STATE, execute, wait_until_true
from tests.support.rig import PASSWORD, NeonDatabase, Rig
from tests.support.roles import OWNER, SERVER, as_role

TAKE = f"select pg_advisory_lock({LOCK_KEY})"
TERMINATE = re.compile(r"select pg_terminate_backend\(\d+\)")
SET = """
    select name, setting from pg_settings
    where source = 'session' and name in ('lock_timeout', 'statement_timeout', 'search_path')
"""
SETTINGS = "set lock_timeout = '5s'; set statement_timeout = '1h'; select 1"


@contextmanager
def holding(url: str, application: str = "a forgotten shell") -> Iterator[int]:
    """Hold the lock of migrations in a session, whose process id is yielded."""
    arguments = parse_url(url).psycopg_arguments() | {"application_name": application}
    with psycopg.connect(**arguments, autocommit=True) as session:  # type: ignore[arg-type]
        session.execute(TAKE.encode())
        yield session.info.backend_pid


def migrate(url: str, lock_timeout: float = 0.3) -> list[str]:
    reported: list[str] = []
    migrations.migrate(parse_url(url), report=reported.append, lock_timeout=lock_timeout)
    return reported


def end(url: str, statement: str) -> None:
    """Run the statement that ends a session, and return when that has ended: it is only told to."""
    execute(url, statement)
    wait_until_true(url, "select count(*) = 0 from pg_locks where locktype = 'advisory'")


def states(url: str) -> list[tuple[object, ...]]:
    """Return the state of the session that the pooler lends; it sets each client's own application_name there."""
    return execute(f"{url}&application_name=test", f"select * from ({SESSION_STATE}) as state")


def locks(neon: NeonDatabase) -> int:
    ((number,),) = execute(neon.superuser, "select count(*) from pg_locks where locktype = 'advisory'")
    return int(str(number))


@pytest.mark.parametrize("command", [migrations.migrate, migrations.rollback])
def test_a_transaction_pooler_is_refused_by_any_name_and_keeps_nothing(
    rig: Rig, neon: NeonDatabase, command: object
) -> None:
    url = rig.socket_url(parse_url(neon.pooled).database)
    assert not parse_url(url).pooled
    before = states(url)
    with pytest.raises(MigrationError, match=r"leads through a transaction pooler.*: set DIRECT_URL to") as raised:
        command(parse_url(url), report=print)  # type: ignore[operator]
    assert PASSWORD not in str(raised.value)
    assert states(url) == before  # of the same session
    assert locks(neon) == 0
    assert {row.state for row in migrations.status(parse_url(url))} == {"applied"}  # it only reads
    assert states(url) == before


@pytest.fixture
def session_pooler(rig: Rig) -> Iterator[None]:
    """PgBouncer in session mode, which resets nothing when a client leaves: the worst that may be configured."""
    rig.pgbouncer.run("set pool_mode = session")
    rig.pgbouncer.run("set server_reset_query = ''")
    yield
    rig.pgbouncer.run("set pool_mode = transaction")
    rig.pgbouncer.run("set server_reset_query = 'DISCARD ALL'")


@pytest.mark.usefixtures("session_pooler")
def test_a_session_pooler_keeps_nothing(rig: Rig, neon: NeonDatabase, tmp_path: Path) -> None:
    url = rig.socket_url(parse_url(neon.pooled).database)
    (tmp_path / "0009.settings.sql").write_text(SETTINGS)
    assert migrations.migrate(parse_url(url), directory=tmp_path, report=print) == ["0009.settings"]
    assert locks(neon) == 0
    found = rig.pgbouncer.run("show servers")
    used = [server for server in found if server["database"] == parse_url(url).database]
    assert len(used) >= 2
    with ExitStack() as stack:
        for _ in used:
            arguments = parse_url(url).psycopg_arguments()
            each = stack.enter_context(psycopg.connect(**arguments, autocommit=True))  # type: ignore[arg-type]
            assert each.execute(SET).fetchall() == []


def test_the_holder_is_named_with_the_statement_that_ends_it(database: str) -> None:
    with holding(database) as pid:
        started = time.monotonic()
        with pytest.raises(MigrationError) as raised:
            migrate(database)
        assert 0.3 <= time.monotonic() - started < 30  # and not LOCK_TIMEOUT_SECONDS
        first, second = str(raised.value).splitlines()
        moment = r"\d{4}-\d\d-\d\d [\d:]{8} UTC"
        assert re.fullmatch(
            rf"the lock of migrations was not free within 0\.3 s: it is held by process {pid}, a forgotten shell, "
            rf"role postgres, connected since {moment}, idle since {moment}",
            first,
        )
        assert "--lock-timeout" in second
        (statement,) = TERMINATE.findall(second)
        assert str(pid) in statement
        end(database, statement)
        assert migrate(database) == []


def test_a_lock_that_stayed_on_a_pooled_session_is_named(rig: Rig, neon: NeonDatabase) -> None:
    """As an older release left it, whose `migrate` went through a pooler."""
    with psycopg.connect(**parse_url(neon.pooled).psycopg_arguments(), autocommit=True) as client:  # type: ignore[arg-type]
        client.execute(TAKE.encode())
    assert locks(neon) == 1
    with pytest.raises(MigrationError, match="it is held by process ") as raised:
        migrate(neon.direct)
    end(neon.superuser, TERMINATE.findall(str(raised.value))[0])
    assert migrate(neon.direct) == []


def test_another_run_is_known_by_its_name(database: str, tmp_path: Path) -> None:
    (tmp_path / "0009.slow.sql").write_text("lock table users")

    def report(line: str) -> None:
        if line == "applying 0009.slow":
            with pytest.raises(MigrationError, match=r"held by process \d+, users-api migrate, role "):
                migrate(database, lock_timeout=0)

    assert migrations.migrate(parse_url(database), directory=tmp_path, report=report) == ["0009.slow"]


def test_what_the_role_is_not_shown_is_said(database: str) -> None:
    with holding(database) as pid, pytest.raises(MigrationError) as raised:
        migrate(as_role(database, OWNER), lock_timeout=0)
    assert f"process {pid}, a forgotten shell, role postgres, more is not shown to role {OWNER}" in str(raised.value)


def test_a_wait_is_reported_once_and_ends_with_the_lock(database: str) -> None:
    reported: list[str] = []

    with holding(database) as pid:

        def report(line: str) -> None:
            reported.append(line)
            execute(database, f"select pg_terminate_backend({pid})")

        assert migrations.migrate(parse_url(database), report=report, lock_timeout=10) == []
    (line,) = reported
    assert line.startswith(f"waiting up to 10 s for the lock of migrations, held by process {pid}, a forgotten shell, ")


def test_a_statement_that_waits_for_a_table_names_the_sessions_in_its_way(database: str, tmp_path: Path) -> None:
    (tmp_path / "0009.late.sql").write_text("set lock_timeout = '50ms'; alter table users add late int")
    arguments = parse_url(as_role(database, SERVER)).psycopg_arguments() | {"application_name": "a long report"}
    with psycopg.connect(**arguments) as reader:  # type: ignore[arg-type]
        reader.execute("select count(*) from users")
        with pytest.raises(MigrationError) as raised:
            migrations.migrate(parse_url(database), directory=tmp_path, report=print)
        pid = reader.info.backend_pid
    failed, blocked, remedy = str(raised.value).splitlines()
    assert "lock timeout" in failed
    assert f"process {pid}, a long report, role {SERVER}, " in blocked
    assert "idle in transaction since" in blocked
    assert blocked.endswith(f"select pg_terminate_backend({pid})")
    assert remedy == "It is not recorded as done: fix the cause and run it again."


def test_the_command_ends_with_1(database: str) -> None:
    with holding(database):
        for command in (["migrate", "--lock-timeout", "0"], ["migrate", "rollback", "--yes", "--lock-timeout", "0"]):
            ended = CliRunner().invoke(main, command, env={"DIRECT_URL": database})
            assert (ended.exit_code, ended.stdout) == (1, "")
            assert ended.stderr.startswith("users-api: the lock of migrations was not free within 0 s: ")
