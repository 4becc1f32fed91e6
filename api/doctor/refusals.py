"""Why somebody is not let in, or no further, and what mends it."""

import asyncpg

from api.doctor.findings import Finding, red
from api.errors import describe

CONNECTION_ERRORS = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
"""What connecting and asking can raise."""

_AGAIN = "run it again; if it stays, the server's log says more"
_CREDENTIALS = "copy the URL from Neon's console again, password and all (%2F for /, %3F for ?, %25 for %)"
_DATABASE = "correct the database's name in the URL, or create it"
_CONNECTIONS = "lower POOL_MAX_SIZE, workers or replicas, or end other clients: the database has no connection left"
# By SQLSTATE, and by the texts of those who have one SQLSTATE for everything: PgBouncer 08P01, Neon's proxy XX000.
_REMEDIES = {
    "28P01": _CREDENTIALS,
    "28000": "create the role, or correct the user in the URL; pg_hba.conf must let it in, with TLS",
    "3D000": _DATABASE,
    "42501": "grant the role what it needs, or use the URL of the role that owns the tables",
    "53300": _CONNECTIONS,
}
_REMEDIES_BY_TEXT = {
    "authentication failed": _CREDENTIALS,
    "no such user": _CREDENTIALS,
    "does not exist": _DATABASE,
    "no such database": _DATABASE,
    "no more connections": _CONNECTIONS,
    "too many connections": _CONNECTIONS,
    "disabled": "enable the compute in Neon's console",
    "exceeded": "raise the limit, or the plan, of the Neon project in Neon's console",
    "could not be found": "copy the host from Neon's console again: this endpoint does not exist",
}


def wakes_up(error: asyncpg.PostgresError) -> bool:
    """Whether it is what a compute says, or Neon's proxy in its place, that will answer in a moment."""
    if isinstance(error, asyncpg.InternalServerError):
        return any(text in str(error) for text in ("connect to compute node", "Control plane", "acquire permit"))
    return isinstance(error, (asyncpg.CannotConnectNowError, asyncpg.AdminShutdownError))


def explain(error: Exception) -> Finding:
    """What an exception of connecting or asking means, and what mends it."""
    detail = describe(error)
    by_text = (remedy for text, remedy in _REMEDIES_BY_TEXT.items() if text in detail.lower())
    return red(detail, _REMEDIES.get(getattr(error, "sqlstate", None) or "") or next(by_text, _AGAIN))
