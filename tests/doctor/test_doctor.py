"""`users-api doctor`: every red finding over the rig; it ends in time, hides secrets and leaves nothing behind."""

import asyncio
import json
import math
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import asyncpg
import pytest

import api.users.queries  # noqa: F401 - declares the statements that doctor checks
from api.database.statements import declared_statements
from api.doctor import examine
from api.doctor.connection import ConnectionChecks
from api.doctor.findings import Status, Step
from api.doctor.network import HostChecks
from api.neon.url import parse_url
from api.settings import Settings
from tests.support.commands import USERS_API, as_a_process, on, on_a_terminal, run
from tests.support.database import MIGRATIONS, SESSION_STATE, NewDatabase, execute
from tests.support.rig import (
    NEON_PERMANENT,
    NEON_TRANSIENT,
    PASSWORD,
    POOLER_FULL,
    SERVER_FULL,
    Cut,
    Farewell,
    Injection,
    NeonDatabase,
    Point,
    Rig,
)
from tests.support.roles import SERVER, as_role
from tests.support.serving import settings_for
from tests.support.waiting import wait_until

NETWORK = ["name resolution", "TCP", "TLS"]
SESSION = ["TimeZone", "transactions", "statement_timeout"]
POOLED = ["pooling", "prepared statements", *SESSION, "statements", "constraints", "connections", "round trip"]
DIRECT = ["same database", "pooling", *SESSION, "migrations", "round trip"]


class Report:
    """The steps of a run, by variable and name."""

    def __init__(self, steps: list[Step]) -> None:
        self.steps = steps

    def __getitem__(self, key: tuple[str, str]) -> Step:
        (step,) = [step for step in self.steps if (step.url, step.step) == key]
        return step

    def names(self, url: str, *statuses: Status) -> list[str]:
        return [step.step for step in self.steps if step.url == url and step.status in statuses]

    @property
    def reds(self) -> list[tuple[str, str]]:
        return [(step.url, step.step) for step in self.steps if step.status == "red"]


def doctor(settings: Settings, *, replicas: int = 1, workers: int = 1, time_limit: float = 20) -> Report:
    told: list[tuple[str, str, Step | None]] = []
    with as_a_process():
        steps = asyncio.run(
            examine(
                settings,
                replicas=replicas,
                workers=workers,
                time_limit=time_limit,
                report=lambda *event: told.append(event),
            )
        )
    assert told == [event for step in steps for event in ((step.url, step.step, None), (step.url, step.step, step))]
    for step in steps:
        # Each yellow and red says in one line what to do; a skipped step took no time; nothing tells the password.
        assert bool(step.remedy) == (step.status in ("yellow", "red")), step
        assert (step.milliseconds is None) == (step.status == "skipped"), step
        assert "\n" not in step.detail + (step.remedy or "")
        assert PASSWORD not in repr(step)
        assert "sesame" not in repr(step)
    return Report(steps)


def assert_stopped_at(report: Report, url: str, name: str) -> None:
    """`name` is the only red step of a URL, and what needs it is skipped, not green."""
    assert report.names(url, "red") == [name]
    everything = ["URL", *NETWORK, "authentication", "server", *(POOLED if url == "DATABASE_URL" else DIRECT)]
    assert report.names(url, "green", "yellow", "red", "skipped") == everything
    assert report.names(url, "skipped") == everything[everything.index(name) + 1 :]


def test_all_is_well(rig: Rig, neon: NeonDatabase) -> None:
    report = doctor(neon.settings(), replicas=2, workers=3)
    assert report.reds == []
    for url, steps in (("DATABASE_URL", POOLED), ("DIRECT_URL", DIRECT)):
        names = ["URL", *NETWORK, "authentication", "server", *steps]
        assert report.names(url, "green", "yellow") == names
        # How long a round trip takes is this machine's affair.
        assert report.names(url, "yellow") in ([], ["round trip"])
        assert report[url, "TLS"].detail.startswith("TLSv1.3, TLS_")
        assert "issued by trustme" in report[url, "TLS"].detail
        assert report[url, "server"].detail.startswith("PostgreSQL 18")
        assert report[url, "round trip"].detail.startswith("p50 of 21: ")
    assert report["DATABASE_URL", "TLS"].detail.endswith(", verified")
    assert "ep-rig-000001-pooler.localhost: 127.0.0.1" in report["DATABASE_URL", "name resolution"].detail
    assert report["DATABASE_URL", "pooling"].detail == "pooled: two connections share 1 backend"
    assert report["DIRECT_URL", "pooling"].detail == "direct: each connection keeps its own backend"
    assert "2 replicas x 3 workers x POOL_MAX_SIZE 10 = 60" in report["DATABASE_URL", "connections"].detail
    assert report["DIRECT_URL", "migrations"].detail == f"{len(MIGRATIONS)} applied, none pending"
    assert report["DATABASE_URL", "statements"].detail == f"{len(declared_statements())} fit the database"
    assert rig.counts.cancels == 0


@pytest.mark.parametrize(
    ("certificate", "detail", "remedy"),
    [
        ("expired", "certificate has expired", "renew the server's certificate"),
        ("wrong name", "the certificate is for ep-somebody-else-pooler.localhost", "write a host in the URL"),
        ("unknown authority", "unable to get local issuer certificate", "sslrootcert=FILE"),
        ("none", "the server has no TLS", "ssl = on"),
    ],
)
def test_servers_that_cannot_be_trusted(
    rig: Rig, neon: NeonDatabase, certificate: str, detail: str, remedy: str
) -> None:
    rig.present(certificate)  # type: ignore[arg-type]
    report = doctor(neon.settings())
    for url in ("DATABASE_URL", "DIRECT_URL"):
        assert_stopped_at(report, url, "TLS")
        assert detail in report[url, "TLS"].detail
        assert remedy in str(report[url, "TLS"].remedy)
    assert rig.counts.statements == 0


def test_tls_that_is_not_verified_is_yellow(neon: NeonDatabase) -> None:
    url = neon.pooled.replace("sslmode=require", "sslmode=no-verify&connection_limit=3")
    report = doctor(Settings(database_url=url, direct_url=neon.direct))
    assert report.reds == []
    tls = report["DATABASE_URL", "TLS"]
    assert (tls.status, "not verified" in tls.detail, "verify-full" in str(tls.remedy)) == ("yellow", True, True)
    assert "connection_limit: dropped, POOL_MAX_SIZE" in report["DATABASE_URL", "URL"].detail


@pytest.mark.parametrize(("address", "status"), [("10.0.0.5", "yellow"), ("127.0.0.1", "green"), ("::1", "green")])
def test_clear_text_is_yellow_where_it_leaves_the_machine(address: str, status: Status) -> None:
    route = HostChecks(parse_url("postgresql://ada:sesame@db/x?sslmode=disable"), "db", 5432)
    route._addresses = [address]
    assert asyncio.run(route._handshake()).status == status


def test_direct_tls(neon: NeonDatabase) -> None:
    settings = Settings(
        database_url=f"{neon.pooled}&sslnegotiation=direct",
        direct_url=f"{neon.direct}&sslnegotiation=direct",
    )
    assert doctor(settings).reds == []


PLACES = ["role {role}", "database {database}", "role {role} in database {database}"]


@pytest.mark.parametrize(
    ("setting", "value", "place", "status", "detail"),
    [
        ("default_transaction_isolation", "'repeatable read'", PLACES[0], "yellow", "repeatable read: concurrent wri"),
        ("default_transaction_isolation", "serializable", PLACES[1], "yellow", "serializable: concurrent writes "),
        ("default_transaction_read_only", "on", PLACES[2], "red", "read-only: every write fails"),
        ("default_transaction_deferrable", "on", PLACES[0], "yellow", "deferrable: "),
    ],
)
def test_transactions_that_begin_otherwise(
    neon: NeonDatabase, setting: str, value: str, place: str, status: Status, detail: str
) -> None:
    url = parse_url(neon.direct)
    place = place.format(role=url.user, database=url.database)
    execute(neon.superuser, f"alter {place} set {setting} = {value}")
    try:
        report = doctor(neon.settings())
    finally:
        execute(neon.superuser, f"alter {place} reset {setting}")
    for variable in ("DATABASE_URL", "DIRECT_URL"):
        step = report[variable, "transactions"]
        assert (step.status, step.detail[: len(detail)]) == (status, detail)
        command, _, more = str(step.remedy).partition("; ")
        assert command.lower() == f"alter {place} reset {setting}"
        assert more.startswith("open sessions keep it")


def test_transactions_that_another_client_of_the_pooler_has_set(neon: NeonDatabase) -> None:
    execute(neon.pooled, "set default_transaction_read_only = on")
    report = doctor(neon.settings())
    assert report.reds == [("DATABASE_URL", "transactions")]
    assert "another client set default_transaction_read_only" in str(report["DATABASE_URL", "transactions"].remedy)


def test_the_wrong_password_and_an_unknown_role(neon: NeonDatabase) -> None:
    for there, here in ((":npg_", ":sesame_"), ("neondb_owner:", "nobody:")):
        report = doctor(
            Settings(
                database_url=neon.pooled.replace(there, here),
                direct_url=neon.direct.replace(there, here),
            )
        )
        for url in ("DATABASE_URL", "DIRECT_URL"):
            assert_stopped_at(report, url, "authentication")
            assert "authentication failed" in report[url, "authentication"].detail or here == "nobody:"
    # This one asks for the right thing; PostgreSQL says of a role that does not exist what its pg_hba.conf makes of it.
    assert "password" in str(report["DATABASE_URL", "authentication"].remedy)


def test_an_unknown_database(neon: NeonDatabase) -> None:
    name = parse_url(neon.direct).database
    report = doctor(
        Settings(
            database_url=neon.pooled.replace(f"/{name}?", "/no_such_database?"),
            direct_url=neon.direct.replace(f"/{name}?", "/no_such_database?"),
        )
    )
    for url in ("DATABASE_URL", "DIRECT_URL"):
        assert_stopped_at(report, url, "authentication")
        assert 'database "no_such_database" does not exist' in report[url, "authentication"].detail
        assert "database" in str(report[url, "authentication"].remedy)


def test_swapped_urls(neon: NeonDatabase) -> None:
    report = doctor(Settings(database_url=neon.direct, direct_url=neon.pooled))
    assert report.reds == [("DIRECT_URL", "pooling")]
    assert report["DATABASE_URL", "pooling"].status == "yellow"
    assert report["DATABASE_URL", "pooling"].detail.startswith("direct: ")
    assert report["DIRECT_URL", "pooling"].remedy == "swap the values of DATABASE_URL and DIRECT_URL"


def test_two_pooled_urls(neon: NeonDatabase) -> None:
    report = doctor(settings_for(neon.pooled))
    assert report.reds == [("DIRECT_URL", "pooling")]
    assert "without the pooler" in str(report["DIRECT_URL", "pooling"].remedy)


def test_two_databases(neon: NeonDatabase, make_database: object, empty_database: str) -> None:
    settings = Settings(database_url=neon.pooled, direct_url=empty_database)
    assert doctor(settings).reds == [("DIRECT_URL", "same database"), ("DIRECT_URL", "migrations")]


def test_what_is_pooled_is_found_out_under_load(neon: NeonDatabase) -> None:
    async def find(url: str) -> bool | None:
        session = ConnectionChecks(parse_url(url))
        async with asyncpg.create_pool(**parse_url(url).asyncpg_arguments(), min_size=6, max_size=6) as pool:
            done = asyncio.Event()

            async def ask() -> None:
                while not done.is_set():
                    await pool.fetchval("select pg_backend_pid()")

            asking = [asyncio.create_task(ask()) for _ in range(6)]
            try:
                await session.authenticate(asyncio.get_running_loop().time() + 20)
                await session.find_pooling()
            finally:
                done.set()
                await asyncio.gather(*asking)
                await session.close()
        return session.pooled

    assert asyncio.run(find(neon.pooled)) is True
    assert asyncio.run(find(neon.direct)) is False


@pytest.fixture
def old_pooler(rig: Rig) -> Iterator[None]:
    """PgBouncer as it was before 1.21: it hands on statements' names as they are."""
    rig.pgbouncer.run("set max_prepared_statements = 0")
    yield
    rig.pgbouncer.run("set max_prepared_statements = 1000")


@pytest.mark.usefixtures("old_pooler")
def test_a_pooler_that_cannot_prepare_statements(rig: Rig, neon: NeonDatabase) -> None:
    report = doctor(neon.settings())
    assert report.reds == [("DATABASE_URL", "prepared statements")]
    assert "STATEMENT_CACHE_SIZE=0" in str(report["DATABASE_URL", "prepared statements"].remedy)
    report = doctor(neon.settings(statement_cache_size=0))
    assert report.reds == []
    assert "as this pooler needs" in report["DATABASE_URL", "prepared statements"].detail


def test_statements_that_need_not_be_unprepared(neon: NeonDatabase) -> None:
    step = doctor(neon.settings(statement_cache_size=0))["DATABASE_URL", "prepared statements"]
    assert (step.status, "leave out STATEMENT_CACHE_SIZE" in str(step.remedy)) == ("yellow", True)


def test_a_session_that_is_set_otherwise(neon: NeonDatabase) -> None:
    name = parse_url(neon.direct).database
    execute(
        neon.superuser,
        f"alter database {name} set statement_timeout = '2.5s'; alter database {name} set timezone = 'Asia/Kathmandu'",
    )
    report = doctor(neon.settings())
    assert report.reds == []
    for url in ("DATABASE_URL", "DIRECT_URL"):
        assert report[url, "statement_timeout"].status == "yellow"
        assert report[url, "statement_timeout"].detail.startswith("2.5 s")
        assert report[url, "TimeZone"].detail.startswith("Asia/Kathmandu")
    assert "STATEMENT_TIMEOUT_SECONDS" in str(report["DATABASE_URL", "statement_timeout"].remedy)
    assert "role of its own" in str(report["DIRECT_URL", "statement_timeout"].remedy)
    report = doctor(neon.settings(statement_timeout_seconds=2))
    assert report["DATABASE_URL", "statement_timeout"].status == "green"


@pytest.mark.parametrize(
    ("route", "replicas", "workers", "pool", "status"),
    [
        ("pooled", 2, 2, 10, "green"),
        ("pooled", 2, 2, 11, "yellow"),
        ("pooled", 11, 1, 1000, "red"),
        ("direct", 2, 2, 8, "green"),
        ("direct", 2, 2, 10, "yellow"),
        ("direct", 2, 2, 11, "red"),
    ],
)
def test_the_budget_of_connections(
    neon: NeonDatabase, route: str, replicas: int, workers: int, pool: int, status: Status
) -> None:
    execute(neon.superuser, f"alter database {parse_url(neon.direct).database} connection limit 40")
    settings = neon.settings() if route == "pooled" else settings_for(neon.direct)
    settings = settings.model_copy(update={"pool_max_size": pool})
    step = doctor(settings, replicas=replicas, workers=workers)["DATABASE_URL", "connections"]
    assert step.status == status
    assert f"POOL_MAX_SIZE {pool} = {replicas * workers * pool}; PostgreSQL has 40" in step.detail


def test_migrations(neon: NeonDatabase) -> None:
    owner = parse_url(neon.direct).user
    execute(neon.superuser, "insert into _yoyo_migration select 'x', '0009.later', now()")
    step = doctor(neon.settings())["DIRECT_URL", "migrations"]
    assert (step.status, step.detail) == ("yellow", "applied, with no file here: 0009.later")
    execute(neon.superuser, "update _users_api_migration_checksum set checksum = 'other'")
    report = doctor(neon.settings())
    assert report["DIRECT_URL", "migrations"].detail == f"edited after it was applied: {', '.join(MIGRATIONS)}"
    execute(neon.superuser, f"drop schema public cascade; create schema public authorization {owner}")
    report = doctor(neon.settings())
    assert report.reds == [
        *(("DATABASE_URL", name) for name in ("statements", "constraints")),
        ("DIRECT_URL", "migrations"),
    ]
    assert report["DIRECT_URL", "migrations"].detail == f"pending: {', '.join(MIGRATIONS)}"
    assert report["DIRECT_URL", "migrations"].remedy == "run `users-api migrate`"
    assert re.search(r'relation "public\.\w+" does not exist', report["DATABASE_URL", "statements"].detail)
    assert str(report["DATABASE_URL", "statements"].remedy).startswith("run `users-api migrate`; if none is pending")


def test_statements_that_do_not_fit(neon: NeonDatabase) -> None:
    execute(neon.superuser, "alter table users rename column name to label")
    report = doctor(neon.settings())
    assert report.reds == [("DATABASE_URL", "statements")]
    assert "sql/users/export_users_csv.sql" in report["DATABASE_URL", "statements"].detail
    assert "check-sql" in str(report["DATABASE_URL", "statements"].remedy)


def test_constraints(neon: NeonDatabase) -> None:
    execute(neon.superuser, "create unique index users_name_key on users (name)")
    step = doctor(neon.settings())["DATABASE_URL", "constraints"]
    assert (step.status, step.detail.split(":")[0]) == ("green", "as the release expects; users_name_key")
    execute(neon.superuser, "create table orders (user_id bigint references users)")
    step = doctor(neon.settings())["DATABASE_URL", "constraints"]
    assert step.status == "yellow"
    assert step.detail.endswith("create index concurrently on public.orders (user_id)")
    execute(neon.superuser, "drop index users_email_key; create unique index users_email_key on users (email)")
    step = doctor(neon.settings())["DATABASE_URL", "constraints"]
    assert step.status == "red"
    assert step.detail.startswith(
        "users_email_key: its definition is public.users (email); expected public.users (lower("
    )


def test_the_server_s_role_alone_is_green(database: str) -> None:
    """It has privileges on two tables, and on nothing else; what it is not shown is said."""
    server = as_role(database, SERVER)
    report = doctor(Settings(database_url=server, direct_url=server))
    assert report.reds == []
    assert report["DATABASE_URL", "statements"].detail == f"{len(declared_statements())} fit the database"
    migrations = report["DIRECT_URL", "migrations"]
    assert (migrations.status, migrations.detail.split(",")[0]) == ("green", f"not visible to role {SERVER}")


def test_a_privilege_that_is_missing(database: str) -> None:
    execute(database, f"revoke insert on idempotency_keys from {SERVER}; revoke delete on users from {SERVER}")
    report = doctor(settings_for(database))
    assert report.reds == [("DATABASE_URL", "statements")]
    step = report["DATABASE_URL", "statements"]
    assert step.detail == f"role {SERVER} lacks 2 GRANTs"
    assert step.remedy == (
        f"run as the owner of the tables: grant delete on public.users to {SERVER}; "
        f"grant insert on public.idempotency_keys to {SERVER}"
    )


def test_without_the_direct_url(neon: NeonDatabase) -> None:
    report = doctor(Settings(database_url=neon.pooled))
    assert report.reds == []
    assert report["DATABASE_URL", "statements"].status == "green"
    (step,) = [step for step in report.steps if step.url == "DIRECT_URL"]
    assert (step.status, step.detail) == ("skipped", "not set: `users-api migrate` asks for it")


@pytest.mark.parametrize(
    ("url", "name", "remedy"),
    [
        ("postgresql://ada:sesame@127.0.0.1:1/x", "TCP", "start PostgreSQL there"),
        ("postgresql://ada:sesame@no-such-host.invalid/x", "name resolution", ""),
    ],
)
def test_nobody_answers(url: str, name: str, remedy: str) -> None:
    report = doctor(settings_for(url))
    assert_stopped_at(report, "DATABASE_URL", name)
    assert_stopped_at(report, "DIRECT_URL", name)
    assert remedy in str(report["DATABASE_URL", name].remedy)


def test_a_socket_that_is_not_there() -> None:
    report = doctor(settings_for("postgresql://ada:sesame@/x?host=/nowhere"))
    assert report.reds == [("DATABASE_URL", "Unix socket"), ("DIRECT_URL", "Unix socket")]


def test_a_socket_and_no_pooler(database: str) -> None:
    report = doctor(settings_for(database))
    assert report.reds == []
    assert report.names("DATABASE_URL", "green", "yellow") == [
        "URL",
        "Unix socket",
        "authentication",
        "server",
        *POOLED,
    ]
    assert "both URLs name one server without a pooler" in report["DATABASE_URL", "pooling"].detail


def test_several_hosts(rig: Rig, neon: NeonDatabase) -> None:
    def url_of(*ports: int) -> str:
        hosts = ",".join(f"localhost:{port}" for port in ports)
        return f"postgresql://neondb_owner:sesame@{hosts}/x?sslmode=disable"

    rig.present("none")
    report = doctor(settings_for(url_of(1, rig.ports["direct"])))
    assert report.reds == [("DATABASE_URL", "authentication"), ("DIRECT_URL", "authentication")]
    dead, alive = [step for step in report.steps if (step.url, step.step) == ("DATABASE_URL", "TCP")]
    assert (dead.status, alive.status) == ("yellow", "green")
    assert dead.detail.endswith("other hosts are tried")


def bounded(settings: Settings) -> Report:
    """The report of a run of two seconds a URL, enough to log in on a busy machine, which ends soon after that."""
    started = time.monotonic()
    report = doctor(settings, time_limit=2)
    assert time.monotonic() - started < 20  # libpq and asyncpg would wait for a minute each, TCP for more
    return report


@pytest.mark.parametrize(
    ("point", "name"),
    [(Point.ACCEPT, "TLS"), (Point.CONNECT, "authentication"), (Point.REQUEST, "server"), (Point.ANSWER, "server")],
)
def test_a_server_that_falls_silent(rig: Rig, neon: NeonDatabase, point: Point, name: str) -> None:
    rig.inject(Injection(point, Cut.STALL), times=9)
    report = bounded(neon.settings())
    for url in ("DATABASE_URL", "DIRECT_URL"):
        assert_stopped_at(report, url, name)
        assert report[url, name].detail.startswith(
            ("no answer within 0.", "no answer within 1.", "no answer within 2.")
        )
        assert "--timeout" in str(report[url, name].remedy)


def test_a_host_that_swallows_packets() -> None:
    with ExitStack() as sockets:
        listener = sockets.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        address = listener.getsockname()
        # Linux answers no SYN while the queue of a listener that accepts nothing is full.
        for _ in range(4):
            client = sockets.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(address)
        report = bounded(settings_for(f"postgresql://ada:sesame@127.0.0.1:{address[1]}/x"))
    assert_stopped_at(report, "DATABASE_URL", "TCP")
    assert_stopped_at(report, "DIRECT_URL", "TCP")


def test_name_servers_that_do_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: released.wait())
    try:
        report = bounded(settings_for("postgresql://ada:sesame@db.example.com/x"))
    finally:
        released.set()
    assert_stopped_at(report, "DATABASE_URL", "name resolution")


def test_what_is_not_postgresql() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            for _ in range(2):
                client, _ = listener.accept()
                with client:
                    client.recv(8)
                    client.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        url = f"postgresql://ada:sesame@localhost:{listener.getsockname()[1]}/x?sslmode=require&hostaddr=127.0.0.1"
        report = doctor(settings_for(url))
        thread.join()
    assert_stopped_at(report, "DATABASE_URL", "TLS")
    assert "check that this is the port of PostgreSQL" in str(report["DATABASE_URL", "TLS"].remedy)


def test_a_sleeping_compute_is_waited_for(rig: Rig, neon: NeonDatabase) -> None:
    rig.wake_seconds = 1.5
    rig.suspend()
    rig.inject(Injection(Point.CONNECT, NEON_TRANSIENT[0]), times=2)
    rig.inject(Injection(Point.CONNECT, Farewell("57P03", "the database system is starting up")))
    report = doctor(neon.settings())
    assert report.reds == []
    assert rig.pending == 0
    assert rig.counts.wakes == 1
    assert "the compute seems to have been suspended (logging in took" in report["DATABASE_URL", "server"].detail


def server_detail(database: str, **measured: object) -> str:
    """Return what the check of a server says. `measured` replaces what the logins have set."""

    async def check() -> str:
        session = ConnectionChecks(parse_url(database))
        await session.authenticate(asyncio.get_running_loop().time() + 20)
        vars(session).update(measured)
        try:
            return (await session.check_server()).detail
        finally:
            await session.close()

    return asyncio.run(check())


@pytest.mark.parametrize(
    ("first", "second", "is_told"), [(0.19, 0.01, False), (0.21, 0.01, True), (0.29, 0.1, False), (0.31, 0.1, True)]
)
def test_a_first_login_of_some_length_was_to_a_sleeping_compute(
    database: str, first: float, second: float, is_told: bool
) -> None:
    # It has not begun, so that a PostgreSQL which this machine has just started is not taken for one that was asleep.
    detail = server_detail(database, _connected_within=[first, second], _began=math.inf)
    assert ("seems to have been suspended" in detail) is is_told


def test_a_server_that_has_just_started_was_asleep(database: str) -> None:
    # As though it had waited since before this PostgreSQL was started.
    assert "the compute was suspended and started" in server_detail(database, _began=-1e9)


@pytest.mark.parametrize(
    ("farewell", "remedy"),
    [
        (NEON_PERMANENT[0], "enable"),
        (NEON_PERMANENT[1], "Neon's console"),
        (NEON_PERMANENT[2], "endpoint does not exist"),
        (POOLER_FULL, "POOL_MAX_SIZE"),
        (SERVER_FULL, "POOL_MAX_SIZE"),
    ],
)
def test_refusals(rig: Rig, neon: NeonDatabase, farewell: Farewell, remedy: str) -> None:
    rig.inject(Injection(Point.CONNECT, farewell, via="pooled"), times=99)
    report = doctor(neon.settings(), time_limit=4)
    assert_stopped_at(report, "DATABASE_URL", "authentication")
    assert remedy in str(report["DATABASE_URL", "authentication"].remedy)
    assert report["DIRECT_URL", "same database"].detail == "needs authentication of DATABASE_URL"


def test_a_refusal_is_told_though_the_time_is_up_in_a_later_attempt(rig: Rig, neon: NeonDatabase) -> None:
    rig.inject(Injection(Point.CONNECT, POOLER_FULL, via="pooled"))
    rig.inject(Injection(Point.CONNECT, Cut.STALL, via="pooled"), times=99)
    report = doctor(neon.settings(), time_limit=4)
    assert_stopped_at(report, "DATABASE_URL", "authentication")
    assert "no more connections allowed" in report["DATABASE_URL", "authentication"].detail
    assert "POOL_MAX_SIZE" in str(report["DATABASE_URL", "authentication"].remedy)


def test_a_connection_that_is_lost_on_the_way(rig: Rig, neon: NeonDatabase) -> None:
    rig.inject(Injection(Point.ANSWERED, Cut.RESET, via="pooled"))
    report = doctor(neon.settings())
    assert_stopped_at(report, "DATABASE_URL", "pooling")


@pytest.mark.usefixtures("old_pooler")  # a newer one prepares statements under its own names, and cares for them
def test_it_leaves_nothing_behind(rig: Rig, neon: NeonDatabase) -> None:
    async def state() -> dict[str, object]:
        """The pooler's connection that every client was lent, as the next one finds it."""
        arguments = parse_url(f"{neon.pooled}&application_name=test").asyncpg_arguments()
        connection = await asyncpg.connect(**arguments, statement_cache_size=0)
        try:
            prepared = "(select string_agg(name, ',') from pg_prepared_statements where name <> '') as names"
            return dict((await connection.fetch(f"select {prepared}, * from ({SESSION_STATE}) as state"))[0])
        finally:
            await connection.close()

    before = asyncio.run(state())
    assert before["names"] is None
    doctor(neon.settings())
    assert asyncio.run(state()) == before
    wait_until(lambda: len(rig.links) == 0)  # the rig notices the end of a link a moment later


def test_the_command(neon: NeonDatabase) -> None:
    ended = run("doctor", "--replicas", "2", **neon.environment())
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith("DATABASE_URL\n  green   URL ")
    assert "\nDIRECT_URL\n" in ended.stdout
    assert "\x1b" not in ended.stdout
    assert ended.stdout.splitlines()[-1].startswith(("green: ", "yellow: "))

    ended = run("doctor", "--json", **neon.environment())
    told = json.loads(ended.stdout)
    assert told["status"] in ("green", "yellow")
    assert told["steps"][0] == {
        "url": "DATABASE_URL",
        "step": "URL",
        "status": "green",
        "milliseconds": told["steps"][0]["milliseconds"],
        "detail": "every part of it is used",
        "remedy": None,
    }


def test_exit_codes_and_secrets(neon: NeonDatabase) -> None:
    wrong = {name: url.replace(":npg_", ":sesame_") for name, url in neon.environment().items()}
    for arguments in ([], ["--json"]):
        ended = run("doctor", *arguments, **wrong)
        assert (ended.returncode, ended.stderr) == (1, "")
        assert "sesame" not in ended.stdout
    assert json.loads(ended.stdout)["status"] == "red"
    ended = run(
        "doctor", "--json", DATABASE_URL="postgresql://ada:sesame@h:x/x", DIRECT_URL="postgresql://a@localhost/x"
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("users-api: DATABASE_URL: ")
    assert "sesame" not in ended.stderr
    assert run("doctor", "--timeout", "0", **wrong).returncode == 2


@pytest.mark.parametrize("encoding", ["SQL_ASCII", "LATIN1"])
def test_a_database_of_another_encoding(new_database: NewDatabase, encoding: str) -> None:
    with new_database(f"template0 encoding {encoding} locale 'C'") as url:
        report = doctor(Settings(database_url=url))
    step = report["DATABASE_URL", "server"]
    assert (step.status, step.detail.rpartition(" ")[2]) == ("red", encoding)
    assert "encoding 'UTF8'" in str(step.remedy)


def test_a_terminal_gets_colours_and_lines_that_fit(empty_database: str) -> None:
    variables = {**on(empty_database), "COLUMNS": "80"}
    ended = on_a_terminal(USERS_API, "doctor", **variables)
    assert ended.returncode == 1
    assert "\x1b[32mgreen  \x1b[0m URL" in ended.stdout
    assert "\x1b[31mred    \x1b[0m migrations" in ended.stdout
    assert "  ...     migrations" in ended.stdout
    plain = on_a_terminal(USERS_API, "doctor", NO_COLOR="1", **variables).stdout.replace("\r\n", "\n")
    assert "\x1b" not in plain
    assert "  red     migrations" in plain
    # What stands before a carriage return is written over, and a path is not torn.
    lines = [line.rpartition("\r")[2] for line in plain.splitlines() if not re.search(r"\.s\.PGSQL|sql/", line)]
    assert max(map(len, lines)) <= 80
