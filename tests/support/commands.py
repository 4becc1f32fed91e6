"""Run `users-api` as its users do: a server in a process of its own, another command in this one."""

import gc
import logging
import os
import pty
import re
import signal
import subprocess
import sys
import tempfile
import termios
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, chdir, contextmanager, nullcontext, suppress
from pathlib import Path
from unittest.mock import patch

import psutil

from api.cli import main
from benchmarks.processes import free_port
from tests.support import leaks
from tests.support.waiting import status, wait_until

USERS_API = Path(sys.executable).with_name("users-api")


Served = AbstractContextManager[tuple[str, "subprocess.Popen[str]"]]


def environment(**variables: str) -> dict[str, str]:
    inherited = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "PYTHONPATH") if name in os.environ}
    return {**inherited, "DRAIN_SECONDS": "0", **variables}


@contextmanager
def as_a_process() -> Iterator[None]:
    """Let go what a process would leave to its end, within the block and without a warning.

    asyncpg closes a connection that was refused without waiting for the peer's close_notify, and so the end of a
    command's event loop leaves its socket open.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.freeze()  # The block's garbage alone is looked for, which takes a hundredth of the time.
        try:
            yield
        finally:
            gc.collect()
            gc.unfreeze()


def run(*arguments: str, stdin: str = "", cwd: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command here, with the environment, working directory, files and pipe of a process of its own.

    That process would import everything again: half a second of a processor, for each of some hundred commands.
    """
    receiving, sending = os.pipe()
    os.write(sending, stdin.encode())  # a pipe holds 64 KiB
    os.close(sending)
    root, on_sigterm = logging.getLogger(), signal.getsignal(signal.SIGTERM)
    before = root.handlers[:]
    with (
        as_a_process(),
        tempfile.TemporaryFile("w+") as out,
        tempfile.TemporaryFile("w+") as err,
        open("<stdin>", opener=lambda *_: receiving) as given,  # the name is told to users
        patch.dict(os.environ, environment(**variables), clear=True),
        patch.multiple(sys, stdin=given, stdout=out, stderr=err),
        chdir(cwd or tempfile.gettempdir()),
    ):
        try:
            main(arguments, prog_name="users-api")
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            signal.signal(signal.SIGTERM, on_sigterm)
            root.handlers[:] = before
        out.seek(0)
        err.seek(0)
        return _ended(arguments, code, out.read(), err.read())


def run_program(program: Sequence[str | Path], *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command of another program than this checkout's `users-api`, or in another way, in a process of its own."""
    ended = subprocess.run(
        [*program, *arguments],
        env=environment(**variables),
        cwd=tempfile.gettempdir(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return _ended(arguments, ended.returncode, ended.stdout, ended.stderr)


def _ended(arguments: Sequence[str], code: int, out: str, err: str) -> subprocess.CompletedProcess[str]:
    # "key" prints a key and "export" email addresses, as they should; help has examples of both.
    if arguments[0] not in ("key", "export") and "--help" not in arguments:
        leaks.search(out + err, " ".join(arguments))
    return subprocess.CompletedProcess(arguments, code, out, err)


def on_a_terminal(*command: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command on a terminal: both of its outputs are in `stdout`."""
    return on_a_terminal_of(0, None, command, variables)


def on_a_terminal_of(
    columns: int, output: Path | None, command: Sequence[str | Path], variables: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run a command on a terminal of a width, 0 if it has none; its standard output may go to a file."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, columns))
    with open(output, "wb") if output else nullcontext(theirs) as stdout:
        process = subprocess.Popen(command, env=environment(**variables), stdin=theirs, stdout=stdout, stderr=theirs)
    os.close(theirs)
    written = b""
    with suppress(OSError):  # Linux reports a closed peer as EIO
        while piece := os.read(ours, 1 << 16):
            written += piece
    os.close(ours)
    return subprocess.CompletedProcess(command, process.wait(60), written.decode())


def on(database: str) -> dict[str, str]:
    return {"DATABASE_URL": database, "DIRECT_URL": database}


@contextmanager
def served(
    *arguments: str,
    cwd: Path,
    ends_with: int = 0,
    says: str = "",
    program: Sequence[str | Path] = (USERS_API,),
    **variables: str,
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Run `users-api serve` on a free port, and yield once it answers; SIGTERM stops it, as a container is stopped."""
    port = free_port()
    command = [*program, "serve", "--port", str(port), *arguments]
    process = subprocess.Popen(
        command, env=environment(**variables), cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        wait_until(lambda: process.poll() is not None or status(port, "/health"))
        assert process.poll() is None, process.communicate()
        yield f"http://127.0.0.1:{port}", process
    finally:
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=40)
    assert process.returncode == ends_with, err
    assert re.search(rf"curl -s .*:{port}/api/v1/users", out) or ends_with
    assert says in err
    leaks.search(out + err, " ".join(map(str, command)))
    assert "Traceback" not in err


def workers(process: "subprocess.Popen[str]") -> set[int]:
    """Return the ids of the running workers of a supervisor."""
    found = set()
    for child in psutil.Process(process.pid).children():
        with suppress(psutil.Error):
            found.update([child.pid] if any("spawn_main" in argument for argument in child.cmdline()) else [])
    return found
