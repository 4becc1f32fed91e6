"""What /openapi.json says of the users resource: an Operation for each handler."""

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
    description="Users in the order of their ids; by `q` in that of what matched; by `order=created_at` or a time in "
    "that of their creation. Pages cost the same however deep they are, but for `skip`. The header Link names the next "
    "one; that of a search may hold fewer users than `limit` while others follow. Parameters of different orders "
    "exclude each other.",
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
    description="A key that is left out is left alone; `null` clears the name.",
    path=UserPath,
    headers=["If-Match"],
    body=[Content(UserUpdate, {"name": "Ada Lovelace"})],
    answers={200: Answer("The user as it is now.", _ONE_USER, headers=["ETag", "Read-After"])},
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
    answers={204: Answer("There is no such user any more.", headers=["Read-After"])},
    refusals=[user_not_found(), version_mismatch()],
)
