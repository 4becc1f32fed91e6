"""Puts the rig together: an authority, certificates, a role with a password, PgBouncer and the fault proxy."""

import ssl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import quote

import psycopg
import trustme

from api.neon.url import parse_url
from api.settings import Settings
from tests.support.rig.faults import Route
from tests.support.rig.pgbouncer import PgBouncer
from tests.support.rig.proxy import Proxy

ROLE = "neondb_owner"
PASSWORD = "npg_sesame/with:odd@characters?"
HOSTS: dict[Route, str] = {"pooled": "ep-rig-000001-pooler.localhost", "direct": "ep-rig-000001.localhost"}

Certificate = Literal["valid", "expired", "wrong name", "unknown authority", "none"]


class NeonDatabase(NamedTuple):
    """One database behind the rig, and how it is reached."""

    pooled: str
    direct: str
    superuser: str  # over PostgreSQL's Unix socket, around the rig: what a test sees by it is neither cut nor counted

    def settings(self, **overrides: object) -> Settings:
        """Settings of an application on this database, whatever this machine's environment says."""
        return Settings(**{"database_url": self.pooled, "direct_url": self.direct, "auth": "off", **overrides})  # type: ignore[arg-type]

    def environment(self) -> dict[str, str]:
        """The variables that put a `users-api` of its own process on this database."""
        return {"DATABASE_URL": self.pooled, "DIRECT_URL": self.direct}


class Rig(Proxy):
    """A PostgreSQL as Neon serves it: the proxy with its faults, and the two URLs of each database behind it."""

    def __init__(self, program: Path, superuser_url: str, directory: Path) -> None:
        self.superuser_url = superuser_url
        server = Path(parse_url(superuser_url).hosts[0][0])
        self.pgbouncer = PgBouncer(program, server, directory / "pgbouncer")
        self.authority = directory / "authority.pem"
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(self.authority))
        past = datetime(2020, 1, 1, tzinfo=UTC), datetime(2020, 2, 1, tzinfo=UTC)
        self._certificates: dict[Certificate, ssl.SSLContext | None] = {
            "valid": _context(authority.issue_cert(*HOSTS.values())),
            "expired": _context(authority.issue_cert(*HOSTS.values(), not_before=past[0], not_after=past[1])),
            "wrong name": _context(authority.issue_cert("ep-somebody-else-pooler.localhost")),
            "unknown authority": _context(trustme.CA().issue_cert(*HOSTS.values())),
            "none": None,
        }
        targets: dict[Route, Path] = {"pooled": self.pgbouncer.socket, "direct": server / ".s.PGSQL.5432"}
        super().__init__(targets, self._certificates["valid"])
        _prepare_role(superuser_url)

    def present(self, certificate: Certificate) -> None:
        """Show clients another certificate from now on; `none` offers no TLS at all. reset() shows the valid one."""
        self.tls = self._certificates[certificate]

    def database(self, superuser_url: str) -> NeonDatabase:
        """The database at `superuser_url`, which belongs to ROLE, as it is reached through the rig."""
        name = parse_url(superuser_url).database
        return NeonDatabase(self.pooled_url(name), self.direct_url(name), superuser_url)

    def pooled_url(self, database: str) -> str:
        """The URL of a database through PgBouncer: what Neon's console shows with connection pooling on."""
        return self._url("pooled", database)

    def direct_url(self, database: str) -> str:
        """The URL of a database without PgBouncer: sessions, migrations, advisory locks."""
        return self._url("direct", database)

    def _url(self, route: Route, database: str) -> str:
        # hostaddr stands in for DNS: the name is verified, and no resolver needs to know it.
        return (
            f"postgresql://{ROLE}:{quote(PASSWORD, safe='')}@{HOSTS[route]}:{self.ports[route]}/{database}"
            f"?sslmode=require&sslrootcert={quote(str(self.authority), safe='/')}&hostaddr=127.0.0.1"
        )


@contextmanager
def running(superuser_url: str, program: Path) -> Iterator[Rig]:
    """Run a rig before the PostgreSQL at `superuser_url`, a Unix socket's, with the PgBouncer `program`."""
    with tempfile.TemporaryDirectory(prefix="users-api-rig-") as directory:
        Path(directory).chmod(0o755)  # the user that PgBouncer becomes passes through it
        rig = Rig(program, superuser_url, Path(directory))
        with rig.pgbouncer.running():
            rig.start()
            try:
                yield rig
            finally:
                rig.stop()


def _context(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["postgresql"])
    certificate.configure_cert(context)
    return context


def _prepare_role(superuser_url: str) -> None:
    """Make the role, which must show its password where everybody else is trusted: the tests' own superuser."""
    with psycopg.connect(**parse_url(superuser_url).psycopg_arguments(), autocommit=True) as connection:  # type: ignore[arg-type]
        (path,) = connection.execute("show hba_file").fetchone() or ("",)
        rules = Path(path)
        rules.write_text(f"local all {ROLE} scram-sha-256\n{rules.read_text()}")
        connection.execute("select pg_reload_conf()")
        connection.execute(f"create role {ROLE} login createdb password '{PASSWORD}'".encode())
