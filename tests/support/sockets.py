"""HTTP over plain sockets: an HTTP client would never misbehave."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def connected(address: tuple[str, int], *sent: bytes) -> Iterator[socket.socket]:
    with socket.create_connection(address, timeout=30) as connection:
        for piece in sent:
            connection.sendall(piece)
        yield connection


def read_all(connection: socket.socket) -> bytes:
    """Return everything up to the end of the connection; the socket's timeout is 30 s."""
    received = bytearray()
    try:
        while piece := connection.recv(1 << 20):
            received += piece
    except ConnectionResetError:  # the server closed with bytes of ours unread
        pass
    return bytes(received)


def exchange(address: tuple[str, int], *sent: bytes) -> bytes:
    with connected(address, *sent) as connection:
        return read_all(connection)
