"""Podman, run so that it works in sandboxes too."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support import ROOT

SOURCE_URL = "https://example.com/users-api"


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


def build(name: str, checkout: Path = ROOT, **variables: str) -> None:
    """Build the image of a checkout, at a fixed time."""
    fixed = {"SOURCE_DATE_EPOCH": "1767225600", "SOURCE_URL": SOURCE_URL}
    environment = {**os.environ, **fixed, **variables}
    subprocess.run([checkout / ".ci/image", name], env=environment, check=True, stdout=sys.stderr)
