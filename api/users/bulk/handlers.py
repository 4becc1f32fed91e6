"""Import and export over HTTP: streams of any length, in constant memory, at the pace of the slower side."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, closing, contextmanager
from functools import partial
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import Receive

from api.context import request_id
from api.database.fetch import PooledDatabase
from api.errors import OutcomeUnknownError, StatementTimeoutError, StoppingError
from api.http.request import read_header, read_query
from api.http.resource import Resource
from api.http.streaming import Lines, Stream
from api.settings import Settings
from api.users.bulk import operations
from api.users.bulk.formats import FORMATS, NDJSON, Format, choose_by_accept, choose_by_content, export_users
from api.users.bulk.importing import Counts, Import
from api.users.bulk.problems import import_stopped, too_many_at_once
from api.users.bulk.writing import write_rows
from api.users.handlers import PATH
from api.users.schemas import ExportQuery, ImportQuery

Result = TypeVar("Result")

CHUNK_ROWS = 1000
"""Rows of one statement: some ten milliseconds, for which others may have to wait where the pool is small."""


class Bulk:
    """The handlers of import and export on one database: a few at once, which leave the others their connections.

    An import borrows one for a chunk at a time; an export has one of its own, since it needs it for as long as its
    client takes.
    """

    def __init__(self, database: PooledDatabase, settings: Settings) -> None:
        self._database = database
        self._idle_seconds = settings.bulk_idle_seconds
        self._free = settings.bulk_max_requests

    async def import_users(self, request: Request) -> Response:
        """POST /api/v1/users/import: NDJSON about each line that is refused, the progress, and the end."""
        query = read_query(request, ImportQuery)
        parser = choose_by_content(
            read_header(request, b"content-type"), read_header(request, b"content-encoding")
        ).parser()
        name = request_id()
        async with AsyncExitStack() as resources:
            resources.enter_context(self._place())
            lines = resources.enter_context(closing(Lines()))
            write = partial(write_rows, self._database, query.on_conflict, name)
            work = Import(parser, write, lines.write, counts=Counts(), chunk_rows=CHUNK_ROWS, request_id=name)
            importing = await resources.enter_async_context(_task(self._import(request.receive, work, lines)))
            importing.add_done_callback(lambda _: lines.end())
            await _unless_stopped(lines.wait, importing)
            if importing.done():
                importing.result()  # What nothing came of is a problem, with its own status.

            return Stream(
                _read_lines(lines, importing),
                resources.pop_all(),
                media_type=NDJSON.media_types[0],
                idle_seconds=self._idle_seconds,
                until=importing,
            )

    async def export_users(self, request: Request) -> Response:
        """GET /api/v1/users/export: every user, from one snapshot."""
        query = read_query(request, ExportQuery)
        format = FORMATS[query.format] if query.format else choose_by_accept(read_header(request, b"accept"))
        headers = {"Content-Disposition": f'attachment; filename="users.{format.name}"', "Vary": "Accept"}
        if request.method == "HEAD":
            response = Response(headers=headers, media_type=format.media_types[0])
            del response.headers["content-length"]  # of the empty body, not of the export
            return response
        async with AsyncExitStack() as resources:
            resources.enter_context(self._place())
            # Where a piece lies, PostgreSQL has to wait: it is sent at the pace of the client.
            pieces: asyncio.Queue[bytes] = asyncio.Queue(maxsize=1)
            copying = await resources.enter_async_context(_task(self._copy(format, pieces)))
            leaving = await resources.enter_async_context(_task(_wait_until_gone(request.receive)))
            leaving.add_done_callback(lambda _: copying.cancel())
            try:
                first = await self._read_piece(pieces, copying)  # What fails before is a problem, with its own status.
            except asyncio.CancelledError:
                raise StoppingError from None
            return Stream(
                self._read_pieces(first, pieces, copying),
                resources.pop_all(),
                media_type=format.media_types[0],
                headers=headers,
                idle_seconds=self._idle_seconds,
            )

    def routes(self) -> list[BaseRoute]:
        """The paths of import and export."""
        return [
            Route(f"{PATH}/import", Resource(post=(self.import_users, operations.IMPORT_USERS))),
            Route(f"{PATH}/export", Resource(get=(self.export_users, operations.EXPORT_USERS))),
        ]

    @contextmanager
    def _place(self) -> Iterator[None]:
        """Take one of the places. Raises Problem where there is none."""
        if not self._free:
            raise too_many_at_once()
        self._free -= 1
        try:
            yield
        finally:
            self._free += 1

    async def _import(self, receive: Receive, work: Import, lines: Lines) -> None:
        failure: Exception | None = None
        try:
            await work.run(_read_body(receive, lines), self._idle_seconds)
        except ClientDisconnect:
            raise
        except asyncio.CancelledError:
            failure = import_stopped()
        except Exception as error:
            failure = error
        # Whatever it is, the client has to hear up to which line its users were written.
        if failure is not None and not work.counts.lines:
            raise failure
        try:
            lines.write(work.summarise(failure))
        except OSError as error:  # There is no room on the disk even for that: where nobody has heard anything yet.
            raise OutcomeUnknownError from error

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
        """The next piece, b"" at the end. Raises what ended the copying."""
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


async def _read_body(receive: Receive, lines: Lines) -> AsyncIterator[bytes]:
    has_more = True
    while has_more:
        await lines.wait_for_room()
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        yield message.get("body", b"")
        has_more = message.get("more_body", False)


async def _read_lines(lines: Lines, importing: asyncio.Task[None]) -> AsyncIterator[bytes]:
    while data := await _unless_stopped(lines.read, importing):
        yield data
    importing.result()


async def _unless_stopped(wait: Callable[[], Awaitable[Result]], importing: asyncio.Task[None]) -> Result:
    """What is waited for; where the request is cancelled, what the end of the import brings."""
    try:
        return await wait()
    except asyncio.CancelledError:
        # Nobody but the server cancels a request, when it has waited long enough for it. The client hears of it.
        importing.cancel()
        return await wait()


async def _wait_until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


@asynccontextmanager
async def _task(work: Coroutine[Any, Any, None]) -> AsyncIterator[asyncio.Task[None]]:
    """Run work beside what is done here; it is cancelled at the end, where it has not ended by itself."""
    task = asyncio.create_task(work)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # Whoever wanted to know has asked; asyncio would complain that nobody did.
