"""Versioned rows: the paths, conditions, headers and problems of rows that have an id and a version.

A statement returns such a row as id, version and body, the JSON of the response.
"""

from typing import Protocol, TypeVar

from asyncpg import Record
from starlette.convertors import StringConvertor, register_url_convertor
from starlette.requests import Request
from starlette.responses import Response

from api.database.batching import Batcher
from api.errors import Problem, RefusedError
from api.http.conditions import etag, is_known, version_mismatch
from api.http.response import JSONBody
from api.resources.cursors import MAX_ID

_MAX_ID_DIGITS = len(str(MAX_ID))


class _IdConvertor(StringConvertor):
    """The path parameter of a row: any segment except `import` and `export`, which are actions on all rows.

    A text that is no id belongs to no row: `Rows.read_id` says so, where a path that does not match would say nothing.
    """

    regex = r"(?!(?:import|export)\Z)[^/]+"


register_url_convertor("id", _IdConvertor())


class Change(Protocol):
    """A change of one row; `if_match` has the versions that it may have, None for any."""

    @property
    def id(self) -> int:
        """The id of the row."""

    @property
    def if_match(self) -> list[int] | None:
        """The versions."""


AnyChange = TypeVar("AnyChange", bound=Change)


class Rows:
    """The rows of one kind: `noun` is the word for one of them, and `path` is that of the collection."""

    def __init__(self, noun: str, path: str) -> None:
        self.noun = noun
        self.path = path
        self._path = path.encode()

    def not_found(self) -> Problem:
        """The problem of an id without a row."""
        return Problem(404, f"{self.noun.capitalize()} not found")

    def changed(self) -> Problem:
        """The problem of an If-Match without the current version."""
        return version_mismatch(self.noun)

    def read_id(self, request: Request, parameter: str = "id") -> int:
        """Return the id in the path. Raises Problem: 404 for any text that cannot be an id."""
        text: str = request.path_params[parameter]
        if not (text.isascii() and text.isdigit() and len(text) <= _MAX_ID_DIGITS and 0 < int(text) <= MAX_ID):
            raise self.not_found()
        return int(text)

    def answer(self, request: Request, row: Record | None) -> Response:
        """Return the response to GET: the row, or 304 if the client has it. Raises Problem: 404, 412."""
        if row is None:
            raise self.not_found()
        if is_known(request, row["version"], self.noun):
            return Response(status_code=304, headers={"ETag": etag(row["version"]).decode()})
        return respond(row)

    async def apply(
        self,
        write: Batcher[AnyChange, Record | None],
        change: AnyChange,
        select: Batcher[int, Record | None],
    ) -> Record:
        """Change or delete a row and return it.

        `write` returns None if there is no row, and one without body if the row kept this version. Raises Problem, 404
        if there is no row, 412 if If-Match fails; and RefusedError.
        """
        while True:
            row = await write(change)
            if row is None:
                raise self.not_found()
            if row["body"] is not None:
                return row
            if change.if_match is not None and row["version"] not in change.if_match:
                raise self.changed()
            # The statement saw a row that it may write, and did not. A read shows why, where another write could run
            # a trigger twice: the same version means that no other session came in between.
            now = await select(change.id)
            if now is not None and now["version"] == row["version"]:
                raise RefusedError

    def location(self, id: int) -> tuple[bytes, bytes]:
        """Return the header that names a new row."""
        return b"location", b"%s/%d" % (self._path, id)

    def link(self, next_query: bytes | None, below: bytes = b"") -> tuple[tuple[bytes, bytes], ...]:
        """Return the header that names the next page, by its query string; none after the last page.

        `below` is the rest of a path that lies below the collection, such as `/5/members`.
        """
        return () if next_query is None else ((b"link", b'<%s%s?%s>; rel="next"' % (self._path, below, next_query)),)


def respond(row: Record, status: int = 200, *headers: tuple[bytes, bytes]) -> JSONBody:
    """Return the response that has the row, with its ETag."""
    return JSONBody(row["body"].encode(), status, ((b"etag", etag(row["version"])), *headers))


def id_of(change: Change) -> int:
    """Return the id of the row that a change is for: the key of its batcher."""
    return change.id
