"""The progress of an import or export on standard error: a bar on a terminal, else a line every ten seconds."""

import os
import sys
import time
from collections.abc import Iterator
from itertools import count
from types import TracebackType
from typing import Self

import click

_LINE_SECONDS = 10.0
_BAR_WIDTH = 24
_MIN_COLUMNS = 44  # in which a bar of four, the share, the time left and ten million users fit
_MIN_COLUMNS_OF_RATE = 80


class Progress:
    """Counts rows, which it calls `names`, and steps up to `length` (None: unknown), which tell the time left.

    The bar fits into one line of the terminal, whose width may change. A line that wraps could not be drawn over.
    """

    def __init__(self, label: str, names: str, length: int | None) -> None:
        self.rows = 0
        self._label = label
        self._names = names
        self._started = self._shown = time.monotonic()
        steps: Iterator[int] = count()  # click needs an iterable if the length is unknown
        self._bar = click.progressbar(
            steps,
            length=length,
            bar_template="[%(bar)s]  %(info)s",
            width=_BAR_WIDTH,
            item_show_func=lambda _: self._text(),
            file=sys.stderr,
        )
        self._fit()

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
        self._fit()
        self._bar.update(steps)
        if self._bar.hidden and time.monotonic() - self._shown >= _LINE_SECONDS:
            self._shown = time.monotonic()
            click.echo(f"{self._label}: {self}", err=True)

    def clear(self) -> None:
        """Clear the bar, before a line of standard output that may go to the same terminal."""
        if not self._bar.hidden:
            click.echo("\r\033[K", nl=False, err=True)

    def _fit(self) -> None:
        columns = _columns()
        self._bar.hidden = columns < _MIN_COLUMNS
        # Beside the bar there are at most 40 characters, and 16 more with the rate.
        self._bar.width = min(_BAR_WIDTH, columns - (56 if columns >= _MIN_COLUMNS_OF_RATE else 40))

    def _text(self) -> str:
        """Return what fits behind the bar of the text of this progress."""
        columns = _columns()
        text = str(self) if columns >= _MIN_COLUMNS_OF_RATE else f"{self.rows:,} {self._names}"
        return text[: columns - self._bar.width - 24]


def _columns() -> int:
    """Return the width of the terminal on standard error, 0 if it is none. Standard output may be a file."""
    if not sys.stderr.isatty():
        return 0
    return os.get_terminal_size(sys.stderr.fileno()).columns or 80
