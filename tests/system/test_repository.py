"""The repository for those who join: its workflow, hooks, dev container and release, run as far as one machine can."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.support import ROOT, lacking

PROGRAMS = Path(sys.executable).parent
SCHEMAS = {
    ".github/workflows/ci.yml": "github-workflows",
    ".github/dependabot.yml": "dependabot",
    ".github/ISSUE_TEMPLATE/bug.yml": "github-issue-forms",
    ".github/ISSUE_TEMPLATE/idea.yml": "github-issue-forms",
    ".github/ISSUE_TEMPLATE/config.yml": "github-issue-config",
    "compose.yaml": "compose-spec",
}
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
MAKES = {
    name for line in re.findall(r"^([a-z][a-z -]*):", (ROOT / "Makefile").read_text(), re.M) for name in line.split()
}
IGNORED = shutil.ignore_patterns(
    ".git", ".venv", ".data", ".*_cache", ".hypothesis", "__pycache__", "dist", "locust.html"
)


def run(directory: Path, *command: str | Path, **variables: str) -> "subprocess.CompletedProcess[str]":
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return subprocess.run(command, cwd=directory, env={**environment, **variables}, capture_output=True, text=True)


def git(directory: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=Ada", "-c", "user.email=ada@example.com")
    ended = run(directory, "git", *identity, *arguments)
    assert ended.returncode == 0, ended.stderr


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clean clone of what is here, with the environment of this run."""
    if shutil.which("git") is None:
        lacking("no git: apt-get install git")
    clone = tmp_path / "users-api"
    shutil.copytree(ROOT, clone, ignore=IGNORED)
    git(clone, "init", "--quiet")
    git(clone, "add", "--all")
    git(clone, "commit", "--quiet", "--message", "All of it")
    (clone / ".venv").symlink_to(sys.prefix)
    with (clone / ".git/info/exclude").open("a") as exclude:
        exclude.write(".venv\n")
    return clone


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_file_is_valid_by_its_schema(name: str) -> None:
    ended = run(ROOT, PROGRAMS / "check-jsonschema", "--builtin-schema", f"vendor.{SCHEMAS[name]}", name)
    assert ended.returncode == 0, ended.stdout


def test_every_file_of_the_forge_has_its_schema() -> None:
    assert {str(file.relative_to(ROOT)) for file in ROOT.glob(".github/**/*.yml")} <= SCHEMAS.keys()


def test_the_workflow_runs_the_gate_on_both_releases() -> None:
    job = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]["gate"]
    assert job["strategy"]["matrix"]["debian"] == ["bookworm", "trixie"]
    commands = [shlex.split(step["run"]) for step in job["steps"] if "run" in step]
    assert commands[-1] == [".ci/run"]
    # Each command is in the repository, or on a Debian after the commands before it.
    there = {"apt-get"}
    for program, *arguments in commands:
        assert program in there or os.access(ROOT / program, os.X_OK), program
        there.update(arguments if program == "apt-get" and "install" in arguments else [])


@pytest.mark.parametrize("script", sorted(file.name for file in ROOT.glob(".ci/*")))
def test_a_script_is_bash_that_can_be_run(script: str) -> None:
    assert os.access(ROOT / ".ci" / script, os.X_OK)
    ended = run(ROOT, "bash", "-n", f".ci/{script}")
    assert ended.returncode == 0, ended.stderr


def test_the_dev_container_makes_what_the_makefile_has() -> None:
    container = json.loads((ROOT / ".devcontainer/devcontainer.json").read_text())
    for when, target in (("postCreateCommand", "test-fast"), ("postAttachCommand", "run")):
        make, *targets = container[when].split()
        assert make == "make"
        assert target in targets
        assert set(targets) <= MAKES
    assert container["forwardPorts"] == [8000]
    python = tuple(map(int, container["image"].removeprefix("python:").split(".")))
    assert python >= (3, 11)


@pytest.mark.timeout(400)
def test_the_hooks_pass_on_a_clean_clone_and_refuse_what_lint_refuses(clone: Path) -> None:
    def hooks(*names: str) -> "subprocess.CompletedProcess[str]":
        # mypy's cache saves a minute where `make lint` has just run.
        variables = {"MYPY_CACHE_DIR": str(ROOT / ".mypy_cache"), "PRE_COMMIT_HOME": str(clone.parent / "hooks")}
        return run(clone, PROGRAMS / "pre-commit", "run", *names, "--all-files", PYTHONPATH=str(clone), **variables)

    ended = hooks()
    assert ended.returncode == 0, ended.stdout
    assert len(re.findall(r"^.*\.Passed$", ended.stdout, re.MULTILINE)) == 6

    (clone / "api/context.py").write_text("import api.app\nimport os\nx:int='1'\n")
    (clone / "migrations/0099.wrong.sql").write_text("alter table users add column x int not null;\n")
    git(clone, "add", "--all")
    for hook in ("ruff-format", "ruff-check", "lint-imports", "squawk"):
        assert hooks(hook).returncode == 1, hook
    # A file by its name: mypy would read all that imports it.
    assert run(clone, PROGRAMS / "mypy", "--cache-dir=/dev/null", "api/context.py").returncode == 1


def disagree(file: str, old: str, new: str) -> Callable[[Path], None]:
    """Return a change of the clone: another text in a file, committed and tagged."""

    def change(clone: Path) -> None:
        text = (clone / file).read_text()
        assert old in text
        (clone / file).write_text(text.replace(old, new, 1))
        git(clone, "commit", "--quiet", "--all", "--message", "Another version")
        git(clone, "tag", "--force", "--annotate", f"v{VERSION}", "--message", "Release")

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param(lambda clone: None, "", id="all agree"),
        pytest.param(
            disagree("CHANGELOG.md", f"## {VERSION} (", "## Unreleased\n\n## 0.0.9 ("),
            "CHANGELOG.md begins with 'Unreleased'",
            id="changelog",
        ),
        pytest.param(
            disagree("pyproject.toml", f'version = "{VERSION}"', 'version = "9.0.0"'),
            f"pyproject.toml has 9.0.0, but users-api --version prints 'users-api, version {VERSION}'",
            id="pyproject",
        ),
        pytest.param(
            lambda clone: git(clone, "tag", "--delete", f"v{VERSION}"),
            f"this commit has no tag v{VERSION}",
            id="tag",
        ),
        pytest.param(
            lambda clone: (clone / "LICENSE").write_text(""), "the checkout has changes", id="what is not committed"
        ),
    ],
)
def test_versions_that_disagree_stop_the_release(clone: Path, change: Callable[[Path], None], said: str) -> None:
    git(clone, "tag", "--annotate", f"v{VERSION}", "--message", "Release")
    change(clone)
    ended = run(clone, ".ci/release", "check")
    assert (ended.returncode, said in ended.stderr) == (1 if said else 0, True), ended.stderr
    assert said or ended.stdout == f"release: {VERSION} everywhere\n"
    assert not (clone / "dist").exists()


@pytest.mark.timeout(300)
def test_the_sdist_has_every_file_and_the_wheel_works_in_an_empty_environment(clone: Path, tmp_path: Path) -> None:
    ended = run(clone, sys.executable, "-m", "hatchling", "build", "--directory", tmp_path / "dist")
    assert ended.returncode == 0, ended.stderr
    with tarfile.open(next((tmp_path / "dist").glob("*.tar.gz"))) as sdist:
        shipped = {name.partition("/")[2] for name in sdist.getnames()}
    kept = set(run(clone, "git", "ls-files").stdout.splitlines())
    assert shipped - kept == {"PKG-INFO"}
    assert kept <= shipped
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {"api/py.typed", "api/sql/users/insert_users.sql", "api/migrations_sql/0001.create-users.sql"} <= names
    assert not [name for name in names if name.startswith(("tests", "benchmarks"))]

    empty = tmp_path / "empty"
    assert run(tmp_path, sys.executable, "-m", "venv", empty).returncode == 0
    pip = (empty / "bin/pip", "--quiet", "--disable-pip-version-check", "install", "--no-deps", "--retries=1")
    ended = run(tmp_path, *pip, "--require-hashes", "--requirement", ROOT / "requirements.lock")
    if ended.returncode != 0:
        lacking(f"the packages of requirements.lock cannot be installed: {ended.stderr[-200:]}")
    assert run(tmp_path, *pip, wheel).returncode == 0
    shown = run(tmp_path, empty / "bin/users-api", "--version", PYTHONPATH="")
    assert shown.stdout == f"users-api, version {VERSION}\n"
