"""The TLS contexts: trusted authorities and the verified host name."""

import os
import ssl
from pathlib import Path
from typing import Literal

from api.neon.errors import InvalidURLError

# The outcome of every sslmode: no TLS; chain and host name verified; encrypted, but the server is not verified.
TLSMode = Literal["disable", "verify-full", "no-verify"]


def make_context(sslmode: TLSMode, sslrootcert: Path | None, verified_host: str | None) -> ssl.SSLContext | None:
    """Return a new context, None for clear text. Raises InvalidURLError if no certificate authority can be read.

    `sslrootcert`: None for the system's authorities. `verified_host`: see `expect_host`; None for the host that the
    driver connects to.
    """
    if sslmode == "disable":
        return None
    try:
        context = ssl.create_default_context(cafile=sslrootcert)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InvalidURLError(f"sslrootcert: cannot be read as certificates in PEM form ({reason})") from None
    if sslmode == "no-verify":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif not sslrootcert and not _has_authorities(context):
        raise InvalidURLError(
            "this system has no certificate authorities to verify the server with: "
            "install the package ca-certificates, or name a file with sslrootcert="
        )
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["postgresql"])  # PostgreSQL 17+ demands it for sslnegotiation=direct
    if verified_host is not None:
        expect_host(context, verified_host)
    return context


def expect_host(context: ssl.SSLContext, host: str) -> None:
    """Make `context` send `host` as SNI and verify that name, whatever address the driver connects to.

    libpq does that by itself for `hostaddr`. asyncpg has no `hostaddr`, and verifies the name that it connects to. So
    this replaces the context's `wrap_bio`, the documented method by which asyncio's streams start TLS (Lib/asyncio/
    sslproto.py, and uvloop/sslproto.pyx), which pass the host as its fourth argument or by name.
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
    """True if the system has any authorities: OpenSSL counts a bundle, and opens directories only in a handshake."""
    paths = ssl.get_default_verify_paths()
    directories = os.environ.get(paths.openssl_capath_env, paths.openssl_capath).split(os.pathsep)
    hashed = (next(Path(directory).glob("*.[0-9]"), None) for directory in directories if directory)
    return context.cert_store_stats()["x509"] > 0 or any(hashed)


def system_bundle() -> str:
    """Return the file of the system's authorities (SSL_CERT_FILE first), "system" if there is none.

    psycopg's wheels bring an OpenSSL whose default directory does not exist: with "system" it finds no authority.
    """
    paths = ssl.get_default_verify_paths()
    candidates = (paths.cafile, paths.capath and f"{paths.capath}/ca-certificates.crt")  # the latter is Debian's
    return next((path for path in candidates if path and os.path.isfile(path)), "system")
