"""What /openapi.json says of the users resource: an Operation for each handler."""

from typing import Any

from pydantic import BaseModel, ValidationError

from api.errors import (
    Problem,
    StoppingError,
    client_silent,
    email_taken,
    import_stopped,
    problem_of,
    too_many_at_once,
    user_not_found,
    version_mismatch,
)
from api.http.operation import Answer, Content, Operation
from api.http.resource import body_too_large, not_json, unprocessable
from api.users.bulk.formats import not_acceptable, not_importable
from api.users.bulk.parsing import no_columns
from api.users.idempotency import key_reused
from api.users.schemas import ExportQuery, ImportQuery, ListQuery, User, UserCreate, UserPath, UserUpdate

_ADA = {
    "id": 5,
    "email": "ada@example.com",
    "name": "Ada",
    "created_at": "2026-01-31T09:30:00.123456+00:00",
    "updated_at": "2026-01-31T09:30:00.123456+00:00",
}
_NDJSON, _CSV = "application/x-ndjson", "text/csv"
_ADA_NDJSON = '{"id":5,"email":"ada@example.com","name":"Ada","created_at":"…","updated_at":"…"}\n'
_ADA_CSV = "id,email,name,created_at,updated_at\n5,ada@example.com,Ada,…,…\n"
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
    description="Users in the order of their ids; by `q` in that of what matched; by `order=created_at` or a time in "
    "that of their creation. Pages cost the same however deep they are, but for `skip`. The header Link names the next "
    "one; that of a search may hold fewer users than `limit` while others follow. Parameters of different orders "
    "exclude each other.",
    query=ListQuery,
    headers=["Read-After"],
    answers={200: Answer("A page.", [Content(list[User], [_ADA])], headers=["Link"])},
    refusals=[_invalid(ListQuery, "query", {"limit": 5000, "q": ""})],
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
        _invalid(UserCreate, "body", {"email": "nobody"}),
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
IMPORT_USERS = Operation(
    summary="Import users",
    description="A file of any length, a user a line, each held to what a single creation asks for. A line that cannot "
    "be imported is refused, and the rest goes on. Users are written a thousand at a time at most, and all of these or "
    "none.",
    query=ImportQuery,
    body=[
        Content({"type": "string"}, '{"email": "ada@example.com", "name": "Ada"}\n', _NDJSON),
        Content({"type": "string"}, "email,name\nada@example.com,Ada\n", _CSV),
    ],
    answers={
        200: Answer(
            "A line of JSON for each line that is refused (`line`, `problem`), now and then the `progress`, and at the "
            "end a `summary`. Where that says `complete: false`, its `problem` has ended the import behind the line "
            "`lines`, and where that is `outcome-unknown`, what comes next may have been written; where there is no "
            "summary, the connection has.",
            [
                Content(
                    {"type": "string"},
                    '{"line":7,"problem":{"type":"urn:problem:users-api:email-taken","title":"Conflict","status":409,'
                    '"detail":"Email already registered","request_id":"2b9ea715591e7aa5"}}\n'
                    '{"summary":{"complete":true,"lines":9,"created":8,"updated":0,"skipped":0,"refused":1,'
                    '"seconds":0.004}}\n',
                    _NDJSON,
                )
            ],
        )
    },
    refusals=[
        client_silent(25),
        not_importable(),
        no_columns("email is missing"),
        _invalid(ImportQuery, "query", {"on_conflict": "ignore"}),
        too_many_at_once(),
        import_stopped(),
    ],
)
EXPORT_USERS = Operation(
    summary="Export users",
    description="Every user in the order of the ids, from one snapshot, as they are at the moment of the request. A "
    "connection that ends without the end of the body (RFC 9112, section 7.1) has not brought all.",
    query=ExportQuery,
    answers={
        200: Answer(
            "A line for each user.",
            [Content({"type": "string"}, _ADA_NDJSON, _NDJSON), Content({"type": "string"}, _ADA_CSV, _CSV)],
        )
    },
    refusals=[
        not_acceptable(),
        _invalid(ExportQuery, "query", {"format": "xml"}),
        too_many_at_once(),
        problem_of(StoppingError),
    ],
)
