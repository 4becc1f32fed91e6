"""The users resource over HTTP. Ends with its routes."""

from asyncpg import Record
from pydantic import TypeAdapter, ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from api.database import Database
from api.errors import email_taken, user_not_found, version_mismatch
from api.http import (
    JSONBody,
    Resource,
    etag,
    matches_if_none_match,
    read_body,
    read_if_match,
    read_query,
)
from api.users import queries
from api.users.schemas import Email, ListQuery, UserCreate, UserUpdate

PATH = "/api/v1/users"

_PATH = PATH.encode()
_FIRST_PAGE = ListQuery()
_EMAIL = TypeAdapter(Email)
_MAX_ID = 2**63 - 1
_MAX_ID_DIGITS = 19


class Users:
    """The handlers of users on one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def list_users(self, request: Request) -> Response:
        """GET /api/v1/users: one page, or the user with one address."""
        query = read_query(request, ListQuery) if request.scope["query_string"] else _FIRST_PAGE
        if query.email is not None:
            return await self._find_user(query.email)
        if query.after is None and query.skip:
            page = await queries.list_users_skip(self._database, query.skip, query.limit)
        else:
            page = await queries.list_users_after(self._database, query.after or 0, query.limit)
        headers: tuple[tuple[bytes, bytes], ...] = ()
        if page["size"] == query.limit:
            headers = ((b"link", b'<%s?after=%d&limit=%d>; rel="next"' % (_PATH, page["last_id"], query.limit)),)
        return JSONBody(page["body"].encode(), headers=headers)

    async def _find_user(self, address: str) -> Response:
        try:
            email = _EMAIL.validate_python(address)
        except ValidationError:
            return JSONBody(b"[]")  # No user can have an address that is none.
        rows = await queries.select_users_by_email(self._database, [email])
        return JSONBody(f"[{','.join(row['body'] for row in rows)}]".encode())

    async def create_user(self, request: Request) -> Response:
        """POST /api/v1/users."""
        user = await read_body(request, UserCreate)
        rows = await queries.insert_users(self._database, [queries.NewUser(user.email, user.name)])
        if not rows:
            raise email_taken()
        location = b"%s/%d" % (_PATH, rows[0]["id"])
        return _user_response(rows[0], 201, (b"location", location))

    async def get_user(self, request: Request) -> Response:
        """GET /api/v1/users/{id}."""
        rows = await queries.select_users(self._database, [_read_id(request)])
        if not rows:
            raise user_not_found()
        if matches_if_none_match(request, rows[0]["version"]):
            return Response(status_code=304, headers={"ETag": etag(rows[0]["version"]).decode()})
        return _user_response(rows[0])

    async def update_user(self, request: Request) -> Response:
        """PATCH /api/v1/users/{id}."""
        user_id, if_match = _read_id(request), read_if_match(request)
        patch = await read_body(request, UserUpdate)
        change = queries.UserChange(user_id, patch.email, "name" in patch.model_fields_set, patch.name, if_match)
        return _user_response(_existing(await queries.update_users(self._database, [change])))

    async def delete_user(self, request: Request) -> Response:
        """DELETE /api/v1/users/{id}."""
        removal = queries.UserRemoval(_read_id(request), read_if_match(request))
        _existing(await queries.delete_users(self._database, [removal]))
        return Response(status_code=204)

    def routes(self) -> list[BaseRoute]:
        """The paths of the resource: with and without a slash at the end they are one, and neither redirects."""
        many = Resource(get=self.list_users, post=self.create_user)
        one = Resource(get=self.get_user, patch=self.update_user, delete=self.delete_user)
        return [Route(f"{PATH}/{{id}}", one), Route(PATH, many), Route(f"{PATH}/", many)]


def _read_id(request: Request) -> int:
    """The path's id. One that no user can have is not found, whatever it is."""
    text: str = request.path_params["id"]
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_ID_DIGITS and 0 < int(text) <= _MAX_ID):
        raise user_not_found()
    return int(text)


def _existing(rows: list[Record]) -> Record:
    """The one row of a change. None at all: no such user; one without a body: If-Match does not hold."""
    if not rows:
        raise user_not_found()
    if rows[0]["body"] is None:
        raise version_mismatch()
    return rows[0]


def _user_response(row: Record, status: int = 200, *headers: tuple[bytes, bytes]) -> JSONBody:
    return JSONBody(row["body"].encode(), status, ((b"etag", etag(row["version"])), *headers))
