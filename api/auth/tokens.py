"""Bearer tokens (JWT, RFC 7519) of one trusted issuer, verified with the keys that it publishes (JWKS)."""

import asyncio
import logging
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from http.client import HTTPMessage
from math import inf
from time import monotonic
from typing import IO, Any

import jwt

from api.auth.problems import invalid_credentials, keys_unavailable
from api.errors import describe
from api.threads import in_daemon_thread

logger = logging.getLogger("api.tokens")

ALGORITHMS = ("EdDSA", "ES256", "RS256")
"""Asymmetric signatures only: with HS256, the public key would be enough to sign."""
MAX_TOKEN_BYTES = 8 * 1024
MAX_SUBJECT = 255
"""The characters of a `sub` (OpenID Connect Core 1.0, section 2), which is stored with its idempotency keys."""

_REQUIRED = ["exp", "iss", "aud", "sub"]
_LEEWAY_SECONDS = 30  # tolerated difference between the issuer's clock and ours
_MAX_AGE_SECONDS = 600  # after which the keys are fetched again
_MIN_AGE_SECONDS = 10  # within which an unknown `kid` causes no fetch: any client can send one
_FETCH_SECONDS = 5
_MAX_JWKS_BYTES = 256 * 1024

_REASONS: tuple[tuple[type[jwt.PyJWTError], str], ...] = (
    (jwt.ExpiredSignatureError, "The token has expired"),
    (jwt.ImmatureSignatureError, "The token is not valid yet"),
    (jwt.InvalidAudienceError, "The token is for another audience"),
    (jwt.InvalidIssuerError, "The token is of another issuer"),
    (jwt.MissingRequiredClaimError, f"The token lacks one of the claims {', '.join(_REQUIRED)}"),
)
_INVALID = "The token is not valid"
# No control characters, which a text in PostgreSQL (NUL) or a log line cannot have, and no lone surrogates, which UTF-8
# cannot.
_SUBJECT = re.compile(rf"[^\x00-\x1f\x7f-\x9f\ud800-\udfff]{{1,{MAX_SUBJECT}}}")
# RFC 7519, section 5.1, and RFC 9068, section 2.1. Other types, such as security events, are for other recipients.
_TYPES = frozenset({"jwt", "at+jwt"})


class Tokens:
    """Verifies the tokens of one issuer for one audience."""

    def __init__(self, issuer: str, audience: str, jwks_url: str) -> None:
        self._issuer = issuer
        self._audience = audience
        self.keys = SigningKeys(jwks_url)

    async def read(self, token: str) -> Mapping[str, Any]:
        """Verify a token and return its claims.

        Raises Problem: 401 if it is invalid, 503 if its key is unknown and the keys cannot be fetched.
        """
        if len(token) > MAX_TOKEN_BYTES:
            raise invalid_credentials(_INVALID)
        try:
            # The header only selects one of the issuer's keys: `jku`, `jwk` and `x5u` are ignored, and the algorithm is
            # that of the key.
            header = jwt.get_unverified_header(token)
            if not _is_access_token(header.get("typ", "JWT")):
                raise invalid_credentials("The token is of another type than JWT and at+jwt")
            kid = header.get("kid")
            key = await self.keys.find(kid, header.get("alg")) if isinstance(kid, str) else None
            if key is None:
                raise invalid_credentials("The token is not signed with a key of the issuer")
            claims: dict[str, Any] = jwt.decode(
                token,
                key,
                algorithms=ALGORITHMS,
                issuer=self._issuer,
                audience=self._audience,
                leeway=_LEEWAY_SECONDS,
                options={"require": _REQUIRED, "enforce_minimum_key_length": True},
            )
        except (jwt.PyJWTError, OverflowError) as error:  # The latter is a time beyond the numbers of a float.
            reason = next((reason for kind, reason in _REASONS if isinstance(error, kind)), _INVALID)
            raise invalid_credentials(reason) from None
        if not _SUBJECT.fullmatch(claims["sub"]):
            raise invalid_credentials(
                f"The token's sub is not 1 to {MAX_SUBJECT} characters without control characters"
            )
        return claims


def _is_access_token(typ: object) -> bool:
    return isinstance(typ, str) and typ.lower().removeprefix("application/") in _TYPES


class SigningKeys:
    """The issuer's public keys: fetched if a `kid` is unknown, and kept while the issuer is unreachable.

    Keys of different types may share a `kid` (RFC 7517, section 4.5): the algorithm tells them apart.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._keys: dict[str, list[jwt.PyJWK]] = {}
        self._fetched_at = -inf
        self._failed = False
        self._fetching: asyncio.Task[None] | None = None
        self._reading = threading.Lock()  # held by the fetching thread, which may outlive its task

    async def find(self, kid: str, algorithm: object = None) -> jwt.PyJWK | None:
        """Return the key, None if the issuer has no such key. Raises Problem: 503 if that cannot be determined.

        If keys with this `kid` are for other algorithms only, one of them is returned: no signature is valid.
        """
        if self._get(kid, algorithm) is None and (self._fetching or monotonic() - self._fetched_at > _MIN_AGE_SECONDS):
            await self._fetch_once()
        key = self._get(kid, algorithm)
        if key is None and self._failed:
            raise keys_unavailable()
        return key or self._get(kid, None)

    def _get(self, kid: str, algorithm: object) -> jwt.PyJWK | None:
        keys = self._keys.get(kid, ())
        return next((key for key in keys if key.algorithm_name == algorithm or algorithm not in ALGORITHMS), None)

    async def keep_fresh(self) -> None:
        """Fetch the keys every 10 minutes, until cancelled: a revoked key is dropped."""
        while True:
            await self._fetch_once()
            await asyncio.sleep(_MAX_AGE_SECONDS)

    async def _fetch_once(self) -> None:
        """Wait for the fetch in progress, or for a new one. It continues if the caller is cancelled."""
        if self._fetching is None:
            self._fetched_at = monotonic()
            self._fetching = asyncio.create_task(self._fetch())
        await asyncio.shield(self._fetching)

    async def _fetch(self) -> None:
        try:
            # urllib's timeout applies to each read: a host that sends single bytes must not block the callers.
            async with asyncio.timeout(2 * _FETCH_SECONDS):
                self._keys = await in_daemon_thread(self._fetch_alone)
            self._failed = False
        except Exception as error:  # Whatever the host sends, the known keys stay.
            self._failed = True
            logger.warning(
                "JWT_JWKS_URL: the keys cannot be fetched, the %d known keys are kept: %s",
                sum(map(len, self._keys.values())),
                describe(error),
            )
        finally:
            self._fetching = None

    def _fetch_alone(self) -> dict[str, list[jwt.PyJWK]]:
        if not self._reading.acquire(blocking=False):  # Otherwise these threads would accumulate.
            raise TimeoutError("the previous response has not ended yet")
        try:
            return _fetch_keys(self._url)
        finally:
            self._reading.release()


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> None:
        """Follow no redirect: it could leave https, or the configured host."""


def _fetch_keys(url: str) -> dict[str, list[jwt.PyJWK]]:
    """Fetch a JWKS (RFC 7517, section 5); blocks. Keys for other algorithms are left out."""
    ends = monotonic() + 2 * _FETCH_SECONDS
    request = urllib.request.Request(url, headers={"Accept": "application/json", "User-Agent": "users-api"})  # noqa: S310 - settings allow only https, and http on a loopback host
    try:
        response = urllib.request.build_opener(_NoRedirects).open(request, timeout=_FETCH_SECONDS)
    except urllib.error.HTTPError as error:
        error.close()  # The error is the response, which holds the connection.
        raise
    text = b""
    with response:
        while len(text) <= _MAX_JWKS_BYTES and (data := response.read1(_MAX_JWKS_BYTES)):
            text += data
            if monotonic() > ends:
                raise TimeoutError("the response does not end")
    if len(text) > _MAX_JWKS_BYTES:
        raise ValueError(f"the response is longer than {_MAX_JWKS_BYTES} bytes")
    keys = jwt.PyJWKSet.from_json(text.decode()).keys
    usable: dict[str, list[jwt.PyJWK]] = {}
    for key in keys:
        if key.key_id and key.algorithm_name in ALGORITHMS and key.public_key_use in (None, "sig"):
            usable.setdefault(key.key_id, []).append(key)
    if not usable:
        raise ValueError(f"no key has a kid and is for one of {', '.join(ALGORITHMS)}")
    return usable
