"""Fields of requests: a JSON value of another type is a validation error, whatever the field."""

from typing import Annotated, Any, get_args, get_origin

import pytest
from pydantic import BaseModel, create_model
from starlette.requests import Request
from starlette.types import Message

from api.errors import Problem
from api.http.request import MAX_BODY_BYTES, parse_json, read_body
from api.resources import cursors, fields
from api.users import emails, schemas


class Anything(BaseModel):
    """A body of which nothing is asked."""


FIELDS = {
    name: found
    for module in (fields, cursors, emails, schemas)
    for name, found in vars(module).items()
    if get_origin(found) is Annotated
}
"""Every type that a request's model can use."""
WRONG = ["null", "5.5", "1e400", "[]", "{}", '[""]', '{"a":"2026-01-31T09:30:00Z"}']
NO_TEXT = [*WRONG, "5", "-1", "true", str(2**64)]
NO_ID = [*WRONG, "-1", '""', '"x"', str(2**63)]


def test_the_types_are_found() -> None:
    assert {"Time", "ID", "Cursor", "Email", "Address", "Name", "SearchText"} <= FIELDS.keys()


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name, of in FIELDS.items() for value in (NO_ID if get_args(of)[0] is int else NO_TEXT)],
)
def test_another_type_is_a_validation_error(name: str, value: str) -> None:
    of: Any = FIELDS[name]
    model = create_model("Body", field=(of, ...))
    with pytest.raises(Problem) as refused:
        parse_json(model, b'{"field":%s}' % value.encode())
    assert (refused.value.status, refused.value.kind) == (422, "invalid")
    assert [error["loc"][:2] for error in refused.value.errors or ()] == [["body", "field"]]


@pytest.mark.parametrize("digits", [str(MAX_BODY_BYTES + 1), "10" * 3, "9" * 4301, "1" + "0" * 9000])
async def test_a_declared_length_of_any_size_is_refused_before_a_byte_is_read(digits: str) -> None:
    """Our own server refuses the longest ones before; another one may not."""

    async def receive() -> Message:
        raise AssertionError("the body was asked for")

    headers = [(b"content-type", b"application/json"), (b"content-length", digits.encode())]
    with pytest.raises(Problem) as refused:
        await read_body(Request({"type": "http", "headers": headers}, receive), Anything)
    assert refused.value.status == 413


@pytest.mark.parametrize("digits", ["", "0", "2", "0" * 5000 + "2", "99", str(MAX_BODY_BYTES)])
async def test_a_length_up_to_the_bound_is_taken(digits: str) -> None:
    async def receive() -> Message:
        return {"type": "http.request", "body": b"{}"}

    headers = [(b"content-type", b"application/json"), (b"content-length", digits.encode())]
    assert await read_body(Request({"type": "http", "headers": headers}, receive), Anything) == Anything()
