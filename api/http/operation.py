"""What the documentation says of an operation, one method of one path: declared beside its handler in a Resource."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from api.errors import Problem
from api.http.request import unprocessable


@dataclass(frozen=True)
class Content:
    """A body: its schema (JSON Schema, or a type that pydantic knows), an example of it, and its media type."""

    schema: Any
    example: Any
    media_type: str = "application/json"


@dataclass(frozen=True)
class Answer:
    """What comes back when a request did what it asked for. `headers` are names of api.http.headers.RESPONSE_HEADERS.

    `links` are names of operations that take the `id` of the answer.
    """

    description: str
    content: Sequence[Content] = ()
    headers: Sequence[str] = ()
    links: Sequence[str] = ()


@dataclass(frozen=True)
class Operation:
    """What the documentation says of one method of one path; it stands beside the handler in a Resource.

    `path` and `query` are models whose fields are the parameters; `headers` are names of
    api.http.headers.REQUEST_HEADERS; `refusals` are the problems that the handler can raise. What any operation can
    meet (no credentials, a missing scope, no database, a bug) is added by api/openapi/document.py.
    """

    summary: str
    answers: Mapping[int, Answer]
    description: str = ""
    path: type[BaseModel] | None = None
    query: type[BaseModel] | None = None
    headers: Sequence[str] = ()
    body: Sequence[Content] = ()
    refusals: Sequence[Problem] = ()
    uses_database: bool = True
    tag: str = "users"


def invalid_example(model: type[BaseModel], where: str, sent: dict[str, Any]) -> Problem:
    """The problem that `sent` really meets."""
    try:
        model.model_validate(sent)
    except ValidationError as error:
        return unprocessable(error, where)
    raise ValueError(f"{model.__name__} takes {sent}")
