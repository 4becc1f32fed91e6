"""Tokens (JWT, RFC 7519) of the one issuer that the operator trusts, checked with the keys that it publishes (JWKS)."""

import asyncio
import logging
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from http.client import HTTPMessage
from math import inf
from time import monotonic
from typing import IO, Any

import jwt

from api.auth.keys import invalid_credentials, keys_unavailable
from api.errors import describe
from api.threads import in_daemon_thread

logger = logging.getLogger("api.tokens")

ALGORITHMS = ("EdDSA", "ES256", "RS256")
"""Signatures by a key pair alone: with HS256 whoever knows the public key could sign."""
MAX_TOKEN_BYTES = 8 * 1024

_REQUIRED = ["exp", "iss", "aud", "sub"]
_LEEWAY_SECONDS = 30  # how far the issuer's clock may be from ours
_MAX_AGE_SECONDS = 600  # after which the keys are fetched again
_MIN_AGE_SECONDS = 10  # within which no unknown `kid` makes us fetch: anybody can make one up
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


class Tokens:
    """Judges the tokens of one issuer for one audience."""

    def __init__(self, issuer: str, audience: str, jwks_url: str) -> None:
        self._issuer = issuer
        self._audience = audience
        self.keys = SigningKeys(jwks_url)

    async def read(self, token: str) -> Mapping[str, Any]:
        """Return the claims of a token that holds.

        Raises Problem: 401 where it does not hold, 503 where its key is unknown and the keys cannot be fetched.
        """
        if len(token) > MAX_TOKEN_BYTES:
            raise invalid_credentials(_INVALID)
        try:
            # No more of the header is believed than which of the issuer's keys to try: `jku`, `jwk` and `x5u` are not
            # read, and the algorithm is the key's.
            kid = jwt.get_unverified_header(token).get("kid")
            key = await self.keys.find(kid) if isinstance(kid, str) else None
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
        except jwt.PyJWTError as error:
            reason = next((reason for kind, reason in _REASONS if isinstance(error, kind)), _INVALID)
            raise invalid_credentials(reason) from None
        return claims


class SigningKeys:
    """The issuer's public keys by `kid`: fetched when one is unknown, and kept while the issuer cannot be reached."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._keys: dict[str, jwt.PyJWK] = {}
        self._fetched_at = -inf
        self._failed = False
        self._fetching: asyncio.Task[None] | None = None
        self._reading = threading.Lock()  # of the thread that fetches: it may go on when nobody waits for it any more

    async def find(self, kid: str) -> jwt.PyJWK | None:
        """The key, None where the issuer has none of that name. Raises Problem where that cannot be known."""
        if kid not in self._keys and (self._fetching or monotonic() - self._fetched_at > _MIN_AGE_SECONDS):
            await self._fetch_once()
        key = self._keys.get(kid)
        if key is None and self._failed:
            raise keys_unavailable()
        return key

    async def keep_fresh(self) -> None:
        """Fetch the keys every now and then, until cancelled: one that was withdrawn is forgotten so."""
        while True:
            await self._fetch_once()
            await asyncio.sleep(_MAX_AGE_SECONDS)

    async def _fetch_once(self) -> None:
        """Wait for the fetch under way, else for a new one, which goes on when who waits for it goes away."""
        if self._fetching is None:
            self._fetched_at = monotonic()
            self._fetching = asyncio.create_task(self._fetch())
        await asyncio.shield(self._fetching)

    async def _fetch(self) -> None:
        try:
            # urllib's time-out is for each read: a host that sends a byte now and then must not hold up who waits.
            async with asyncio.timeout(2 * _FETCH_SECONDS):
                self._keys = await in_daemon_thread(self._fetch_alone)
            self._failed = False
        except Exception as error:  # Whatever the host sends, the keys that are known stay.
            self._failed = True
            logger.warning(
                "JWT_JWKS_URL: the keys cannot be fetched, %d known before are kept: %s",
                len(self._keys),
                describe(error),
            )
        finally:
            self._fetching = None

    def _fetch_alone(self) -> dict[str, jwt.PyJWK]:
        if not self._reading.acquire(blocking=False):  # Otherwise there would be more and more of these threads.
            raise TimeoutError("the answer before has not ended yet")
        try:
            return _fetch_keys(self._url)
        finally:
            self._reading.release()


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> None:
        """Follow none: a redirect could leave https, or the host that the operator named."""


def _fetch_keys(url: str) -> dict[str, jwt.PyJWK]:
    """GET a JWKS (RFC 7517, section 5), for a thread: it blocks. Keys that are not for our algorithms are left out."""
    ends = monotonic() + 2 * _FETCH_SECONDS
    request = urllib.request.Request(url, headers={"Accept": "application/json", "User-Agent": "users-api"})  # noqa: S310 - settings.py lets https alone pass, and http on the loopback address
    try:
        response = urllib.request.build_opener(_NoRedirects).open(request, timeout=_FETCH_SECONDS)
    except urllib.error.HTTPError as error:
        error.close()  # It is the answer too.
        raise
    text = b""
    with response:
        while len(text) <= _MAX_JWKS_BYTES and (data := response.read1(_MAX_JWKS_BYTES)):
            text += data
            if monotonic() > ends:
                raise TimeoutError("the answer does not end")
    if len(text) > _MAX_JWKS_BYTES:
        raise ValueError(f"the answer is longer than {_MAX_JWKS_BYTES} bytes")
    keys = jwt.PyJWKSet.from_json(text.decode()).keys
    usable = {
        key.key_id: key
        for key in keys
        if key.key_id and key.algorithm_name in ALGORITHMS and key.public_key_use in (None, "sig")
    }
    if not usable:
        raise ValueError(f"no key has a kid and is for one of {', '.join(ALGORITHMS)}")
    return usable
