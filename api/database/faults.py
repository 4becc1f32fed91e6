"""The faults of connections in one table: which are transient, which are permanent, and the remedy for an operator.

`decide_next` says whether a statement may be sent again, by this table or by that of verdicts.py; fetch.py decides how
often.

The texts come from `disconnect_client` and `kill_pool_logins` in PgBouncer 1.24 (src/objects.c, src/janitor.c,
src/server.c), and `to_string_client` in Neon's proxy (proxy/src/control_plane, proxy/src/auth, proxy/src/compute).
"""

import socket
import ssl
from typing import NamedTuple, TypeGuard

import asyncpg

from api.database.verdicts import Next, verdict_of

# The exceptions of connecting and fetching when the database failed: from the network, PostgreSQL, and asyncpg.
DATABASE_ERRORS = (
    OSError,
    asyncpg.PostgresError,
    asyncpg.PostgresWarning,  # an error with the SQLSTATE of a warning, which RAISE in a function can give it
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)


class Fault(NamedTuple):
    """A failure of the database.

    `transient`: waiting may help. `rejection`: the connection was rejected, so a statement that ended so never ran.
    `remedy`: the operator's action if it lasts, for the log.
    """

    transient: bool
    rejection: bool = False
    remedy: str = ""


class _Rule(NamedTuple):
    """A line of the table: an exception's class or a SQLSTATE, and a part of the message in lower case."""

    kind: type[Exception] | str
    text: str
    fault: Fault


def _transient(kind: type[Exception] | str, text: str = "", remedy: str = "", *, rejection: bool = True) -> _Rule:
    return _Rule(kind, text, Fault(transient=True, rejection=rejection, remedy=remedy))


def _permanent(kind: type[Exception] | str, text: str, remedy: str, *, rejection: bool = True) -> _Rule:
    return _Rule(kind, text, Fault(transient=False, rejection=rejection, remedy=remedy))


_BUDGET = "replicas x workers x POOL_MAX_SIZE are more connections than the server, the pooler or the role may have"
_CREDENTIALS = "check the user and the password in the URL"
_NAME = "check the host in the URL, and that this machine can resolve names"
_CERTIFICATE = (
    "the server's certificate cannot be trusted: install the package ca-certificates, name its authority with "
    "sslrootcert=FILE in the URL, and use the host name that the certificate was issued for"
)

# The first rule that fits counts.
_TABLE = (
    # Network, TLS and the driver.
    _permanent(ssl.SSLCertVerificationError, "", _CERTIFICATE),
    _permanent(
        ConnectionError, "rejected ssl upgrade", "the server speaks no TLS: sslmode=disable suits private networks"
    ),
    # DNS says that there is no such name. If it does not respond, the resolver reports EAI_AGAIN.
    _permanent(socket.gaierror, f"[errno {socket.EAI_NONAME}]", _NAME),
    _permanent(socket.gaierror, f"[errno {getattr(socket, 'EAI_NODATA', socket.EAI_NONAME)}]", _NAME),
    _transient(socket.gaierror, "", _NAME),
    _transient(ConnectionRefusedError, "", "nothing listens at the URL's host and port"),
    _transient(
        TimeoutError, "", "no reply in time: check the URL's host and port, firewalls, and locks", rejection=False
    ),
    _permanent(PermissionError, "", "this user may not open the server's socket"),
    _transient(asyncpg.TargetServerAttributeNotMatched, "", "no host of the URL is what target_session_attrs requires"),
    _permanent(asyncpg.InterfaceError, "pool is clos", "this process is stopping"),
    _permanent(asyncpg.ClientConfigurationError, "", "check the URL"),
    # Neon's proxy, whose failures share one SQLSTATE. Permanent ones come first: transient texts may quote them.
    _permanent("XX000", "disabled", "the compute is disabled: enable it in Neon's console"),
    _transient("XX000", "rate limit"),
    # The proxy says so of a project that maintenance or a quota has locked: a wait may help.
    _transient(
        "XX000",
        "temporarily unavailable",
        "the Neon project is in maintenance, or a quota is used up: see Billing in Neon's console",
    ),
    _permanent("XX000", "quota", "a quota of the Neon project is used up: see Billing in Neon's console"),
    _permanent("XX000", "exceeded", "a limit of the Neon project is reached: see Billing in Neon's console"),
    _permanent("XX000", "not be found", "check the host in the URL: this Neon endpoint does not exist, or no more"),
    _permanent("XX000", "not found", "check the host in the URL: this Neon endpoint does not exist, or no more"),
    _permanent("XX000", "not allowed to connect", "add this machine's address to IP Allow in Neon's console"),
    _permanent("XX000", "blocked network", "this network is blocked in Neon's console"),
    _permanent("XX000", "connection is insecure", "Neon accepts TLS only: write sslmode=require in the URL"),
    _permanent("XX000", "endpoint id is not specified", "use the host name as Neon's console shows it"),
    _transient("XX000", "couldn't connect to compute node"),
    _transient("XX000", "control plane request failed"),
    _transient("XX000", "failed to acquire permit", _BUDGET),
    _transient("XX000", "too many connections", _BUDGET),
    # PgBouncer, which uses one SQLSTATE for nearly everything, and passes on PostgreSQL's errors at login. A client
    # that was linked to a server gets another text when that is lost ("server conn crashed?").
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
    _permanent("08P01", "server refused ssl", "PostgreSQL speaks no TLS: see server_tls_sslmode of the pooler"),
    _transient("08P01", "server dns lookup failed", "the pooler cannot resolve the name of PostgreSQL's host"),
    _transient("08P01", "server login", "the pooler cannot log in at PostgreSQL"),
    _transient("08P01", "cannot connect to server", "the pooler cannot reach PostgreSQL"),
    _transient("08P01", "client_login_timeout", "the pooler cannot reach PostgreSQL"),
    _transient("08P01", "max_client_conn", _BUDGET),
    _transient("08P01", "client connections exceeded", _BUDGET),
    # PostgreSQL (https://www.postgresql.org/docs/current/errcodes-appendix.html).
    _permanent("28P01", "", _CREDENTIALS),
    _permanent("28000", "", "the server rejects this user or address: check the user, pg_hba.conf, and sslmode"),
    _permanent("3D000", "", "check the database in the URL"),
    _permanent("42501", "permission denied for database", "GRANT CONNECT on the database to this user"),
    _permanent("55000", "not currently accepting connections", "ALTER DATABASE ... ALLOW_CONNECTIONS true"),
    _transient("53300", "", _BUDGET),
    _transient("57P03", "", "the server is starting, stopping or recovering"),
    _transient("57P01", rejection=False),
    _transient("57P02", rejection=False),
    _permanent("57P04", "", "the database was dropped", rejection=False),
    _transient("57P05", rejection=False),
)

# PgBouncer quotes why it could not log in, without the SQLSTATE, and cuts the text after 127 characters
# (disconnect_server in src/objects.c). The words of PostgreSQL at login, in lower case, and their SQLSTATE; the first
# that fits counts. Neon's are in the table above.
_QUOTE = "cached error: "
_QUOTED = (
    ("password authentication failed", "28P01"),
    ("pg_hba.conf", "28000"),
    ("too many c", "53300"),
    ("connection slots are reserved", "53300"),
    ("permission denied for database", "42501"),
    ("not currently accepting connections", "55000"),
    ("database system is", "57P03"),
    ('role "', "28000"),
    ('database "', "3D000"),
)

# An unknown failure to connect counts as transient. A wrong guess then delays an error; as permanent, it would fail
# requests that a short wait would have served.
_UNKNOWN = Fault(transient=True)


def classify(error: BaseException) -> Fault:
    """Return the fault of a failure to connect, or of a connection that broke."""
    cause = _server_message(error)
    if fault := _find(cause):
        return fault
    return Fault(transient=True, remedy=verdict_of(cause).remedy) if _is_answer(cause) else _UNKNOWN


def as_error(error: Exception) -> Exception:
    """Return a PostgresWarning as a PostgresError, and any other of DATABASE_ERRORS as it is."""
    if not isinstance(error, asyncpg.PostgresWarning):
        return error
    refusal = asyncpg.PostgresError(*error.args)
    refusal.__dict__.update(error.__dict__)
    return refusal


def decide_next(error: Exception, *, sent: bool, writes: bool, closed: bool) -> tuple[Next, Fault]:
    """Return the step after a statement that ended in `error`, and the fault.

    `sent`: asyncpg had sent the request to execute it. `closed`: the connection is closed. A write is sent again only
    if it provably never ran: it was not sent, or the error is one that only a rejected connection gets. An error that
    leaves the connection open is definite: nothing was changed.
    """
    if _is_answer(error):
        step, remedy = verdict_of(error)
        if not writes and step in (Next.RAISE, Next.UNKNOWN):
            step = Next.FAILED
        return step, Fault(transient=step is Next.REPEAT, remedy=remedy)
    fault = classify(error)
    if not sent and not closed and not isinstance(error, OSError):
        return Next.RAISE, fault  # The connection still works: asyncpg rejects how it is used, which is a bug.
    if isinstance(error, TimeoutError) and not writes:
        return Next.TIMEOUT, fault
    if not sent or fault.rejection:
        # A statement that timed out before it was sent waited for a lock or in the pooler's queue.
        may_retry = fault.transient and not isinstance(error, TimeoutError)
        return (Next.RETRY if may_retry else Next.UNAVAILABLE), fault
    return (Next.UNKNOWN if writes else Next.RESEND), fault


def _is_answer(error: BaseException) -> TypeGuard[asyncpg.PostgresError]:
    """Return whether the server sent the error. asyncpg raises some of the same classes, which have no severity."""
    return isinstance(error, asyncpg.PostgresError) and error.severity is not None


def _server_message(error: BaseException) -> BaseException:
    """Return the error that the server sent before it disconnected, which asyncpg attaches as the cause of its own."""
    if isinstance(error, asyncpg.ConnectionDoesNotExistError) and isinstance(error.__cause__, asyncpg.PostgresError):
        return error.__cause__
    return error


def _find(error: BaseException) -> Fault | None:
    state = error.sqlstate if isinstance(error, asyncpg.PostgresError) else None
    text = str(error.args[0] if state and error.args else error).lower()
    if state == "08P01" and _QUOTE in text:
        quoted = text.partition(_QUOTE)[2]
        code = next((code for part, code in _QUOTED if part in quoted), "XX000")
        if fault := _match(error, code, quoted):
            return fault
    return _match(error, state, text)


def _match(error: BaseException, state: str | None, text: str) -> Fault | None:
    for kind, part, fault in _TABLE:
        if (kind == state if isinstance(kind, str) else isinstance(error, kind)) and part in text:
            return fault
    return None
