"""A Docker Engine of a test's own, in namespaces of its own: network, mounts and processes end with it."""

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from tests.support import ROOT, fetched, lacking
from tests.support.waiting import wait_until


def read(*arguments: str | Path, **variables: str) -> Any:
    """Return the JSON that a part of Docker prints, which needs no engine for this."""
    ended = subprocess.run(
        [ROOT / ".ci/docker", *arguments],
        cwd=ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=300,
    )
    if " is not here, and " in ended.stderr:
        lacking(ended.stderr.splitlines()[-1])
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


class Engine:
    """A running Docker Engine. Its ports are published in its own network, so none of them may be taken."""

    def __init__(self, programs: Path, directory: Path, process: int) -> None:
        socket = f"unix://{directory}/docker.sock"
        path = f"{programs}:{os.environ['PATH']}"
        self._environment = {**os.environ, "DOCKER_HOST": socket, "DOCKER_CONFIG": str(directory), "PATH": path}
        self._process = process

    def docker(self, *arguments: str) -> str:
        """Run a command of the client, and return what it printed."""
        return self._run("docker", *arguments)

    def compose(self, *arguments: str) -> str:
        """Run a command of Docker Compose on compose.yaml."""
        return self._run(
            ROOT / ".ci/docker", "compose", "--file", ROOT / "compose.yaml", "--project-name=users-api", *arguments
        )

    def on_host(self, *command: str) -> str:
        """Run a command as on the machine of the engine: with its network, processes and mounts."""
        return self._run("nsenter", f"--target={self._process}", "--net", "--pid", "--mount", *command)

    def load(self, image: str, *names: str) -> None:
        """Give the engine an image of podman's, under the names."""
        with subprocess.Popen(["podman", "save", "--quiet", image], stdout=subprocess.PIPE) as saved:
            subprocess.run(
                ["docker", "load", "--quiet"],
                env=self._environment,
                stdin=saved.stdout,
                stdout=subprocess.DEVNULL,
                check=True,
            )
        for name in names:
            self.docker("tag", image, name)

    def _run(self, *command: str | Path) -> str:
        ended = subprocess.run(command, env=self._environment, capture_output=True, text=True, timeout=300)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout


@contextmanager
def running() -> Iterator[Engine]:
    """Run an engine for the length of the block. Its containers and volumes are gone with it."""
    if os.geteuid() != 0:
        lacking("a Docker Engine needs root")
    programs = fetched("dockerd", "engine", "Docker Engine for compose.yaml")
    # Not in memory, and not on an overlay, as a temporary directory may be: the engine lays overlays on it.
    directory = Path(tempfile.mkdtemp(prefix="users-api-engine-", dir="/var/tmp"))
    # /run is hidden, where another engine may have its sockets. No bridge of its own: Compose makes a network.
    script = f"""
        mount -t tmpfs tmpfs /run && ip link set lo up && PATH={programs}:/usr/sbin:/sbin:$PATH exec dockerd \
            --host=unix://{directory}/docker.sock --data-root={directory}/data --exec-root={directory}/exec \
            --pidfile={directory}/pid --bridge=none"""
    command = ["unshare", "--net", "--mount-proc", "--pid", "--fork", "--kill-child", "sh", "-c", script]
    with (directory / "log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as unshare:
        try:
            wait_until(lambda: (directory / "docker.sock").exists() or unshare.poll() is not None)
            assert unshare.poll() is None, (directory / "log").read_text()
            yield Engine(programs, directory, psutil.Process(unshare.pid).children()[0].pid)
        finally:
            unshare.kill()
            unshare.wait()
            shutil.rmtree(directory, ignore_errors=True)
