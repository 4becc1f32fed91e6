"""HTTP over plain sockets: HTTP clients behave too well."""

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
    """All that comes until the server closes the connection: the test's own time-out is 30 s."""
    received = bytearray()
    try:
        while piece := connection.recv(1 << 20):
            received += piece
    except ConnectionResetError:  # it closed with something of ours unread
        pass
    return bytes(received)


def exchange(address: tuple[str, int], *sent: bytes) -> bytes:
    with connected(address, *sent) as connection:
        return read_all(connection)
