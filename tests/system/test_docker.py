"""docker-bake.hcl: Docker takes it, and it fits the service. Nothing is built."""

import json
import os
import subprocess
from typing import Any

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
