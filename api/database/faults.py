"""Which failures of the database pass, which stay until somebody acts, and what to do then: one table.

Where the texts come from: `disconnect_client` and `kill_pool_logins` in PgBouncer 1.24 (src/objects.c, src/janitor.c,
src/server.c), and `to_string_client` in Neon's proxy (proxy/src/control_plane, proxy/src/auth, proxy/src/compute).
"""

import socket
import ssl
from enum import Enum
from typing import NamedTuple

import asyncpg

# What connecting and fetching raise when the database is what failed: the network, PostgreSQL's word, and asyncpg's.
DATABASE_ERRORS = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)


class Fault(NamedTuple):
    """What to make of a failure.

    `transient`: waiting may help. `refusal`: it is what somebody hears who is not let in, so a statement that ended in
    it never reached PostgreSQL. `remedy`: what to do where it stays, for the log.
    """

    transient: bool
    refusal: bool = False
    remedy: str = ""


class Row(NamedTuple):
    """A line of the table: an exception's class or a SQLSTATE, and a part of the message in lower case."""

    kind: type[Exception] | str
    text: str
    fault: Fault


def _transient(kind: type[Exception] | str, text: str = "", remedy: str = "", *, refusal: bool = True) -> Row:
    return Row(kind, text, Fault(transient=True, refusal=refusal, remedy=remedy))


def _permanent(kind: type[Exception] | str, text: str, remedy: str, *, refusal: bool = True) -> Row:
    return Row(kind, text, Fault(transient=False, refusal=refusal, remedy=remedy))


_BUDGET = "replicas x workers x POOL_MAX_SIZE are more connections than the server, the pooler or the role may have"
_CREDENTIALS = "check the user and the password in the URL"
_NAME = "check the host in the URL, and that this machine can resolve names"
_CERTIFICATE = (
    "the server's certificate cannot be trusted: install the package ca-certificates, name its authority with "
    "sslrootcert=FILE in the URL, and use the host name that the certificate was issued for"
)
_POOLER_STATEMENTS = (
    "the pooler does not keep prepared statements: set STATEMENT_CACHE_SIZE=0, or use PgBouncer 1.21 or later with "
    "max_prepared_statements above 0"
)

# The first row that fits counts.
_TABLE = (
    # The way to the server.
    _permanent(ssl.SSLCertVerificationError, "", _CERTIFICATE),
    _permanent(
        ConnectionError, "rejected ssl upgrade", "the server speaks no TLS: sslmode=disable suits private networks"
    ),
    # The resolver was answered that there is no such name; for an answer that it did not get it has EAI_AGAIN.
    _permanent(socket.gaierror, f"[errno {socket.EAI_NONAME}]", _NAME),
    _permanent(socket.gaierror, f"[errno {getattr(socket, 'EAI_NODATA', socket.EAI_NONAME)}]", _NAME),
    _transient(socket.gaierror, "", _NAME),
    _transient(ConnectionRefusedError, "", "nothing listens at the URL's host and port"),
    _transient(
        TimeoutError, "", "no answer in time: check the URL's host and port, firewalls, and locks", refusal=False
    ),
    _permanent(PermissionError, "", "this user may not open the server's socket"),
    _transient(asyncpg.TargetServerAttributeNotMatched, "", "no host of the URL is what target_session_attrs asks for"),
    _permanent(asyncpg.InterfaceError, "pool is clos", "this process is stopping"),
    _permanent(asyncpg.ClientConfigurationError, "", "check the URL"),
    # Neon's proxy, whose failures all have one SQLSTATE. What stays comes first: it may be quoted in what passes.
    _permanent("XX000", "disabled", "the compute is disabled: enable it in Neon's console"),
    _transient("XX000", "rate limit"),
    _permanent("XX000", "quota", "a quota of the Neon project is used up: see Billing in Neon's console"),
    _permanent("XX000", "exceeded", "a limit of the Neon project is reached: see Billing in Neon's console"),
    _permanent("XX000", "not be found", "check the host in the URL: this Neon endpoint does not exist, or no more"),
    _permanent("XX000", "not found", "check the host in the URL: this Neon endpoint does not exist, or no more"),
    _permanent("XX000", "not allowed to connect", "add this machine's address to IP Allow in Neon's console"),
    _permanent("XX000", "blocked network", "this network is blocked in Neon's console"),
    _permanent("XX000", "connection is insecure", "Neon takes TLS only: write sslmode=require in the URL"),
    _permanent("XX000", "endpoint id is not specified", "use the host name as Neon's console shows it"),
    _transient("XX000", "couldn't connect to compute node"),
    _transient("XX000", "control plane request failed"),
    _transient("XX000", "failed to acquire permit", _BUDGET),
    _transient("XX000", "too many connections", _BUDGET),
    # PgBouncer, which says nearly everything under one SQLSTATE, and hands on what PostgreSQL told it at login. The
    # statement of a client that was linked to a server is cut off in other words ("server conn crashed?").
    _permanent("08P01", "password authentication failed", _CREDENTIALS),
    _permanent("08P01", "wrong password type", "the pooler's user list does not fit PostgreSQL's password_encryption"),
    _permanent("08P01", "sasl authentication failed", _CREDENTIALS),
    _permanent("08P01", "no such user", _CREDENTIALS),
    _permanent("08P01", "no such database", "check the database in the URL"),
    _permanent(
        "08P01", "unsupported startup parameter", "remove it from the URL, or name it in ignore_startup_parameters"
    ),
    _transient(
        "08P01", "query_wait_timeout", "the pooler had no server connection for this statement: default_pool_size"
    ),
    _transient("08P01", "server login", "the pooler cannot log in at PostgreSQL"),
    _transient("08P01", "cannot connect to server", "the pooler cannot reach PostgreSQL"),
    _transient("08P01", "client_login_timeout", "the pooler cannot reach PostgreSQL"),
    _transient("08P01", "max_client_conn", _BUDGET),
    _transient("08P01", "client connections exceeded", _BUDGET),
    # PostgreSQL (https://www.postgresql.org/docs/current/errcodes-appendix.html).
    _permanent("28P01", "", _CREDENTIALS),
    _permanent("28000", "", "the server does not let this user in from here: check the user, pg_hba.conf, and sslmode"),
    _permanent("3D000", "", "check the database in the URL"),
    _permanent("42501", "permission denied for database", "GRANT CONNECT on the database to this user"),
    _permanent("55000", "not currently accepting connections", "ALTER DATABASE ... ALLOW_CONNECTIONS true"),
    _transient("53300", "", _BUDGET),
    _transient("57P03", "", "the server is starting, stopping or recovering"),
    _transient("57P01", refusal=False),
    _transient("57P02", refusal=False),
    _permanent("57P04", "", "the database was dropped", refusal=False),
    _transient("57P05", refusal=False),
    # What a statement is refused with while the connection lives on: nothing was changed.
    _transient("57014", "", "cancelled by an administrator or a statement_timeout of the role", refusal=False),
    _permanent("53100", "", "the disk, or the Neon project's storage limit, is full", refusal=False),
    _transient("53200", "", "the server has no memory left", refusal=False),
    _permanent(
        "25006", "", "the URL leads to a read-only server: DATABASE_URL must lead to the primary", refusal=False
    ),
    _permanent("26000", "", _POOLER_STATEMENTS, refusal=False),
    _permanent("42P05", "", _POOLER_STATEMENTS, refusal=False),
)

# A failure to connect that nobody foresaw counts as one that passes: taken for one that stays, it would fail requests
# that a moment of waiting had served; the other way round it delays an answer that would have been the same.
_UNKNOWN = Fault(transient=True)


class Next(Enum):
    """What follows a statement that failed."""

    RAISE = "PostgreSQL judged it, and what it says belongs to the request"
    RETRY = "it never reached PostgreSQL"
    RESEND = "it may have run, and running it again is harmless"
    UNAVAILABLE = "nothing was changed, and trying again would not help"
    TIMEOUT = "a read that takes too long"
    UNKNOWN = "a write that may have happened"


def classify(error: BaseException) -> Fault:
    """What to make of a failure to connect, or of a connection that broke."""
    return _find(_spoken(error)) or _UNKNOWN


def decide_next(error: Exception, *, sent: bool, writes: bool, closed: bool) -> tuple[Next, Fault]:
    """What follows a statement that ended in `error`.

    `sent` is whether asyncpg had asked the server to execute it, `closed` whether the connection is. A write is sent
    again only where it provably never ran: it was not sent, or what ended it is said to those alone who are not let in.
    An error after which the server went on is a verdict, and leaves nothing behind.
    """
    if isinstance(error, asyncpg.PostgresError) and not isinstance(error, asyncpg.ConnectionDoesNotExistError):
        known = _find(error)
        return (Next.RAISE, _UNKNOWN) if known is None or known.refusal else (Next.UNAVAILABLE, known)
    fault = classify(error)
    if not sent and not closed and not isinstance(error, OSError):
        return Next.RAISE, fault  # Nothing is wrong with the connection: asyncpg objects to how it is used.
    if isinstance(error, TimeoutError) and not writes:
        return Next.TIMEOUT, fault
    if not sent or fault.refusal:
        # One that had its whole time, and was not sent, waited for a lock or in the pooler's queue.
        passes = fault.transient and not isinstance(error, TimeoutError)
        return (Next.RETRY if passes else Next.UNAVAILABLE), fault
    return (Next.UNKNOWN if writes else Next.RESEND), fault


def _spoken(error: BaseException) -> BaseException:
    """What the server said before it hung up, which asyncpg hands over as the cause of what it says itself."""
    if isinstance(error, asyncpg.ConnectionDoesNotExistError) and isinstance(error.__cause__, asyncpg.PostgresError):
        return error.__cause__
    return error


def _find(error: BaseException) -> Fault | None:
    state = error.sqlstate if isinstance(error, asyncpg.PostgresError) else None
    text = str(error.args[0] if state and error.args else error).lower()
    for kind, part, fault in _TABLE:
        if (kind == state if isinstance(kind, str) else isinstance(error, kind)) and part in text:
            return fault
    return None
