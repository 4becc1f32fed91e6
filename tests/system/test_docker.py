"""compose.yaml and docker-bake.hcl: Docker takes them, and they fit the service. Nothing is started."""

import json
import os
import subprocess
from typing import Any

from api.neon.url import parse_url
from tests.support import ROOT, lacking


def docker(*arguments: str, **variables: str) -> Any:
    """Return the JSON that a part of Docker prints, which needs no Docker for this."""
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


def test_compose_file() -> None:
    services = docker("compose", "--file", "compose.yaml", "config", "--format", "json")["services"]
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
    assert all(services[name]["read_only"] for name in environments)
    assert services["api"]["depends_on"]["migrate"]["condition"] == "service_completed_successfully"


def test_bake_file() -> None:
    """For both processors, with the labels and the base that the environment names."""
    bake = ("buildx", "bake", "--file", "docker-bake.hcl", "--push", "--print")
    plain = {
        "context": ".",
        "dockerfile": "Dockerfile",
        "platforms": ["linux/amd64", "linux/arm64"],
        "tags": ["users-api"],
        "output": ["type=image,rewrite-timestamp=true,push=true"],
    }
    assert docker(*bake)["target"] == {"default": plain}
    base, tag = "python:3.13-slim@sha256:" + 64 * "0", "registry.example/users-api:1"
    named = docker(*bake, TAG=tag, PYTHON_IMAGE=base, REVISION="abc", SOURCE_URL="https://example.com/users-api")
    labels = {"revision": "abc", "source": "https://example.com/users-api"}
    assert named["target"]["default"] == {
        **plain,
        "tags": [tag],
        "args": {"PYTHON_IMAGE": base},
        "labels": {f"org.opencontainers.image.{name}": value for name, value in labels.items()},
    }
