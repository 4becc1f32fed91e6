"""Reading a request: its headers, its JSON body, and its query string."""

from typing import Any, TypeVar
from urllib.parse import parse_qsl

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.requests import ClientDisconnect, Request
from starlette.types import Scope

from api.errors import Problem

MAX_BODY_BYTES = 64 * 1024
_MOST = b"%d" % MAX_BODY_BYTES
MIN_BYTES_A_SECOND = 1024
"""The lowest average rate of a request body: a slower client would hold a connection or a slot for too long."""

NO_ENCODING = {"Accept-Encoding": "identity"}
"""Says in a 415 that the Content-Encoding was the reason (RFC 9110, section 12.5.3)."""

Model = TypeVar("Model", bound=BaseModel)


def fields_of(scope: Scope) -> dict[bytes, bytes]:
    """Return the headers by name, the last value of each. They are collected once a request, and kept in its scope."""
    fields: dict[bytes, bytes] | None = scope.get("fields")
    if fields is None:
        scope["fields"] = fields = dict(scope["headers"])
    return fields


def values_of(scope: Scope, name: bytes) -> list[bytes]:
    """Return the values of a header, one for each time that it was sent. `name` is in lower case, as in ASGI."""
    fields = fields_of(scope)
    if name not in fields:
        return []
    if len(fields) == len(scope["headers"]):  # No name occurs twice.
        return [fields[name]]
    return [value for key, value in scope["headers"] if key == name]


def read_header(request: Request, name: bytes) -> bytes | None:
    """Return a header that has one value, None if absent. `name` is in lower case, as in ASGI.

    Raises Problem: 400 if it was sent more than once, since a proxy may have chosen another one of them.
    """
    values = values_of(request.scope, name)
    if len(values) > 1:
        raise sent_repeatedly(name.decode())
    return values[0] if values else None


def read_list(request: Request, name: bytes) -> bytes | None:
    """Return a header that is a list, its lines joined (RFC 9110, section 5.3), None if absent."""
    values = values_of(request.scope, name)
    return b", ".join(values) if values else None


async def read_body(request: Request, model: type[Model]) -> Model:
    """Parse the JSON body as a model. Raises Problem: 400, 413, 415 or 422."""
    media_type = read_header(request, b"content-type") or b""
    # Parameters are ignored: JSON has none (RFC 8259, section 11).
    if media_type != b"application/json" and media_type.partition(b";")[0].strip().lower() != b"application/json":
        raise not_json()
    if is_encoded(read_list(request, b"content-encoding")):
        raise compressed()
    return parse_json(model, await _read_bytes(request))


def parse_json(model: type[Model], data: bytes) -> Model:
    """Parse JSON as a model. Raises Problem: 422."""
    try:
        parsed = model.model_validate_json(data)
        # pydantic takes these two for numbers, in keys that the model does not have too.
        if b"NaN" in data or b"Infinity" in data:
            from_json(data, allow_inf_nan=False)
    except ValidationError as error:
        raise unprocessable(error, "body") from None
    except ValueError as error:
        raise _invalid([{"loc": ["body"], "msg": f"Invalid JSON: {error}", "type": "json_invalid"}]) from None
    return parsed


def is_encoded(content_encoding: bytes | None) -> bool:
    """Return whether a Content-Encoding says that the body is compressed."""
    return (content_encoding or b"identity").lower() != b"identity"


async def _read_bytes(request: Request) -> bytes:
    # A declared length above the bound is refused before a byte is read; a chunked body declares none and is counted.
    # It is compared as digits, since Python refuses to parse a number of more than 4,300.
    declared = (read_header(request, b"content-length") or b"").lstrip(b"0")
    if (len(declared), declared) > (len(_MOST), _MOST):
        raise body_too_large()
    body = bytearray()
    more_body = True
    while more_body:  # Starlette's generator, request.stream(), costs a microsecond more.
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        if len(body) > MAX_BODY_BYTES:
            raise body_too_large()
        more_body = message.get("more_body", False)
    return bytes(body)


def read_query(request: Request, model: type[Model]) -> Model:
    """Parse the query string as a model; the last value of a repeated key wins. Raises Problem: 422."""
    pairs = parse_qsl(request.scope["query_string"].decode("latin-1"), keep_blank_values=True)
    try:
        return model.model_validate_strings(dict(pairs))
    except ValidationError as error:
        raise unprocessable(error, "query") from None


def sent_repeatedly(name: str) -> Problem:
    """The problem of a header that has one value and was sent more than once."""
    return Problem(400, f"Send one {name} header", "invalid-request")


def compressed() -> Problem:
    """The problem of a body with a Content-Encoding (RFC 9110, section 15.5.16)."""
    return Problem(415, "The body must not have a Content-Encoding", headers=NO_ENCODING)


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
