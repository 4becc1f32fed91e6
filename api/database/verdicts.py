"""PostgreSQL's verdicts: for each SQLSTATE that it can answer to a statement, the next step and the remedy.

A verdict leaves the connection open, and the statement was rolled back: nothing was changed. Faults of connections are
in faults.py. Codes and classes: https://www.postgresql.org/docs/current/errcodes-appendix.html.
"""

from enum import Enum
from typing import NamedTuple

import asyncpg


class Next(Enum):
    """The step after a statement that failed."""

    RAISE = "PostgreSQL refused it, and the error belongs to the request"
    FAILED = "PostgreSQL refused it for a reason that no client can mend"
    REPEAT = "it was rolled back: run it again after a pause"
    RETRY = "it never ran: send it again"
    RESEND = "it may have run, and running it again is harmless"
    UNAVAILABLE = "it changed nothing, and a retry would not help"
    TIMEOUT = "a read that takes too long"
    UNKNOWN = "a write that may have happened"


class Verdict(NamedTuple):
    """A row of the table: the step after a write, and the operator's action, for the log.

    A read is never refused by a rule about content: its RAISE counts as FAILED.
    """

    step: Next
    remedy: str


FOREIGN = Verdict(
    Next.RAISE, "a constraint, trigger, policy or type of your own refuses the change, or a function that these call"
)
"""The verdict of a SQLSTATE that PostgreSQL does not have: only functions of the operator's raise it."""

_SCHEMA = (
    "the schema is not what this release, or a function of your own, expects: `users-api migrate`, then "
    "`users-api check-sql`"
)
_FUNCTION = "a trigger, policy or function of the database fails: correct it"
_POOLER_STATEMENTS = (
    "the pooler does not keep prepared statements: set STATEMENT_CACHE_SIZE=0, or use PgBouncer 1.21 or later with "
    "max_prepared_statements above 0"
)
_CONFLICTS = "transactions that run at once conflict: default_transaction_isolation = 'read committed' avoids most"

TABLE: tuple[tuple[str, Verdict], ...] = (
    # The content, by a rule that the database's owner has made.
    ("01 02 09 10 20 21 22 23 27 40002 44 P0", FOREIGN),
    # Other transactions.
    ("40 40001 40P01", Verdict(Next.REPEAT, _CONFLICTS)),
    ("55P03", Verdict(Next.RAISE, "another transaction holds the row for longer than a statement waits")),
    # The deployment.
    ("3F 42", Verdict(Next.FAILED, _SCHEMA)),
    ("0A", Verdict(Next.FAILED, "a plan that is cached does not fit the schema any more: RECONNECT the pooler")),
    ("42501", Verdict(Next.FAILED, "GRANT the privilege to the role in DATABASE_URL: docs/neon.md lists them all")),
    ("26000 42P05", Verdict(Next.UNAVAILABLE, _POOLER_STATEMENTS)),
    ("25006", Verdict(Next.UNAVAILABLE, "the URL leads to a read-only server: DATABASE_URL must lead to the primary")),
    # The server.
    ("53", Verdict(Next.UNAVAILABLE, "a limit of the server is reached: memory, connections or its configuration")),
    ("53100", Verdict(Next.UNAVAILABLE, "the disk, or the Neon project's storage limit, is full")),
    ("53200", Verdict(Next.UNAVAILABLE, "the server has no memory left")),
    ("57", Verdict(Next.UNAVAILABLE, "an administrator intervenes, or the server stops")),
    ("57014", Verdict(Next.UNAVAILABLE, "cancelled by an administrator or a statement_timeout of the role")),
    ("54 55 58 F0 XX", Verdict(Next.FAILED, "the server reports an error of its own: see PostgreSQL's log")),
    # Functions that triggers, policies and generated columns call, and the servers that these reach.
    ("03 0B 0F 0L 0P 0Z 24 25 26 28 2B 2D 2F 34 38 39 3B 3D", Verdict(Next.FAILED, _FUNCTION)),
    ("08 HV", Verdict(Next.FAILED, "the pooler, a trigger or a foreign table cannot reach a server")),
    ("08007 40003", Verdict(Next.UNKNOWN, "a trigger or foreign table does not know what another server did")),
)
"""Codes and classes, separated by spaces. A code's own row counts, else that of its class, else FOREIGN."""

_VERDICTS = {code: verdict for codes, verdict in TABLE for code in codes.split()}

# The functions of PostgreSQL that refuse content with 42501: a policy's WITH CHECK, and RAISE. Messages can be
# translated; these names cannot.
_REFUSING = ("ExecWithCheckOptions", "exec_stmt_raise")


def verdict_of(error: asyncpg.PostgresError) -> Verdict:
    """Return the verdict of an error that PostgreSQL has answered to a statement."""
    code = error.sqlstate or ""
    if code == "42501" and error.server_source_function in _REFUSING:
        return FOREIGN
    return _VERDICTS.get(code) or _VERDICTS.get(code[:2]) or FOREIGN
