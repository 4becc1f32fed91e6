"""Reading a request: its headers, its JSON body, and its query string."""

from typing import Any, TypeVar
from urllib.parse import parse_qsl

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from api.errors import Problem

MAX_BODY_BYTES = 64 * 1024
MIN_BYTES_A_SECOND = 1024
"""What a client sends of a body at least, on average: slower ones must not hold a connection or a slot."""

Model = TypeVar("Model", bound=BaseModel)


def read_header(request: Request, name: bytes) -> bytes | None:
    """Return a header as it was sent, None if absent. `name` is in lower case, as in ASGI."""
    for key, value in request.scope["headers"]:
        if key == name:
            return value  # type: ignore[no-any-return]
    return None


async def read_body(request: Request, model: type[Model]) -> Model:
    """Parse the JSON body as a model. Raises Problem: 413, 415 or 422."""
    media_type = read_header(request, b"content-type") or b""
    if media_type != b"application/json" and media_type.partition(b";")[0].strip().lower() != b"application/json":
        raise not_json()
    try:
        return model.model_validate_json(await _read_bytes(request))
    except ValidationError as error:
        raise unprocessable(error, "body") from None


async def _read_bytes(request: Request) -> bytes:
    # A declared length above the bound is refused before a byte is read; a chunked body declares none and is counted.
    # Leading zeros are stripped, since Python refuses to parse a number of more than 4,300 digits.
    if int((read_header(request, b"content-length") or b"").lstrip(b"0") or 0) > MAX_BODY_BYTES:
        raise body_too_large()
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise body_too_large()
    return bytes(body)


def read_query(request: Request, model: type[Model]) -> Model:
    """Parse the query string as a model; the last value of a repeated key wins. Raises Problem: 422."""
    pairs = parse_qsl(request.scope["query_string"].decode("latin-1"), keep_blank_values=True)
    try:
        return model.model_validate_strings(dict(pairs))
    except ValidationError as error:
        raise unprocessable(error, "query") from None


def not_json() -> Problem:
    """The problem of a body that is not declared as JSON."""
    return Problem(415, "The body must be application/json")


def body_too_large() -> Problem:
    """The problem of a body above MAX_BODY_BYTES."""
    return Problem(413, f"The body must be at most {MAX_BODY_BYTES} bytes")


def unprocessable(error: ValidationError, source: str) -> Problem:
    """The problem of a body or a query that fails validation; `source` is "body" or "query"."""
    errors = [
        {"loc": [source, *each["loc"]], "msg": each["msg"].removeprefix("Value error, "), "type": each["type"]}
        for each in error.errors(include_url=False, include_context=False, include_input=False)
    ]
    return _invalid(errors)


def invalid_header(name: str, msg: str, type: str) -> Problem:
    """The problem of a header that fails validation: its name in lower case, what it must be, and the error's type."""
    return _invalid([{"loc": ["header", name], "msg": msg, "type": type}])


def _invalid(errors: list[dict[str, Any]]) -> Problem:
    return Problem(422, "The request is not valid; see errors", "invalid", errors=errors)
