"""The network to a host, from its name to verified TLS: the steps of asyncpg one by one, to see which one fails."""

import asyncio
import os
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable
from ipaddress import ip_address
from typing import Any

from api.doctor.findings import Finding, green, red, yellow
from api.neon.drivers import DatabaseURL
from api.threads import in_daemon_thread

# Length and code: https://www.postgresql.org/docs/current/protocol-message-formats.html, SSLRequest.
_SSL_REQUEST = struct.pack("!ii", 8, 80877103)

# OpenSSL's X509_V_ERR_* numbers (x509_vfy.h), and the remedy of each.
_RENEW = "renew the server's certificate; where it is current, set this machine's clock"
_CERTIFICATE_REMEDIES = {
    9: "set this machine's clock, or wait until the server's certificate becomes valid",
    10: _RENEW,
    **dict.fromkeys(
        (18, 19, 20, 21),
        "name the authority's file with sslrootcert=FILE in the URL, if you trust the operator of this server",
    ),
}
_WRONG_NAME = (62, 64)  # of a host, of an address


class HostChecks:
    """The network checks of one host of a URL. Each needs the one before it; `close` closes the connection."""

    def __init__(self, url: DatabaseURL, host: str, port: int) -> None:
        self._url = url
        self._host = host
        self._port = port
        self._addresses: list[str] = []
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    def all(self) -> list[tuple[str, Callable[[], Awaitable[Finding]]]]:
        """Return the checks of this host, each with its name, in order."""
        if self._host.startswith("/"):
            return [("Unix socket", self._connect_unix)]
        return [("name resolution", self._resolve), ("TCP", self._connect), ("TLS", self._handshake)]

    def close(self) -> None:
        """Close the connection that the checks have opened."""
        if self._streams:
            self._streams[1].transport.abort()

    async def _connect_unix(self) -> Finding:
        path = f"{self._host}/.s.PGSQL.{self._port}"
        try:
            self._streams = await asyncio.open_unix_connection(path)
        except OSError as error:
            return red(
                f"{path}: {_reason(error)}", "start PostgreSQL, or correct the directory and the port in the URL"
            )
        return green(f"{path}: nothing leaves this machine")

    async def _resolve(self) -> Finding:
        if self._url.hostaddr:
            self._addresses = [self._url.hostaddr]
            return green(f"{self._host}: {self._url.hostaddr} (hostaddr)")
        try:
            found = await in_daemon_thread(socket.getaddrinfo, self._host, self._port, type=socket.SOCK_STREAM)
        except socket.gaierror as error:
            remedy = "copy the host from Neon's console again"
            if error.errno == socket.EAI_AGAIN:
                remedy = "no name server responds: fix this machine's DNS and try again"
            return red(f"{self._host}: {error.strerror}", remedy)
        self._addresses = list(dict.fromkeys(str(address[0]) for *_, address in found))
        return green(f"{self._host}: {', '.join(self._addresses)}")

    async def _connect(self) -> Finding:
        refused = []
        for address in self._addresses:
            try:
                self._streams = await asyncio.open_connection(address, self._port)
            except OSError as error:
                refused.append(f"{address}: {_reason(error)}")
            else:
                self._addresses = [address]
                return green(", ".join([f"port {self._port} of {address} answers", *refused]))
        return red(
            f"port {self._port} of {', '.join(refused)}",
            "correct the host and the port in the URL; if they are right, start PostgreSQL there",
        )

    async def _handshake(self) -> Finding:
        context = self._url.tls_context()
        if context is None:
            address = self._addresses[0]
            if ip_address(address).is_loopback:
                return green("none: nothing leaves this machine")
            return yellow(
                "none: the password and every row travel in clear text",
                "turn TLS on at the server (ssl = on) and write sslmode=verify-full, or use a private network only",
            )
        try:
            encrypted = await self._negotiate(context)
        except ssl.SSLCertVerificationError as error:
            return await self._explain_certificate(error)
        except (OSError, EOFError) as error:
            return red(
                f"the handshake failed: {_reason(error)}",
                "check that this is PostgreSQL's port; sslnegotiation=direct needs PostgreSQL 17 or newer"
                if self._url.sslnegotiation == "direct"
                else "check that this is the port of PostgreSQL or its pooler, and that it allows TLS 1.2 or newer",
            )
        if encrypted is None:
            return red(
                "the server has no TLS",
                "turn TLS on at the server (ssl = on); in a private network sslmode=disable is possible",
            )
        cipher = encrypted.cipher()
        detail = f"{encrypted.version()}, {cipher[0] if cipher else 'no cipher'}"
        if self._url.sslmode == "no-verify":
            return yellow(
                f"{detail}, not verified: any server at this address is trusted",
                "write sslmode=verify-full, with sslrootcert=FILE for an authority of your own",
            )
        certificate: dict[str, Any] = encrypted.getpeercert() or {}
        return green(f"{detail}, issued by {_name(certificate.get('issuer', ()))}, verified")

    async def _negotiate(self, context: ssl.SSLContext) -> ssl.SSLObject | None:
        """Do the TLS handshake, before a user's name or a password is sent. None if the server has no TLS.

        Raises OSError, of which ssl.SSLError is one, and EOFError.
        """
        assert self._streams
        reader, writer = self._streams
        if self._url.sslnegotiation != "direct":
            writer.write(_SSL_REQUEST)
            reply = await reader.readexactly(1)
            if reply == b"N":
                return None
            if reply != b"S":
                raise ConnectionError(f"the reply to SSLRequest is {reply!r}, which is not PostgreSQL's")
        await writer.start_tls(context, server_hostname=self._host)
        encrypted: ssl.SSLObject = writer.get_extra_info("ssl_object")
        return encrypted

    async def _explain_certificate(self, error: ssl.SSLCertVerificationError) -> Finding:
        if error.verify_code not in _WRONG_NAME:
            remedy = _CERTIFICATE_REMEDIES.get(error.verify_code, "give the server a certificate that can be verified")
            return red(f"not verified: {error.verify_message}", remedy)
        # The certificate's names can be read only after a handshake that checks none. Nothing is sent after it.
        context = self._url.tls_context()
        assert context
        context.check_hostname = False
        self.close()
        self._streams = await asyncio.open_connection(self._addresses[0], self._port)
        encrypted = await self._negotiate(context)
        certificate: dict[str, Any] = (encrypted and encrypted.getpeercert()) or {}
        names = ", ".join(name for _, name in certificate.get("subjectAltName", ())) or "no host"
        return red(
            f"not verified: the certificate is for {names}",
            f"write a host in the URL that the certificate names, or have one issued for {self._host}",
        )


def _reason(error: Exception) -> str:
    """Return the message of the system or of OpenSSL, without the text that asyncio and Python add."""
    if isinstance(error, ssl.SSLError):
        return str(error.reason or error).replace("_", " ").lower()
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return "the server closed the connection" if isinstance(error, EOFError) else str(error) or type(error).__name__


def _name(issuer: tuple[tuple[tuple[str, str], ...], ...]) -> str:
    """Return a distinguished name's organisation and common name."""
    parts = {key: value for relative in issuer for key, value in relative}
    return " ".join(filter(None, (parts.get("organizationName"), parts.get("commonName")))) or "an unnamed authority"
