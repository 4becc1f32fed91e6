"""compose.yaml: Docker takes it, and starts it as it stands. Only the images are made of Debian's packages."""

import json
import subprocess
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from api.neon.url import parse_url
from tests.support import ROOT
from tests.support.engine import Engine, read, running
from tests.support.waiting import wait_until

# The first time, the images take three minutes.
pytestmark = [pytest.mark.timeout(900), pytest.mark.long]

URL = "http://localhost:8000/api/v1/users"
CONFINED = ("postgres", "pgbouncer", "migrate", "api", "balancer")
IMAGES = {"postgres": "postgres:18", "haproxy": "haproxy:3.2", "pgbouncer": "users-api-pgbouncer"}
"""The images of .ci/compose-images, and their names in compose.yaml."""


@pytest.fixture(scope="session")
def compose_file() -> dict[str, Any]:
    """The content of compose.yaml as Docker Compose reads it."""
    return dict(read("compose", "--file", ROOT / "compose.yaml", "config", "--format", "json"))


def test_compose_file(compose_file: dict[str, Any]) -> None:
    services = compose_file["services"]
    assert services["api"]["deploy"]["replicas"] == 2
    # The API is open, so nothing but this machine may reach it.
    published = {port["host_ip"] for service in services.values() for port in service.get("ports", [])}
    assert published == {"127.0.0.1"}
    # Each has the URL that it uses, and no other.
    environments = {name: services[name]["environment"] for name in ("migrate", "api")}
    hosts = {
        name: parse_url(values.pop(variable)).hosts[0][0]
        for name, values, variable in (
            ("migrate", environments["migrate"], "DIRECT_URL"),
            ("api", environments["api"], "DATABASE_URL"),
        )
    }
    assert hosts == {"migrate": "postgres", "api": "pgbouncer"}
    assert environments == {"migrate": {}, "api": {"AUTH": "off"}}
    assert services["api"]["depends_on"]["migrate"]["condition"] == "service_completed_successfully"


@pytest.fixture(scope="session")
def engine(image: str, compose_file: dict[str, Any]) -> Iterator[Engine]:
    """An engine in which compose.yaml is up."""
    assert compose_file["services"].keys() == set(CONFINED)
    with running() as engine:
        subprocess.run([ROOT / ".ci/compose-images"], check=True)
        for made, name in IMAGES.items():
            engine.load(f"localhost/compose-{made}", name)
        engine.load(image, "users-api")
        engine.compose("up", "--no-build", "--detach")
        try:
            # Docker's own checks, of the Compose file for PostgreSQL and of the image for the API.
            wait_until_healthy(engine, "postgres-1", "api-1", "api-2")
            yield engine
        finally:
            print(engine.compose("logs", "--no-color"))  # pytest shows it where a test fails
            engine.compose("down", "--volumes")


def inspected(engine: Engine, container: str) -> dict[str, Any]:
    """Return what Docker says of a container."""
    (found,) = json.loads(engine.docker("inspect", f"users-api-{container}"))
    return dict(found)


def state(engine: Engine, container: str) -> dict[str, Any]:
    """Return the state of a container."""
    return dict(inspected(engine, container)["State"])


def wait_until_healthy(engine: Engine, *containers: str) -> None:
    """Return once Docker's checks have found each container healthy."""
    wait_until(lambda: all(state(engine, name)["Health"]["Status"] == "healthy" for name in containers))


def ask(engine: Engine, *arguments: str) -> tuple[int, str]:
    """Send a request on a new connection to the port that is published, and return status and body."""
    body, _, status = engine.on_host("curl", "-s", "-w", "\n%{http_code}", *arguments).rpartition("\n")
    return int(status), body


def create(engine: Engine, email: str) -> tuple[int, str]:
    """Create a user."""
    return ask(engine, URL, "-H", "content-type: application/json", "-d", json.dumps({"email": email}))


@pytest.mark.parametrize("service", CONFINED)
def test_a_container_has_its_limits(engine: Engine, compose_file: dict[str, Any], service: str) -> None:
    container = f"{service}-1"
    host = inspected(engine, container)["HostConfig"]
    asked = compose_file["services"][service]
    assert (host["ReadonlyRootfs"], host["CapDrop"], host["SecurityOpt"]) == (True, ["ALL"], ["no-new-privileges:true"])
    assert (host["Memory"], host["PidsLimit"]) == (int(asked["mem_limit"]), asked["pids_limit"])
    assert host["NanoCpus"] == asked["cpus"] * 10**9 == 10**9
    if service == "migrate":
        assert (state(engine, container)["Status"], state(engine, container)["ExitCode"]) == ("exited", 0)
        return
    # As the kernel sees it, even for root.
    look = "cat /proc/1/status; touch /new 2>&1 || true"
    seen = engine.docker("exec", "--user=0", f"users-api-{container}", "sh", "-c", look)
    status = dict(line.split(":\t", 1) for line in seen.splitlines() if ":\t" in line)
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
    assert status["NoNewPrivs"] == "1"
    assert "0" not in status["Uid"].split()
    assert seen.endswith("Read-only file system\n")


def test_the_api_answers_behind_the_balancer(engine: Engine) -> None:
    assert ask(engine, URL) == (200, "[]")
    status, body = create(engine, "ada@example.com")
    assert status == 201
    assert ask(engine, f"{URL}/{json.loads(body)['id']}") == (200, body)
    assert create(engine, "ADA@example.com")[0] == 409
    assert ask(engine, "http://localhost:8000/ready")[0] == 200


@pytest.mark.parametrize("replica", ["api-1", "api-2"])
def test_requests_go_on_when_a_replica_is_killed(engine: Engine, replica: str) -> None:
    """Docker starts it again. Each replica serves alone once."""
    before = state(engine, replica)
    engine.on_host("kill", "-9", str(before["Pid"]))
    statuses = [create(engine, f"{replica}-{n}@example.com")[0] for n in range(20)]
    statuses += [ask(engine, URL)[0] for _ in range(20)]
    assert statuses == [201] * 20 + [200] * 20
    wait_until_healthy(engine, replica)
    assert inspected(engine, replica)["RestartCount"] == 1
    assert state(engine, replica)["Pid"] != before["Pid"]


def test_no_request_fails_when_a_replica_is_stopped(engine: Engine) -> None:
    """It drains for longer than the balancer needs to notice, within the grace that compose.yaml gives it."""
    statuses: list[int] = []
    stop = threading.Thread(target=engine.docker, args=("stop", "users-api-api-1"))
    stop.start()
    while stop.is_alive():
        statuses.append(ask(engine, URL)[0])
    assert set(statuses) == {200}, statuses
    assert state(engine, "api-1")["ExitCode"] == 0
    engine.docker("start", "users-api-api-1")
    wait_until_healthy(engine, "api-1")


def test_the_users_outlive_the_containers(engine: Engine) -> None:
    """They are in the volume, which `docker compose down` leaves."""
    users = ask(engine, URL)
    assert len(json.loads(users[1])) > 1
    engine.compose("down")
    engine.compose("up", "--no-build", "--detach")
    wait_until_healthy(engine, "api-1", "api-2")
    assert ask(engine, URL) == users
