"""API keys, and the callers that they authenticate."""

import hashlib
import re
import secrets
from math import inf
from typing import NamedTuple

_KEY_ROLES = {"read": frozenset({"read"}), "write": frozenset({"read", "write"})}
_NAME = re.compile("[A-Za-z0-9._-]{1,64}")
_DIGEST = re.compile("[0-9a-f]{64}")
_PUBLISHED = {bytes.fromhex("5b45f1d06221ea6f8fbf9c1a8b9e20f2e0af805ff8f78e19d5d2c198efb51c4b")}
"""The digest of the key in docs/api.md: it would let every reader in."""


class Caller(NamedTuple):
    """An authenticated caller. `name` is `key:NAME` or `token:SUBJECT`.

    `digest` is the SHA-256 of the credentials, which are verified again at `expires` on the monotonic clock. The scopes
    of a key are its roles, `read` and `write`, until the guard makes them those of every resource.
    """

    name: str
    scopes: frozenset[str]
    digest: bytes
    expires: float = inf


def make_api_key(name: str, *, read_only: bool) -> tuple[str, str]:
    """Return a new API key and its entry for API_KEYS, which does not reveal it. Raises ValueError for a bad name."""
    if not _NAME.fullmatch(name):
        raise ValueError("a name has 1 to 64 letters, digits, dots, hyphens and underscores")
    # The prefix lets secret scanners recognise leaked keys.
    key = f"users_{secrets.token_urlsafe(32)}"
    return key, f"{name}:{digest_of(key.encode()).hex()}:{'read' if read_only else 'write'}"


def parse_api_keys(text: str) -> list[Caller]:
    """Parse API_KEYS: entries NAME:SHA256:SCOPE, separated by commas or blanks.

    A name may have several keys, so that one can be replaced. Raises ValueError, which quotes nothing: the text may
    contain a key by mistake.
    """
    callers: dict[bytes, Caller] = {}
    for number, entry in enumerate(text.replace(",", " ").split(), start=1):
        name, _, rest = entry.partition(":")
        digest, _, scope = rest.partition(":")
        if not (_NAME.fullmatch(name) and _DIGEST.fullmatch(digest) and scope in _KEY_ROLES):
            raise ValueError(
                f"entry {number} is not NAME:SHA256:SCOPE with the scope read or write; "
                "`users-api key NAME` creates a key and prints its entry"
            )
        caller = Caller(f"key:{name}", _KEY_ROLES[scope], bytes.fromhex(digest))
        if caller.digest in _PUBLISHED:
            raise ValueError(
                f"entry {number} is of the key that the documentation shows: create your own with `users-api key NAME`"
            )
        if caller.digest in callers:
            raise ValueError(f"entry {number} repeats the key of another entry")
        callers[caller.digest] = caller
    if not callers:
        raise ValueError("there is no entry; `users-api key NAME` creates a key and prints its entry")
    return list(callers.values())


def digest_of(credentials: bytes) -> bytes:
    """Return the SHA-256 of credentials.

    A key has 256 random bits: a salt or a slow hash would not make it harder to guess.
    """
    return hashlib.sha256(credentials).digest()
