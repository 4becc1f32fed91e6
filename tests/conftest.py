"""Shared fixtures: one PostgreSQL a session, a migrated template in it, and a clone of the template for each test."""

import gc
import logging
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from itertools import count
from pathlib import Path

import httpx
import psycopg
import pytest

import api.cli  # which collects garbage less often
from api.app import create_app
from api.database import migrations
from api.neon.url import parse_url
from tests.support import lacking, leaks
from tests.support import rig as neon_rig
from tests.support.cluster import TEMPLATE, make_template, running_postgres
from tests.support.database import MakeDatabase, NewDatabase, database_url, execute, in_memory
from tests.support.rig import NeonDatabase, Rig
from tests.support.serving import serve, settings_for
from tests.support.standby import Standby

# As often as Python does: what a test leaves open is reported in that test, and not in a later one.
assert api.cli
gc.set_threshold(700)
# A shell lets what it runs in the background ignore SIGINT. The commands that tests interrupt would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

_names = count(1)


def pytest_make_parametrize_id(val: object) -> str | None:
    """Name random keys and digests alike in each process: pytest-xdist compares the names of tests."""
    if isinstance(val, str) and (name := re.sub(r"users_[\w-]{20,}|\b[0-9a-fA-F]{60,66}\b", "KEY", val)) != val:
        return name.encode("unicode_escape").decode()
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest: a processor would wait for one that began last.

    What needs the container image has a mark by that, and a run of its own, in which the image is built once.
    """
    for item in items:
        if "image" in getattr(item, "fixturenames", ()):
            item.add_marker("image")
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print each reason for skipped tests once, with its remedy."""
    for reason in sorted({report.longrepr[2] for report in terminalreporter.stats.get("skipped", [])}):
        terminalreporter.write_line(reason)


@pytest.fixture(scope="session", autouse=True)
def _authorities_are_read_once() -> Iterator[None]:
    """httpx reads every certificate authority for each client, 20 ms that plain HTTP can spare."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("httpx._transports.default.create_ssl_context", cache(httpx.create_ssl_context))
        yield


@pytest.fixture(scope="session", autouse=True)
def _an_answer_may_take_its_time() -> Iterator[None]:
    """httpx waits for 5 s, which is too short on a loaded machine where a server starts. pytest's timeout bounds it."""
    with pytest.MonkeyPatch.context() as patch:
        for phase in ("connect", "read", "write", "pool"):
            patch.setattr(httpx._config.DEFAULT_TIMEOUT_CONFIG, phase, 60.0)
        yield


@pytest.fixture(scope="session")
def log_scan() -> Iterator[leaks.LogScan]:
    """Search every log record for secrets, at every level down to debug."""
    scan = leaks.LogScan()
    yield scan
    logging.getLogger().removeHandler(scan)


@pytest.fixture(autouse=True)
def _nothing_leaks(log_scan: leaks.LogScan) -> Iterator[None]:
    # For each test: a command that a test runs in this process configures logging anew.
    logging.getLogger().addHandler(log_scan)
    for name in ("api", "asyncpg", "uvicorn.error", "yoyo"):
        logging.getLogger(name).setLevel(logging.DEBUG)
    leaks.found.clear()
    yield
    assert not leaks.found, "\n".join(leaks.found)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The event loop of asynchronous tests."""
    return "asyncio"


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The superuser's URL of this session's own PostgreSQL."""
    # Not pytest's temporary directory, which the system user that PostgreSQL runs as under root cannot enter.
    # A run for each mutant would spend most of its time on a new cluster, so it copies one: see tests/mutants.
    cluster = os.environ.get("TEST_POSTGRES")
    parent = str(Path(cluster).parent) if cluster else in_memory()
    directory = Path(tempfile.mkdtemp(prefix="users-api-tests-", dir=parent))
    try:
        if cluster:
            subprocess.run(["cp", "--archive", f"{cluster}/.", directory], check=True)
        with running_postgres(directory) as url:
            yield url
    finally:
        shutil.rmtree(directory)


@pytest.fixture(scope="session")
def new_database(postgres: str) -> Iterator[NewDatabase]:
    """Clone a template for the length of a block."""
    # One connection for all of them: opening one takes PostgreSQL longer than most statements.
    with psycopg.connect(**parse_url(postgres).psycopg_arguments(), autocommit=True) as connection:  # type: ignore[arg-type]

        @contextmanager
        def create(template: str, owner: str = "postgres") -> Iterator[str]:
            name = f"test_{next(_names)}"
            # Copying the files, which are in memory, takes two thirds of the time of writing each page to the log.
            clone = f"create database {name} template {template} strategy file_copy owner {owner}"
            connection.execute(clone.encode())
            yield database_url(postgres, name)
            connection.execute(f"drop database {name} with (force)".encode())

        yield create


@pytest.fixture(scope="session")
def template(postgres: str) -> str:
    """The name of a migrated database without connections, to be cloned. Its owner has granted what the others need."""
    if "TEST_POSTGRES" not in os.environ:
        make_template(postgres)
    return TEMPLATE


@pytest.fixture
def make_database(new_database: NewDatabase, template: str) -> Iterator[MakeDatabase]:
    """Create a migrated database with each call."""
    with ExitStack() as databases:
        yield lambda: databases.enter_context(new_database(template))


@pytest.fixture
def database(make_database: MakeDatabase) -> str:
    """The URL of a migrated database without a user."""
    return make_database()


@pytest.fixture
def empty_database(new_database: NewDatabase) -> Iterator[str]:
    """The URL of a database that was never migrated."""
    with new_database("template0") as url:
        yield url


@pytest.fixture(scope="session")
def session_rig(postgres: str) -> Iterator[Rig]:
    """The rig in front of this session's PostgreSQL, with a database that its role migrated, to be cloned."""
    program = neon_rig.find()
    if program is None:
        lacking(f"no PgBouncer >= 1.21 for the Neon rig: run {neon_rig.SCRIPT}, which finds or fetches one")
    with neon_rig.running(postgres, program) as rig:
        execute(postgres, f"create database neon_migrated owner {neon_rig.ROLE}")
        migrations.migrate(parse_url(rig.direct_url("neon_migrated")), report=lambda line: None)
        yield rig


@pytest.fixture
def rig(session_rig: Rig, request: pytest.FixtureRequest) -> Iterator[Rig]:
    """The rig without fault injections, its counts at zero. It is 10 ms away in tests with the mark `far`."""
    session_rig.distance = neon_rig.DISTANCE_SECONDS if request.node.get_closest_marker("far") else 0.0
    session_rig.reset()
    yield session_rig
    session_rig.reset()


@pytest.fixture
def neon(rig: Rig, new_database: NewDatabase) -> Iterator[NeonDatabase]:
    """A migrated database without a user, behind the rig."""
    with new_database("neon_migrated", neon_rig.ROLE) as url:
        yield rig.database(url)
        rig.cut(neon_rig.Cut.RESET)


@pytest.fixture(scope="session")
def session_standby(postgres: str) -> Iterator[Standby]:
    """A replica of this session's PostgreSQL."""
    directory = Path(parse_url(postgres).hosts[0][0]).parent / "standby"
    standby = Standby(postgres, directory)
    standby.start()
    yield standby
    standby.stop()


@pytest.fixture
def standby(session_standby: Standby, database: str) -> Iterator[Standby]:
    """The replica, which has this test's database and replays."""
    session_standby.catch_up()
    yield session_standby
    session_standby.start()
    session_standby.resume()


@pytest.fixture
def directory() -> Iterator[Path]:
    """An empty working directory that PostgreSQL's system user can enter."""
    path = Path(tempfile.mkdtemp(prefix="users-api-cli-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture(params=["batched", pytest.param("one statement a request", marks=pytest.mark.slow)])
def batching(request: pytest.FixtureRequest) -> bool:
    """Whether requests share statements: every test with a client runs both ways."""
    return bool(request.param == "batched")


@pytest.fixture
def client(database: str, batching: bool) -> Iterator[httpx.Client]:
    """An HTTP client of the application, on the test's own database."""
    app = create_app(settings_for(database, batching=batching))
    with serve(app) as url, httpx.Client(base_url=url) as client:
        yield client
