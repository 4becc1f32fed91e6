"""Read-after routing: reads go to the replica, and the header Read-After orders them after writes."""

import re
from collections.abc import Sequence
from functools import partial

from starlette.requests import Request
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.database.replica import BEYOND, Replica
from api.errors import Problem
from api.http.request import invalid_header, read_header
from api.http.resource import Resource
from api.http.response import send_problem

_POSITION = re.compile(rb"([0-9A-Fa-f]{1,8})/([0-9A-Fa-f]{1,8})")

# The responses to a write that depend on rows. So do 404, 409 and 412: the replica may not have their rows yet.
_FROM_DATABASE = frozenset({200, 201, 204, 404, 409, 412})


def replicated(primary: Sequence[BaseRoute], reads: Sequence[BaseRoute], replica: Replica) -> list[BaseRoute]:
    """Return the routes of `primary`; the replica serves GET and HEAD of those that are in `reads` too.

    Those that are `primary_only` stay as they are.
    """
    on_replica = {
        route.path: route.app
        for route in reads
        if isinstance(route, Route) and isinstance(route.app, Resource) and not route.app.primary_only
    }
    return [
        Route(route.path, _Replicated(route.app, on_replica[route.path], replica))
        if isinstance(route, Route) and route.path in on_replica
        else route
        for route in primary
    ]


class _RestartedError(Exception):
    """The replica may have restarted since it was known to have replayed the client's write."""


class _Replicated:
    """A resource on both databases.

    Writes go to the primary and return Read-After. Reads go to the replica if it has replayed the client's write.
    """

    def __init__(self, primary: ASGIApp, reads: ASGIApp, replica: Replica) -> None:
        self._primary = primary
        self._reads = reads
        self._replica = replica

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["method"] not in ("GET", "HEAD"):
            await self._primary(scope, receive, partial(self._send_position, send))
            return
        try:
            position = _read_position(Request(scope))
        except Problem as problem:
            await send_problem(problem, scope, receive, send)
            return
        if position is None:
            await self._reads(scope, receive, send)
            return
        epoch = None
        if position[0].upper() != BEYOND:
            epoch = await self._replica.reaches((int(position[1], 16) << 32) + int(position[2], 16))
        if epoch is not None:
            try:
                await self._reads(scope, receive, partial(self._send_unless_restarted, send, epoch))
            except _RestartedError:
                pass
            else:
                return
        await self._primary(scope, receive, send)

    async def _send_position(self, send: Send, message: Message) -> None:
        if message["type"] == "http.response.start":
            status = message["status"]
            if status in _FROM_DATABASE or status >= 500:
                position = BEYOND if status >= 500 else await self._replica.position()
                message = {**message, "headers": [*message["headers"], (b"read-after", position)]}
        await send(message)

    async def _send_unless_restarted(self, send: Send, epoch: int, message: Message) -> None:
        if message["type"] == "http.response.start" and self._replica.epoch != epoch:
            raise _RestartedError
        await send(message)


def _read_position(request: Request) -> re.Match[bytes] | None:
    """Return the Read-After, None if absent. Raises Problem: 400 or 422."""
    read_after = read_header(request, b"read-after")
    if read_after is None:
        return None
    position = _POSITION.fullmatch(read_after)
    if position is None:
        raise invalid_header("read-after", "must be what the answer to a write said, such as 0/16B3748", "read_after")
    return position
