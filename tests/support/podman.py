"""Podman, run so that it works in sandboxes too."""

import shutil
import subprocess


def podman(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command of podman, and return what it printed."""
    # crun, which podman prefers, refuses machines whose control groups are of both versions.
    runtime = ["--runtime=runc"] if shutil.which("runc") else []
    ended = subprocess.run(["podman", *runtime, *arguments], capture_output=True, text=True, timeout=300)
    assert not check or ended.returncode == 0, ended.stdout + ended.stderr
    return ended
