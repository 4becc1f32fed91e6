"""The command line."""

import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from api.cli import main
from tests.support import ROOT
from tests.support.commands import environment, on, run, served
from tests.support.database import execute

STATEMENTS = len(list((ROOT / "sql").rglob("*.sql")))


@pytest.mark.parametrize(
    ("command", "teaches"),
    [
        ([], ["serve", "migrate", "doctor", "key", "openapi", "import", "export", "First steps", ".env.example"]),
        (["serve"], ["--host", "--port", "--workers", "--reload", "Examples", "8000"]),
        (["migrate"], ["status", "rollback", "DIRECT_URL", "--lock-timeout", "Exit code 1", "pooler", "Examples"]),
        (["migrate", "status"], ["pending"]),
        (["migrate", "rollback"], ["--yes", "--lock-timeout"]),
        (["check-sql"], ["Exit code 1"]),
        (["doctor"], ["--replicas", "--workers", "--timeout", "--json", "Exit code 1", "NO_COLOR", "Examples"]),
        (["key"], ["--read-only", "API_KEYS", "Examples"]),
        (["new-resource"], ["--singular", "never touches", "docs/add-a-resource.md", "Examples", "Exit code 2"]),
        (["openapi"], ["/openapi.json", "Example"]),
        (["import"], ["--on-conflict", "refused", "Examples", "DIRECT_URL", "Exit code 1"]),
        (["export"], ["--format", "snapshot", "Examples", "DIRECT_URL"]),
    ],
)
def test_every_command_teaches(command: list[str], teaches: list[str]) -> None:
    shown = run(*command, "--help")
    assert shown.returncode == 0
    assert all(word in shown.stdout for word in teaches), shown.stdout


@pytest.mark.parametrize(
    ("command", "given", "missing"),
    [
        *((command, "DATABASE_URL", "DIRECT_URL") for command in ("migrate", "migrate status", "import -", "export")),
        *((command, "DIRECT_URL", "DATABASE_URL") for command in ("serve", "check-sql", "doctor")),
    ],
)
def test_a_command_asks_for_the_url_that_it_needs(command: str, given: str, missing: str) -> None:
    url = "postgresql://ada:sesame@db.example.com/x"
    ended = CliRunner().invoke(main, command.split(), env={given: url, missing: None})
    assert (ended.exit_code, ended.stdout) == (2, "")
    assert re.fullmatch(f"users-api: {missing} is not set, and .*: set it to .*\n", ended.stderr)
    assert "sesame" not in ended.stderr


def test_each_role_needs_its_own_url_alone(empty_database: str, directory: Path) -> None:
    assert "0001.create-users" in run("migrate", DIRECT_URL=empty_database).stdout
    with served(cwd=directory, DATABASE_URL=empty_database) as (url, _):
        assert httpx.get(f"{url}/api/v1/users").text == "[]"


@pytest.mark.parametrize("command", [["serve"], ["migrate"], ["migrate", "status"], ["check-sql"], ["doctor"]])
@pytest.mark.parametrize(
    ("variables", "said"),
    [
        (
            {"DATABASE_URL": "postgresql://ada:sesame@h:x/x", "DIRECT_URL": "postgresql://a@localhost/x"},
            "DATABASE_URL: ",
        ),
        ({"POOL_MAX_SIZE": "0"}, "POOL_MAX_SIZE: "),
    ],
)
def test_wrong_settings_end_with_one_message(command: list[str], variables: dict[str, str], said: str) -> None:
    ended = run(*command, **variables)
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"users-api: {said}")
    assert len(ended.stderr.splitlines()) == 1
    assert "sesame" not in ended.stdout + ended.stderr


@pytest.mark.parametrize("command", [["serve"], ["migrate"], ["check-sql"], ["doctor"], ["import", "-"], ["export"]])
def test_an_env_file_that_is_not_utf_8_ends_with_one_message(command: list[str], directory: Path) -> None:
    (directory / ".env").write_bytes(b"# caf\xe9\n")
    ended = run(*command, cwd=str(directory))
    assert ended.returncode == 2
    assert ended.stderr.splitlines() == ["users-api: .env: not UTF-8 at byte 5: save it as UTF-8"]


@pytest.mark.parametrize("command", [["migrate"], ["migrate", "status"], ["check-sql"]])
def test_an_unreachable_database_ends_with_one_message(command: list[str]) -> None:
    ended = run(*command, **on("postgresql://ada:sesame@127.0.0.1:1/x"))
    assert ended.returncode == 1
    assert ended.stderr.startswith("users-api: ")
    assert "Traceback" not in ended.stderr
    assert "sesame" not in ended.stdout + ended.stderr


def test_flags_that_do_not_fit() -> None:
    assert run("serve", "--reload", "--workers", "2").returncode == 2
    assert "--port" in run("serve", "--port", "99999").stderr


def test_migrating_there_and_back(empty_database: str) -> None:
    urls = on(empty_database)
    ids = sorted(path.stem for path in (ROOT / "migrations").glob("*.sql") if not path.stem.endswith(".rollback"))
    assert re.search(r"0001\.create-users +pending +-", run("migrate", "status", **urls).stdout)
    assert "0001.create-users" in run("migrate", **urls).stdout
    assert re.search(r"0001\.create-users +applied +\d{4}-", run("migrate", "status", **urls).stdout)
    assert "up to date" in run("migrate", **urls).stdout
    declined = run("migrate", "rollback", stdin="n\n", **urls)
    assert (declined.returncode, f"Undo {ids[-1]}?" in declined.stdout) == (1, True)
    assert execute(empty_database, "select to_regclass('users') is null") == [(False,)]
    for id in reversed(ids):
        assert id in run("migrate", "rollback", "--yes", **urls).stdout
    assert execute(empty_database, "select to_regclass('users') is null") == [(True,)]
    assert "nothing to roll back" in run("migrate", "rollback", **urls).stdout


def test_check_sql(database: str) -> None:
    assert run("check-sql", **on(database)).stdout == f"{STATEMENTS} statements fit the database\n"
    execute(database, "alter table users rename column name to label")
    ended = run("check-sql", **on(database))
    assert ended.returncode == 1
    assert "sql/users/insert_users.sql, declared at api/users/statements.py:" in ended.stderr
    assert ended.stderr.splitlines()[-1].startswith("run `users-api migrate`; if none is pending, ")


def test_check_sql_names_constraints(database: str) -> None:
    """Those of tables that the statements use, and that refer to these; rules of your own are no fault."""
    execute(
        database,
        """
        create unique index users_name_key on users (name);
        create table orders (id int primary key, user_id bigint constraint orders_user_id_fkey references users)
        """,
    )
    ended = run("check-sql", **on(database))
    assert (ended.returncode, ended.stdout) == (0, f"{STATEMENTS} statements fit the database\n")
    assert ended.stderr.splitlines() == [
        "orders_user_id_fkey: no resource names it, so what violates it is 409 refused-by-database",
        "users_name_key: no resource names it, so what violates it is 409 refused-by-database",
        "orders_user_id_fkey: no index begins with its columns, so a delete reads the table: "
        "create index concurrently on public.orders (user_id)",
    ]
    execute(database, "drop index users_email_key")
    ended = run("check-sql", **on(database))
    assert ended.returncode == 1
    assert ended.stderr.startswith(
        "users_email_key: the database has no such constraint, and the resource users names it"
    )
    assert ended.stderr.splitlines()[-1].startswith("run `users-api migrate`; if none is pending, ")


def test_serving_on_the_embedded_database_keeps_its_data(directory: Path) -> None:
    with served(cwd=directory) as (url, _):
        assert httpx.get(f"{url}/api/v1/users").text == "[]"
        user = httpx.post(f"{url}/api/v1/users", json={"email": "ada@example.com"}).json()
    with served("--workers", "2", cwd=directory) as (url, _):
        assert httpx.get(f"{url}/api/v1/users").json() == [user]
    assert not (directory / ".data/postgres/postmaster.pid").exists()


def test_a_killed_server_leaves_a_database_that_the_next_one_takes_over(directory: Path) -> None:
    with served(cwd=directory, ends_with=-signal.SIGKILL) as (url, process):
        httpx.post(f"{url}/api/v1/users", json={"email": "ada@example.com"})
        process.kill()
    with served(cwd=directory) as (url, _):
        assert len(httpx.get(f"{url}/api/v1/users").json()) == 1


def test_serving_another_database(database: str, directory: Path) -> None:
    with served(cwd=directory, DATABASE_URL=database, DIRECT_URL=database) as (url, _):
        assert httpx.get(f"{url}/api/v1/users").text == "[]"
    assert not (directory / ".data").exists()


def test_the_wheel_brings_its_sql_and_migrations(empty_database: str, directory: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", directory],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = directory.glob("*.whl")
    shutil.unpack_archive(wheel, directory / "installed", "zip")

    def run_installed(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-P", "-m", "api", *arguments],
            env=environment(PYTHONPATH=str(directory / "installed"), **on(empty_database)),
            cwd=directory,
            capture_output=True,
            text=True,
            timeout=60,
        )

    assert "0001.create-users" in run_installed("migrate").stdout
    assert f"{STATEMENTS} statements fit" in run_installed("check-sql").stdout
