"""`users-api import` and `users-api export`."""

import csv
import io
import json
import os
import re
import signal
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from api.neon.url import parse_url
from tests.support.catalogue import empty
from tests.support.commands import USERS_API, environment, on, on_a_terminal, on_a_terminal_of, run
from tests.support.database import MakeDatabase, execute, locked, wait_until_true, wait_until_waiting
from tests.support.rig import Cut, Injection, NeonDatabase, Point, Rig

NAMES = ["Ada", None, "", 'quote " and \\', "\\n \\.", "tab\tline\n", "Zoë 🦊", "a,b"]


@pytest.fixture(scope="module")
def shared(postgres: str, template: str) -> Iterator[str]:
    execute(postgres, f"create database bulk_cli template {template}")
    yield postgres.replace("/postgres?", "/bulk_cli?")
    execute(postgres, "drop database bulk_cli with (force)")


@pytest.fixture
def database(shared: str) -> str:
    empty(shared)
    return shared


def write(path: Path, rows: list[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def users(database: str) -> dict[object, object]:
    return dict(execute(database, "select email, name from users"))  # type: ignore[arg-type]


def people(number: int) -> list[dict[str, object]]:
    return [{"email": f"{n}@example.com", "name": f"Name {n}"} for n in range(number)]


def test_there_and_back(database: str, tmp_path: Path) -> None:
    sent = {f"{n}@example.com": name for n, name in enumerate(NAMES)}
    file = write(tmp_path / "users.json", [{"email": email, "name": name} for email, name in sent.items()])
    imported = run("import", file, **on(database))
    assert (imported.returncode, imported.stdout) == (0, "")
    assert imported.stderr.startswith("8 created, 0 updated, 0 skipped, 0 refused (8 users, ")
    assert users(database) == sent

    as_ndjson, as_csv = tmp_path / "users.ndjson", tmp_path / "users.CSV"
    for exported in (as_ndjson, as_csv):
        ended = run("export", str(exported), **on(database))
        assert (ended.returncode, ended.stdout) == (0, "")
        assert ended.stderr.startswith("8 users, ")
    bodies = execute(database, "select body from users order by id")
    assert as_ndjson.read_text() == "".join(f"{body}\n" for (body,) in bodies)
    rows = list(csv.DictReader(io.StringIO(as_csv.read_bytes().decode(), newline="")))
    assert {row["email"]: row["name"] for row in rows} == {email: name or "" for email, name in sent.items()}

    assert run("import", str(as_ndjson), "--on-conflict", "update", **on(database)).stderr.startswith(
        "0 created, 0 updated, 8"
    )
    empty(database)
    assert run("import", str(as_csv), **on(database)).returncode == 0
    assert users(database) == {email: name or None for email, name in sent.items()}


def test_a_file_for_spreadsheets(database: str, tmp_path: Path) -> None:
    sent = {"=1+1@example.com": "=1+1", "'a@example.com": "'=", "b@example.com": "b"}
    file = write(tmp_path / "users", [{"email": email, "name": name} for email, name in sent.items()])
    assert run("import", file, **on(database)).returncode == 0
    exported = str(tmp_path / "users.csv")
    assert run("export", exported, "--format", "csv-safe", **on(database)).returncode == 0
    cells = dict(line.split(",")[1:3] for line in Path(exported).read_text().splitlines()[1:])
    assert cells == {"'=1+1@example.com": "'=1+1", "''a@example.com": "''=", "b@example.com": "b"}
    execute(database, "delete from users")
    assert run("import", exported, "--format", "csv-safe", **on(database)).returncode == 0
    assert users(database) == sent


LEAVE_OUT = """
    create or replace function leave_out() returns trigger language plpgsql as $$
        begin if new.email like 'no%' then return null; end if; new.email := lower(new.email); return new; end $$;
    create trigger leave_out before insert on users for each row execute function leave_out()
"""


@pytest.mark.parametrize("on_conflict", ["error", "update"])
def test_a_row_that_a_trigger_leaves_out_is_refused(database: str, tmp_path: Path, on_conflict: str) -> None:
    """COPY only counts the rows that it has written."""
    rows: list[dict[str, object]] = [*people(50), {"email": "no@example.com"}, {"email": "Ada@example.com"}]
    execute(database, LEAVE_OUT)
    try:
        imported = run("import", write(tmp_path / "u", rows), "--on-conflict", on_conflict, **on(database))
    finally:
        execute(database, "drop trigger leave_out on users")
    (refused,) = map(json.loads, imported.stdout.splitlines())
    assert (refused["line"], refused["problem"]["type"]) == (51, "urn:problem:users-api:refused-by-database")
    assert imported.stderr.startswith("51 created, 0 updated, 0 skipped, 1 refused")
    assert users(database).keys() == {"ada@example.com", *(row["email"] for row in people(50))}


def test_pipes(database: str) -> None:
    rows = "email,name\nada@example.com,Ada\n"
    assert run("import", "-", "--format", "csv", stdin=rows, **on(database)).returncode == 0
    exported = run("export", **on(database))
    assert json.loads(exported.stdout)["email"] == "ada@example.com"
    assert (
        run("export", "-", "--format", "csv", **on(database))
        .stdout.splitlines()[1]
        .startswith("1,ada@example.com,Ada,")
    )


def test_refused_lines_go_to_standard_output(database: str, tmp_path: Path) -> None:
    file = tmp_path / "users.ndjson"
    lines = [b'{"email":"ada@example.com"}', b"nobody", b'{"email":"ADA@example.com"}', b"\xff", b"x" * 10_000_000, b""]
    file.write_bytes(b"\n".join(lines) + b'{"email":"b@example.com"}')
    ended = run("import", str(file), **on(database))
    assert ended.returncode == 1
    refused = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [(line["line"], line["problem"]["status"]) for line in refused] == [(2, 422), (3, 409), (4, 422), (5, 413)]
    assert ended.stderr.startswith("2 created, 0 updated, 0 skipped, 4 refused")
    assert users(database).keys() == {"ada@example.com", "b@example.com"}


def test_on_conflict(database: str, tmp_path: Path) -> None:
    execute(database, "insert into users (email, name) values ('Ada@example.com', 'old'), ('b@example.com', 'old')")
    rows: list[dict[str, object]] = [
        {"email": "ada@example.com", "name": "new"},
        {"email": "b@example.com"},
        {"email": "c@example.com"},
        {"email": "c@example.com", "name": "again"},
    ]
    file = write(tmp_path / "users.ndjson", rows)
    assert run("import", file, "--on-conflict", "skip", **on(database)).stderr.startswith(
        "1 created, 0 updated, 3 skipped"
    )
    execute(database, "delete from users where email = 'c@example.com'")
    updated = run("import", file, "--on-conflict", "update", **on(database))
    assert updated.stderr.startswith("1 created, 2 updated, 1 skipped, 0 refused")
    assert users(database) == {"ada@example.com": "new", "b@example.com": "old", "c@example.com": "again"}


@pytest.mark.parametrize("on_conflict", ["error", "update"])
def test_addresses_that_postgresql_alone_takes_for_one_are_written_in_their_order(
    database: str, tmp_path: Path, on_conflict: str
) -> None:
    firsts, seconds = ([f"{start}x{n}@example.com" for n in range(50)] for start in ("\u0130", "i"))
    rows: list[dict[str, object]] = [{"email": email} for pair in zip(firsts, seconds, strict=True) for email in pair]
    ended = run("import", write(tmp_path / "users.ndjson", rows), "--on-conflict", on_conflict, **on(database))
    outcome = "50 updated, 0 skipped, 0 refused" if on_conflict == "update" else "0 updated, 0 skipped, 50 refused"
    assert ended.stderr.startswith(f"50 created, {outcome}")
    assert users(database).keys() == set(seconds if on_conflict == "update" else firsts)


def test_more_than_a_chunk_with_a_duplicate_far_away(database: str, tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        *people(24_000),
        {"email": "0@example.com", "name": "second"},
        {"email": "x@example.com"},
    ]
    ended = run("import", write(tmp_path / "users.ndjson", rows), **on(database))
    assert json.loads(ended.stdout)["line"] == 24_001
    assert ended.stderr.startswith("24,001 created, 0 updated, 0 skipped, 1 refused")
    assert execute(database, "select name from users where email = '0@example.com'") == [("Name 0",)]


def test_a_row_that_somebody_holds_is_refused(database: str, tmp_path: Path) -> None:
    file = write(tmp_path / "users.ndjson", people(5))
    with locked(database, "insert into users (email) values ('3@example.com')") as elsewhere:
        ended = run("import", file, STATEMENT_TIMEOUT_SECONDS="1", **on(database))
        elsewhere.rollback()
    assert [(line["line"], line["problem"]["status"]) for line in map(json.loads, ended.stdout.splitlines())] == [
        (4, 503)
    ]
    assert len(users(database)) == 4


def test_an_export_that_fails_leaves_the_old_file(database: str, tmp_path: Path) -> None:
    file = tmp_path / "users.ndjson"
    file.write_text("old")
    execute(database, "alter table users rename to hidden")
    try:
        ended = run("export", str(file), **on(database))
    finally:
        execute(database, "alter table hidden rename to users")
    assert ended.returncode == 1
    assert ended.stderr.startswith(
        'users-api: the database failed: UndefinedTableError: relation "public.users" does not exist'
    )
    assert (file.read_text(), list(tmp_path.iterdir())) == ("old", [file])


@pytest.mark.parametrize("mode", [None, 0o600, 0o640, 0o444])
def test_an_export_is_its_owners_alone_unless_the_file_was_not(database: str, tmp_path: Path, mode: int | None) -> None:
    """Also while it is written: a reader of the database holds it up here."""
    file = tmp_path / "users.ndjson"
    if mode is not None:
        file.touch()
        file.chmod(mode)
    with locked(database):
        process = subprocess.Popen([USERS_API, "export", file], env=environment(**on(database)), stderr=subprocess.PIPE)
        wait_until_waiting(database, 1)
        (partial,) = tmp_path.glob(".*.partial")
        found = stat.S_IMODE(partial.stat().st_mode)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 0, error
    assert (found, stat.S_IMODE(file.stat().st_mode)) == (mode or 0o600, mode or 0o600)


def test_an_import_of_nothing(database: str, tmp_path: Path) -> None:
    (tmp_path / "users.ndjson").touch()
    for file in (str(tmp_path / "users.ndjson"), os.devnull):
        ended = run("import", file, **on(database))
        assert (ended.returncode, ended.stdout) == (0, "")
        assert ended.stderr.startswith("0 created, ")
    nothing = subprocess.run(
        [USERS_API, "import", "-"], env=environment(**on(database)), stdin=subprocess.DEVNULL, timeout=60
    )
    assert nothing.returncode == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is full is Linux's")
def test_an_import_whose_refusals_find_no_room_says_so(database: str, tmp_path: Path) -> None:
    file = tmp_path / "users.ndjson"
    file.write_text("nobody\n")
    with Path("/dev/full").open("wb") as full:
        ended = subprocess.run(
            [USERS_API, "import", file], env=environment(**on(database)), stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert ended.returncode != 0  # Python's own code where its last attempt to write fails as well
    assert "Traceback" not in ended.stderr
    assert "Error: cannot write the refused lines: No space left on device\n" in ended.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is full is Linux's")
def test_an_export_to_a_full_disk_says_so(database: str) -> None:
    execute(database, "insert into users (email) select n || '@example.com' from generate_series(1, 2000) n")
    ended = run("export", "/dev/full", **on(database))
    assert (ended.returncode, Path("/dev/full").is_char_device()) == (1, True)
    assert ended.stderr.splitlines()[-1] == "Error: cannot write /dev/full: No space left on device"


def test_a_reader_that_has_had_enough(database: str) -> None:
    execute(database, "insert into users (email) select n || '@example.com' from generate_series(1, 20000) n")
    with subprocess.Popen(
        [USERS_API, "export"], env=environment(**on(database)), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(timeout=30) == 1
        assert process.stderr is not None
        assert process.stderr.read() == b""


@pytest.mark.parametrize("command", [["import", "-"], ["export"]])
def test_what_is_missing_is_said_in_one_line(command: list[str], empty_database: str) -> None:
    ended = run(*command, ACQUIRE_TIMEOUT_SECONDS="1", **on("postgresql://ada:sesame@127.0.0.1:1/x"))
    assert ended.returncode == 1
    assert "users-api: the database failed: ConnectionRefusedError" in ended.stderr
    assert "sesame" not in ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr
    ended = run(*command, stdin='{"email":"ada@example.com"}', **on(empty_database))
    assert (ended.returncode, 'relation "public.users" does not exist' in ended.stderr) == (1, True)


def test_an_import_through_a_pooler_by_any_name_is_refused(rig: Rig, neon: NeonDatabase) -> None:
    """It sets its sessions, which a transaction pooler lends to others."""
    url = rig.socket_url(parse_url(neon.pooled).database)
    ended = run("import", "-", stdin='{"email":"ada@example.com"}', DIRECT_URL=url)
    assert (ended.returncode, "DIRECT_URL leads through a transaction pooler" in ended.stderr) == (2, True)
    assert execute(url, "select from pg_settings where name = 'lock_timeout' and source = 'session'") == []
    assert execute(neon.superuser, "select count(*) from users") == [(0,)]


def test_what_cannot_be_done_is_said_before(database: str, tmp_path: Path) -> None:
    ended = run("export", **on("postgresql://ada:sesame@ep-x-pooler.example.com/x"))
    assert (ended.returncode, "set it to the same URL without -pooler" in ended.stderr) == (2, True)
    assert run("import", str(tmp_path / "none.csv"), **on(database)).returncode == 2
    ended = run("export", str(tmp_path / "none" / "users.csv"), **on(database))
    assert (ended.returncode, ended.stderr.endswith("users.csv: No such file or directory\n")) == (1, True)
    ended = run("import", "-", "--format", "csv", stdin="ada@example.com\n", **on(database))
    assert (ended.returncode, "the first line must name the columns" in ended.stderr) == (1, True)


def test_an_interrupted_import_leaves_whole_chunks_and_says_where(database: str) -> None:
    process = subprocess.Popen(
        [USERS_API, "import", "-"], env=environment(**on(database)), stdin=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdin is not None
    process.stdin.write(b"".join(b'{"email":"%d@example.com"}\n' % n for n in range(15_000)))
    process.stdin.flush()
    # The second chunk is not whole, and is written since nothing more comes.
    wait_until_true(database, "select count(*) = 15000 from users")
    process.stdin.write(b'{"email":"more@example.com"}\n')
    process.stdin.flush()
    process.send_signal(signal.SIGINT)
    # Its input stays open meanwhile: at the end of that, the import would be whole.
    assert process.wait(timeout=30) == 1
    _, error = process.communicate()
    (line,) = re.findall(rb"users-api: the import stopped after line ([0-9,]+) of <stdin>", error)
    # PostgreSQL shows a commit before the import has its answer, which a busy machine may keep on the way.
    assert line in (b"15,000", b"10,000")
    assert b"the next chunk may have been written too: run it again with --on-conflict skip" in error
    assert b"Traceback" not in error


def test_an_import_that_is_interrupted_in_a_commit_says_that_it_may_have_happened(make_database: MakeDatabase) -> None:
    url = make_database()
    execute(
        url,
        "create function sleep() returns trigger language plpgsql as 'begin perform pg_sleep(60); return null; end';"
        "create constraint trigger slow after insert on users deferrable initially deferred"
        " for each row execute function sleep()",
    )
    process = subprocess.Popen(
        [USERS_API, "import", "-"], env=environment(**on(url)), stdin=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdin is not None
    process.stdin.write(b'{"email":"ada@example.com"}\n')
    process.stdin.flush()
    committing = "datname = current_database() and query = 'commit' and state = 'active'"
    wait_until_true(url, f"select count(*) = 1 from pg_stat_activity where {committing}")
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 1
    assert b"stopped after line 0 of <stdin>; the next chunk may have been written too" in process.communicate()[1]


def test_an_import_whose_database_fails_says_where(rig: Rig, neon: NeonDatabase, tmp_path: Path) -> None:
    file = write(tmp_path / "users.ndjson", people(10))
    rig.inject(Injection(Point.ANSWER, Cut.RESET, via="direct"))
    environment = neon.environment()
    ended = run("import", file, **environment)
    assert ended.returncode == 1
    assert "the import stopped after line 0" in ended.stderr
    assert "users-api: the database failed: " in ended.stderr
    assert run("import", file, "--on-conflict", "skip", **environment).returncode == 0
    assert execute(neon.superuser, "select count(*) from users") == [(10,)]


def drawn(terminal: str) -> list[str]:
    """The lines that a terminal was sent, each state of a bar by itself, without what moves or hides the cursor."""
    return re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9?]*[A-Za-z]", "", terminal))


@pytest.mark.parametrize("columns", [30, 44, 60, 79, 80, 132])
def test_a_bar_is_one_line_of_the_terminal(database: str, tmp_path: Path, columns: int) -> None:
    """Also where standard output is a file, and the name of the input is long."""
    file = write(tmp_path / f"{'long-name-' * 12}.ndjson", people(30_000))
    variables = {"TERM": "xterm", **on(database)}
    imported = on_a_terminal_of(columns, tmp_path / "refused", [USERS_API, "import", file], variables)
    execute(database, "analyze users")
    exported = on_a_terminal_of(columns, tmp_path / "out", [USERS_API, "export"], variables)
    for shown in (imported, exported):
        assert shown.returncode == 0
        *states, summary = [line for line in drawn(shown.stdout) if line.strip()]
        assert "30,000 users, " in summary
        assert [line for line in states if len(line) >= columns] == []
        assert bool(states) == (columns >= 44)
        assert all(line.startswith("[") for line in states if line.strip())
        # Each state but the last is drawn over by the next: only a line that is left begins another one.
        assert shown.stdout.count("\n") == 1 + bool(states)


@pytest.mark.parametrize("format", ["csv", "csv-safe", "ndjson"])
def test_a_bar_counts_users_and_no_other_lines(database: str, tmp_path: Path, format: str) -> None:
    """Not the header of CSV, nor the lines and quotes in a name."""
    names = "case when n % 3 = 0 then E'two\\n\"lines\"\\n' end"
    execute(
        database, f"insert into users (email, name) select n || '@example.com', {names} from generate_series(1, 3000) n"
    )
    command: list[str | Path] = [USERS_API, "export", "--format", format]
    exported = on_a_terminal_of(80, tmp_path / "out", command, {"TERM": "xterm", **on(database)})
    *states, _ = [line for line in drawn(exported.stdout) if line.strip()]
    assert "3,000 users, " in states[-1]
    shown = [int(number.replace(",", "")) for line in states for number in re.findall(r"([\d,]+) users,", line)]
    assert max(shown) == 3000


def test_a_terminal_sees_a_bar(database: str, tmp_path: Path) -> None:
    file = write(tmp_path / "users.ndjson", people(2000))
    imported = on_a_terminal(USERS_API, "import", file, TERM="xterm", **on(database))
    execute(database, "analyze users")  # whose estimate is what an export goes by
    exported = on_a_terminal(USERS_API, "export", tmp_path / "out.ndjson", TERM="xterm", **on(database))
    for shown in (imported, exported):
        assert shown.returncode == 0
        assert "[########################]" in shown.stdout
        assert "2,000 users, " in shown.stdout
        assert " users/s" in shown.stdout
