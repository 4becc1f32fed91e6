"""The part of PostgreSQL's protocol that injections need: message boundaries, the startup packet, errors.

https://www.postgresql.org/docs/current/protocol-message-formats.html
"""

import struct

from tests.support.rig.injections import Farewell

SSL_REQUEST = 80877103
GSS_REQUEST = 80877104
CANCEL_REQUEST = 80877102

READY_FOR_QUERY = ord("Z")
_EXECUTE, _QUERY, _FLUSH, _SYNC = b"EQHS"

# What Neon's proxy forwards of a startup packet; it drops the rest silently.
_FORWARDED = ("user", "database", "application_name", "replication", "options")
_HEADER = struct.Struct("!BI")


def code(packet: bytes) -> int:
    """Return the code of a startup packet: the protocol's version, if it starts a session."""
    return int.from_bytes(packet[4:8])


def split(data: bytes) -> tuple[int, list[int]]:
    """Return how many bytes of `data` are whole messages, and the type of each."""
    end, kinds = 0, []
    while len(data) - end >= 5:
        kind, length = _HEADER.unpack_from(data, end)
        if len(data) - end < 1 + length:
            break
        kinds.append(kind)
        end += 1 + length
    return end, kinds


def statements(kinds: list[int]) -> int:
    """Return how many of a client's messages run a statement."""
    return kinds.count(_EXECUTE) + kinds.count(_QUERY)


def round_trips(kinds: list[int]) -> int:
    """Return how many of a client's messages make the server send its answer."""
    return kinds.count(_FLUSH) + kinds.count(_SYNC) + kinds.count(_QUERY)


def filter_startup(packet: bytes) -> tuple[bytes, list[str]]:
    """Return a startup packet with the parameters that Neon's proxy forwards, and the names of those that it drops."""
    words = packet[8:].split(b"\0")
    pairs = [(words[i], words[i + 1]) for i in range(0, len(words) - 1, 2) if words[i]]
    kept = [pair for pair in pairs if pair[0].decode() in _FORWARDED]
    body = packet[4:8] + b"".join(name + b"\0" + value + b"\0" for name, value in kept) + b"\0"
    return struct.pack("!I", len(body) + 4) + body, [name.decode() for name, _ in pairs if (name, _) not in kept]


def error_response(farewell: Farewell) -> bytes:
    """Return the ErrorResponse of a farewell."""
    fields = (f"S{farewell.severity}", f"V{farewell.severity}", f"C{farewell.sqlstate}", f"M{farewell.message}", "")
    body = b"".join(field.encode() + b"\0" for field in fields)
    return b"E" + struct.pack("!I", len(body) + 4) + body
