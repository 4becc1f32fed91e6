"""`make neon-rig`: a rig to try things on by hand, with fault injections at the prompt."""

import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import psycopg

from api.database import embedded
from api.neon.url import parse_url
from tests.support.rig import (
    NEON_PERMANENT,
    NEON_TRANSIENT,
    ROLE,
    SCRIPT,
    SHUTDOWN,
    Cut,
    Injection,
    Point,
    Rig,
    find,
    running,
)
from tests.support.rig.injections import Action
from tests.support.rig.rig import Certificate

ACTIONS: dict[str, Action] = {cut.value: cut for cut in Cut} | {
    "shutdown": SHUTDOWN,
    "transient": NEON_TRANSIENT[0],
    "permanent": NEON_PERMANENT[0],
}

WELCOME = """
PostgreSQL 18 as Neon serves it. In another terminal:

  export DATABASE_URL='{pooled}'
  export DIRECT_URL='{direct}'
  .venv/bin/users-api migrate && .venv/bin/users-api serve
"""

HELP = f"""
  suspend              end every connection (57P01); the next one wakes the compute
  wake SECONDS         how long that takes (0.3)
  fault POINT ACTION [TIMES]
                       strike the next connection or statement that comes to POINT:
                       {" ".join(Point)}
                       ACTION: {" ".join(ACTIONS)}
  cut ACTION           end every connection
  latency MS           there and back
  limit N              connections at most; more are refused
  present CERTIFICATE  {", ".join(get_args(Certificate))}
  counts               what went through since the last reset
  reset                no faults, no counts, no connections

Ctrl-C ends it; nothing is kept.
"""


def main() -> None:
    """Start a rig, print its URLs, and obey the prompt until it is ended."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    program = find()
    if program is None:
        sys.exit(f"no PgBouncer >= 1.21: run {SCRIPT}, which finds or fetches one")
    directory = Path(tempfile.mkdtemp(prefix="users-api-neon-rig-"))
    try:
        superuser_url = embedded.start(directory)
        with running(superuser_url, program) as rig:
            with psycopg.connect(**parse_url(superuser_url).psycopg_arguments(), autocommit=True) as connection:  # type: ignore[arg-type]
                connection.execute(f"create database neondb owner {ROLE}".encode())
            print(WELCOME.format(pooled=rig.pooled_url("neondb"), direct=rig.direct_url("neondb")) + HELP, flush=True)
            obey(rig)
    except KeyboardInterrupt:
        print()
    finally:
        embedded.stop(directory)
        shutil.rmtree(directory)


def obey(rig: Rig) -> None:
    """Obey commands from standard input. Without a terminal, the end of input does not end the rig."""
    commands: dict[str, Callable[..., object]] = {
        "suspend": rig.suspend,
        "wake": lambda seconds: setattr(rig, "wake_seconds", float(seconds)),
        "fault": lambda point, action, times="1": rig.inject(Injection(Point(point), ACTIONS[action]), int(times)),
        "cut": lambda action: rig.cut(ACTIONS[action]),
        "latency": lambda ms: setattr(rig, "latency", float(ms) / 1000),
        "limit": lambda connections: setattr(rig, "max_client_conn", int(connections)),
        "present": lambda *words: rig.present(" ".join(words)),  # type: ignore[arg-type]
        "counts": lambda: print(f"{rig.counts}\n{len(rig.links)} open, {rig.pending} faults to come"),
        "reset": rig.reset,
        "help": lambda: print(HELP),
    }
    while True:
        try:
            name, *words = shlex.split(input("neon> " if sys.stdin.isatty() else "")) or ["counts"]
            commands[name](*words)
        except (KeyError, TypeError, ValueError):
            print("not understood: see help")
        except EOFError:
            if sys.stdin.isatty():
                raise KeyboardInterrupt from None
            # Not signal.pause(): a signal just before it would be missed.
            while True:
                time.sleep(0.5)


if __name__ == "__main__":
    main()
