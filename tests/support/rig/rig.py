"""The whole rig: an authority, certificates, a role with a password, PgBouncer and the fault proxy."""

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
from tests.support.rig.injections import Route
from tests.support.rig.pgbouncer import PgBouncer
from tests.support.rig.proxy import Proxy

ROLE = "neondb_owner"
PASSWORD = "npg_sesame/with:odd@characters?"
HOSTS: dict[Route, str] = {"pooled": "ep-rig-000001-pooler.localhost", "direct": "ep-rig-000001.localhost"}

DISTANCE_SECONDS = 0.01
"""The latency of a database in another zone of the same region, where tests are about distance."""

Certificate = Literal["valid", "expired", "wrong name", "unknown authority", "none"]


class NeonDatabase(NamedTuple):
    """One database behind the rig, and its URLs."""

    pooled: str
    direct: str
    superuser: str  # over PostgreSQL's Unix socket, past the rig: neither cut nor counted

    def settings(self, **overrides: object) -> Settings:
        """Return settings for an application on this database, whatever the environment holds."""
        return Settings(**{"database_url": self.pooled, "direct_url": self.direct, "auth": "off", **overrides})  # type: ignore[arg-type]

    def environment(self) -> dict[str, str]:
        """Return the environment variables that point `users-api` at this database."""
        return {"DATABASE_URL": self.pooled, "DIRECT_URL": self.direct}


class Rig(Proxy):
    """A PostgreSQL as Neon serves it: the proxy with its injections, and the two URLs of each database behind it."""

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
        """Present another certificate to clients from now on; `none` offers no TLS. reset() restores the valid one."""
        self.tls = self._certificates[certificate]

    def database(self, superuser_url: str) -> NeonDatabase:
        """Return the database at `superuser_url`, which belongs to ROLE, with its URLs through the rig."""
        name = parse_url(superuser_url).database
        return NeonDatabase(self.pooled_url(name), self.direct_url(name), superuser_url)

    def pooled_url(self, database: str) -> str:
        """Return the URL of a database through PgBouncer, as Neon's console shows it with connection pooling on."""
        return self._url("pooled", database)

    def socket_url(self, database: str) -> str:
        """Return the URL of a database through PgBouncer's socket, whose name does not say that it is a pooler."""
        directory = quote(str(self.pgbouncer.socket.parent), safe="/")
        return f"postgresql://{ROLE}:{quote(PASSWORD, safe='')}@:6432/{database}?host={directory}"

    def direct_url(self, database: str) -> str:
        """Return the URL of a database without PgBouncer: for sessions, migrations, advisory locks."""
        return self._url("direct", database)

    def _url(self, route: Route, database: str) -> str:
        # hostaddr replaces DNS: the name is verified, though no resolver knows it.
        return (
            f"postgresql://{ROLE}:{quote(PASSWORD, safe='')}@{HOSTS[route]}:{self.ports[route]}/{database}"
            f"?sslmode=require&sslrootcert={quote(str(self.authority), safe='/')}&hostaddr=127.0.0.1"
        )


@contextmanager
def running(superuser_url: str, program: Path) -> Iterator[Rig]:
    """Run a rig in front of the PostgreSQL at `superuser_url`, a Unix socket's, with the PgBouncer `program`."""
    with tempfile.TemporaryDirectory(prefix="users-api-rig-") as directory:
        Path(directory).chmod(0o755)  # PgBouncer's user passes through it
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
    """Create the role, which needs its password; PostgreSQL trusts every other role, such as the tests' superuser."""
    with psycopg.connect(**parse_url(superuser_url).psycopg_arguments(), autocommit=True) as connection:  # type: ignore[arg-type]
        (path,) = connection.execute("show hba_file").fetchone() or ("",)
        rules = Path(path)
        rules.write_text(f"local all {ROLE} scram-sha-256\n{rules.read_text()}")
        connection.execute("select pg_reload_conf()")
        connection.execute(f"create role {ROLE} login createdb password '{PASSWORD}'".encode())
