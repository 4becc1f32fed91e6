"""The table of faults: which failure is transient, which one a rejection, and what follows a statement that failed."""

import socket
import ssl

import asyncpg
import pytest

from api.database import faults
from api.database.faults import as_error, classify, decide_next
from api.database.verdicts import TABLE, Next
from tests.support.rig import NEON_PERMANENT, NEON_TRANSIENT, POOLER_FULL, SERVER_FULL, SHUTDOWN, STARTING
from tests.support.rig.injections import (
    CACHED_PASSWORD,
    CACHED_STARTING,
    CRASHED,
    INSECURE,
    QUERY_WAIT_TIMEOUT,
    SERVER_CRASHED,
    SHUTTING_DOWN,
)


def said(sqlstate: str, text: str = "x") -> asyncpg.PostgresError:
    """What asyncpg raises for an ErrorResponse."""
    error: asyncpg.PostgresError = asyncpg.PostgresError.new({"C": sqlstate, "M": text, "S": "ERROR"})
    return error


def cut_off(cause: Exception | None = None) -> asyncpg.ConnectionDoesNotExistError:
    """What asyncpg raises where a connection breaks under a statement, after what the server said last."""
    error = asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation")
    error.__cause__ = cause
    return error


def quoted(text: str) -> asyncpg.PostgresError:
    """PgBouncer's message while it cannot log in to PostgreSQL: it quotes the reason without its SQLSTATE."""
    return said("08P01", f"server login has been failing, cached error: {text} (server_login_retry)")


BUDGET = "replicas x workers x POOL_MAX_SIZE"
CREDENTIALS = "check the user and the password"
NAME = "check the host in the URL"
LOGIN = "the pooler cannot log in at PostgreSQL"
GONE = "check the host in the URL: this Neon endpoint does not exist"
# Each with the start of its remedy. The connection is refused, and a wait helps.
PASSES: list[tuple[Exception, str]] = [
    (ConnectionRefusedError(111, "Connection refused"), "nothing listens"),
    (socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"), NAME),
    (asyncpg.TargetServerAttributeNotMatched("none of the hosts"), "no host of the URL"),
    (said("XX000", "Rate limit exceeded"), ""),
    (said("XX000", NEON_TRANSIENT[0].message), ""),
    (said("XX000", NEON_TRANSIENT[1].message), ""),
    (said("XX000", NEON_TRANSIENT[2].message), BUDGET),
    (said("XX000", NEON_TRANSIENT[3].message), BUDGET),
    (said("XX000", "Too many connections to this endpoint. Please try again later."), BUDGET),
    (said("08P01", QUERY_WAIT_TIMEOUT.message), "the pooler had no server connection"),
    (said("08P01", "server login has been failing, try again later (server_login_retry)"), LOGIN),
    (said("08P01", "pgbouncer cannot connect to server"), "the pooler cannot reach PostgreSQL"),
    (said("08P01", "client_login_timeout (server down)"), "the pooler cannot reach PostgreSQL"),
    (said("08P01", POOLER_FULL.message), BUDGET),
    (said("08P01", "client connections exceeded (max_db_client_connections)"), BUDGET),
    (said("53300", SERVER_FULL.message), BUDGET),
    (said("57P03", STARTING.message), "the server is starting"),
    (said("57P03", SHUTTING_DOWN.message), "the server is starting"),
    (quoted(NEON_TRANSIENT[0].message), ""),
    (quoted(NEON_TRANSIENT[2].message), BUDGET),
    (quoted("the database system is not yet accepting connections"), "the server is starting"),
    (quoted("sorry, too many clients already"), BUDGET),
    (quoted('too many connections for role "ada"'), BUDGET),
    (quoted('too many connections for database "none"'), BUDGET),
    (quoted("remaining connection slots are reserved for roles with the SUPERUSER attribute"), BUDGET),
    (quoted("connect failed"), LOGIN),
    (quoted("connect timeout"), LOGIN),
    (quoted("server conn crashed?"), LOGIN),
    (quoted("what nobody foresaw"), LOGIN),
    (quoted("server DNS lookup failed"), "the pooler cannot resolve"),
]
# The connection breaks, or may have been in use: a wait helps, and a statement may have run.
BREAKS: list[tuple[Exception, str]] = [
    (TimeoutError(), "no reply in time"),
    (said("57P01", SHUTDOWN.message), ""),
    (said("57P02", CRASHED.message), ""),
    (said("57P05", "terminating connection due to idle-session timeout"), ""),
    (cut_off(said("57P01")), ""),
    # In no row.
    (ConnectionResetError(), ""),
    (FileNotFoundError(2, "No such file or directory"), ""),
    (ssl.SSLEOFError(8, "EOF occurred in violation of protocol"), ""),
    (asyncpg.InternalClientError("what nobody foresaw"), ""),
    (asyncpg.InterfaceError("what nobody foresaw"), ""),
    (cut_off(), ""),
    (cut_off(TimeoutError(110, "Connection timed out")), ""),  # of the network, and no reply that came too late
    # Not PgBouncer's: the rows of its quotes do not count.
    (said("XX000", 'cached error: role "ada" does not exist'), "the server reports an error of its own"),
    # In no row, but the server sent it: the remedy is that of its verdict.
    (said("XX000", "what nobody foresaw"), "the server reports an error of its own"),
    (said("53200", "out of memory"), "the server has no memory left"),
    (said("08P01", SERVER_CRASHED.message), "the pooler, a trigger"),
    (cut_off(said("58000", "what nobody foresaw")), "the server reports an error of its own"),
]
# No wait helps.
STAYS: list[tuple[Exception, str]] = [
    (ssl.SSLCertVerificationError(1, "certificate verify failed"), "the server's certificate cannot be trusted"),
    (ConnectionError('PostgreSQL server at "host:5432" rejected SSL upgrade'), "the server speaks no TLS"),
    (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), NAME),
    (socket.gaierror(socket.EAI_NODATA, "No address associated with hostname"), NAME),
    (PermissionError(13, "Permission denied"), "this user may not open"),
    (asyncpg.InterfaceError("pool is closing"), "this process is stopping"),
    (asyncpg.ClientConfigurationError("unexpected parameter"), "check the URL"),
    # Neon's proxy.
    (said("XX000", NEON_PERMANENT[0].message), "the compute is disabled"),
    (said("XX000", NEON_PERMANENT[1].message), "a quota of the Neon project"),
    (said("XX000", "The limit of concurrently active endpoints is exceeded."), "a limit of the Neon project"),
    (said("XX000", NEON_PERMANENT[2].message), GONE),
    (said("XX000", "Project not found"), GONE),
    (
        said("XX000", "This IP address 192.0.2.1 is not allowed to connect to this endpoint."),
        "add this machine's address to IP Allow",
    ),
    (
        said("XX000", "This connection is trying to access this endpoint from a blocked network."),
        "this network is blocked",
    ),
    (said("XX000", INSECURE.message), "Neon accepts TLS only: write sslmode=require"),
    (said("XX000", "Endpoint ID is not specified. Either please upgrade …"), "use the host name"),
    # PgBouncer.
    (said("08P01", "password authentication failed"), CREDENTIALS),
    (said("08P01", "SASL authentication failed"), CREDENTIALS),
    (said("08P01", "no such user: ada"), CREDENTIALS),
    (said("08P01", "no such database: none"), "check the database in the URL"),
    (said("08P01", "unsupported startup parameter: options"), "remove it from the URL, or name it in ignore_startup"),
    # PostgreSQL.
    (said("28P01", "password authentication failed for user 'ada'"), CREDENTIALS),
    (said("28000", 'role "ada" does not exist'), "the server rejects this user"),
    (said("3D000", 'database "none" does not exist'), "check the database in the URL"),
    (said("42501", 'permission denied for database "none"'), "GRANT CONNECT"),
    (said("55000", 'database "none" is not currently accepting connections'), "ALTER DATABASE ... ALLOW_CONNECTIONS"),
    # What PgBouncer quotes of them.
    (said("08P01", CACHED_PASSWORD.message), CREDENTIALS),
    (quoted('password authentication failed for user "quota"'), CREDENTIALS),  # a name like the text of another row
    (quoted('database "none" does not exist'), "check the database in the URL"),
    (quoted('role "ada" does not exist'), "the server rejects this user"),
    (quoted('role "ada" is not permitted to log in'), "the server rejects this user"),
    (quoted(NEON_PERMANENT[0].message), "the compute is disabled"),
    (quoted(NEON_PERMANENT[1].message), "a quota of the Neon project"),
    (quoted(NEON_PERMANENT[2].message), GONE),
]
# More than one row fits, and they disagree: the first one counts.
FIRST_PASSES: list[tuple[Exception, str]] = [
    (said("XX000", "You have exceeded the rate limit, and may try again."), ""),  # or a limit of the project
    (said("XX000", "Control plane request failed: too many connections attempts"), ""),  # or the budget
    (
        said(
            "XX000",
            "Control plane request failed: endpoint is temporarily unavailable. "
            "Check your quotas and/or contact our support.",
        ),
        "the Neon project is in maintenance, or a quota",
    ),
    (quoted(NEON_TRANSIENT[3].message), BUDGET),
]
FIRST_STAYS: list[tuple[Exception, str]] = [
    (said("XX000", "Control plane request failed: endpoint is disabled"), "the compute is disabled"),
    (said("XX000", "Control plane request failed: endpoint cannot be found"), GONE),
    (said("XX000", "You have exceeded the quota of the project"), "a quota of the Neon project"),
    (quoted("SASL authentication failed"), CREDENTIALS),  # or the pooler's login, here and below
    (quoted("server login failed: wrong password type"), "the pooler's user list"),
    (quoted("server refused SSL"), "PostgreSQL speaks no TLS"),
    (
        quoted('no pg_hba.conf entry for host "192.0.2.1", user "ada", database "none", no encryption'),
        "the server rejects this user or address",  # or an unknown database, here and below
    ),
    (quoted('permission denied for database "none"'), "GRANT CONNECT"),
    (quoted('database "none" is not currently accepting connections'), "ALTER DATABASE ... ALLOW_CONNECTIONS"),
    (quoted(quoted('database "none" does not exist').args[0]), "check the database in the URL"),
]
DROPPED = (said("57P04", "terminating connection because the database was dropped"), "the database was dropped")
"""No wait helps, and a statement may have run."""
FAULTS = [
    *((error, (True, True), remedy) for error, remedy in (*PASSES, *FIRST_PASSES)),
    *((error, (True, False), remedy) for error, remedy in BREAKS),
    *((error, (False, True), remedy) for error, remedy in (*STAYS, *FIRST_STAYS)),
    (DROPPED[0], (False, False), DROPPED[1]),
]


@pytest.mark.parametrize(("error", "expected", "remedy"), FAULTS, ids=repr)
def test_what_a_failure_is(error: Exception, expected: tuple[bool, bool], remedy: str) -> None:
    """Whether it is transient, whether it is a rejection, and the remedy."""
    fault = classify(error)
    assert (fault.transient, fault.rejection) == expected
    assert fault.remedy.startswith(remedy)
    assert bool(fault.remedy) == bool(remedy)


@pytest.mark.parametrize("table", ["_TABLE", "_QUOTED"])
def test_every_row_decides_a_case(table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any one of the rows, one of the failures above is another fault."""
    rows = list(getattr(faults, table))
    complete = [classify(error) for error, _, _ in FAULTS]
    idle = []
    for n, row in enumerate(rows):
        monkeypatch.setattr(faults, table, rows[:n] + rows[n + 1 :])
        if [classify(error) for error, _, _ in FAULTS] == complete:
            idle.append(row)
    assert idle == []


# For each failure: what follows a write that was sent, one that was not, and a read that was sent.
RAISE, FAILED, REPEAT, RETRY, RESEND = Next.RAISE, Next.FAILED, Next.REPEAT, Next.RETRY, Next.RESEND
UNAVAILABLE, TIMEOUT, UNKNOWN = Next.UNAVAILABLE, Next.TIMEOUT, Next.UNKNOWN
STATEMENTS: list[tuple[Exception, Next, Next, Next]] = [
    # The link broke: a write that was sent may have happened.
    (cut_off(), UNKNOWN, RETRY, RESEND),
    (ConnectionResetError(), UNKNOWN, RETRY, RESEND),
    (cut_off(said("57P01")), UNKNOWN, RETRY, RESEND),
    (cut_off(said("57P02")), UNKNOWN, RETRY, RESEND),
    (cut_off(said("08P01", SERVER_CRASHED.message)), UNKNOWN, RETRY, RESEND),
    (cut_off(said("XX000", "what nobody foresaw")), UNKNOWN, RETRY, RESEND),
    # The connection was rejected, so the statement never ran.
    (cut_off(said("08P01", QUERY_WAIT_TIMEOUT.message)), RETRY, RETRY, RETRY),
    (cut_off(said("08P01", CACHED_STARTING.message)), RETRY, RETRY, RETRY),
    (cut_off(said("53300")), RETRY, RETRY, RETRY),
    (cut_off(said("57P03")), RETRY, RETRY, RETRY),
    (cut_off(said("XX000", NEON_TRANSIENT[0].message)), RETRY, RETRY, RETRY),
    (cut_off(said("28P01")), UNAVAILABLE, UNAVAILABLE, UNAVAILABLE),
    (cut_off(said("08P01", CACHED_PASSWORD.message)), UNAVAILABLE, UNAVAILABLE, UNAVAILABLE),
    (cut_off(said("XX000", NEON_PERMANENT[1].message)), UNAVAILABLE, UNAVAILABLE, UNAVAILABLE),
    # No answer in time.
    (TimeoutError(), UNKNOWN, UNAVAILABLE, TIMEOUT),
    # Out of memory ends the session or the statement alone: as the end of a session it is no refusal.
    (cut_off(said("53200", "out of memory")), UNKNOWN, RETRY, RESEND),
    # The session ended, and the next one cannot begin.
    (cut_off(said("57P04")), UNKNOWN, UNAVAILABLE, RESEND),
    # A verdict: nothing was changed, and the connection goes on. Neon's texts in it are PostgreSQL's own then.
    (said("23505"), RAISE, RAISE, FAILED),
    (said("ZZ123"), RAISE, RAISE, FAILED),
    (said("40001"), REPEAT, REPEAT, REPEAT),
    (said("40P01"), REPEAT, REPEAT, REPEAT),
    (said("55P03"), RAISE, RAISE, FAILED),
    (said("42P01"), FAILED, FAILED, FAILED),
    (said("0A000", "cached plan must not change result type"), FAILED, FAILED, FAILED),
    (said("42501"), FAILED, FAILED, FAILED),
    (asyncpg.PostgresError.new({"C": "42501", "S": "ERROR", "R": "ExecWithCheckOptions"}), RAISE, RAISE, FAILED),
    (asyncpg.PostgresError.new({"C": "42501", "S": "ERROR", "R": "exec_stmt_raise"}), RAISE, RAISE, FAILED),
    (asyncpg.PostgresError.new({"C": "42P01", "S": "ERROR", "R": "exec_stmt_raise"}), FAILED, FAILED, FAILED),
    (said("26000"), UNAVAILABLE, UNAVAILABLE, UNAVAILABLE),
    (said("25006"), UNAVAILABLE, UNAVAILABLE, UNAVAILABLE),
    (said("53400"), UNAVAILABLE, UNAVAILABLE, UNAVAILABLE),
    (said("53100", "project size limit (512 MB) has been exceeded"), UNAVAILABLE, UNAVAILABLE, UNAVAILABLE),
    (said("53200", "out of memory"), UNAVAILABLE, UNAVAILABLE, UNAVAILABLE),
    (said("57P01"), UNAVAILABLE, UNAVAILABLE, UNAVAILABLE),
    (said("57014"), UNAVAILABLE, UNAVAILABLE, UNAVAILABLE),
    (said("XX000", "attribute 3 of relation 5 not found"), FAILED, FAILED, FAILED),
    # A function, which may ask another server, on a link that goes on.
    (said("39P01"), FAILED, FAILED, FAILED),
    (said("08003"), FAILED, FAILED, FAILED),
    (said("08007"), UNKNOWN, UNKNOWN, FAILED),
    # What asyncpg makes of an answer that it cannot read.
    (asyncpg.ProtocolError("number of columns in result row is different"), UNKNOWN, RETRY, RESEND),
]


@pytest.mark.parametrize(("error", "sent_write", "unsent_write", "sent_read"), STATEMENTS, ids=repr)
def test_what_follows_a_statement_that_failed(
    error: Exception, sent_write: Next, unsent_write: Next, sent_read: Next
) -> None:
    assert decide_next(error, sent=True, writes=True, closed=True)[0] is sent_write
    assert decide_next(error, sent=False, writes=True, closed=True)[0] is unsent_write
    assert decide_next(error, sent=True, writes=False, closed=True)[0] is sent_read


def test_no_verdict_is_without_a_case() -> None:
    cases = {error.sqlstate or "" for error, *_ in STATEMENTS if isinstance(error, asyncpg.PostgresError)}
    own_rows = {code for codes, _ in TABLE for code in codes.split()}
    cases |= {code[:2] for code in cases - own_rows}
    assert [codes for codes, _ in TABLE if not cases.intersection(codes.split())] == []


@pytest.mark.parametrize(
    ("error", "transient", "remedy"),
    [(said("40001"), True, "transactions that run at once conflict"), (said("53100"), False, "the disk, or")],
    ids=repr,
)
def test_a_statement_that_postgresql_rejects_has_the_remedy_of_its_verdict(
    error: Exception, transient: bool, remedy: str
) -> None:
    fault = decide_next(error, sent=True, writes=True, closed=False)[1]
    assert (fault.transient, fault.rejection) == (transient, False)
    assert fault.remedy.startswith(remedy)


@pytest.mark.parametrize("writes", [True, False])
def test_a_statement_that_asyncpg_objects_to_is_not_tried_again(writes: bool) -> None:
    error = asyncpg.InterfaceError("the server expects 1 argument for this query, 2 were passed")
    assert decide_next(error, sent=False, writes=writes, closed=False)[0] is RAISE
    # One that was sent, or whose connection is closed, is no such error.
    assert decide_next(error, sent=True, writes=writes, closed=False)[0] is (UNKNOWN if writes else RESEND)
    assert decide_next(error, sent=False, writes=writes, closed=True)[0] is RETRY


def test_an_error_of_the_network_is_one_while_the_connection_looks_open() -> None:
    assert decide_next(ConnectionResetError(), sent=False, writes=True, closed=False)[0] is RETRY
    assert decide_next(TimeoutError(), sent=False, writes=True, closed=False)[0] is UNAVAILABLE
    assert decide_next(TimeoutError(), sent=False, writes=False, closed=False)[0] is TIMEOUT


def test_a_warning_that_a_function_raises_as_an_error_is_one() -> None:
    """asyncpg chooses the class by the SQLSTATE, and 01 is for warnings."""
    warning = asyncpg.PostgresError.new({"C": "01000", "M": "no", "S": "ERROR", "t": "users"})
    assert not isinstance(warning, asyncpg.PostgresError)
    error = as_error(warning)
    assert isinstance(error, asyncpg.PostgresError)
    assert (error.args, error.sqlstate, error.severity, error.table_name) == (("no",), "01000", "ERROR", "users")
    assert decide_next(error, sent=True, writes=True, closed=False)[0] is RAISE
    broken = ConnectionResetError()
    assert as_error(broken) is broken
