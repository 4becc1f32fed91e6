"""The systems that are compared. Each is started as its own documentation recommends."""

import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import psutil

from benchmarks.processes import free_port, running, wait_until_serves

ROOT = Path(__file__).parent.parent
_KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "SSL_CERT_FILE")


@dataclass(frozen=True)
class System:
    """One implementation of the API. `command` may hold {port} and {workers}."""

    name: str
    title: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    index: str | None = None  # a column on which its statements need one more unique index
    is_ours: bool = True  # started in an empty directory with a minimal environment; otherwise in the current directory
    root: Path = ROOT  # the checkout that its modules are imported from

    def with_environment(self, name: str, title: str, **environment: str) -> "System":
        """Return the same system under another name with more environment variables."""
        variables = {**self.environment, **environment}
        return replace(self, name=name, title=title, environment=variables)


@dataclass(frozen=True)
class Server:
    """A running system."""

    url: str
    process: psutil.Process
    log: Path  # its output


def _peer(name: str) -> tuple[str, ...]:
    uvicorn = (
        f"-m uvicorn --factory benchmarks.peers.{name}:create_app_from_environment --host 127.0.0.1 --port {{port}}"
    )
    options = "--workers {workers} --loop uvloop --http httptools --no-access-log --log-level warning"
    return (sys.executable, *uvicorn.split(), *options.split())


_SERVE = (sys.executable, "-m", "api", "serve", "--port", "{port}", "--workers", "{workers}")
_QUIET = {"LOG_LEVEL": "warning", "DRAIN_SECONDS": "0"}

# The application by its factory, under a server that is not ours.
_GRANIAN = (
    "--interface asgi --factory --loop uvloop --workers {workers} --host 127.0.0.1 --port {port} --log-level warning"
)
_UNDER_GRANIAN = (sys.executable, "-m", "granian", *_GRANIAN.split(), "api.server.workers:app_from_environment")

SYSTEMS = {
    system.name: system
    for system in (
        System("users_api", "users-api", _SERVE, {**_QUIET, "BATCHING": "true"}),
        System("users_api_unbatched", "users-api, batching off", _SERVE, {**_QUIET, "BATCHING": "false"}),
        System("users_api_granian", "users-api on Granian", _UNDER_GRANIAN, {"LOG_LEVEL": "error", "AUTH": "off"}),
        # It looks an address up before it inserts it; on the index over lower(email) that would read the whole table.
        System("fastapi_sqlalchemy", "FastAPI + SQLAlchemy", _peer("fastapi_sqlalchemy"), index="email"),
        System("fastapi_asyncpg", "FastAPI + asyncpg", _peer("fastapi_asyncpg")),
        System("starlette_textbook", "Starlette + asyncpg", _peer("starlette_textbook")),
        System("blacksheep_asyncpg", "BlackSheep + asyncpg", _peer("blacksheep_asyncpg")),
        System("constant", "uvicorn, constant body", _peer("constant")),
    )
}


def parse_system(text: str) -> System:
    """Read `NAME=CHECKOUT` or `NAME=COMMAND with {port} and {workers}`. Raises ValueError."""
    name, equals, value = text.partition("=")
    if equals and name.isidentifier():
        if (Path(value) / "api" / "__main__.py").is_file():
            return _checkout(name, Path(value).resolve())
        if "{port}" in value:
            return System(name, name.replace("_", " "), tuple(shlex.split(value)), is_ours=False)
    raise ValueError(
        f"{text!r}: write NAME=DIRECTORY, with a checkout of another version of this service, or NAME=COMMAND, with "
        "{port} and, if the system has workers, {workers} in the command: 'go=./server -listen 127.0.0.1:{port}'; "
        "it gets DATABASE_URL and WORKERS in its environment"
    )


def read_systems(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> list[System]:
    """Read the values of an option `--system`."""
    try:
        return [parse_system(value) for value in values]
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def _checkout(name: str, directory: Path) -> System:
    """Return another version of this service, run by the Python of its own .venv if it has one."""
    python = directory / ".venv" / "bin" / "python"
    command = (str(python) if python.exists() else sys.executable, *_SERVE[1:])
    title = f"users-api, {name.replace('_', ' ')}"
    return System(name, title, command, SYSTEMS["users_api"].environment, root=directory)


@contextmanager
def serving(system: System, workers: int, database_url: str, path: str = "/api/v1/users/1") -> Iterator[Server]:
    """Start a system on a free port and wait until it answers GET `path` with 200. Raises processes.StartError."""
    port = free_port()
    command = [part.replace("{port}", str(port)).replace("{workers}", str(workers)) for part in system.command]
    # Variables that the shell sets for the service under development must not change a measurement.
    inherited = {name: os.environ[name] for name in _KEPT if name in os.environ} if system.is_ours else os.environ
    environment = {
        **inherited,
        "PYTHONPATH": str(system.root),
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
