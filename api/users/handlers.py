"""The handlers and routes of the users resource."""

from typing import TypeVar

from asyncpg import Record
from pydantic import TypeAdapter, ValidationError
from starlette.convertors import StringConvertor, register_url_convertor
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from api.database.batching import Batcher
from api.errors import RefusedError
from api.http.conditions import etag, is_known, read_condition, version_mismatch
from api.http.request import read_body, read_query
from api.http.resource import Resource
from api.http.response import JSONBody
from api.resources.services import Services
from api.users import operations, queries
from api.users.cursors import MAX_ID
from api.users.emails import Email, email_key
from api.users.idempotency import create_once, read_key
from api.users.listing import Listing
from api.users.problems import email_taken, user_not_found
from api.users.schemas import ListQuery, UserCreate, UserUpdate

PATH = "/api/v1/users"

_PATH = PATH.encode()
_FIRST_PAGE = ListQuery()
_EMAIL = TypeAdapter(Email)
_MAX_ID_DIGITS = len(str(MAX_ID))


class _UserConvertor(StringConvertor):
    """The path parameter of a user: any segment except `import` and `export`, which are other resources."""

    regex = "(?!(?:import|export)$)[^/]+"


register_url_convertor("user", _UserConvertor())

Write = TypeVar("Write", queries.UserChange, queries.UserRemoval)


class Users:
    """The handlers of users."""

    def __init__(self, services: Services) -> None:
        self._gate = services.gate
        self._listing = Listing(services)
        self._select = services.read(queries.select_users)
        self._select_by_email = services.read(queries.select_users_by_email)
        self._insert = services.write(queries.insert_users, key=email_key)
        self._insert_once = services.write(queries.insert_users_once, key=email_key)
        self._update = services.write(queries.update_users, key=_id_of)
        self._delete = services.write(queries.delete_users, key=_id_of)

    async def list_users(self, request: Request) -> Response:
        """GET /api/v1/users: a page, or the user with a given address."""
        query = read_query(request, ListQuery) if request.scope["query_string"] else _FIRST_PAGE
        if query.email is not None:
            return await self._find_user(query.email)
        body, next_query = await self._listing.read(query)
        return JSONBody(body, headers=_link(next_query))

    async def _find_user(self, address: str) -> Response:
        try:
            email = _EMAIL.validate_python(address)
        except ValidationError:
            return JSONBody(b"[]")  # No user has an invalid address.
        user = await self._select_by_email(email)
        return JSONBody(b"[]" if user is None else b"[%s]" % user["body"].encode())

    async def create_user(self, request: Request) -> Response:
        """POST /api/v1/users."""
        key = read_key(request)
        sent = await read_body(request, UserCreate)
        if key is not None:
            return _stored_response(await create_once(self._insert_once, request, key, sent))
        user = await self._insert(queries.NewUser(sent.email, sent.name))
        if user is None:
            raise RefusedError
        if user["body"] is None:
            raise email_taken()
        return _user_response(user, 201, _location(user["id"]))

    async def get_user(self, request: Request) -> Response:
        """GET /api/v1/users/{id}."""
        user = await self._select(_read_id(request))
        if user is None:
            raise user_not_found()
        if is_known(request, user["version"]):
            return Response(status_code=304, headers={"ETag": etag(user["version"]).decode()})
        return _user_response(user)

    async def update_user(self, request: Request) -> Response:
        """PATCH /api/v1/users/{id}."""
        user_id, if_match = _read_id(request), read_condition(request)
        patch = await read_body(request, UserUpdate)
        change = queries.UserChange(user_id, patch.email, "name" in patch.model_fields_set, patch.name, if_match)
        return _user_response(await self._apply(self._update, change))

    async def delete_user(self, request: Request) -> Response:
        """DELETE /api/v1/users/{id}."""
        await self._apply(self._delete, queries.UserRemoval(_read_id(request), read_condition(request)))
        return Response(status_code=204)

    async def _apply(self, batcher: Batcher[Write, Record | None], write: Write) -> Record:
        """Change or delete a user and return its row.

        Raises Problem, 404 if there is none, 412 if If-Match fails; and RefusedError.
        """
        while True:
            user = await batcher(write)
            if user is None:
                raise user_not_found()
            if user["body"] is not None:
                return user
            if write.if_match is not None and user["version"] not in write.if_match:
                raise version_mismatch()
            # The statement saw a user that it may write, and did not. A read shows why, where another write could run
            # a trigger twice: the same version means that no other session came in between.
            now = await self._select(write.id)
            if now is not None and now["version"] == user["version"]:
                raise RefusedError

    def routes(self) -> list[BaseRoute]:
        """Return the routes of the resource. A slash at the end of the path is accepted and does not redirect."""
        many = Resource(
            gate=self._gate,
            get=(self.list_users, operations.LIST_USERS),
            post=(self.create_user, operations.CREATE_USER),
        )
        one = Resource(
            gate=self._gate,
            get=(self.get_user, operations.GET_USER),
            patch=(self.update_user, operations.UPDATE_USER),
            delete=(self.delete_user, operations.DELETE_USER),
        )
        return [Route(f"{PATH}/{{id:user}}", one), Route(PATH, many), Route(f"{PATH}/", many)]


def _read_id(request: Request) -> int:
    """Return the id in the path. Raises Problem: 404 for any text that cannot be an id."""
    text: str = request.path_params["id"]
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_ID_DIGITS and 0 < int(text) <= MAX_ID):
        raise user_not_found()
    return int(text)


def _id_of(write: queries.UserChange | queries.UserRemoval) -> int:
    return write.id


def _stored_response(row: Record) -> Response:
    """Return the response to a creation with an Idempotency-Key, first or replayed."""
    if row["user_id"] is None:
        headers = {"Idempotency-Replayed": "true"} if row["is_replayed"] else None
        return Response(row["body"], 409, headers, "application/problem+json")
    replayed = ((b"idempotency-replayed", b"true"),) if row["is_replayed"] else ()
    # A user is created with version 1, even if it has changed since.
    return JSONBody(row["body"].encode(), 201, ((b"etag", etag(1)), _location(row["user_id"]), *replayed))


def _link(next_query: bytes | None) -> tuple[tuple[bytes, bytes], ...]:
    return () if next_query is None else ((b"link", b'<%s?%s>; rel="next"' % (_PATH, next_query)),)


def _location(user_id: int) -> tuple[bytes, bytes]:
    return b"location", b"%s/%d" % (_PATH, user_id)


def _user_response(user: Record, status: int = 200, *headers: tuple[bytes, bytes]) -> JSONBody:
    return JSONBody(user["body"].encode(), status, ((b"etag", etag(user["version"])), *headers))
