"""Idempotency-Key (draft-ietf-httpapi-idempotency-key-header): a creation that is sent again gets the first response.

The 201 is stored, and the 409 of a row whose key, such as an address, was taken. A request that was refused before its
statement, or whose statement failed or left the row out, has no stored response: if it is sent again, it is processed
again.
"""

import asyncio
import hashlib
import logging
import re
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

import asyncpg
import orjson
from asyncpg import Record
from starlette.requests import Request
from starlette.responses import Response

from api.auth.guard import caller
from api.database.batching import Batcher
from api.database.fetch import PooledDatabase
from api.database.indexes import register_index
from api.database.statements import declare
from api.errors import Problem, RefusedError, describe, to_response
from api.http.conditions import etag
from api.http.request import read_header
from api.http.response import JSONBody
from api.resources.rows import Rows

# The draft requires a quoted string (RFC 9651, section 3.3.3); most clients leave out the quotes.
_QUOTED = re.compile(rb'"((?:[ !#-\[\]-~]|\\["\\])+)"')
_MAX_BYTES = 255

# Expired keys are erased while the database is in use, and so awake: soon after a statement, once an hour.
_ERASE_TICK_SECONDS = 60.0
_ERASE_PAUSE_SECONDS = 3600.0
_ERASE_KEYS = 1000  # in one statement, which takes about 10 ms

Item = TypeVar("Item", bound=tuple[Any, ...])

UNREACHABLE = {"idempotency_keys_pkey": "create_once runs the statement again, which then sees the other row"}
"""The constraint of idempotency_keys that no request violates in the end."""

INDEXES = {"idempotency_keys_pkey": "public.idempotency_keys (caller, key)"}
"""Its definition."""

_DELETE_EXPIRED = declare(
    "idempotency/delete_expired_keys.sql", ["int8"], {"deleted": "int8"}, writes=True, example=lambda ids: [len(ids)]
)

logger = logging.getLogger("api.database")

for _name, _definition in INDEXES.items():
    register_index(_name, _definition)


class Creation(NamedTuple, Generic[Item]):
    """A row to create once for a caller's key; `conflict` is the body of the 409 if it is taken, or `is_taken`."""

    caller: str
    key: str
    fingerprint: str
    conflict: str
    item: Item
    is_taken: bool = False


def invalid_key() -> Problem:
    """The problem of a malformed Idempotency-Key."""
    return _unprocessable(f"must be 1 to {_MAX_BYTES} printable ASCII characters", "invalid", "value_error")


def key_reused(noun: str) -> Problem:
    """The problem of a key that was used for another creation."""
    return _unprocessable(f"was used for another {noun} before", "idempotency-key-reused", "idempotency_key_reused")


def read_key(request: Request) -> str | None:
    """Return the Idempotency-Key without its quotes, None if absent. Raises Problem: 422."""
    header = read_header(request, b"idempotency-key")
    if header is None:
        return None
    quoted = _QUOTED.fullmatch(header)
    key = re.sub(rb"\\(.)", rb"\1", quoted[1]) if quoted else header
    if not (len(key) <= _MAX_BYTES and re.fullmatch(rb"[ -~]+", key)):
        raise invalid_key()
    return key.decode()


async def create_once(
    insert: Batcher[Creation[Item], Record | None],
    request: Request,
    key: str,
    item: Item,
    rows: Rows,
    *,
    unique: str,
    taken: Callable[[], Problem],
) -> Response:
    """Create a row for a key, or find the stored response; return the response, first or replayed.

    `insert` returns row_id, body, is_replayed and is_reused, or None if a rule of the database left the row out. The
    constraint `unique` refuses an item whose key another row has; `taken` makes the problem of that. Raises Problem,
    422, and RefusedError.
    """
    # Of the parsed values, not of the bytes: the same JSON in another order is the same request.
    fingerprint = hashlib.sha256(orjson.dumps(list(item))).hexdigest()
    # Rendered beforehand, since the statement stores it.
    conflict = bytes(to_response(taken()).body).decode()
    creation = Creation(caller(request.scope), key, fingerprint, conflict, item)
    while True:
        try:
            row = await insert(creation)
        except asyncpg.UniqueViolationError as error:
            if error.constraint_name == unique:
                # Taken by another session, perhaps with this key; or as a trigger rewrites it, which no next statement
                # would see. The next one replays the response of that key, or stores the 409.
                creation = creation._replace(is_taken=True)
            elif error.constraint_name != "idempotency_keys_pkey":
                raise
            # Another session has committed a response for this key meanwhile: the next statement sees it.
        else:
            if row is None:
                raise RefusedError
            if row["is_reused"]:
                raise key_reused(rows.noun)
            return _respond(row, rows)


def _respond(row: Record, rows: Rows) -> Response:
    if row["row_id"] is None:
        headers = {"Idempotency-Replayed": "true"} if row["is_replayed"] else None
        return Response(row["body"], 409, headers, "application/problem+json")
    replayed = ((b"idempotency-replayed", b"true"),) if row["is_replayed"] else ()
    # A row is created with version 1, even if it has changed since.
    return JSONBody(row["body"].encode(), 201, ((b"etag", etag(1)), rows.location(row["row_id"]), *replayed))


async def keep_erasing(database: PooledDatabase) -> None:
    """Erase expired keys once an hour while the database is in use, until cancelled.

    A stored response holds an address, which has to be gone within a day even if no keyed creation follows. Without
    requests no statement is sent, so a compute that sleeps is not woken. A failure is only logged.
    """
    loop = asyncio.get_running_loop()
    due = loop.time()
    seen = database.metrics.seconds
    while True:
        await asyncio.sleep(_ERASE_TICK_SECONDS)
        if loop.time() < due or database.metrics.seconds == seen or not database.answers:
            continue
        try:
            deleted = _ERASE_KEYS
            while deleted == _ERASE_KEYS:
                deleted = (await database.fetch(_DELETE_EXPIRED, _ERASE_KEYS))[0]["deleted"]
        except Exception as error:  # of any kind: the next attempt may succeed
            logger.warning("expired idempotency keys were not erased: %s", describe(error.__cause__ or error))
        due = loop.time() + _ERASE_PAUSE_SECONDS
        seen = database.metrics.seconds


def _unprocessable(message: str, kind: str, error_type: str) -> Problem:
    errors = [{"loc": ["header", "Idempotency-Key"], "msg": message, "type": error_type}]
    return Problem(422, f"The Idempotency-Key {message}", kind, errors=errors)
