"""docker-bake.hcl: Docker takes it, and it fits the service. Nothing is built."""

from tests.support.engine import read


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
    assert read(*bake)["target"] == {"default": plain}
    base, tag = "python:3.13-slim@sha256:" + 64 * "0", "registry.example/users-api:1"
    named = read(*bake, TAG=tag, PYTHON_IMAGE=base, REVISION="abc", SOURCE_URL="https://example.com/users-api")
    labels = {"revision": "abc", "source": "https://example.com/users-api"}
    assert named["target"]["default"] == {
        **plain,
        "tags": [tag],
        "args": {"PYTHON_IMAGE": base},
        "labels": {f"org.opencontainers.image.{name}": value for name, value in labels.items()},
    }
