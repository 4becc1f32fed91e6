"""TLS handshakes by both drivers: which certificates they trust, whatever the environment says."""

import asyncio
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import asyncpg
import psycopg
import pytest
import trustme
from asyncpg import connect_utils
from psycopg.conninfo import make_conninfo

from api.neon import tls as neon
from api.neon.drivers import DatabaseURL
from api.neon.url import parse_url

SECRET = "npg_sesame"


class TLSServer:
    """Answers SSLRequest (or direct TLS) on a port of 127.0.0.1, keeps the StartupMessage and hangs up."""

    def __init__(self, certificate: trustme.LeafCert) -> None:
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.configure_cert(self.context)
        self.context.set_alpn_protocols(["postgresql"])
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.startups: list[bytes] = []
        self.negotiated: list[str | None] = []
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()

    def serve(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            with client, suppress(OSError):
                client.settimeout(5)
                if client.recv(1, socket.MSG_PEEK) == b"\0":  # a TLS record begins with 0x16
                    client.recv(8)
                    client.sendall(b"S")
                with self.context.wrap_socket(client, server_side=True) as encrypted:
                    if startup := encrypted.recv(4096):
                        self.negotiated.append(encrypted.selected_alpn_protocol())
                        self.startups.append(startup)

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join()


@contextmanager
def serving(certificate: trustme.LeafCert) -> Iterator[TLSServer]:
    server = TLSServer(certificate)
    try:
        yield server
    finally:
        server.close()


def connect_asyncpg(url: DatabaseURL) -> None:
    async def connect() -> None:
        try:
            await asyncpg.connect(**url.asyncpg_arguments())
        finally:
            await asyncio.sleep(0)  # the transport closes in the loop's next turn

    with pytest.raises((OSError, asyncpg.PostgresError, asyncpg.InterfaceError)):
        asyncio.run(connect())


def connect_psycopg(url: DatabaseURL) -> None:
    keywords: dict[str, Any] = url.psycopg_arguments()
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(**keywords)


Connect = Callable[[DatabaseURL], None]
both_drivers = pytest.mark.parametrize("connect", [connect_asyncpg, connect_psycopg])


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def authority_file(authority: trustme.CA, tmp_path: Path) -> Path:
    path = tmp_path / "authority of tests.pem"
    authority.cert_pem.write_to_path(path)
    return path


@both_drivers
@pytest.mark.parametrize("negotiation", ["postgres", "direct"])
def test_handshakes(connect: Connect, negotiation: str, authority: trustme.CA, authority_file: Path) -> None:
    def reached(server: TLSServer, query: str) -> bool:
        server.startups.clear()
        connect(parse_url(f"postgresql://owner@localhost:{server.port}/d?sslnegotiation={negotiation}&{query}"))
        return bool(server.startups)

    rootcert = f"sslrootcert={quote(str(authority_file))}"
    with serving(authority.issue_cert("localhost")) as server:
        assert reached(server, rootcert)
        assert b"user\0owner\0" in server.startups[0]
        assert reached(server, f"sslmode=require&{rootcert}")
        assert not reached(server, "sslmode=require")
        assert not reached(server, "sslmode=verify-full&sslrootcert=system")
        assert reached(server, "sslmode=no-verify")
        assert set(server.negotiated) == {"postgresql"}
    with serving(authority.issue_cert("elsewhere.example")) as server:
        assert not reached(server, rootcert)
        assert not reached(server, f"sslmode=verify-ca&{rootcert}")
        assert reached(server, "sslmode=no-verify")


@both_drivers
@pytest.mark.parametrize("negotiation", ["postgres", "direct"])
def test_an_address_takes_the_place_of_dns_and_the_name_is_verified(
    connect: Connect, negotiation: str, authority: trustme.CA, authority_file: Path
) -> None:
    """As a tunnel needs it: hostaddr is where it begins, and the host name is what the certificate must match."""
    query = f"hostaddr=127.0.0.1&sslnegotiation={negotiation}&sslrootcert={quote(str(authority_file))}"
    with serving(authority.issue_cert("db.example.com")) as server:
        asked_for: list[str | None] = []
        server.context.sni_callback = lambda _, name, __: asked_for.append(name)
        connect(parse_url(f"postgresql://owner@db.example.com:{server.port}/d?{query}"))
        assert (len(server.startups), asked_for) == (1, ["db.example.com"])
        connect(parse_url(f"postgresql://owner@other.example.com:{server.port}/d?{query}"))
        assert len(server.startups) == 1
    with serving(authority.issue_cert("127.0.0.1")) as server:
        connect(parse_url(f"postgresql://owner@db.example.com:{server.port}/d?{query}"))
        assert not server.startups


@both_drivers
def test_require_trusts_the_authorities_of_the_system(
    connect: Connect, authority: trustme.CA, authority_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(authority.issue_cert("localhost")) as server:
        url = f"postgresql://owner@localhost:{server.port}/d?sslmode=require"
        connect(parse_url(url))
        assert not server.startups
        monkeypatch.setenv("SSL_CERT_FILE", str(authority_file))
        connect(parse_url(url))
        assert len(server.startups) == 1


@both_drivers
def test_each_of_several_hosts_is_verified(connect: Connect, authority: trustme.CA, authority_file: Path) -> None:
    with (
        serving(authority.issue_cert("elsewhere.example")) as first,
        serving(authority.issue_cert("127.0.0.1")) as last,
    ):
        hosts = f"localhost:{first.port},127.0.0.1:{last.port}"
        connect(parse_url(f"postgresql://owner@{hosts}/d?sslrootcert={quote(str(authority_file))}"))
    assert (len(first.startups), len(last.startups)) == (0, 1)


@pytest.fixture
def hostile_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, authority_file: Path) -> None:
    """Every place where a driver would look: variables, the password file, and files of the home directory."""
    home = tmp_path / ".postgresql"
    home.mkdir()
    for name in ("root.crt", "root.crl", "postgresql.crt", "postgresql.key"):
        (home / name).write_text("not PEM")
    password_file = tmp_path / ".pgpass"
    password_file.write_text("*:*:*:*:from-a-file\n")
    password_file.chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    for default in psycopg.pq.Conninfo.get_defaults():
        if default.envvar and default.keyword != b"service":
            monkeypatch.setenv(default.envvar.decode(), "hostile")
    monkeypatch.setenv("PGPASSFILE", str(password_file))
    monkeypatch.setenv("PGGSSLIB", "hostile")
    monkeypatch.setenv("PGSSLNEGOTIATION", "direct")
    monkeypatch.setenv("PGHOSTADDR", "203.0.113.1")
    # These change neither the host nor the trusted authorities.
    for name in [
        "APPNAME",
        "CLIENTENCODING",
        "CONNECT_TIMEOUT",
        "MINPROTOCOLVERSION",
        "MAXPROTOCOLVERSION",
        "SSLCOMPRESSION",
    ]:
        monkeypatch.delenv(f"PG{name}", raising=False)


@pytest.mark.usefixtures("hostile_environment")
@both_drivers
def test_the_environment_changes_nothing(connect: Connect, authority: trustme.CA, authority_file: Path) -> None:
    with serving(authority.issue_cert("localhost")) as server:
        url = f"postgresql://owner@localhost:{server.port}/d"
        connect(parse_url(f"{url}?sslrootcert={quote(str(authority_file))}"))
        connect(parse_url(f"{url}?sslmode=no-verify"))
        assert len(server.startups) == 2
        assert b"database\0d\0" in server.startups[0]
        assert b"hostile" not in b"".join(server.startups)


@pytest.mark.usefixtures("hostile_environment")
@pytest.mark.parametrize("url", ["postgresql://owner@127.0.0.1/d", "postgresql://owner@/d?host=/tmp"])
def test_no_password_is_looked_up(url: str) -> None:
    arguments = parse_url(url).asyncpg_arguments()
    others = ("dsn", "passfile", "service", "servicefile", "server_settings")
    look_up = connect_utils._parse_connect_dsn_and_args  # type: ignore[attr-defined]
    _, parameters = look_up(**dict.fromkeys(others), **arguments)
    assert not parameters.password
    assert not parameters.ssl
    keywords: dict[str, Any] = parse_url(url).psycopg_arguments()
    connection = psycopg.pq.PGconn.connect_start(make_conninfo(**keywords).encode())
    try:
        used = {option.keyword: option.val for option in connection.info}
    finally:
        connection.finish()
    assert not used[b"password"]
    assert not [keyword for keyword, value in used.items() if value == b"hostile"]
    assert used[b"sslmode"] == b"disable"


def test_a_bundle_beside_the_single_files_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bundle = tmp_path / "ca-certificates.crt"
    bundle.touch()
    monkeypatch.setenv("SSL_CERT_FILE", "/none")
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    assert neon.system_bundle() == str(bundle)
