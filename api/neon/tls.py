"""A connection URL becomes explicit arguments for asyncpg and psycopg (libpq), over TLS that is verified.

No driver sees the URL itself. asyncpg 0.32 verifies nothing under `sslmode=require`, which Neon's console hands out,
and sends every key that it does not know to the server as a setting (`asyncpg/connect_utils.py`). So the URL is read
in `api/neon/url.py`, and whatever a driver would look up by itself is given to it: no PG* variable, `~/.pgpass` or
`~/.postgresql` file changes where a connection goes or whom it trusts.
"""

import os
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

# What every sslmode comes down to: no TLS; chain and host name verified; encrypted, but to whoever answers.
TLSMode = Literal["disable", "verify-full", "no-verify"]

# What libpq would take from the environment or the home directory. No file can lie below a device.
_NO_FILE = f"{os.devnull}/none"
_LIBPQ_FIXED = {
    **dict.fromkeys(("options", "gsslib", "requirepeer"), ""),
    **dict.fromkeys(("sslcert", "sslkey", "sslcrldir", "ssl_max_protocol_version"), ""),
    **dict.fromkeys(("passfile", "sslcrl"), _NO_FILE),
    **dict.fromkeys(("gssencmode", "load_balance_hosts", "sslcertmode"), "disable"),  # GSSAPI would displace TLS
    "gssdelegation": "0",
    "require_auth": "none,password,md5,gss,sspi,scram-sha-256,oauth",  # every one: "" would allow none
    "krbsrvname": "postgres",
    "sslsni": "1",  # Neon finds the compute by it
    "ssl_min_protocol_version": "TLSv1.2",
}


class InvalidURLError(ValueError):
    """A connection URL that cannot be used. The message says what is wrong and the remedy, and quotes no value."""


@dataclass(frozen=True, slots=True)
class DatabaseURL:
    """Where to connect, as whom, and how the server proves who it is. `parse_url` makes and checks it."""

    hosts: tuple[tuple[str, int], ...]  # a host that begins with "/" is the directory of a Unix socket
    user: str
    password: str | None = field(repr=False)
    database: str
    sslmode: TLSMode = "verify-full"
    sslrootcert: Path | None = None  # None: the system's authorities
    sslnegotiation: str = "postgres"
    channel_binding: str = "prefer"  # libpq alone can do it
    target_session_attrs: str = "any"
    application_name: str | None = None
    hostaddr: str | None = None  # the address to connect to, for which the host's name is not resolved
    connect_timeout: int | None = None  # seconds: for all hosts together in asyncpg, for each in libpq
    notes: tuple[str, ...] = ()  # a line to log for each key that was translated or dropped, without its value

    @property
    def pooled(self) -> bool:
        """Whether the (first) host is Neon's pooler, whose first label ends with `-pooler`."""
        return self.hosts[0][0].partition(".")[0].endswith("-pooler")

    def tls_context(self) -> ssl.SSLContext | None:
        """Return a new context, None for clear text. Raises InvalidURLError where no authority can be read."""
        if self.sslmode == "disable":
            return None
        try:
            context = ssl.create_default_context(cafile=self.sslrootcert)
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise InvalidURLError(f"sslrootcert: cannot be read as certificates in PEM form ({reason})") from None
        if self.sslmode == "no-verify":
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        elif not self.sslrootcert and not _has_authorities(context):
            raise InvalidURLError(
                "this system has no certificate authorities to verify the server with: "
                "install the package ca-certificates, or name a file with sslrootcert="
            )
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["postgresql"])  # PostgreSQL 17+ demands it for sslnegotiation=direct
        if self.hostaddr:
            _expect(context, self.hosts[0][0])
        return context

    def asyncpg_arguments(self) -> dict[str, Any]:
        """Return keyword arguments for `asyncpg.connect` and `create_pool`. Raises what `tls_context` raises.

        asyncpg checks each host's certificate against that host's name, and uses no TLS on Unix sockets.
        """
        arguments: dict[str, Any] = {
            "host": [self.hostaddr] if self.hostaddr else [host for host, _ in self.hosts],
            "port": [port for _, port in self.hosts],
            "user": self.user,
            "password": self.password or "",  # None would send asyncpg to PGPASSWORD and ~/.pgpass
            "database": self.database,
            "ssl": self.tls_context() or False,
            "direct_tls": self.sslnegotiation == "direct",
            "target_session_attrs": self.target_session_attrs,
            "krbsrvname": "postgres",
            "gsslib": "sspi" if os.name == "nt" else "gssapi",
        }
        if self.application_name:
            arguments["server_settings"] = {"application_name": self.application_name}
        if self.connect_timeout:
            arguments["timeout"] = float(self.connect_timeout)
        return arguments

    def psycopg_arguments(self) -> dict[str, str]:
        """Return keyword arguments for `psycopg.connect` (libpq 17+) that verify as strictly as asyncpg's.

        Empty values keep libpq from its environment variables, so none may be left out. Only PGSERVICE remains: it
        fails where the service is unknown, and else adds no more than keywords that are not given here.
        """
        arguments = _LIBPQ_FIXED | {
            "host": ",".join(host for host, _ in self.hosts),
            "hostaddr": self.hostaddr or "",
            "port": ",".join(str(port) for _, port in self.hosts),
            "user": self.user,
            "password": self.password or "",
            "dbname": self.database,
            "sslmode": "require" if self.sslmode == "no-verify" else self.sslmode,
            # Under `require` libpq would verify after all where this file exists.
            "sslrootcert": str(self.sslrootcert or _system_bundle()) if self.sslmode == "verify-full" else _NO_FILE,
            "sslnegotiation": self.sslnegotiation,
            "channel_binding": self.channel_binding,
            "target_session_attrs": self.target_session_attrs,
        }
        if self.application_name:
            arguments["application_name"] = self.application_name
        if self.connect_timeout:
            arguments["connect_timeout"] = str(self.connect_timeout)
        return arguments


def _expect(context: ssl.SSLContext, host: str) -> None:
    """Have `context` ask for `host` (SNI) and verify its name, whatever address the driver says it connects to.

    libpq does that by itself. asyncpg has no `hostaddr`, and verifies the name that it connects to.
    """
    wrap_bio = context.wrap_bio

    def wrap(
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        return wrap_bio(incoming, outgoing, server_side, host, session)

    context.wrap_bio = wrap  # type: ignore[method-assign]


def _has_authorities(context: ssl.SSLContext) -> bool:
    """Whether the context can know any: OpenSSL counts a bundle at once, and opens directories during handshakes."""
    paths = ssl.get_default_verify_paths()
    directories = os.environ.get(paths.openssl_capath_env, paths.openssl_capath).split(os.pathsep)
    hashed = (next(Path(directory).glob("*.[0-9]"), None) for directory in directories if directory)
    return context.cert_store_stats()["x509"] > 0 or any(hashed)


def _system_bundle() -> str:
    """Return the file with the system's authorities (SSL_CERT_FILE first), "system" where there is none.

    psycopg's wheels bring an OpenSSL whose own directory exists nowhere: "system" alone finds nothing.
    """
    paths = ssl.get_default_verify_paths()
    candidates = (paths.cafile, paths.capath and f"{paths.capath}/ca-certificates.crt")  # the latter is Debian's
    return next((path for path in candidates if path and os.path.isfile(path)), "system")
