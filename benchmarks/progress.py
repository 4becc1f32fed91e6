"""The progress of a run on stderr: a progress bar on a terminal, otherwise one line a measurement."""

import sys
import time
from typing import TextIO

_WIDTH = 24


class Progress:
    """Count the measurements of a run and estimate the time left."""

    def __init__(self, total: int, stream: TextIO | None = None) -> None:
        self._total = total
        self._done = 0
        self._start = time.monotonic()
        self._stream = stream or sys.stderr
        self._is_terminal = self._stream.isatty()

    def begin(self, what: str) -> None:
        """Show the next measurement, on a terminal only."""
        if self._is_terminal:
            filled = _WIDTH * self._done // max(self._total, 1)
            bar = "#" * filled + "." * (_WIDTH - filled)
            self._stream.write(f"\r\033[K[{bar}] {self._done}/{self._total} {self._left()}  {what[:60]}")
            self._stream.flush()

    def note(self, text: str) -> None:
        """Print a permanent line."""
        self._stream.write(("\r\033[K" if self._is_terminal else "") + text + "\n")
        self._stream.flush()

    def finish(self, line: str, warnings: list[str]) -> None:
        """Count one measurement; `line` is its result."""
        self._done += 1
        if self._is_terminal:
            for warning in warnings:
                self.note(f"{line.strip()}: {warning}")
        else:
            self.note(f"{self._done}/{self._total} {line}" + "".join(f"; {warning}" for warning in warnings))

    def close(self) -> None:
        """Remove the progress bar."""
        if self._is_terminal:
            self._stream.write("\r\033[K")
            self._stream.flush()

    def _left(self) -> str:
        if not self._done:
            return "…"
        seconds = (time.monotonic() - self._start) / self._done * (self._total - self._done)
        return f"{int(seconds) // 60}:{int(seconds) % 60:02} left"
