"""What /openapi.json says of the users resource: an Operation for each handler."""

from typing import Any

from pydantic import BaseModel, ValidationError

from api.errors import Problem, email_taken, user_not_found, version_mismatch
from api.http import body_too_large, not_json, unprocessable
from api.operation import Answer, Content, Operation
from api.users.schemas import ListQuery, User, UserCreate, UserPath, UserUpdate

_ADA = {
    "id": 5,
    "email": "ada@example.com",
    "name": "Ada",
    "created_at": "2026-01-31T09:30:00.123456+00:00",
    "updated_at": "2026-01-31T09:30:00.123456+00:00",
}
_ONE_USER = [Content(User, _ADA)]


def _invalid(model: type[BaseModel], where: str, sent: dict[str, Any]) -> Problem:
    """The problem that `sent` really meets."""
    try:
        model.model_validate(sent)
    except ValidationError as error:
        return unprocessable(error, where)
    raise ValueError(f"{model.__name__} takes {sent}")


LIST_USERS = Operation(
    summary="List users",
    description="Users in the order of their ids. `after` reads pages that cost the same however deep they are, and "
    "excludes `skip`; the header Link names the next one.",
    query=ListQuery,
    headers=["Read-After"],
    answers={200: Answer("A page.", [Content(list[User], [_ADA])], headers=["Link"])},
    refusals=[_invalid(ListQuery, "query", {"limit": 5000})],
)
CREATE_USER = Operation(
    summary="Create a user",
    body=[Content(UserCreate, {"email": "ada@example.com", "name": "Ada"})],
    answers={
        201: Answer(
            "The new user.",
            _ONE_USER,
            headers=["ETag", "Location", "Read-After"],
            links=["get_user", "update_user", "delete_user"],
        )
    },
    refusals=[email_taken(), body_too_large(), not_json(), _invalid(UserCreate, "body", {"email": "nobody"})],
)
GET_USER = Operation(
    summary="Read a user",
    path=UserPath,
    headers=["If-None-Match", "Read-After"],
    answers={
        200: Answer("The user.", _ONE_USER, headers=["ETag"]),
        304: Answer("If-None-Match names the current ETag.", headers=["ETag"]),
    },
    refusals=[user_not_found()],
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
        _invalid(UserUpdate, "body", {"email": None}),
    ],
)
DELETE_USER = Operation(
    summary="Delete a user",
    path=UserPath,
    headers=["If-Match"],
    answers={204: Answer("There is no such user any more.", headers=["Read-After"])},
    refusals=[user_not_found(), version_mismatch()],
)
