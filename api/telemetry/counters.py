"""Numbers that several processes count and any of them can read: rows of doubles in memory that they share.

prometheus_client has a mode for several processes too. An observation costs 2.5 µs there, as much as our whole
bookkeeping of a request, and what ended workers leave is never thrown away. Here a worker that starts takes over the
rows of one that ended, and counts on: no sum ever falls, which Prometheus would take for a restart.
"""

import errno
import logging
import os
import sys
from collections.abc import Iterator
from itertools import count
from mmap import mmap
from pathlib import Path
from typing import TypeAlias

import orjson

if sys.platform != "win32":
    import fcntl

logger = logging.getLogger("api.telemetry")

VALUES = 16
"""Doubles in a row."""

_KEY_BYTES = 128
_ROW_BYTES = _KEY_BYTES + 8 * VALUES
_ROWS = 1024
_BYTES = _ROWS * _ROW_BYTES

Key = tuple[str, ...]
Row: TypeAlias = "memoryview[float]"
Rows = dict[Key, list[float]]


class Counters:
    """The rows of this process, each under a key: a name and what else tells it apart.

    Without a `directory` nobody else reads them. In it, each process that lives has a file of its own.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self._directory = directory
        self._memory = _claim(directory) if directory else mmap(-1, _BYTES)
        self._view = memoryview(self._memory)
        self._places = {key: place for place, key in _keys(self._memory)}
        self.taken_over = list(self._places)
        """The keys of a process that has ended, whose rows this one goes on with."""

    def row(self, *key: str) -> Row:
        """The VALUES doubles under a key, all 0 when it is new. To write one costs a tenth of a microsecond.

        There is room for about a thousand keys: no part of one may be what a client has made up. What comes after
        them is counted nowhere.
        """
        place = self._places.get(key)
        if place is None:
            text = orjson.dumps(key)
            place = len(self._places)
            if place == _ROWS or len(text) > _KEY_BYTES:
                logger.error("no room for the metric %s", text.decode())
                return memoryview(bytearray(8 * VALUES)).cast("d")
            start = place * _ROW_BYTES
            # The first byte last: whoever reads meanwhile takes a row without it for unused, and so does who counts on
            # here after us. All of the others, since the one before us may have been killed between the two.
            self._view[start + 1 : start + _KEY_BYTES] = text[1:].ljust(_KEY_BYTES - 1, b"\0")
            self._view[start] = text[0]
            self._places[key] = place
        start = place * _ROW_BYTES + _KEY_BYTES
        return self._view[start : start + 8 * VALUES].cast("d")

    def read(self) -> Iterator[tuple[bool, Rows]]:
        """The rows of every process that counted in the directory, and whether it lives."""
        if self._directory is None:
            yield True, _rows(self._memory)
        else:
            yield from read(self._directory)


def read(directory: Path) -> Iterator[tuple[bool, Rows]]:
    """The rows of every process that counts in a directory, or did, and whether it lives."""
    for path in directory.iterdir():
        with path.open("rb") as file:
            memory = file.read()
            lives = not _lock(file.fileno(), exclusive=False)
        if len(memory) == _BYTES:  # else it is being made
            yield lives, _rows(memory)


def _claim(directory: Path) -> mmap:
    """The memory of the first file that no living process has."""
    for number in count():
        descriptor = os.open(directory / str(number), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if _lock(descriptor, exclusive=True):
                # Written, not just made long: a full disk must show now, and not as a signal that kills us later.
                is_whole = os.fstat(descriptor).st_size == _BYTES or os.pwrite(descriptor, bytes(_BYTES), 0) == _BYTES
                if not is_whole:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return mmap(descriptor, _BYTES)  # It keeps a descriptor of its own, and with it the lock.
        finally:
            os.close(descriptor)
    raise AssertionError


def _lock(descriptor: int, *, exclusive: bool) -> bool:
    """Lock a file, unless somebody else has. The lock ends with the process that has it, however that ends."""
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _keys(memory: mmap | bytes) -> Iterator[tuple[int, Key]]:
    for place in range(_ROWS):
        start = place * _ROW_BYTES
        if not memory[start]:  # unused, or being made: see Counters.row
            return
        yield place, tuple(orjson.loads(memory[start : start + _KEY_BYTES].rstrip(b"\0")))


def _rows(memory: mmap | bytes) -> Rows:
    view = memoryview(memory)
    found: Rows = {}
    for place, key in _keys(memory):
        start = place * _ROW_BYTES + _KEY_BYTES
        found[key] = list(view[start : start + 8 * VALUES].cast("d"))
    return found
