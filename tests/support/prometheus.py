"""A Prometheus that scrapes a server, and requests that give it something to count."""

import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx

from benchmarks.processes import free_port
from tests.support.users import USERS
from tests.support.waiting import wait_until


@contextmanager
def prometheus(programs: Path, place: Path, target: str, key: str, rules: str = "[]") -> Iterator[httpx.Client]:
    """A Prometheus that scrapes a target every 200 ms, with the credentials that it asks for."""
    (place / "prometheus.yml").write_text(
        f"""\
global: {{evaluation_interval: 200ms}}
rule_files: {rules}
scrape_configs:
  - job_name: users-api
    scrape_interval: 200ms
    scrape_timeout: 200ms
    authorization: {{credentials: {key}}}
    static_configs: [{{targets: ["{target}"]}}]
"""
    )
    address = f"127.0.0.1:{free_port()}"
    command = [str(programs / "prometheus"), "--config.file=prometheus.yml", "--storage.tsdb.path=data"]
    with subprocess.Popen(
        [*command, f"--web.listen-address={address}", "--log.level=error"], cwd=place, stdout=subprocess.DEVNULL
    ) as process:
        try:
            with httpx.Client(base_url=f"http://{address}/api/v1", transport=httpx.HTTPTransport(retries=20)) as client:
                # Prometheus listens before it can be asked.
                wait_until(lambda: client.get(f"http://{address}/-/ready").is_success)
                yield client
        finally:
            process.terminate()


def use_everything(url: str, key: str) -> None:
    """Requests of every kind, concurrent ones too."""
    with httpx.Client(base_url=url, headers={"authorization": f"Bearer {key}"}) as client:
        path = client.post(USERS, json={"email": f"{os.urandom(8).hex()}@example.com"}).headers["location"]
        for query in ("", "?limit=1", "?email=ada@example.com", "?skip=1"):
            assert client.get(f"{USERS}{query}").status_code == 200
        with ThreadPoolExecutor() as threads:
            list(threads.map(lambda _: client.get(path), range(20)))
        assert client.patch(path, json={"name": "Ada"}).status_code == 200
        assert client.delete(path).status_code == 204
        assert client.get(path).status_code == 404
        assert client.post(USERS, json={"email": "nobody"}).status_code == 422
    assert httpx.get(f"{url}{USERS}").status_code == 401
