"""The start of a connection: TLS, if the client asks for it and the rig has it, and a startup packet.

https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-SSL
"""

import asyncio
import socket
import ssl
import struct

from tests.support.rig import wire

Opened = tuple[asyncio.StreamReader, asyncio.StreamWriter, bytes]


class TLSFailedError(OSError):
    """One side gave up the TLS handshake; its cause is the original error."""


async def accept(client: socket.socket, tls: ssl.SSLContext | None) -> Opened:
    """Return the streams of a new connection, and its startup packet. Raises TLSFailedError, OSError and EOFError."""
    loop = asyncio.get_running_loop()
    while not await _begins_with_tls(client):
        packet = await _receive(client, 4)
        packet += await _receive(client, struct.unpack("!I", packet)[0] - 4)
        if wire.code(packet) not in (wire.SSL_REQUEST, wire.GSS_REQUEST):
            return (*await _streams(client, None), packet)
        accepted = wire.code(packet) == wire.SSL_REQUEST and tls is not None
        await loop.sock_sendall(client, b"S" if accepted else b"N")
    if tls is None:
        raise EOFError
    try:
        reader, writer = await _streams(client, tls)
    except OSError as error:
        raise TLSFailedError from error
    try:
        length = await reader.readexactly(4)
        return reader, writer, length + await reader.readexactly(struct.unpack("!I", length)[0] - 4)
    except BaseException:
        writer.close()
        raise


async def _begins_with_tls(client: socket.socket) -> bool:
    """Return whether the next byte starts a TLS handshake, not the length of a packet."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(client, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(client)
    first = client.recv(1, socket.MSG_PEEK)
    if not first:
        raise EOFError
    return first == b"\x16"


async def _receive(client: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = await asyncio.get_running_loop().sock_recv(client, size - len(data))
        if not more:
            raise EOFError
        data += more
    return data


async def _streams(
    client: socket.socket, tls: ssl.SSLContext | None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    transport, _ = await loop.connect_accepted_socket(lambda: protocol, client, ssl=tls)
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)
