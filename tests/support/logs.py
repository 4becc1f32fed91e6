"""Capture the service's log; and a trace for requests to carry."""

import json
import logging
from typing import Any

from api.telemetry import logs
from tests.support.waiting import wait_until

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE}-00f067aa0ba902b7-01"


class Log(logging.Handler):
    """The log lines, as the service prints them."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logs.json_formatter())
        self.lines: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(json.loads(self.format(record)))

    def about(self, event: str, number: int = 0) -> list[dict[str, Any]]:
        """Return the lines of an event once there are `number`: a request is logged after its response."""
        wait_until(lambda: len([line for line in self.lines if line["event"] == event]) >= number)
        return [line for line in self.lines if line["event"] == event]
