"""The handlers and routes of the users resource."""

from pydantic import TypeAdapter, ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from api.errors import RefusedError
from api.http.conditions import check_conditions, read_condition
from api.http.request import read_body, read_query
from api.http.resource import Resource
from api.http.response import JSONBody
from api.resources.idempotency import create_once, read_key
from api.resources.rows import id_of, respond
from api.resources.services import Services
from api.users import operations, queries
from api.users.emails import Email, email_key
from api.users.listing import Listing
from api.users.problems import EMAIL_KEY, USER, email_taken
from api.users.schemas import ListQuery, UserCreate, UserUpdate

_FIRST_PAGE = ListQuery()
_EMAIL = TypeAdapter(Email)


class Users:
    """The handlers of users."""

    def __init__(self, services: Services) -> None:
        self._gate = services.gate
        self._listing = Listing(services)
        self._select = services.read(queries.select_users)
        self._select_by_email = services.read(queries.select_users_by_email)
        self._insert = services.write(queries.insert_users, key=email_key)
        self._insert_once = services.write(queries.insert_users_once, key=lambda creation: email_key(creation.item))
        self._update = services.write(queries.update_users, key=id_of)
        self._delete = services.write(queries.delete_users, key=id_of)

    async def list_users(self, request: Request) -> Response:
        """GET /api/v1/users: a page, or the user with a given address."""
        query = read_query(request, ListQuery) if request.scope["query_string"] else _FIRST_PAGE
        if query.email is not None:
            return await self._find_user(query.email)
        body, next_query = await self._listing.read(query)
        return JSONBody(body, headers=USER.link(next_query))

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
        check_conditions(request, is_there=True)
        new = queries.NewUser(sent.email, sent.name)
        if key is not None:
            return await create_once(self._insert_once, request, key, new, USER, unique=EMAIL_KEY, taken=email_taken)
        user = await self._insert(new)
        if user is None:
            raise RefusedError
        if user["body"] is None:
            raise email_taken()
        return respond(user, 201, USER.location(user["id"]))

    async def get_user(self, request: Request) -> Response:
        """GET /api/v1/users/{id}."""
        return USER.answer(request, await self._select(USER.read_id(request)))

    async def update_user(self, request: Request) -> Response:
        """PATCH /api/v1/users/{id}."""
        user_id, if_match = USER.read_id(request), read_condition(request)
        patch = await read_body(request, UserUpdate)
        change = queries.UserChange(user_id, patch.email, "name" in patch.model_fields_set, patch.name, if_match)
        return respond(await USER.apply(self._update, change, self._select))

    async def delete_user(self, request: Request) -> Response:
        """DELETE /api/v1/users/{id}."""
        removal = queries.UserRemoval(USER.read_id(request), read_condition(request))
        await USER.apply(self._delete, removal, self._select)
        return Response(status_code=204)

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
        return [Route(f"{USER.path}/{{id:id}}", one), Route(USER.path, many), Route(f"{USER.path}/", many)]
