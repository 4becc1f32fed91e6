"""Import and export over HTTP: streams of any length, in constant memory, at the pace of the slower side."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import Receive

from api.auth.guard import caller
from api.context import request_id
from api.errors import StatementTimeoutError, StoppingError
from api.http.conditions import check_conditions
from api.http.request import read_header, read_list, read_query
from api.http.resource import Resource
from api.http.streaming import Stream
from api.resources.services import Services
from api.users.bulk import operations
from api.users.bulk.formats import CSV, FORMATS, NDJSON, Format, choose_by_accept, choose_by_content, export_users
from api.users.bulk.importing import Counts, Import
from api.users.bulk.problems import import_stopped, too_many_at_once
from api.users.bulk.report import Report
from api.users.bulk.writing import write_rows
from api.users.problems import USER
from api.users.schemas import ExportQuery, ImportQuery

Result = TypeVar("Result")

CHUNK_ROWS = 1000
"""Rows in one statement. It takes about 10 ms, for which other requests may wait if the pool is small."""


class Bulk:
    """The handlers of import and export, at most BULK_MAX_REQUESTS at once, and one less for each caller.

    An import acquires a connection of the pool for one chunk at a time. An export opens a connection of its own: it
    needs one for as long as its client reads. A client or PostgreSQL that is silent for BULK_IDLE_SECONDS ends either,
    and so does a client that sends too little in that time.
    """

    def __init__(self, services: Services) -> None:
        self._database = services.primary
        self._max_requests = services.bulk_max_requests
        self._holders: list[str] = []  # the callers of those in progress
        self._idle_seconds = services.bulk_idle_seconds

    async def import_users(self, request: Request) -> Response:
        """POST /api/v1/users/import: NDJSON with each refused line, the progress, and a summary."""
        query = read_query(request, ImportQuery)
        format = choose_by_content(read_header(request, b"content-type"), read_list(request, b"content-encoding"))
        if query.format and format is CSV:
            format = FORMATS[query.format]
        check_conditions(request, is_there=False)
        name = request_id()
        report = Report()
        write = partial(write_rows, self._database, query.on_conflict, name)
        work = Import(format.parser(), write, report.write, counts=Counts(), chunk_rows=CHUNK_ROWS, request_id=name)
        async with AsyncExitStack() as stack:
            stack.enter_context(self._slot(caller(request.scope)))
            importing = await stack.enter_async_context(_task(self._import(request.receive, work, report)))
            importing.add_done_callback(lambda _: report.end())
            await _cancel_import_at_shutdown(report.wait, importing)
            if importing.done():
                importing.result()  # An import that wrote nothing raises: the problem has its own status.
            return Stream(
                _read_report(report, importing),
                stack.pop_all(),
                media_type=NDJSON.media_types[0],
                idle_seconds=self._idle_seconds,
                until=importing,
            )

    async def export_users(self, request: Request) -> Response:
        """GET /api/v1/users/export: every user, from one snapshot."""
        query = read_query(request, ExportQuery)
        format = FORMATS[query.format] if query.format else choose_by_accept(read_list(request, b"accept"))
        headers = {"Content-Disposition": f'attachment; filename="users.{format.suffix}"', "Vary": "Accept"}
        if request.method == "HEAD":
            response = Response(headers=headers, media_type=format.media_types[0])
            del response.headers["content-length"]  # It would be that of the empty body.
            return response
        async with AsyncExitStack() as stack:
            stack.enter_context(self._slot(caller(request.scope)))
            # PostgreSQL waits while a piece is in the queue, so that it sends at the pace of the client.
            pieces: asyncio.Queue[bytes] = asyncio.Queue(maxsize=1)
            copying = await stack.enter_async_context(_task(self._copy(format, pieces)))
            leaving = await stack.enter_async_context(_task(_wait_for_disconnect(request.receive)))
            leaving.add_done_callback(lambda _: copying.cancel())
            try:
                first = await self._read_piece(pieces, copying)  # A failure before it is a problem with its own status.
            except asyncio.CancelledError:
                raise StoppingError from None
            return Stream(
                self._read_pieces(first, pieces, copying),
                stack.pop_all(),
                media_type=format.media_types[0],
                headers=headers,
                idle_seconds=self._idle_seconds,
            )

    def routes(self) -> list[BaseRoute]:
        """Return the routes of import and export."""
        # Slots bound them instead of the gate, since a stream has no deadline.
        stream = partial(Resource, gate=None, primary_only=True)
        return [
            Route(f"{USER.path}/import", stream(post=(self.import_users, operations.IMPORT_USERS))),
            Route(f"{USER.path}/export", stream(get=(self.export_users, operations.EXPORT_USERS))),
        ]

    @contextmanager
    def _slot(self, caller: str) -> Iterator[None]:
        """Take a slot for the duration. Raises Problem if none is free, or if the caller has all others already."""
        is_taken = len(self._holders) == self._max_requests
        # Without authentication callers cannot be told apart: they share the name "".
        if is_taken or (caller and self._holders.count(caller) == max(1, self._max_requests - 1)):
            raise too_many_at_once()
        self._holders.append(caller)
        try:
            yield
        finally:
            self._holders.remove(caller)

    async def _import(self, receive: Receive, work: Import, report: Report) -> None:
        failure: Exception | None = None
        try:
            await work.run(_read_body(receive), self._idle_seconds)
        except ClientDisconnect:
            raise
        except asyncio.CancelledError:
            failure = import_stopped()
        except Exception as error:
            failure = error
        # Once lines were processed, every failure ends in a summary, which has the last line that was written.
        if failure is not None and not work.counts.lines:
            raise failure
        report.write(work.summarise(failure, unreported=report.unreported))

    async def _copy(self, format: Format, pieces: asyncio.Queue[bytes]) -> None:
        async with self._database.connect() as connection:
            await export_users(connection, format, pieces.put)

    async def _read_pieces(
        self, piece: bytes, pieces: asyncio.Queue[bytes], copying: asyncio.Task[None]
    ) -> AsyncIterator[bytes]:
        while piece:
            yield piece
            piece = await self._read_piece(pieces, copying)

    async def _read_piece(self, pieces: asyncio.Queue[bytes], copying: asyncio.Task[None]) -> bytes:
        """Return the next piece, b"" at the end. Raises the exception that ended the copying."""
        getting = asyncio.ensure_future(pieces.get())
        try:
            await asyncio.wait({getting, copying}, timeout=self._idle_seconds, return_when=asyncio.FIRST_COMPLETED)
            if getting.done():
                return getting.result()
            if not copying.done():
                raise StatementTimeoutError
            if copying.cancelled():
                raise ClientDisconnect
            copying.result()
            return b""
        finally:
            getting.cancel()


async def _read_body(receive: Receive) -> AsyncIterator[bytes]:
    has_more = True
    while has_more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        yield message.get("body", b"")
        has_more = message.get("more_body", False)


async def _read_report(report: Report, importing: asyncio.Task[None]) -> AsyncIterator[bytes]:
    while data := await _cancel_import_at_shutdown(report.read, importing):
        yield data
    importing.result()


async def _cancel_import_at_shutdown(wait: Callable[[], Awaitable[Result]], importing: asyncio.Task[None]) -> Result:
    """Return the result of `wait`. If the request is cancelled, cancel the import and wait again for its last lines."""
    try:
        return await wait()
    except asyncio.CancelledError:
        # Only shutdown cancels a request. The import then ends with a summary for the client.
        importing.cancel()
        return await wait()


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


@asynccontextmanager
async def _task(work: Coroutine[Any, Any, None]) -> AsyncIterator[asyncio.Task[None]]:
    """Run `work` in a task for the duration; cancel the task at the end if it still runs."""
    task = asyncio.create_task(work)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # Mark the exception as retrieved: asyncio would log it otherwise.
