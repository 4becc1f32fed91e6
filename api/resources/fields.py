"""Fields of requests: texts, times and ids that PostgreSQL can hold, and the schemas of those that may be left out."""

import re
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import Field, PlainValidator, WithJsonSchema

from api.resources.cursors import MAX_ID

_TIME = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+ -]\d\d:\d\d)", re.ASCII)


def without_nul(text: str) -> str:
    """Return the text. Raises ValueError for NUL characters, which PostgreSQL's text cannot contain."""
    if "\0" in text:
        raise ValueError("must not contain NUL characters")
    return text


def read_time(text: str) -> datetime:
    """Parse a time (RFC 3339) to UTC. Raises ValueError.

    A blank before the offset is a plus that was not escaped in a query string.
    """
    if not _TIME.fullmatch(text):
        raise ValueError("must be a time such as 2026-01-31T09:30:00Z (RFC 3339, with Z or an offset)")
    try:
        return datetime.fromisoformat(text[:-6] + text[-6:].replace(" ", "+").upper()).astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError("is no time of the years 1 to 9999") from None


def without_default(schema: dict[str, Any]) -> None:
    """Take the default out of a schema: an absent key leaves the value unchanged, so null is no default."""
    del schema["default"]


def without_null(schema: dict[str, Any]) -> None:
    """Take the default and null out of a schema: the key may be left out, but not null."""
    without_default(schema)
    schema.update(schema.pop("anyOf")[0])


def text_schema(max_length: int, **more: Any) -> WithJsonSchema:
    """Return the JSON Schema of a text that `without_nul` accepts."""
    return WithJsonSchema({"type": "string", **more, "maxLength": max_length, "pattern": r"^[^\u0000]*$"})


Time = Annotated[datetime, PlainValidator(read_time), WithJsonSchema({"type": "string", "format": "date-time"})]
ID = Annotated[int, Field(ge=0, le=MAX_ID)]
"""An id, or 0 before the first one."""
