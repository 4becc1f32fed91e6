"""The problems of missing, invalid and insufficient credentials (RFC 6750, section 3)."""

from api.errors import Problem

_CHALLENGE = 'Bearer realm="users-api"'


def unauthenticated() -> Problem:
    """The problem of a request without credentials."""
    return Problem(
        401,
        "Send an API key or a token: Authorization: Bearer …",
        "unauthenticated",
        headers={"WWW-Authenticate": _CHALLENGE},
    )


def invalid_credentials(reason: str) -> Problem:
    """The problem of invalid credentials; `reason` is ASCII and quotes nothing of them."""
    challenge = f'{_CHALLENGE}, error="invalid_token", error_description="{reason}"'
    return Problem(401, reason, "invalid-token", headers={"WWW-Authenticate": challenge})


def several_credentials() -> Problem:
    """The problem of a request with more than one Authorization header."""
    return Problem(
        400,
        "Send one Authorization header",
        "invalid-request",
        headers={"WWW-Authenticate": f'{_CHALLENGE}, error="invalid_request"'},
    )


def insufficient_scope(scope: str) -> Problem:
    """The problem of valid credentials without the required scope."""
    return Problem(
        403,
        f"These credentials lack the scope {scope}",
        "insufficient-scope",
        headers={"WWW-Authenticate": f'{_CHALLENGE}, error="insufficient_scope", scope="{scope}"'},
    )


def keys_unavailable() -> Problem:
    """The problem of a token that cannot be verified, because the issuer's keys cannot be fetched."""
    return Problem(
        503,
        "The keys that tokens are checked with cannot be fetched",
        "keys-unavailable",
        headers={"Retry-After": "10"},
    )
