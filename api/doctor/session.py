"""The checks of what a session begins with: set for its role or database, or left by another client of the pooler."""

import asyncpg

from api.doctor.findings import Finding, green, red, yellow

_TRANSACTIONS = ("default_transaction_isolation", "default_transaction_read_only", "default_transaction_deferrable")

# By where a value comes from: https://www.postgresql.org/docs/current/view-pg-settings.html, column source.
_RESET = {
    "user": "ALTER ROLE {role} RESET {name}",
    "database": "ALTER DATABASE {database} RESET {name}",
    "database user": "ALTER ROLE {role} IN DATABASE {database} RESET {name}",
    "global": "ALTER ROLE ALL RESET {name}",
}
_OPEN_SESSIONS = "open sessions keep it: restart the compute, or the pooler"
_FOREIGN = (
    "another client set {name} on a session of the pooler: give it DIRECT_URL, and restart the compute, or the pooler"
)


async def check_time_zone(connection: asyncpg.Connection) -> Finding:
    """Report the session's TimeZone, on which no response depends."""
    zone = await connection.fetchval("select current_setting('TimeZone')")
    return green(f"{zone} (responses are in UTC anyway)")


async def check_transactions(connection: asyncpg.Connection) -> Finding:
    """Compare how a transaction begins with PostgreSQL's own defaults, read committed and read write."""
    rows = await connection.fetch(
        """
        select name, setting, source, quote_ident(session_user) as role, quote_ident(current_database()) as database
        from pg_catalog.pg_settings
        where name = any($1::text[]) and setting not in ('read committed', 'read uncommitted', 'off')
        order by name
        """,
        _TRANSACTIONS,
    )
    if not rows:
        return green("read committed, read write")
    found = {row["name"]: row["setting"] for row in rows}
    effects = []
    if isolation := found.get("default_transaction_isolation"):
        effects.append(f"{isolation}: concurrent writes fail with SQLSTATE 40001, where they would only wait")
    if "default_transaction_read_only" in found:
        effects.append("read-only: every write fails")
    if "default_transaction_deferrable" in found:
        effects.append("deferrable: a serializable read may wait for the writes under way")
    remedy = "; ".join(_reset(row) for row in rows)
    if any(row["source"] != "session" for row in rows):
        remedy += f"; {_OPEN_SESSIONS}"
    detail = "; ".join(effects)
    return red(detail, remedy) if "default_transaction_read_only" in found else yellow(detail, remedy)


def _reset(row: asyncpg.Record) -> str:
    """Return how to undo a setting."""
    if row["source"] == "session":
        return _FOREIGN.format_map(row)
    return _RESET.get(row["source"], "ALTER SYSTEM RESET {name}, or the server's configuration file").format_map(row)


async def check_statement_timeout(connection: asyncpg.Connection, client_seconds: float | None) -> Finding:
    """Report the statement_timeout that results from the role's and the database's settings.

    `client_seconds`: requests cancel their own statements after this; None for migrations, which do not.
    """
    milliseconds = await connection.fetchval("select setting::int from pg_settings where name = 'statement_timeout'")
    seconds = milliseconds / 1000
    if client_seconds is None:
        if not seconds:
            return green("none: a long migration is not cut off")
        return yellow(
            f"{seconds:g} s: a migration that takes longer is cancelled",
            "begin long migrations with: set statement_timeout = 0; or give DIRECT_URL a role of its own",
        )
    if not seconds:
        return green(f"none in PostgreSQL; requests cancel theirs after {client_seconds:g} s")
    if seconds < client_seconds:
        return yellow(
            f"{seconds:g} s in PostgreSQL, before requests cancel theirs after {client_seconds:g} s",
            f"set STATEMENT_TIMEOUT_SECONDS below {seconds:g}, or raise it for the role or database that sets it",
        )
    return green(f"{seconds:g} s in PostgreSQL; requests cancel theirs after {client_seconds:g} s")
