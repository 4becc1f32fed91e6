"""The formats of import and export: each has media types, a parser, and a statement whose COPY output is sent as is."""

import asyncio
import re
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import asyncpg

from api.database.fetch import link_errors
from api.database.statements import Statement
from api.errors import DatabaseUnavailableError, Problem
from api.http.request import NO_ENCODING, is_encoded
from api.users.bulk.parsing import CSVParser, NDJSONParser, Parser
from api.users.statements import EXPORT_USERS, EXPORT_USERS_CSV, EXPORT_USERS_CSV_SAFE


@dataclass(frozen=True)
class Format:
    """One format. `media_types` are in lower case; an export is sent as the first one, in a file `users.{suffix}`."""

    name: str
    suffix: str
    media_types: tuple[str, ...]
    parser: Callable[[], Parser]
    statement: Statement
    copy_options: Mapping[str, Any]


NDJSON = Format(
    "ndjson",
    "ndjson",
    ("application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonlines"),
    NDJSONParser,
    EXPORT_USERS,
    # COPY's text format would escape the backslashes in the JSON. Its CSV format quotes only values that contain one of
    # these two characters. No JSON does: control characters are escaped in it (RFC 8259, section 7).
    {"format": "csv", "delimiter": "\x01", "quote": "\x02"},
)
CSV = Format("csv", "csv", ("text/csv",), CSVParser, EXPORT_USERS_CSV, {"format": "csv", "header": True})
CSV_SAFE = replace(CSV, name="csv-safe", parser=partial(CSVParser, is_guarded=True), statement=EXPORT_USERS_CSV_SAFE)
"""CSV for spreadsheets, which cannot take a text for a formula. It is chosen by its name, never by its media type."""
FORMATS = {format.name: format for format in (NDJSON, CSV, CSV_SAFE)}

_CLOSE_SECONDS = 1.0
_IS_UTF_8 = re.compile(r'charset\s*=\s*("?)(?:utf-8|us-ascii)\1')
_QUALITY = re.compile(r"q=([01](?:\.[0-9]{0,3})?)")


async def export_users(
    connection: asyncpg.Connection, format: Format, write: Callable[[bytes], Coroutine[Any, Any, None]]
) -> int:
    """Send every user to `write`, from one snapshot, and return their number. PostgreSQL waits for `write`.

    Raises DatabaseUnavailableError, asyncpg.PostgresError, and any exception of `write`, which must not be an OSError.
    """
    loop = asyncio.get_running_loop()
    copying = loop.create_task(connection.copy_from_query(format.statement.sql, output=write, **format.copy_options))

    def cancel_soon(_: object) -> None:
        loop.call_later(_CLOSE_SECONDS, copying.cancel)

    # If the connection closes while `write` runs, asyncpg waits for the next piece for ever (copy_out in
    # asyncpg/protocol/protocol.pyx). At any other time it raises the cause by itself.
    connection.add_termination_listener(cancel_soon)
    try:
        with link_errors(writes=False):
            status: str = await copying
    except asyncio.CancelledError:
        if connection.is_closed():
            raise DatabaseUnavailableError("the connection ended in the middle of an export") from None
        raise
    finally:
        connection.remove_termination_listener(cancel_soon)
    return int(status.removeprefix("COPY "))


def choose_by_content(content_type: bytes | None, content_encoding: bytes | None) -> Format:
    """Return the format of a request body. Raises Problem: 415."""
    media_type, *parameters = (part.strip() for part in (content_type or b"").decode("latin-1").lower().split(";"))
    # This includes the notation of RFC 2231, `charset*=`. HTTP does not define it here, so it is refused as ambiguous.
    charsets = [parameter for parameter in parameters if parameter.startswith("charset")]
    if all(map(_IS_UTF_8.fullmatch, charsets)) and not is_encoded(content_encoding):
        for format in FORMATS.values():
            if media_type in format.media_types:
                return format
    raise not_importable()


def choose_by_accept(accept: bytes | None) -> Format:
    """Return the format that Accept prefers, NDJSON if equal (RFC 9110, section 12.5.1). Raises Problem: 406."""
    qualities: dict[str, float] = {}
    for media_range in (accept or b"*/*").decode("latin-1").lower().split(","):
        kind, *parameters = (part.strip() for part in media_range.split(";"))
        weights = [float(match[1]) for each in parameters if (match := _QUALITY.fullmatch(each))]
        qualities[kind] = weights[0] if weights else 1.0

    def quality(format: Format) -> float:
        any_of_kind = f"{format.media_types[0].partition('/')[0]}/*"
        for kinds in (format.media_types, [any_of_kind], ["*/*"]):
            if named := [qualities[kind] for kind in kinds if kind in qualities]:
                return max(named)
        return 0.0

    best = max(FORMATS.values(), key=quality)  # the first of equals
    if not quality(best):
        raise not_acceptable()
    return best


def not_importable() -> Problem:
    """The problem of a body that is not declared as NDJSON or CSV."""
    return Problem(
        415,
        f"The body must be {NDJSON.media_types[0]} or {CSV.media_types[0]}, in UTF-8 and not compressed",
        headers=NO_ENCODING,
    )


def not_acceptable() -> Problem:
    """The problem of a client that accepts neither NDJSON nor CSV."""
    return Problem(
        406, f"There are {NDJSON.media_types[0]} and {CSV.media_types[0]}: Accept, or format=, must name one"
    )
