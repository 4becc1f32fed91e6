"""A parsed connection URL, and the arguments for asyncpg and psycopg (libpq), over TLS that is verified.

No driver gets the URL itself. asyncpg 0.32 verifies nothing under `sslmode=require`, which Neon's console hands out,
and sends every key that it does not know to the server as a setting (`asyncpg/connect_utils.py`). So `api/neon/url.py`
reads the URL, and the drivers get every value that they would look up by themselves: no PG* variable, `~/.pgpass` or
`~/.postgresql` file changes the server that they connect to or trust.
"""

import os
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from api.neon.tls import TLSMode, make_context, system_bundle

# The values that libpq would take from the environment or the home directory. No file can lie below a device.
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


@dataclass(frozen=True, slots=True)
class DatabaseURL:
    """The server, the role, the database, and how the server is verified. Made and checked by `parse_url`."""

    hosts: tuple[tuple[str, int], ...]  # a host that begins with "/" is the directory of a Unix socket
    user: str
    password: str | None = field(repr=False)
    database: str
    sslmode: TLSMode = "verify-full"
    sslrootcert: Path | None = None  # None: the system's authorities
    sslnegotiation: str = "postgres"
    channel_binding: str = "prefer"  # for libpq: asyncpg has none
    target_session_attrs: str = "any"
    application_name: str | None = None
    hostaddr: str | None = None  # the address to connect to, instead of resolving the host's name
    connect_timeout: int | None = None  # seconds: for all hosts together in asyncpg, for each in libpq
    notes: tuple[str, ...] = ()  # a log line for each key that was translated or dropped, without its value

    @property
    def pooled(self) -> bool:
        """True if the (first) host is Neon's pooler, whose first label ends with `-pooler`."""
        return self.hosts[0][0].partition(".")[0].endswith("-pooler")

    def tls_context(self) -> ssl.SSLContext | None:
        """Return a new context, None for clear text. Raises InvalidURLError if no certificate authority can be read."""
        return make_context(self.sslmode, self.sslrootcert, self.hosts[0][0] if self.hostaddr else None)

    def asyncpg_arguments(self) -> dict[str, Any]:
        """Return keyword arguments for `asyncpg.connect`. Raises what `tls_context` raises.

        asyncpg checks each host's certificate against that host's name, and uses no TLS on Unix sockets.
        """
        arguments: dict[str, Any] = {
            "host": [self.hostaddr] if self.hostaddr else [host for host, _ in self.hosts],
            "port": [port for _, port in self.hosts],
            "user": self.user,
            "password": self.password or "",  # with None asyncpg would read PGPASSWORD and ~/.pgpass
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

        Empty values keep libpq from reading its environment variables, so none may be left out. Only PGSERVICE remains:
        it fails if the service is unknown, and otherwise adds only keywords that are not given here.
        """
        arguments = _LIBPQ_FIXED | {
            "host": ",".join(host for host, _ in self.hosts),
            "hostaddr": self.hostaddr or "",
            "port": ",".join(str(port) for _, port in self.hosts),
            "user": self.user,
            "password": self.password or "",
            "dbname": self.database,
            "sslmode": "require" if self.sslmode == "no-verify" else self.sslmode,
            # Under `require` libpq would still verify if this file exists.
            "sslrootcert": str(self.sslrootcert or system_bundle()) if self.sslmode == "verify-full" else _NO_FILE,
            "sslnegotiation": self.sslnegotiation,
            "channel_binding": self.channel_binding,
            "target_session_attrs": self.target_session_attrs,
        }
        if self.application_name:
            arguments["application_name"] = self.application_name
        if self.connect_timeout:
            arguments["connect_timeout"] = str(self.connect_timeout)
        return arguments
