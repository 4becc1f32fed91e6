"""Authentication and authorization, before a request is routed and before its body is read."""

from collections.abc import Collection, Iterable
from time import monotonic, time
from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Receive, Scope, Send

from api.auth.keys import Caller, digest_of
from api.auth.problems import insufficient_scope, invalid_credentials, several_credentials, unauthenticated
from api.auth.scopes import Scopes
from api.http.request import values_of
from api.http.response import send_problem

if TYPE_CHECKING:
    from api.auth.tokens import Tokens

_INVALID = "The API key or token is not valid"
_MAX_CACHED_TOKENS = 10_000
_CACHE_SECONDS = 60.0
"""The lifetime of a cached token: verifying a signature costs more than the rest of a request."""


class Guard:
    """ASGI middleware that requires credentials with the scopes of the request's path and method.

    Requests without such credentials are refused, even on unknown paths: no route is left open by mistake. Only
    `open_paths` require none. The name of the caller goes into the ASGI scope: see `caller`.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        keys: Iterable[Caller],
        tokens: "Tokens | None",
        scopes: Scopes,
        open_paths: Collection[str],
    ) -> None:
        self._app = app
        self._tokens = tokens
        self._scopes = scopes
        self._open_paths = frozenset(open_paths)
        self._keys = {key.digest: key._replace(scopes=scopes.granted(key.scopes)) for key in keys}
        # The keys, and recently validated tokens.
        self._known = dict(self._keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or send a problem: 400, 401, 403 or 503."""
        if scope["type"] == "http":
            path = scope["path"].removeprefix(scope.get("root_path", ""))
            if path not in self._open_paths:
                try:
                    scope["caller"] = await self._authenticate(scope, path)
                except Exception as error:  # The boundary, as in Resource.
                    await send_problem(error, scope, receive, send)
                    return
        await self._app(scope, receive, send)

    async def _authenticate(self, scope: Scope, path: str) -> str:
        """Return the name of the caller. Raises Problem for missing or invalid credentials and for a missing scope."""
        sent = values_of(scope, b"authorization")
        if len(sent) > 1:
            raise several_credentials()
        scheme, _, credentials = sent[0].partition(b" ") if sent else (b"", b"", b"")
        if scheme.lower() != b"bearer" or not credentials:
            raise unauthenticated()
        # The time of the lookup depends on the digest alone. Knowing part of a digest does not help to find the key:
        # SHA-256 is not invertible.
        digest = digest_of(credentials)
        caller = self._known.get(digest)
        if caller is None or caller.expires <= monotonic():
            caller = await self._read_token(credentials, digest)
        needed = self._scopes.needed(path, scope["method"])
        if not caller.scopes.issuperset(needed):
            raise insufficient_scope(" ".join(needed))
        return caller.name

    async def _read_token(self, credentials: bytes, digest: bytes) -> Caller:
        # Credentials that cannot be a token are refused before a signing key is looked up.
        if self._tokens is None or credentials.count(b".") != 2 or not credentials.isascii():
            raise invalid_credentials(_INVALID)
        claims = await self._tokens.read(credentials.decode())
        scopes = claims.get("scope")
        now = time()
        caller = Caller(
            f"token:{claims['sub']}",
            frozenset(scopes.split()) if isinstance(scopes, str) else frozenset(),
            digest,
            # Not on the clock of the machine: set back, it would keep a token whose signing key was withdrawn.
            monotonic() + min(int(claims["exp"]), now + _CACHE_SECONDS) - now,
        )
        if len(self._known) >= len(self._keys) + _MAX_CACHED_TOKENS:
            self._known = dict(self._keys)
        self._known[digest] = caller
        return caller


def caller(scope: Scope) -> str:
    """Return the name of the caller: `key:NAME`, `token:SUBJECT`, or "" without authentication."""
    return scope.get("caller", "")  # type: ignore[no-any-return]
