"""Loopback hosts, which only this machine can reach: they need neither credentials nor TLS."""

import socket
from ipaddress import ip_address


def is_loopback(host: str) -> bool:
    """Return whether every address of `host`, a name or an address, is a loopback address.

    The empty name means every address, as for a server that listens.
    """
    try:
        found = socket.getaddrinfo(host or None, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError:
        return False
    return all(ip_address(str(address[0]).partition("%")[0]).is_loopback for *_, address in found)
