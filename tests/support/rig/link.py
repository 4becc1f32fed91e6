"""One connection through the fault proxy, from its first byte to its end."""

import asyncio
import ctypes
import socket
import struct
from contextlib import suppress
from typing import TYPE_CHECKING

from tests.support.rig import wire
from tests.support.rig.handshake import TLSFailedError, accept
from tests.support.rig.injections import (
    INSECURE,
    POOLER_FULL,
    SERVER_FULL,
    STATEMENT_POINTS,
    Action,
    Cut,
    Farewell,
    Injection,
    Point,
    Route,
)

if TYPE_CHECKING:
    from tests.support.rig.proxy import Proxy

_CHUNK = 2**16
_SO_ATTACH_FILTER = 26  # Linux; Python has no name for it


class _Ended(Exception):
    """The connection ends with this action."""

    def __init__(self, action: Action) -> None:
        super().__init__(action)
        self.action = action


class Link:
    """A client's connection, and its connection to the server.

    TLS ends here, as in Neon's own proxy: an injection needs to see the statements to strike the right one. The way to
    the server is its Unix socket, in clear text, in a private directory.
    """

    def __init__(self, proxy: "Proxy", route: Route, client: socket.socket) -> None:
        self._proxy = proxy
        self._route: Route = route
        self._socket = client
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter | None = None
        self._server: asyncio.StreamWriter | None = None
        self._end: asyncio.Future[Action] = asyncio.get_running_loop().create_future()
        self._armed: Injection | None = None  # waits for the answer to the statement in flight

    def end(self, action: Action) -> None:
        """End the connection from outside."""
        if not self._end.done():
            self._end.set_result(action)

    async def run(self) -> None:
        """Carry the connection until one side closes it, or an injection ends it."""
        carrying = asyncio.create_task(self._carry())
        try:
            await asyncio.wait((carrying, self._end), return_when=asyncio.FIRST_COMPLETED)
            action = self._end.result() if self._end.done() else carrying.result()
            carrying.cancel()
            await self._perform(action)
        finally:
            carrying.cancel()
            for writer in (self._server, self._writer):
                if writer is not None:
                    writer.close()
            if self._writer is None:
                self._socket.close()

    async def _carry(self) -> Action:
        """Forward both ways, and return how the connection ends."""
        action: Action = Cut.CLOSE
        try:
            server = await self._open()
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._forward_requests())
                pumps.create_task(self._forward_answers(server))
        except* _Ended as ended:
            (first, *_) = ended.exceptions
            assert isinstance(first, _Ended)
            action = first.action
        except* (OSError, EOFError):  # a side closed it, or TLS failed
            pass
        return action

    async def _open(self) -> asyncio.StreamReader:
        """Negotiate TLS, read the startup packet, wake the compute, and connect to the server."""
        proxy = self._proxy
        self._strike(Point.ACCEPT)
        try:
            self._reader, self._writer, packet = await accept(self._socket, proxy.tls)
        except TLSFailedError:
            proxy.counts.tls_failures += 1
            raise
        if proxy.tls is not None and self._writer.get_extra_info("ssl_object") is None:
            raise _Ended(INSECURE)
        if wire.code(packet) == wire.CANCEL_REQUEST:
            proxy.counts.cancels += 1
        else:
            self._strike(Point.CONNECT)
            if proxy.refusal is not None:
                raise _Ended(proxy.refusal)
            if proxy.max_client_conn is not None and len(proxy.links) > proxy.max_client_conn:
                full = POOLER_FULL if self._route == "pooled" else SERVER_FULL
                proxy.counts.faults[f"full {full.sqlstate}"] += 1
                raise _Ended(full)
            await proxy.awake()
            packet, dropped = wire.filter_startup(packet)
            proxy.counts.dropped_parameters.update(dropped)
        reader, self._server = await asyncio.open_unix_connection(str(proxy.targets[self._route]), limit=_CHUNK)
        self._server.write(packet)
        return reader

    def _strike(self, point: Point) -> None:
        if injection := self._proxy.take(self._route, (point,)):
            raise _Ended(injection.action)

    async def _forward_requests(self) -> None:
        assert self._server is not None
        pending = b""
        while data := await self._reader.read(_CHUNK):
            pending += data
            end, kinds = wire.split(pending)
            whole, pending = pending[:end], pending[end:]
            counts = self._proxy.counts
            counts.round_trips += wire.round_trips(kinds)
            if statements := wire.statements(kinds):
                counts.statements += statements
                self._armed = injection = self._proxy.take(self._route, STATEMENT_POINTS)
                if injection and injection.point in (Point.REQUEST, Point.TORN_REQUEST):
                    if injection.point is Point.TORN_REQUEST:
                        self._server.write(whole[: len(whole) // 2])
                    raise _Ended(injection.action)
            await self._delay()
            self._server.write(whole)
            await self._server.drain()
        raise _Ended(Cut.CLOSE)

    async def _forward_answers(self, server: asyncio.StreamReader) -> None:
        assert self._writer is not None
        held = b""
        while data := await server.read(_CHUNK):
            await self._delay()
            if injection := self._armed:
                held += data
                if wire.READY_FOR_QUERY not in wire.split(held)[1]:
                    continue
                shown = {Point.ANSWER: 0, Point.TORN_ANSWER: len(held) // 2}.get(injection.point, len(held))
                self._writer.write(held[:shown])
                raise _Ended(injection.action)
            self._writer.write(data)
            await self._writer.drain()
        raise _Ended(Cut.CLOSE)

    async def _delay(self) -> None:
        if self._proxy.latency:
            await asyncio.sleep(self._proxy.latency / 2)

    async def _perform(self, action: Action) -> None:
        """End the client's side as `action` says; the server's side is closed by the caller."""
        if self._writer is not None:
            await _flush(self._writer.transport)
        if action is Cut.LOSS:
            _drop_packets(self._socket)
        if action in (Cut.STALL, Cut.LOSS):
            self._proxy.links.pop(self, None)
            await self._stall()
            action = Cut.RESET
        if action is Cut.RESET:
            # Closing with a linger time of zero sends RST.
            with suppress(OSError):  # The client may have closed it first.
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            if self._writer is not None:
                self._writer.transport.abort()
        elif isinstance(action, Farewell) and self._writer is not None:
            self._writer.write(wire.error_response(action))

    async def _stall(self) -> None:
        """Return once the client has given up, or the proxy is reset."""
        leaving = self._writer.wait_closed() if self._writer is not None else self._read_to_end()
        ends = [asyncio.create_task(self._proxy.released()), asyncio.create_task(leaving)]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in ends:
                task.cancel()
            await asyncio.gather(*ends, return_exceptions=True)

    async def _read_to_end(self) -> None:
        while await asyncio.get_running_loop().sock_recv(self._socket, _CHUNK):
            pass


async def _flush(transport: asyncio.WriteTransport) -> None:
    """Wait for the write buffer to drain, since a reset discards the rest; for a second at most."""
    with suppress(TimeoutError):
        async with asyncio.timeout(1):
            while transport.get_write_buffer_size():  # noqa: ASYNC110 - asyncio has no event for an empty buffer
                await asyncio.sleep(0)


def _drop_packets(connection: socket.socket) -> None:
    """Discard every packet before TCP sees it, by a filter with the one instruction "accept no byte"."""
    instruction = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))  # BPF_RET | BPF_K
    program = struct.pack("HL", 1, ctypes.addressof(instruction))
    connection.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
