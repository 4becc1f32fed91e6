"""Three client generators read the document, and what they make is type-checked and used against the server."""

import filecmp
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from api.app import create_app
from api.auth.keys import make_api_key
from tests.support import ROOT, lacking
from tests.support.serving import serve, settings_for

HERE = ROOT / "tests/openapi/generators"
LOCKS = ["package.json", "package-lock.json", "requirements.lock"]
BIN = Path(sys.executable).parent


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Run a program, which has to succeed. Returns what it printed."""
    variables = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", **environment}
    ended = subprocess.run(
        command, cwd=cwd, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=100
    )
    assert ended.returncode == 0, ended.stdout
    return ended.stdout


def test_the_npm_lock_has_hashes_and_no_addresses() -> None:
    _, *packages = json.loads((HERE / "package-lock.json").read_text())["packages"].items()
    assert packages
    for name, package in packages:
        assert package["integrity"].startswith("sha512-"), name
        assert "resolved" not in package, name


@pytest.fixture
def served(database: str) -> Iterator[tuple[str, str]]:
    """The URL of a server on an empty database, and a key that it takes."""
    key, entry = make_api_key("generated", read_only=False)
    with serve(create_app(settings_for(database, api_keys=entry))) as url:
        yield url, key


@pytest.fixture(scope="module")
def node_modules() -> Path:
    """The directory that .ci/generators fetches, with the versions of our locks."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "users-api/generators"
    if cache.exists() and filecmp.cmpfiles(cache, HERE, LOCKS, shallow=False)[0] == LOCKS:
        return cache
    lacking("no client generators for TypeScript: run .ci/generators, which fetches them")


def test_openapi_python_client(served: tuple[str, str], tmp_path: Path) -> None:
    """Only our program is type-checked: what is generated has errors of its own in strict mode."""
    url, key = served
    config = HERE / "openapi-python-client.yml"
    document = f"{url}/openapi.json"
    printed = run(
        *("openapi-python-client", "generate", "--url", document, "--meta", "none"),
        *("--config", config, "--output-path", "users_client"),
        cwd=tmp_path,
    )
    # Its only complaint is the second format of an import.
    assert printed.count("WARNING") == printed.count("Unsupported content type text/csv") == 1, printed
    program = shutil.copy(HERE / "use_openapi_python_client.py", tmp_path)
    (tmp_path / "users_client/py.typed").touch()
    run("mypy", "--strict", "--follow-imports", "silent", program, cwd=tmp_path)
    assert run(sys.executable, program, url, key, cwd=tmp_path) == "done\n"


@pytest.fixture(scope="module")
def typescript(node_modules: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of both TypeScript programs, generated, type-checked strictly and compiled."""
    place = tmp_path_factory.mktemp("typescript")
    for file in (*HERE.glob("*.ts"), *HERE.glob("*.js"), HERE / "tsconfig.json", HERE / "package.json"):
        shutil.copy(file, place)
    (place / "node_modules").symlink_to(node_modules / "node_modules")
    node, programs = node_modules / "node/bin/node", place / "node_modules/.bin"
    with serve(create_app(settings_for("postgresql://ada:sesame@127.0.0.1:1/x"))) as url:
        document = f"{url}/openapi.json"
        run(node, programs / "openapi-typescript", document, "--output", "schema.ts", cwd=place)
        run(node, programs / "openapi-ts", "--input", document, "--no-log-file", cwd=place)
    run(node, programs / "tsc", cwd=place)
    return place


@pytest.mark.parametrize("program", ["use_openapi_typescript", "use_hey_api"])
def test_typescript(program: str, typescript: Path, node_modules: Path, served: tuple[str, str]) -> None:
    assert run(node_modules / "node/bin/node", f"built/{program}.js", *served, cwd=typescript) == "done\n"
