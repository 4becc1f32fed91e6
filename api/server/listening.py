"""The sockets that a server listens on. They are bound before anything else is started or said."""

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from api.environment import SettingsError

_NOT_HERE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


@contextmanager
def bind(host: str, port: int, variable: str) -> Iterator[list[socket.socket]]:
    """Yield a socket for each address of `host`, bound to one port and not yet listening. "" is every address.

    They are closed at the end. With port 0 the system chooses the port. Raises SettingsError, whose message begins with
    `variable`.
    """
    with ExitStack() as opened:
        try:
            sockets = _bind(host, port, opened)
        except (OSError, UnicodeError) as error:  # UnicodeError: no host can have this name.
            raise SettingsError(f"{variable}: cannot listen on {url_of(host, port)}: {_explain(error)}") from None
        yield sockets


def port_of(sockets: list[socket.socket]) -> int:
    """Return the port to which sockets are bound."""
    port: int = sockets[0].getsockname()[1]
    return port


def url_of(host: str, port: int) -> str:
    """Return a server's URL, an IPv6 address in brackets (RFC 3986, section 3.2.2), its zone behind %25 (RFC 6874)."""
    host = f"[{host.replace('%', '%25')}]" if ":" in host else host
    return f"http://{host or 'localhost'}:{port}"


def _bind(host: str, port: int, opened: ExitStack) -> list[socket.socket]:
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    addresses = list(dict.fromkeys((family, address) for family, *_, address in found))
    sockets: list[socket.socket] = []
    missing = OSError()
    for family, address in addresses:
        try:
            sock = opened.enter_context(socket.socket(family))
            if os.name == "posix":  # Elsewhere it would let two servers share a port.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:  # Alone, :: takes IPv4 too; beside 0.0.0.0 it must not.
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, len(addresses) > 1)
            bound: tuple[Any, ...] = (address[0], port_of(sockets) if sockets else port, *address[2:])
            sock.bind(bound)
        except OSError as error:
            # Where IPv6 is off, localhost may still have an address of it.
            if error.errno not in _NOT_HERE:
                raise
            missing = error
        else:
            sockets.append(sock)
    if not sockets:
        raise missing
    return sockets


def _explain(error: OSError | UnicodeError) -> str:
    if isinstance(error, UnicodeError):
        return "no host has this name: name an address of this machine"
    remedies = {
        errno.EADDRINUSE: "stop the program that listens there, or choose another port",
        errno.EACCES: "choose a port of 1024 or above, which needs no privilege",
    }
    return f"{error.strerror}: {remedies.get(error.errno or 0, 'name an address of this machine')}"
