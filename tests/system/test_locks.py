"""The locks: each has what its extra of pyproject.toml needs, in the versions with which the tests run."""

import re
import subprocess
import tomllib
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support import ROOT

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
LOCKS = {"": "requirements.lock", "run": "requirements-run.lock", "dev": "requirements-dev.lock"}
# Packages of which the locks leave out what they require.
ALONE = {each["name"]: each["requires-dist"] for each in PYPROJECT["tool"]["uv"]["dependency-metadata"]}
FLASK = {"flask", "werkzeug", "jinja2", "markupsafe", "itsdangerous", "blinker"}


def versions(extra: str) -> dict[str, str]:
    return dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / LOCKS[extra]).read_text(), re.MULTILINE))


def needed(package: Requirement, found: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """Return every package that one needs here, each with an extra of it or with none."""
    for extra in ("", *package.extras):
        name = canonicalize_name(package.name)
        if (name, extra) in found:
            continue
        found.add((name, extra))
        if name == PROJECT["name"]:
            lines = PROJECT["optional-dependencies"][extra] if extra else PROJECT["dependencies"]
        else:
            lines = ALONE.get(name, requires(name) or [])
        for each in map(Requirement, lines):
            if each.marker is None or each.marker.evaluate({"extra": extra}):
                needed(each, found)
    return found


@pytest.mark.parametrize("extra", LOCKS)
def test_a_lock_has_every_package_that_is_needed(extra: str) -> None:
    found: set[tuple[str, str]] = set()
    for line in (f"{PROJECT['name']}[{extra}]", *PYPROJECT["dependency-groups"]["docs"]):
        needed(Requirement(line), found)
    names = {name for name, _ in found}
    assert names - {PROJECT["name"]} <= versions(extra).keys()


@pytest.mark.parametrize("extra", ["", "run"])
def test_what_serves_has_the_versions_that_are_tested(extra: str) -> None:
    assert versions(extra).items() <= versions("dev").items()


@pytest.mark.parametrize("extra", ["", "run"])
def test_what_serves_has_no_flask(extra: str) -> None:
    """Swagger UI's files come in a package for Flask, which the group docs takes alone."""
    assert "flask-swagger-ui" in versions(extra)
    assert not FLASK & versions(extra).keys()
    # An extra would install Flask.
    assert not [line for lines in PROJECT["optional-dependencies"].values() for line in lines if "flask" in line]


def test_make_run_installs_only_what_it_needs(tmp_path: Path) -> None:
    """Unless the packages for developing are installed: those are more, of the same versions."""

    def steps(what: str) -> str:
        command = ["make", "--dry-run", what, f"VENV={tmp_path}"]
        return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout

    assert re.findall(r"--requirement (\S+)", steps("run")) == ["requirements-run.lock"]
    assert re.findall(r"--requirement (\S+)", steps("install")) == ["requirements-dev.lock"]
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/pip").touch()
    (tmp_path / ".installed-dev").touch()
    assert "--requirement" not in steps("run")
