"""Idempotency-Key (draft-ietf-httpapi-idempotency-key-header): a creation that is sent again gets the first answer.

The answer that is kept is the 201, or the 409 of an address that was taken. A request that was refused before it came
to a statement, or whose statement failed, has no answer to keep: sent again, it is judged again.
"""

import hashlib
import re

import asyncpg
import orjson
from asyncpg import Record
from starlette.requests import Request

from api.auth.guard import caller
from api.database.batching import Batcher
from api.errors import Problem, to_response
from api.http.request import read_header
from api.users.problems import email_taken
from api.users.queries import KeyedUser
from api.users.schemas import UserCreate

# A string of RFC 9651, section 3.3.3, which the draft asks for, in quotes; most clients leave those out.
_QUOTED = re.compile(rb'"((?:[ !#-\[\]-~]|\\["\\])+)"')
_MAX_BYTES = 255


def invalid_key() -> Problem:
    """The problem of an Idempotency-Key that cannot be one."""
    return _unprocessable(f"must be 1 to {_MAX_BYTES} printable ASCII characters", "invalid", "value_error")


def key_reused() -> Problem:
    """The problem of a key that stands for another creation."""
    return _unprocessable("was used for another user before", "idempotency-key-reused", "idempotency_key_reused")


def read_key(request: Request) -> str | None:
    """The request's Idempotency-Key, without the quotes that it may have. Raises Problem: 422."""
    header = read_header(request, b"idempotency-key")
    if header is None:
        return None
    quoted = _QUOTED.fullmatch(header)
    key = re.sub(rb"\\(.)", rb"\1", quoted[1]) if quoted else header
    if not (1 <= len(key) <= _MAX_BYTES and re.fullmatch(rb"[ -~]+", key)):
        raise invalid_key()
    return key.decode()


async def create_once(insert: Batcher[KeyedUser, Record], request: Request, key: str, sent: UserCreate) -> Record:
    """Create a user, or find what the key stands for: the row of insert_users_once. Raises Problem: 422."""
    # What was understood, not the bytes: the same JSON in another order asks for the same user.
    fingerprint = hashlib.sha256(orjson.dumps([sent.email, sent.name])).hexdigest()
    # Made beforehand, since the statement keeps it where it finds the address taken.
    refusal = bytes(to_response(email_taken()).body).decode()
    creation = KeyedUser(caller(request.scope), key, fingerprint, refusal, sent.email, sent.name)
    while True:
        try:
            answer = await insert(creation)
        except asyncpg.UniqueViolationError as error:
            if error.constraint_name != "idempotency_keys_pkey":
                raise
            # Another session has committed an answer under this key meanwhile: the next statement sees it.
        else:
            if answer["is_reused"]:
                raise key_reused()
            return answer


def _unprocessable(message: str, kind: str, fault: str) -> Problem:
    errors = [{"loc": ["header", "Idempotency-Key"], "msg": message, "type": fault}]
    return Problem(422, f"The Idempotency-Key {message}", kind, errors=errors)
