"""The documentation of an operation, declared beside its handler in a Resource."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from api.errors import Problem
from api.http.request import unprocessable


@dataclass(frozen=True)
class Content:
    """A body: its schema (JSON Schema, or a type that pydantic knows), an example, and its media type."""

    schema: Any
    example: Any
    media_type: str = "application/json"


@dataclass(frozen=True)
class ResponseDoc:
    """A successful response. `headers` are keys of api.http.headers.RESPONSE_HEADERS.

    `links` are names of operations that take the `id` of the response.
    """

    description: str
    content: Sequence[Content] = ()
    headers: Sequence[str] = ()
    links: Sequence[str] = ()


@dataclass(frozen=True)
class Operation:
    """The documentation of one method of one path.

    `path` and `query` are models whose fields are the parameters; `headers` are keys of
    api.http.headers.REQUEST_HEADERS; `problems` are the problems that the handler can raise. Problems of every
    operation (authentication, scopes, the database, bugs) are added by api/openapi/document.py.
    """

    summary: str
    responses: Mapping[int, ResponseDoc]
    description: str = ""
    path: type[BaseModel] | None = None
    query: type[BaseModel] | None = None
    headers: Sequence[str] = ()
    body: Sequence[Content] = ()
    problems: Sequence[Problem] = ()
    uses_database: bool = True


def invalid_example(model: type[BaseModel], source: str, sent: dict[str, Any]) -> Problem:
    """Return the problem that `model` raises for `sent`. Raises ValueError if `sent` is valid."""
    try:
        model.model_validate(sent)
    except ValidationError as error:
        return unprocessable(error, source)
    raise ValueError(f"{model.__name__} accepts {sent}")
