"""Loopback hosts, which only this machine can reach: they need neither credentials nor TLS."""

import socket
from ipaddress import ip_address
from urllib.parse import urlsplit


def is_loopback(host: str) -> bool:
    """Return whether every address of `host`, a name or an address, is a loopback address.

    The empty name means every address, as for a server that listens.
    """
    try:
        found = socket.getaddrinfo(host or None, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError:
        return False
    return all(ip_address(str(address[0]).partition("%")[0]).is_loopback for *_, address in found)


def check_key_set_url(url: str) -> None:
    """Raise ValueError unless `url` is https, or http on a loopback host: anyone in between could replace the keys."""
    if not url.isprintable() or " " in url:
        raise ValueError("it has a blank or an invisible character: type it anew")
    try:
        parts = urlsplit(url)
        port_exists = parts.port is None or parts.port > 0
    except ValueError:  # Its text quotes a part of the URL.
        port_exists = False
    if not port_exists:
        raise ValueError("its host or port cannot be read: write https://HOST:PORT/PATH")
    if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(parts.hostname or "")):
        raise ValueError("write an https:// URL (http:// for the loopback address alone)")
    if not parts.hostname or parts.username is not None:
        raise ValueError("write https://HOST/PATH, without a user")
