"""Podman, run so that it works in sandboxes too."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.support import ROOT

SOURCE_URL = "https://example.com/users-api"
"""Where the source is published, as an image says that a test builds."""


def podman(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command of podman, and return what it printed."""
    # crun, which podman prefers, refuses machines whose control groups are of both versions.
    runtime = ["--runtime=runc"] if shutil.which("runc") else []
    ended = subprocess.run(["podman", *runtime, *arguments], capture_output=True, text=True, timeout=300)
    assert not check or ended.returncode == 0, ended.stdout + ended.stderr
    return ended


def build(name: str, checkout: Path = ROOT, **variables: str) -> None:
    """Build the image of a checkout, with a fixed time."""
    fixed = {"SOURCE_DATE_EPOCH": "1767225600", "SOURCE_URL": SOURCE_URL}
    environment = {**os.environ, **fixed, **variables}
    subprocess.run([checkout / ".ci/image", name], env=environment, check=True, stdout=sys.stderr)
