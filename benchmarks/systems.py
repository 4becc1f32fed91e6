"""The systems that are compared, and how each is started: as its own documentation says, nothing held back."""

import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from benchmarks.processes import free_port, running, wait_until_serves

ROOT = Path(__file__).parent.parent
_KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "SSL_CERT_FILE")


@dataclass(frozen=True)
class System:
    """One way of writing the service. `command` may hold {port} and {workers}."""

    name: str
    title: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    index: str | None = None  # a column that its statements need one more unique index on
    is_ours: bool = True  # started in an empty directory with a bare environment; otherwise where the harness runs

    def with_environment(self, name: str, title: str, **environment: str) -> "System":
        """Return the same system under another name, set up differently."""
        variables = {**self.environment, **environment}
        return System(name, title, self.command, variables, self.index, self.is_ours)


@dataclass(frozen=True)
class Server:
    """A running system."""

    url: str
    process: psutil.Process
    log: Path  # what it has printed


def _peer(name: str) -> tuple[str, ...]:
    uvicorn = (
        f"-m uvicorn --factory benchmarks.peers.{name}:create_app_from_environment --host 127.0.0.1 --port {{port}}"
    )
    options = "--workers {workers} --loop uvloop --http httptools --no-access-log --log-level warning"
    return (sys.executable, *uvicorn.split(), *options.split())


_SERVE = (sys.executable, "-m", "api", "serve", "--port", "{port}", "--workers", "{workers}")
_QUIET = {"LOG_LEVEL": "warning", "DRAIN_SECONDS": "0"}

SYSTEMS = {
    system.name: system
    for system in (
        System("users_api", "users-api", _SERVE, {**_QUIET, "BATCHING": "true"}),
        System("users_api_unbatched", "users-api, batching off", _SERVE, {**_QUIET, "BATCHING": "false"}),
        # It looks an address up before it inserts it; on the index over lower(email) that would read the whole table.
        System("fastapi_sqlalchemy", "FastAPI + SQLAlchemy", _peer("fastapi_sqlalchemy"), index="email"),
        System("fastapi_asyncpg", "FastAPI + asyncpg", _peer("fastapi_asyncpg")),
        System("starlette_textbook", "Starlette + asyncpg", _peer("starlette_textbook")),
        System("blacksheep_asyncpg", "BlackSheep + asyncpg", _peer("blacksheep_asyncpg")),
        System("constant", "uvicorn, constant body", _peer("constant")),
    )
}


def parse_system(text: str) -> System:
    """Read `NAME=command with {port} and {workers}`. Raises ValueError."""
    name, equals, command = text.partition("=")
    if not (equals and name.isidentifier() and "{port}" in command):
        raise ValueError(
            f"{text!r}: write NAME=COMMAND, with {{port}} and, where it can, {{workers}} in the command: "
            "'go=./server -listen 127.0.0.1:{port}'; it gets DATABASE_URL and WORKERS in its environment"
        )
    return System(name, name.replace("_", " "), tuple(shlex.split(command)), is_ours=False)


@contextmanager
def serving(system: System, workers: int, database_url: str, path: str = "/api/v1/users/1") -> Iterator[Server]:
    """Start a system on a free port and wait until it answers GET `path` with 200. Raises processes.StartError."""
    port = free_port()
    command = [part.replace("{port}", str(port)).replace("{workers}", str(workers)) for part in system.command]
    # What the shell has set for the service under development must not leak into a measurement.
    inherited = {name: os.environ[name] for name in _KEPT if name in os.environ} if system.is_ours else os.environ
    environment = {
        **inherited,
        "PYTHONPATH": str(ROOT),
        "DATABASE_URL": database_url,
        "DIRECT_URL": database_url,
        "PORT": str(port),
        "WORKERS": str(workers),
        **system.environment,
    }
    with TemporaryDirectory(prefix="users-api-bench-") as scratch:
        directory, log = Path(scratch) if system.is_ours else Path.cwd(), Path(scratch) / "log"
        with (
            log.open("wb") as output,
            running(command, environment=environment, directory=directory, log=output) as process,
        ):
            wait_until_serves(process, port, path, log)
            yield Server(f"http://127.0.0.1:{port}", process, log)
