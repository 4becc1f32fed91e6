"""The OpenAPI operations of the users resource."""

from api.http.conditions import version_mismatch
from api.http.operation import Answer, Content, Operation, invalid_example
from api.http.request import body_too_large, not_json
from api.users.idempotency import key_reused
from api.users.problems import email_taken, user_not_found
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
    answers={200: Answer("A page.", [Content(list[User], [_ADA])], headers=["Link"])},
    refusals=[invalid_example(ListQuery, "query", {"limit": 5000, "q": ""})],
)
CREATE_USER = Operation(
    summary="Create a user",
    headers=["Idempotency-Key"],
    body=[Content(UserCreate, {"email": "ada@example.com", "name": "Ada"})],
    answers={
        201: Answer(
            "The new user.",
            _ONE_USER,
            headers=["ETag", "Location", "Idempotency-Replayed", "Read-After"],
            links=["get_user", "update_user", "delete_user"],
        )
    },
    refusals=[
        email_taken(),
        body_too_large(),
        not_json(),
        invalid_example(UserCreate, "body", {"email": "nobody"}),
        key_reused(),
    ],
)
GET_USER = Operation(
    summary="Read a user",
    path=UserPath,
    headers=["If-Match", "If-None-Match", "Read-After"],
    answers={
        200: Answer("The user.", _ONE_USER, headers=["ETag"]),
        304: Answer("If-None-Match names the current ETag.", headers=["ETag"]),
    },
    refusals=[user_not_found(), version_mismatch()],
)
UPDATE_USER = Operation(
    summary="Change a user",
    description="An absent key leaves its value unchanged; `null` clears the name.",
    path=UserPath,
    headers=["If-Match"],
    body=[Content(UserUpdate, {"name": "Ada Lovelace"})],
    answers={200: Answer("The changed user.", _ONE_USER, headers=["ETag", "Read-After"])},
    refusals=[
        user_not_found(),
        email_taken(),
        version_mismatch(),
        body_too_large(),
        not_json(),
        invalid_example(UserUpdate, "body", {"email": None}),
    ],
)
DELETE_USER = Operation(
    summary="Delete a user",
    path=UserPath,
    headers=["If-Match"],
    answers={204: Answer("The user is deleted.", headers=["Read-After"])},
    refusals=[user_not_found(), version_mismatch()],
)
