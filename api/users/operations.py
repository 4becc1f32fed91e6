"""The OpenAPI operations of the users resource."""

from api.http.operation import Content, Operation, ResponseDoc, invalid_example
from api.http.request import body_too_large, not_json
from api.resources.idempotency import key_reused
from api.users.problems import USER, email_taken
from api.users.schemas import ListQuery, User, UserCreate, UserPath, UserUpdate

_ADA = {
    "id": 5,
    "email": "ada@example.com",
    "name": "Ada",
    "created_at": "2026-01-31T09:30:00.123456+00:00",
    "updated_at": "2026-01-31T09:30:00.123456+00:00",
}
_ONE_USER = [Content(User, _ADA)]


LIST_USERS = Operation(
    summary="List users",
    description="Users in the order of their ids; with `q` in the order of the matches; with `order=created_at` or a "
    "time in the order of their creation. Deep pages cost as much as the first, except with `skip`. The header Link "
    "names the next page. A page of a search may have fewer users than `limit` although others follow. Parameters of "
    "different orders exclude each other.",
    query=ListQuery,
    headers=["Read-After"],
    responses={200: ResponseDoc("A page.", [Content(list[User], [_ADA])], headers=["Link"])},
    problems=[invalid_example(ListQuery, "query", {"limit": 5000, "q": ""})],
)
CREATE_USER = Operation(
    summary="Create a user",
    headers=["Idempotency-Key"],
    body=[Content(UserCreate, {"email": "ada@example.com", "name": "Ada"})],
    responses={
        201: ResponseDoc(
            "The new user.",
            _ONE_USER,
            headers=["ETag", "Location", "Idempotency-Replayed", "Read-After"],
            links=["get_user", "update_user", "delete_user"],
        )
    },
    problems=[
        email_taken(),
        body_too_large(),
        not_json(),
        invalid_example(UserCreate, "body", {"email": "nobody"}),
        key_reused(USER.noun),
    ],
)
GET_USER = Operation(
    summary="Read a user",
    path=UserPath,
    headers=["If-Match", "If-None-Match", "Read-After"],
    responses={
        200: ResponseDoc("The user.", _ONE_USER, headers=["ETag"]),
        304: ResponseDoc("If-None-Match names the current ETag.", headers=["ETag"]),
    },
    problems=[USER.not_found(), USER.changed()],
)
UPDATE_USER = Operation(
    summary="Change a user",
    description="An absent key leaves its value unchanged; `null` clears the name.",
    path=UserPath,
    headers=["If-Match"],
    body=[Content(UserUpdate, {"name": "Ada Lovelace"})],
    responses={200: ResponseDoc("The changed user.", _ONE_USER, headers=["ETag", "Read-After"])},
    problems=[
        USER.not_found(),
        email_taken(),
        USER.changed(),
        body_too_large(),
        not_json(),
        invalid_example(UserUpdate, "body", {"email": None}),
    ],
)
DELETE_USER = Operation(
    summary="Delete a user",
    path=UserPath,
    headers=["If-Match"],
    responses={204: ResponseDoc("The user is deleted.", headers=["Read-After"])},
    problems=[USER.not_found(), USER.changed()],
)
