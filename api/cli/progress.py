"""The progress of an import or export on standard error: a bar on a terminal, else a line every ten seconds."""

import sys
import time
from collections.abc import Iterator
from itertools import count
from types import TracebackType
from typing import Self

import click

_LINE_SECONDS = 10.0


class Progress:
    """Counts rows, which it calls `names`, and steps up to `length` (None: unknown), which tell the time left."""

    def __init__(self, label: str, names: str, length: int | None) -> None:
        self.rows = 0
        self._label = label
        self._names = names
        self._started = self._shown = time.monotonic()
        steps: Iterator[int] = count()  # click needs an iterable if the length is unknown
        self._bar = click.progressbar(
            steps,
            length=length,
            label=label,
            width=24,
            item_show_func=lambda _: str(self),
            file=sys.stderr,
            hidden=not sys.stderr.isatty(),
        )

    def __str__(self) -> str:
        """Return the number of rows so far, and the rate."""
        seconds = max(time.monotonic() - self._started, 0.001)
        return f"{self.rows:,} {self._names}, {self.rows / seconds:,.0f} {self._names}/s"

    def __enter__(self) -> Self:
        self._bar.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.__exit__(kind, error, traceback)

    def update(self, steps: int, rows: int) -> None:
        """Add steps, and set the number of rows so far."""
        self.rows = rows
        self._bar.update(steps)
        if self._bar.hidden and time.monotonic() - self._shown >= _LINE_SECONDS:
            self._shown = time.monotonic()
            click.echo(f"{self._label}: {self}", err=True)

    def clear(self) -> None:
        """Clear the bar, before a line of standard output that may go to the same terminal."""
        if not self._bar.hidden:
            click.echo("\r\033[K", nl=False, err=True)
