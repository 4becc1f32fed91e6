"""The container image that tests of several files run."""

import fcntl
import os
import shutil
import sys
from collections.abc import Iterator

import pytest

from tests.support import ROOT
from tests.support.podman import build, podman


@pytest.fixture(scope="session")
def image(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of the image, built from this checkout once for all processes of this run."""
    if (sys.platform != "linux" or shutil.which("podman") is None) and "CI" not in os.environ:
        pytest.skip("the image is built and run by podman on Linux: apt-get install podman runc debootstrap")
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))
    name = f"localhost/users-api-test:{run}"
    capture = request.config.pluginmanager.getplugin("capturemanager")
    assert capture is not None
    # One lock is held while the image is used, the other one while it is built. Any two files do.
    with (ROOT / "Dockerfile").open() as using, (ROOT / ".ci/image").open() as building:
        fcntl.flock(using, fcntl.LOCK_SH)
        fcntl.flock(building, fcntl.LOCK_EX)
        if podman("image", "exists", name, check=False).returncode != 0:
            with capture.global_and_fixture_disabled():  # Its progress and the sizes are to be seen.
                build(name)
        fcntl.flock(building, fcntl.LOCK_UN)
        yield name
        try:
            fcntl.flock(using, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return  # Another process uses it, and removes it.
        podman("image", "rm", "--force", name)
