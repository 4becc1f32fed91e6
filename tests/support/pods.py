"""One machine as docs/operations.md has it: pods of `podman kube play`, HAProxy before and PgBouncer behind them."""

import base64
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from benchmarks.processes import free_port
from tests.support.manifests import MANIFESTS, Manifest, of_kind, render
from tests.support.podman import podman
from tests.support.waiting import status, wait_until

NAMES = ("one", "two")
STOP_SECONDS = 40


class Pods:
    """The pods, in the image that is named `image`.

    Names and ports are the only difference to what is rendered: another deployment may run on this machine.
    """

    def __init__(self, image: str, suffix: str) -> None:
        self.image = image
        self._suffix = suffix
        self.ports = {name: free_port() for name in NAMES}

    def add_secret(self, name: str, **values: str) -> None:
        """Create a secret, in the form in which every version of podman reads it."""
        encoded = {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}
        podman("secret", "create", name + self._suffix, "-", stdin=json.dumps(encoded))

    def play(self, directory: str) -> str:
        """Play a kustomization below deploy/kubernetes/podman, and return the name of its container."""
        manifests = render(MANIFESTS / "podman" / directory)
        pod = of_kind(manifests, "Pod")
        self._adapt(pod)
        if directory in NAMES:
            settings = of_kind(manifests, "ConfigMap")["data"]
            settings |= {"PORT": str(self.ports[directory]), "METRICS_PORT": str(free_port())}
        podman("kube", "play", "--replace", "-", stdin=yaml.safe_dump_all(manifests))
        return self._container(pod)

    def _adapt(self, pod: Manifest) -> None:
        pod["metadata"]["name"] += self._suffix
        (container,) = pod["spec"]["containers"]
        container["image"] = self.image
        for source in container["envFrom"]:
            if "secretRef" in source:
                source["secretRef"]["name"] += self._suffix

    @staticmethod
    def _container(pod: Manifest) -> str:
        return f"{pod['metadata']['name']}-{pod['spec']['containers'][0]['name']}"

    def pod(self, name: str) -> str:
        """Return the name of a replica's pod."""
        return f"users-api-{NAMES.index(name) + 1}{self._suffix}"

    def start(self, name: str) -> None:
        """Play a replica, and return when it is ready."""
        self.play(name)
        self.wait_until(name, 200)

    def stop(self, name: str) -> int:
        """Stop a replica as a cluster does, and return its exit code."""
        podman("pod", "stop", f"--time={STOP_SECONDS}", self.pod(name))
        return int(self.inspect(name, "{{.State.ExitCode}}"))

    def kill(self, name: str) -> str:
        """Kill the process of a replica, as the kernel does without memory, and return its id."""
        process = self.inspect(name, "{{.State.Pid}}")
        assert int(process) > 0, self.log(name)  # 0 would be this process and all its kin
        os.kill(int(process), signal.SIGKILL)
        return process

    def inspect(self, name: str, template: str) -> str:
        """Return a detail of a replica's container."""
        return podman("inspect", f"--format={template}", f"{self.pod(name)}-users-api").stdout.strip()

    def log(self, name: str) -> str:
        """Return what a replica has written."""
        shown = podman("logs", f"{self.pod(name)}-users-api", check=False)
        return shown.stdout + shown.stderr

    def status(self, name: str, path: str) -> int:
        """Return the status of a replica's answer, 0 if there is none."""
        return status(self.ports[name], path)

    def wait_until(self, name: str, expected: int) -> None:
        """Return when /ready of a replica has a status."""
        deadline = time.monotonic() + 60
        while self.status(name, "/ready") != expected:
            assert time.monotonic() < deadline, self.log(name)
            time.sleep(0.05)

    def remove(self) -> None:
        """Remove every pod and secret."""
        names = [self.pod(name) for name in NAMES] + [f"users-api-migrate{self._suffix}"]
        podman("pod", "rm", "--force", "--ignore", *names)
        secrets = podman("secret", "ls", "--format={{.Name}}").stdout.split()
        for secret in secrets:
            if secret.endswith(self._suffix):
                podman("secret", "rm", secret)


@contextmanager
def balanced(pods: Pods, directory: Path) -> Iterator[int]:
    """Yield the port of an HAProxy before the replicas, which is configured as the document's."""
    port = free_port()
    text = (MANIFESTS / "podman/haproxy.cfg").read_text()
    for ours, documented in ((port, 8000), (pods.ports["one"], 8001), (pods.ports["two"], 8002)):
        assert text.count(f"127.0.0.1:{documented}\n") == 1
        text = text.replace(f"127.0.0.1:{documented}\n", f"127.0.0.1:{ours}\n")
    (directory / "haproxy.cfg").write_text(text)
    haproxy = shutil.which("haproxy", path=f"{os.environ['PATH']}:/usr/sbin")
    assert haproxy
    command: list[str | Path] = [haproxy, "-q", "-db", "-f", directory / "haproxy.cfg"]
    with subprocess.Popen(command) as process:
        try:
            wait_until(lambda: process.poll() is not None or status(port, "/ready") == 200)
            assert process.poll() is None
            yield port
        finally:
            process.terminate()


class Pooler:
    """PgBouncer, which runs as a user of its own, with the configuration of the cluster's overlay."""

    def __init__(self, program: Path, directory: Path, socket: Path, database: str, password: str) -> None:
        port = free_port()
        self.url = f"postgresql://users_api:{password}@127.0.0.1:{port}/users_api"
        text = of_kind(render(MANIFESTS / "cluster"), "ConfigMap", "pgbouncer")["data"]["pgbouncer.ini"]
        users = directory / "userlist.txt"
        replaced = {
            "host=postgres port=5432": f"host={socket.parent} port=5432 dbname={database}",
            "listen_addr = *": "listen_addr = 127.0.0.1",
            "listen_port = 6432": f"listen_port = {port}",
            "/etc/pgbouncer/userlist.txt": str(users),
        }
        for documented, ours in replaced.items():
            assert documented in text
            text = text.replace(documented, ours)
        owner = socket.owner()
        self._command: list[str | Path] = [program, "--quiet", directory / "pgbouncer.ini"]
        (directory / "pgbouncer.ini").write_text(text + (f"user = {owner}\n" if os.geteuid() == 0 else ""))
        users.write_text(f'"users_api" "{password}"\n')
        if os.geteuid() == 0:
            for path in (directory, *directory.iterdir()):
                shutil.chown(path, owner)

    def start(self) -> None:
        """Start it."""
        self._process = subprocess.Popen(self._command, stderr=subprocess.DEVNULL)

    def stop(self) -> None:
        """Stop it, and with it every connection."""
        self._process.kill()
        self._process.wait()
