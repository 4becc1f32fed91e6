"""The rig's PgBouncer: found on this machine, and configured as Neon configures its own."""

import os
import re
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

SCRIPT = Path(".ci/pgbouncer")
"""A script in the checkout that prints the path of a PgBouncer >= 1.21, and fetches one where there is none."""

_OLDEST = (1, 21)  # the first that keeps prepared statements in transaction mode

# https://www.pgbouncer.org/config.html. Pool mode and prepared statements are Neon's
# (https://neon.com/docs/connect/connection-pooling); its other values are far beyond what a test opens.
_CONFIGURATION = """
[databases]
* = host={server} port=5432 auth_dbname=postgres
[pgbouncer]
pool_mode = transaction
max_prepared_statements = 1000
default_pool_size = 60
query_wait_timeout = 120
max_client_conn = 10000
auth_type = scram-sha-256
auth_file = {directory}/users
auth_user = postgres
auth_query = select rolname, rolpassword from pg_authid where rolname = $1 and rolcanlogin
admin_users = pgbouncer
unix_socket_dir = {directory}
listen_addr =
listen_port = 6432
logfile = {directory}/log
syslog = 0
log_connections = 0
log_disconnections = 0
{user}
"""


def find() -> Path | None:
    """Return the path of a PgBouncer >= 1.21: on PATH, among the system's programs, or fetched by SCRIPT; else None."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    search_path = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"))
    for program in (shutil.which("pgbouncer", path=search_path), cache / "users-api/pgbouncer/pgbouncer"):
        if program is not None and Path(program).exists():
            said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
            version = re.match(r"PgBouncer (\d+)\.(\d+)", said)
            if version and (int(version[1]), int(version[2])) >= _OLDEST:
                return Path(program)
    return None


class PgBouncer:
    """A PgBouncer in transaction mode in front of the PostgreSQL whose Unix socket is in the directory `server`."""

    def __init__(self, program: Path, server: Path, directory: Path) -> None:
        self._program = program
        self._directory = directory
        self._password = secrets.token_hex(16)
        # It refuses to run as root, and switches to the user in its configuration: PostgreSQL's, who alone may enter
        # the socket's directory.
        owner = server.owner() if os.geteuid() == 0 else None
        directory.mkdir(mode=0o700, parents=True)
        configuration = _CONFIGURATION.format(
            directory=directory, server=server, user=f"user = {owner}" if owner else ""
        )
        (directory / "configuration").write_text(configuration)
        (directory / "users").write_text(f'"postgres" ""\n"pgbouncer" "{self._password}"\n')
        for path in (directory, *directory.iterdir()):
            if owner:
                shutil.chown(path, owner)

    @property
    def socket(self) -> Path:
        """The Unix socket that it listens on."""
        return self._directory / ".s.PGSQL.6432"

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run it for the length of the block, which starts once it listens."""
        complaint = self._directory / "stderr"
        with complaint.open("wb") as stderr:
            process = subprocess.Popen(
                [self._program, "--quiet", self._directory / "configuration"],
                stderr=stderr,
                start_new_session=True,  # Ctrl-C in a terminal stops the rig, which stops PgBouncer
            )
        try:
            while not self.socket.exists():
                try:
                    process.wait(0.01)
                except subprocess.TimeoutExpired:
                    continue
                raise RuntimeError(f"PgBouncer did not start: {complaint.read_text()}")
            yield
        finally:
            process.terminate()
            process.wait(10)

    def run(self, command: str) -> list[dict[str, object]]:
        """Run a command of its admin console, such as `show servers` or `set max_prepared_statements = 0`."""
        with psycopg.connect(
            host=str(self._directory),
            port=6432,
            user="pgbouncer",
            password=self._password,
            dbname="pgbouncer",
            autocommit=True,
        ) as console:
            cursor = console.execute(command.encode())
            names = [column.name for column in cursor.description or ()]
            return [dict(zip(names, row, strict=True)) for row in (cursor.fetchall() if names else [])]
