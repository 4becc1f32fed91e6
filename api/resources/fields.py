"""Fields of requests: texts, times and ids that PostgreSQL can hold, and the schemas of those that may be left out."""

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from pydantic import Field, ValidateAs, WithJsonSchema

from api.resources.cursors import MAX_ID

_CLOCK = r"(?:[01]\d|2[0-3]):[0-5]\d"
_TIME = re.compile(rf"(\d{{4}}-\d\d-\d\d)[Tt ]({_CLOCK}:)([0-5]\d|60)((?:\.\d+)?(?:[Zz]|[+ -]{_CLOCK}))", re.ASCII)
_NO_YEAR = "is no time of the years 1 to 9999"


def without_nul(text: str) -> str:
    """Return the text. Raises ValueError for NUL characters, which PostgreSQL's text cannot contain."""
    if "\0" in text:
        raise ValueError("must not contain NUL characters")
    return text


def lower(text: str) -> str:
    """Return a text as PostgreSQL's `lower(… collate pg_c_utf8)` does: the key of an index without regard to case.

    That maps each character to one other (Unicode's simple case mapping). str.lower() does the same with two
    exceptions: it turns the capital I with a dot into two characters, and the capital sigma at the end of a word into
    another one. Other differences are characters that only one of the two versions of Unicode has.
    """
    if text.isascii():
        return text.lower()
    return text.replace("\u0130", "i").replace("\u03a3", "\u03c3").lower()


def read_time(text: str) -> datetime:
    """Parse a time (RFC 3339) to UTC. Raises ValueError.

    A blank before the offset is a plus that was not escaped in a query string. As in PostgreSQL a leap second is the
    second behind it.
    """
    match = _TIME.fullmatch(text)
    if match is None:
        raise ValueError("must be a time such as 2026-01-31T09:30:00Z (RFC 3339, with Z or an offset up to 23:59)")
    day, minutes, second, rest = match.groups()
    is_leap = second == "60"
    try:
        time = datetime.fromisoformat(f"{day}T{minutes}{'59' if is_leap else second}{rest.replace(' ', '+').upper()}")
    except ValueError:
        raise ValueError(_NO_YEAR if day.startswith("0000") else "has a day that is in no calendar") from None
    try:
        time = time.astimezone(UTC) + timedelta(seconds=is_leap)
    except OverflowError:
        raise ValueError(_NO_YEAR) from None
    # RFC 3339, section 5.7: a leap second ends a month in UTC. Which ones have had one, is not checked.
    if is_leap and (time.day, time.hour, time.minute, time.second) != (1, 0, 0, 0):
        raise ValueError("has the second 60, which only the end of a month in UTC can have")
    return time


def without_default(schema: dict[str, Any]) -> None:
    """Take the default out of a schema, for a field where sending it differs from leaving it out."""
    del schema["default"]


def without_null(schema: dict[str, Any]) -> None:
    """Take the default and null out of a schema: the key may be left out, but not null."""
    without_default(schema)
    schema.update(schema.pop("anyOf")[0])


def text_schema(max_length: int, **more: Any) -> WithJsonSchema:
    """Return the JSON Schema of a text that `without_nul` accepts."""
    return WithJsonSchema({"type": "string", **more, "maxLength": max_length, "pattern": r"^[^\u0000]*$"})


# ValidateAs refuses what is no text: the JSON of a body may have a number there.
Time = Annotated[datetime, ValidateAs(str, read_time), WithJsonSchema({"type": "string", "format": "date-time"})]
ID = Annotated[int, Field(ge=0, le=MAX_ID)]
"""An id, or 0 before the first one."""
