"""The container image that the tests of several files run."""

import os
import shutil
import sys
from collections.abc import Iterator

import pytest

from tests.support import lacking
from tests.support.podman import build, podman


@pytest.fixture(scope="session")
def image(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of the image, built from this checkout, for this session alone."""
    if sys.platform != "linux" or (
        shutil.which("podman") is None and "CI" not in os.environ
    ):  # .ci/image installs it there
        lacking("the image is built and run by podman on Linux: apt-get install podman runc debootstrap")
    name = f"localhost/users-api-test:{os.getpid()}"
    capture = request.config.pluginmanager.getplugin("capturemanager")
    assert capture is not None
    with capture.global_and_fixture_disabled():  # Its progress and the sizes are to be seen.
        build(name)
    yield name
    podman("image", "rm", "--force", name)
