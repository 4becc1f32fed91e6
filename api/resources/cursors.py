"""Cursors: the end of a page, which the header Link passes to the parameter `cursor`. Opaque, but not secret."""

import binascii
from base64 import b64decode, urlsafe_b64encode
from typing import Annotated, NamedTuple

import orjson
from pydantic import PlainValidator, WithJsonSchema

MAX_ID = 2**63 - 1
"""PostgreSQL's largest bigint."""


class Position(NamedTuple):
    """A position in a list of rows, ordered by a key (a time or a text) and the id."""

    key: str
    id: int


def write_cursor(position: Position) -> str:
    """Return the position as text that needs no escaping in a URL."""
    return urlsafe_b64encode(orjson.dumps(list(position))).decode().rstrip("=")


def read_cursor(text: str) -> Position:
    """Return the position that `write_cursor` encoded. Raises ValueError for any other text."""
    try:
        key, id = orjson.loads(b64decode(text + "=" * (-len(text) % 4), b"-_", validate=True))
    except (ValueError, TypeError, binascii.Error):
        key = id = None
    if not (isinstance(key, str) and "\0" not in key and type(id) is int and 0 <= id <= MAX_ID):
        raise ValueError("is none that a header Link has named")
    return Position(key, id)


Cursor = Annotated[Position, PlainValidator(read_cursor), WithJsonSchema({"type": "string"})]
