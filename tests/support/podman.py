"""Podman, run so that it works in sandboxes too."""

import os
import shutil
import subprocess

from tests.support import ROOT


def podman(*arguments: str, check: bool = True, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command of podman, and return what it printed."""
    sandbox = {"CONTAINERS_CONF": str(ROOT / "deploy/kubernetes/podman/containers.conf")}
    ended = subprocess.run(
        ["podman", *arguments],
        input=stdin,
        env={**os.environ, **(sandbox if shutil.which("runc") else {})},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert not check or ended.returncode == 0, ended.stdout + ended.stderr
    return ended
