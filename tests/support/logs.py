"""The service's log, and the trace that a request comes with."""

import json
import logging
from typing import Any

from api.telemetry import logs
from tests.support.waiting import wait_until

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE}-00f067aa0ba902b7-01"


class Log(logging.Handler):
    """What is logged, as the service prints it."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logs.json_formatter())
        self.lines: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(json.loads(self.format(record)))

    def about(self, event: str, number: int = 0) -> list[dict[str, Any]]:
        """The lines of an event, once there are so many: a request is logged after its answer."""
        wait_until(lambda: len([line for line in self.lines if line["event"] == event]) >= number)
        return [line for line in self.lines if line["event"] == event]
