"""Privacy of the log: no text that may quote a row, no value, no password and no address, and the same in answers."""

import asyncio
import gc
import json
import logging
import sys
from collections.abc import Callable

import asyncpg
import pytest

from api.database.verdicts import TABLE
from api.errors import DatabaseUnavailableError, OutcomeUnknownError, describe, to_response
from api.telemetry.logs import console_formatter, json_formatter

BAD = "bad@example.com"


def failed(cause: Exception) -> Exception:
    """A bug that an error of PostgreSQL led to."""
    try:
        try:
            raise cause
        except Exception as error:
            raise LookupError("a bug") from error
    except LookupError as bug:
        return bug


def answered(code: str, text: str, **fields: str) -> asyncpg.PostgresError:
    """What asyncpg raises for an error of PostgreSQL's own."""
    error: asyncpg.PostgresError = asyncpg.PostgresError.new(
        {"S": "ERROR", "C": code, "M": text, "D": f"Failing row contains ({BAD}).", "R": "ereport", **fields}
    )
    return error


def of_a_proxy(code: str, text: str) -> asyncpg.PostgresError:
    """The same of a proxy, which names no function of PostgreSQL's source."""
    error: asyncpg.PostgresError = asyncpg.PostgresError.new({"S": "ERROR", "C": code, "M": text})
    return error


AT_RAISE = "PL/pgSQL function refuse() line 1 at RAISE"


def closed_after(cause: Exception) -> Exception:
    error = asyncpg.ConnectionDoesNotExistError(f"connection was closed in the middle of operation: {cause.args[0]}")
    error.__cause__ = cause
    return error


def assert_private(error: Exception, words: str, caplog: pytest.LogCaptureFixture) -> None:
    """The log says `words` of an error, however it gets there, and neither it nor the answer has BAD."""
    outcomes: list[Exception] = [DatabaseUnavailableError("a remedy"), OutcomeUnknownError()]
    for outcome in outcomes:
        outcome.__cause__ = error
    for each in (error, *outcomes, failed(error), failed(failed(error))):
        caplog.clear()
        assert BAD.encode() not in bytes(to_response(each).body)
        assert words in caplog.text
        assert BAD not in caplog.text
        for formatter in (json_formatter(), console_formatter()):
            line = formatter.format(logged(each))
            assert words in line.replace('\\"', '"')  # JSON escapes them
            assert BAD not in line


def logged(error: Exception) -> logging.LogRecord:
    """What a library logs that has caught an error, as asyncio and uvicorn do."""
    return logging.LogRecord("library", logging.ERROR, __file__, 1, "it failed", (), (type(error), error, None))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (answered("P0001", f"no: {BAD}", W=AT_RAISE), "RaiseError (SQLSTATE P0001, function refuse)"),
        (
            answered("57P01", f"no: {BAD}", W=f"SQL statement\n{AT_RAISE}", n=BAD, t=BAD),
            "AdminShutdownError (SQLSTATE 57P01, function refuse)",
        ),
        (answered("01000", f"no: {BAD}", W=AT_RAISE), "PostgresWarning (SQLSTATE 01000, function refuse)"),
        (answered("ZZ123", f"no: {BAD}"), "UnknownPostgresError (SQLSTATE ZZ123)"),
        (answered("22P02", f'invalid input syntax for type integer: "{BAD}"'), "(SQLSTATE 22P02)"),
        (answered("XX000", f"could not parse {BAD}"), "InternalServerError (SQLSTATE XX000)"),
        (
            answered("22001", "too long", W=f'COPY users, line 1, column email: "{BAD}"'),
            "StringDataRightTruncationError (SQLSTATE 22001)",
        ),
        (
            answered("23514", f"no: {BAD}", t="users", n="good"),
            "CheckViolationError (SQLSTATE 23514, table users, constraint good)",
        ),
        (asyncpg.DataError(f"invalid input for query argument $1: {BAD!r}"), "DataError (SQLSTATE 22000)"),
        (closed_after(answered("P0001", f"no: {BAD}", W=AT_RAISE)), "(SQLSTATE P0001, function refuse)"),
        (answered("42P01", 'relation "users" does not exist'), 'relation "users" does not exist'),
        (of_a_proxy("XX000", "endpoint is disabled"), "endpoint is disabled"),
        # The repr of these has all that they were made from.
        (UnicodeEncodeError("utf-8", f"\ud800{BAD}", 0, 1, "surrogates not allowed"), "UnicodeEncodeError: "),
        (UnicodeDecodeError("utf-8", BAD.encode() + b"\xff", 15, 16, "invalid start byte"), "UnicodeDecodeError: "),
    ],
    ids=repr,
)
def test_no_text_that_may_quote_a_row_is_logged(error: Exception, words: str, caplog: pytest.LogCaptureFixture) -> None:
    assert_private(error, words, caplog)


@pytest.mark.parametrize("type_", ["integer", "text", "uuid", "inet", "date", "numeric", "integer[]"])
async def test_a_value_that_asyncpg_cannot_encode_is_not_logged(
    postgres: str, type_: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither by its DataError, nor by the exceptions that led to that."""
    value = [BAD] if type_ == "text" else BAD
    connection = await asyncpg.connect(postgres)
    try:
        with pytest.raises(asyncpg.DataError) as caught:
            await connection.fetch(f"select $1::{type_}", value)
    finally:
        await connection.close()
    assert BAD in str(caught.value)
    assert_private(caught.value, "DataError (SQLSTATE 22000)", caplog)


def test_an_exception_that_nobody_awaits_is_logged_alike(caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        raise answered("P0001", f"no: {BAD}")

    async def forget() -> None:
        task = asyncio.create_task(fail())
        await asyncio.sleep(0)
        del task
        gc.collect()

    asyncio.run(forget())
    (record,) = caplog.records
    assert BAD in caplog.text
    line = json_formatter().format(record)
    assert BAD not in line
    said = json.loads(line)
    assert said["event"] == "Task exception was never retrieved"
    assert said["exception"].startswith("RaiseError (SQLSTATE P0001)\nTraceback (most recent call last):")
    assert "in fail" in said["exception"]


def test_the_exceptions_of_a_group_are_logged_alike() -> None:
    group = ExceptionGroup("two failed", [LookupError("a bug"), answered("P0001", f"no: {BAD}")])
    line = json.loads(json_formatter().format(logged(failed(group))))
    assert "ExceptionGroup: two failed" in line["exception"]
    assert line["exception"].endswith("with LookupError: a bug\nwith RaiseError (SQLSTATE P0001)")


NAMES_OBJECTS = ("08", "25", "26", "28", "3D", "3F", "42", "53", "55", "57")
CLASSES = sorted({code[:2] for codes, _ in TABLE for code in codes.split()})
SAYS = "says no more than the name of an object"


@pytest.mark.parametrize("group", CLASSES)
def test_only_classes_that_name_objects_and_no_values_are_quoted(group: str) -> None:
    code = f"{group}000"
    assert (SAYS in describe(answered(code, SAYS))) == (group in NAMES_OBJECTS)
    assert (SAYS in describe(of_a_proxy(code, SAYS))) == (group in (*NAMES_OBJECTS, "58", "XX"))
    # A function can raise any of them.
    assert SAYS not in describe(answered(code, SAYS, W=AT_RAISE))


@pytest.mark.parametrize("make_formatter", [json_formatter, console_formatter])
def test_a_traceback_shows_no_local_variable(make_formatter: Callable[[], logging.Formatter]) -> None:
    """A library may log any exception of a frame that has a password or a row."""
    local = "ses" + "ame"
    try:
        local.index("not in it")
    except ValueError:
        record = logging.LogRecord("library", logging.ERROR, __file__, 1, "it failed", (), sys.exc_info())
    line = make_formatter().format(record)
    assert "local.index(" in line
    assert "ValueError: substring not found" in line
    assert local not in line
