"""The command line."""

import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from api.cli import main
from tests.support import ROOT
from tests.support.commands import USERS_API, environment, on, run, run_program, served
from tests.support.database import execute
from tests.support.waiting import wait_until

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


def test_the_embedded_database_starts_below_any_path(directory: Path) -> None:
    """With what a shell or a URL reads in its own way."""
    below = directory / "a b" / "it's; (#1 & 100%)+" / "\u00fcml\u00e4ut?*"
    below.mkdir(parents=True)
    for path in (*below.parents[:2], below):
        path.chmod(0o755)
    with served(cwd=below) as (url, _):
        assert httpx.get(f"{url}/api/v1/users").text == "[]"
    assert (below / ".data/postgres/PG_VERSION").exists()


IN_DIRECTORY = ["sh", "-c", 'cd "$0" && exec "$@"']


@pytest.mark.parametrize("command", [["serve", "--port", "0"], ["migrate"], ["check-sql"], ["doctor"], ["export"]])
@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("a file", "needs the directory .data, but there is a file of that name: move it"),
        ("a file inside", "/.data/postgres, but there is a file of that name: move it"),
        ("unwritable", "does not start on .data/postgres ("),
        ('a $HOME "path"', "its path has '$', which pg_ctl leaves to a shell"),
    ],
)
def test_an_embedded_database_that_cannot_start_is_one_line(
    command: list[str], where: str, said: str, directory: Path
) -> None:
    below = Path("/proc") if where == "unwritable" else directory / where  # where not even root may write
    if where != "unwritable":
        below.mkdir()
    if where == "a file":
        (below / ".data").touch()
    elif where == "a file inside":
        (below / ".data").mkdir()
        (below / ".data/postgres").touch()
    ended = run_program([*IN_DIRECTORY, below, USERS_API], *command)
    assert (ended.returncode, ended.stdout) == (2, "")
    (line,) = ended.stderr.splitlines()
    assert line.startswith("users-api: the embedded PostgreSQL ")
    assert said in line
    assert "set DATABASE_URL and DIRECT_URL" in line


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that another program listens on."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield other.getsockname()[1]


@pytest.mark.parametrize("options", [[], ["--workers", "2"], ["--reload"]])
def test_a_port_that_is_taken_is_the_only_thing_that_is_said(options: list[str], taken: int, directory: Path) -> None:
    """Before a database is started."""
    ended = run_program([*IN_DIRECTORY, directory, USERS_API], "serve", "--port", str(taken), *options)
    assert (ended.returncode, ended.stdout) == (2, "")
    url = f"http://127.0.0.1:{taken}"
    assert ended.stderr == (
        f"users-api: --port: cannot listen on {url}: Address already in use: "
        "stop the program that listens there, or choose another port\n"
    )
    assert not (directory / ".data").exists()


@pytest.mark.parametrize(
    ("host", "said"),
    [
        ("192.0.2.1", "http://192.0.2.1:8000: Cannot assign requested address: name an address of this machine"),
        ("2001:db8::1", "http://[2001:db8::1]:8000: Cannot assign requested address: name an address of this machine"),
        ("no-such-host.invalid", "http://no-such-host.invalid:8000: "),
        ("a..b", "http://a..b:8000: no host has this name: name an address of this machine"),
        ("x" * 70, "no host has this name: name an address of this machine"),
    ],
)
def test_a_host_that_is_not_here_is_one_line(host: str, said: str) -> None:
    ended = run("serve", "--host", host, "--port", "8000", AUTH="off")
    assert (ended.returncode, ended.stdout) == (2, "")
    (line,) = ended.stderr.splitlines()
    assert line.startswith("users-api: --port: cannot listen on http://")
    assert said in line


@pytest.mark.parametrize(
    ("host", "shown", "asked", "workers"),
    [
        ("::1", "[::1]", ["[::1]"], "1"),
        ("localhost", "localhost", ["127.0.0.1"], "1"),
        ("::", "[::]", ["[::1]", "127.0.0.1"], "1"),
        ("", "localhost", ["[::1]", "127.0.0.1"], "2"),
    ],
)
def test_a_server_says_where_it_serves(
    host: str, shown: str, asked: list[str], workers: str, database: str, directory: Path
) -> None:
    """With a port that the system chose, once it has it."""
    command: list[str | Path] = [USERS_API, "serve", "--host", host, "--port", "0", "--workers", workers]
    with subprocess.Popen(
        command,
        env=environment(AUTH="off", **on(database)),
        cwd=directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        try:
            assert process.stdout is not None
            first, second = process.stdout.readline().decode(), process.stdout.readline().decode()
            match = re.fullmatch(rf"users-api serves on http://{re.escape(shown)}:(\d+); try:\n", first)
            assert match, first
            port = int(match[1])
            assert second.split()[-1].strip("'") == f"http://{shown}:{port}/api/v1/users"
            for each in asked:
                wait_until(partial(answers, f"http://{each}:{port}/health"))
        finally:
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=40)
    assert process.returncode == 0, errors


def answers(url: str) -> bool:
    with suppress(httpx.TransportError):
        return httpx.get(url).status_code == 200
    return False


@pytest.mark.parametrize("value", ["tcp://10.0.0.1:80", "udp://10.0.0.1:80"])
def test_the_port_that_kubernetes_sets_is_explained(value: str) -> None:
    ended = run("serve", PORT=value)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "PORT: it is an address that Kubernetes sets for a Service: set enableServiceLinks: false" in ended.stderr


def test_a_name_that_is_near_a_setting_is_in_one_warning(directory: Path, database: str) -> None:
    (directory / ".env").write_text("API_KEY=sesame\n")
    with served("--workers", "2", cwd=directory, DATABASE_URL=database, POOL_MAXSIZE="3") as (url, process):
        assert httpx.get(f"{url}/api/v1/users").text == "[]"
        process.terminate()
        _, errors = process.communicate(timeout=40)
    assert errors.count("without effect") == errors.count("anybody who reaches") == 1
    assert "API_KEY (did you mean API_KEYS?), POOL_MAXSIZE (did you mean POOL_MAX_SIZE?)" in errors
    assert "neither API_KEYS nor JWT_ISSUER is set: anybody who reaches http://127.0.0.1:" in errors
    ended = run_program([*IN_DIRECTORY, directory, USERS_API], "check-sql", DATABASE_URL=database)
    assert ended.stderr.count("without effect") == 1


@pytest.mark.parametrize(
    ("shell", "typed", "offered"),
    [
        ("bash", "users-api se", ["plain,serve"]),
        ("bash", "users-api migrate st", ["plain,status"]),
        ("bash", "users-api serve --po", ["plain,--port"]),
        ("bash", "users-api import --on-conflict s", ["plain,skip"]),
        ("zsh", "users-api ex", ["plain", "export"]),
        ("fish", "users-api doc", ["plain,doctor"]),
    ],
)
def test_a_shell_completes_commands(shell: str, typed: str, offered: list[str]) -> None:
    """As docs/operations.md says."""
    words = typed.split()
    variables = {"COMP_WORDS": typed, "COMP_CWORD": words[-1] if shell == "fish" else str(len(words) - 1)}
    asked = CliRunner().invoke(
        main, prog_name="users-api", env={"_USERS_API_COMPLETE": f"{shell}_complete", **variables}
    )
    assert [line.partition("\t")[0] for line in asked.output.splitlines()][: len(offered)] == offered


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
