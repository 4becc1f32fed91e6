"""Who asks, and what they may do: API keys and tokens, judged before a request is routed or its body read."""

from starlette.types import Scope

from api.errors import Problem

READ, WRITE = "users:read", "users:write"
"""The scopes: GET and HEAD need the first, every other method the second."""

_CHALLENGE = 'Bearer realm="users-api"'


def unauthenticated() -> Problem:
    """The problem of a request without credentials."""
    return Problem(
        401,
        "Send an API key or a token: `Authorization: Bearer …`",
        "unauthenticated",
        headers={"WWW-Authenticate": _CHALLENGE},
    )


def invalid_credentials(reason: str) -> Problem:
    """The problem of credentials that do not hold; `reason` says why, for people, and quotes nothing of them."""
    challenge = f'{_CHALLENGE}, error="invalid_token", error_description="{reason}"'
    return Problem(401, reason, "invalid-token", headers={"WWW-Authenticate": challenge})


def unreadable_credentials() -> Problem:
    """The problem of a request whose Authorization header cannot be read, or is sent twice."""
    return Problem(
        400,
        "Send one Authorization header, as `Authorization: Bearer …`",
        "invalid-request",
        headers={"WWW-Authenticate": f'{_CHALLENGE}, error="invalid_request"'},
    )


def forbidden(scope: str) -> Problem:
    """The problem of credentials that are good, but not for this."""
    return Problem(
        403,
        f"These credentials lack the scope {scope}",
        "insufficient-scope",
        headers={"WWW-Authenticate": f'{_CHALLENGE}, error="insufficient_scope", scope="{scope}"'},
    )


def caller(scope: Scope) -> str:
    """Who asked: `key:NAME`, `token:SUBJECT`, or "" where nobody is asked who they are."""
    return scope.get("caller", "")  # type: ignore[no-any-return]
