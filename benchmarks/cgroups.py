"""Hold processes to a share of a core, by Linux's control groups of either version."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

PERIOD_MICROSECONDS = 10_000
"""How often the quota is renewed. The kernel's default of 100 ms would stop a server for 80 ms at a time."""


class CgroupError(Exception):
    """This process may not limit others; the message names the remedy."""


@dataclass(frozen=True)
class Cgroups:
    """The control groups below `root`: of version 2, or those of the controller `cpu` of version 1."""

    version: int
    root: Path

    @contextmanager
    def held(self, process: psutil.Process, cores: float) -> Iterator[None]:
        """Hold a process, its children and their threads to `cores` together."""
        group = self.root / f"users-api-bench-{os.getpid()}-{process.pid}"
        group.mkdir()
        try:
            self._limit(group, cores)
            for each in (process, *process.children(recursive=True)):
                _move(each.pid, group)
            yield
        finally:
            # A group with processes cannot be removed, and a server that is held would take long to stop.
            home = self._home()
            for line in (group / "cgroup.procs").read_text().split():
                _move(int(line), home)
            _remove(group)

    def _home(self) -> Path:
        """Return the group of this process, from which the others were taken."""
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            home = self.root / path.lstrip("/")
            if (not controllers if self.version == 2 else "cpu" in controllers.split(",")) and home.exists():
                return home
        return self.root  # in a container that sees another path than its own

    def _limit(self, group: Path, cores: float) -> None:
        quota = round(cores * PERIOD_MICROSECONDS)
        if self.version == 2:
            (group / "cpu.max").write_text(f"{quota} {PERIOD_MICROSECONDS}")
        else:
            (group / "cpu.cfs_period_us").write_text(str(PERIOD_MICROSECONDS))
            (group / "cpu.cfs_quota_us").write_text(str(quota))


def find(mounted: Path = Path("/sys/fs/cgroup")) -> Cgroups:
    """Return the control groups in which this process may hold others. Raises CgroupError."""
    found = _mounted(mounted)
    trial = found.root / f"users-api-bench-{os.getpid()}"
    try:
        if found.version == 2:
            _delegate_cpu(found.root)
        trial.mkdir()
        try:
            found._limit(trial, 1.0)
        finally:
            _remove(trial)
    except OSError as error:
        raise CgroupError(
            f"no control group can be made in {found.root} ({error.strerror}): run as root, and in a container with "
            "its control groups writable"
        ) from error
    return found


def _mounted(mounted: Path) -> Cgroups:
    controllers = mounted / "cgroup.controllers"
    if controllers.exists() and "cpu" in controllers.read_text().split():
        return Cgroups(2, mounted)
    for name in ("cpu", "cpu,cpuacct"):
        if (mounted / name / "cgroup.procs").exists():
            return Cgroups(1, mounted / name)
    raise CgroupError(f"no control groups with the controller cpu are mounted in {mounted}: this needs Linux with them")


def _delegate_cpu(root: Path) -> None:
    """Let the groups below the root of version 2 limit CPU."""
    control = root / "cgroup.subtree_control"
    if "cpu" not in control.read_text().split():
        control.write_text("+cpu")


def _move(pid: int, group: Path) -> None:
    with suppress(ProcessLookupError):
        (group / "cgroup.procs").write_text(str(pid))


def _remove(group: Path, seconds: float = 2.0) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            return group.rmdir()
        except OSError:  # the kernel may still hold a process that has ended
            if time.monotonic() > deadline:
                raise
        time.sleep(0.01)
