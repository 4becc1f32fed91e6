"""Counters that several processes write and any of them can read: rows of doubles in shared memory.

prometheus_client has a mode for several processes too. An observation costs 2.5 µs there, as much as all that we do for
a request, and the files of workers that have ended stay for ever. Here a new worker takes over the rows of one that has
ended, and continues them. So no sum ever falls, which Prometheus would take for a restart.
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
    """The rows of this process, each under a key: a metric's name and its labels.

    In a `directory` each live process has a file of its own, which the others read. Without one the rows are private.
    Raises OSError if the file cannot be made.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self._directory = directory
        self._memory = _claim(directory) if directory else mmap(-1, _BYTES)
        self._view = memoryview(self._memory)
        self._slots = {key: slot for slot, key in _keys(self._memory)}
        self.taken_over = list(self._slots)
        """The keys of a process that has ended, whose rows this one continues."""

    def row(self, *key: str) -> Row:
        """Return the VALUES doubles under a key, all 0 if it is new. Writing one takes a tenth of a microsecond.

        There is room for about a thousand keys, so no part of one may come from a client. Keys beyond that are not
        counted.
        """
        slot = self._slots.get(key)
        if slot is None:
            text = orjson.dumps(key)
            slot = len(self._slots)
            if slot == _ROWS or len(text) > _KEY_BYTES:
                logger.error("no room for the metric %s", text.decode())
                return memoryview(bytearray(8 * VALUES)).cast("d")
            start = slot * _ROW_BYTES
            # The first byte is written last: readers, and the process that takes over, treat a row without it as
            # unused. The others are all written: our predecessor may have been killed between the two writes.
            self._view[start + 1 : start + _KEY_BYTES] = text[1:].ljust(_KEY_BYTES - 1, b"\0")
            self._view[start] = text[0]
            self._slots[key] = slot
        start = slot * _ROW_BYTES + _KEY_BYTES
        return self._view[start : start + 8 * VALUES].cast("d")

    def read(self) -> Iterator[tuple[bool, Rows]]:
        """Yield the rows of every process that has counted in the directory, each after True if it is alive."""
        if self._directory is None:
            yield True, _rows(self._memory)
        else:
            yield from read(self._directory)


def read(directory: Path) -> Iterator[tuple[bool, Rows]]:
    """Yield the rows of every process that has counted in a directory, each after True if it is alive."""
    for path in directory.iterdir():
        with path.open("rb") as file:
            memory = file.read()
            is_alive = not _lock(file.fileno(), exclusive=False)
        if len(memory) == _BYTES:  # else another process is making it
            yield is_alive, _rows(memory)


def _claim(directory: Path) -> mmap:
    """Lock and map the first file that no live process has locked."""
    for number in count():
        descriptor = os.open(directory / str(number), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if _lock(descriptor, exclusive=True):
                # Written, not just extended: a full disk must fail here, not kill us by SIGBUS later.
                is_whole = os.fstat(descriptor).st_size == _BYTES or os.pwrite(descriptor, bytes(_BYTES), 0) == _BYTES
                if not is_whole:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return mmap(descriptor, _BYTES)  # It duplicates the descriptor, which keeps the lock.
        finally:
            os.close(descriptor)
    raise AssertionError


def _lock(descriptor: int, *, exclusive: bool) -> bool:
    """Lock a file. Returns False if another process holds it. The lock ends with its process, however that ends."""
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _keys(memory: mmap | bytes) -> Iterator[tuple[int, Key]]:
    for slot in range(_ROWS):
        start = slot * _ROW_BYTES
        if not memory[start]:  # unused, or being written: see Counters.row
            return
        yield slot, tuple(orjson.loads(memory[start : start + _KEY_BYTES].rstrip(b"\0")))


def _rows(memory: mmap | bytes) -> Rows:
    view = memoryview(memory)
    found: Rows = {}
    for slot, key in _keys(memory):
        start = slot * _ROW_BYTES + _KEY_BYTES
        found[key] = list(view[start : start + 8 * VALUES].cast("d"))
    return found
