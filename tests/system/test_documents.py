"""The documents: every link leads somewhere, and every console block prints what it shows."""

import os
import re
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from urllib.parse import unquote

import pytest

import api
from api.app import RESOURCES
from api.auth.keys import make_api_key, parse_api_keys
from benchmarks.processes import free_port
from tests.support.commands import environment
from tests.support.rig import NeonDatabase, Rig

ROOT = Path(api.__file__).parent.parent
DOCUMENTS = {
    str(file.relative_to(ROOT)): file.read_text()
    for file in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/**/*.md")])
}
CONSOLE = re.compile(
    r"(?:<!-- not run: (?P<reason>[^\n]+) -->\n)?^ *```console\n(?P<block>.*?)^ *```$", re.MULTILINE | re.DOTALL
)
NOT_RUN = {
    "CONTRIBUTING.md": 3,  # it fetches the project; it tests it; it makes a release
    "docs/add-a-resource.md": 3,  # tests/system/test_tutorial.py runs them in a copy of the project
    "README.md": 2,  # it fetches and tests the project; a Neon project
    "docs/api.md": 2,  # an issuer of tokens; generators of clients: tested in tests/openapi
    "docs/architecture.md": 1,  # minutes
    "docs/neon.md": 3,  # a Neon project; a compute that sleeps: tested below; a replica
    "docs/operations.md": 9,  # Docker; a registry; a cluster; pods, backup and restore: of tests of their own; traces
    "benchmarks/README.md": 2,  # runs that differ each time
}
"""How many blocks of each document are marked as not run."""
PRELUDE = """
serve() {
    [ -z "$server" ] || { kill $server; wait $server; }
    users-api serve "$@" --port PORT >>log 2>&1 & server=$!
    until curl -sfo /dev/null localhost:PORT/health; do kill -0 $server || { cat log; exit 1; }; sleep 0.05; done
}
trap '[ -z "$server" ] || { kill $server; wait $server; }' EXIT
"""
KEY, DIGEST = r"users_[\w-]{43}", r"\b[0-9a-f]{64}\b"
VARYING = [  # what differs from run to run, and what stands for it
    (r"\w{3}, \d\d \w{3} \d{4} [\d:]{8} GMT", "DATE"),
    (r"\d{4}-\d\d-\d\dT[\d:.]+\+00:00", "TIME"),
    (r"(request.id\W+)[0-9a-f]{16}", r"\1ID"),
    (f"{KEY}|{DIGEST}", "KEY"),
    (r"(applying \S+\napplied in [\d.]+ s\n)+", "MIGRATIONS\n"),  # a further resource adds its own
    (r"\d+( statements fit)", r"N\1"),
    (r'("seconds":)[\d.e-]+', r"\1N"),
]


def normalised(text: str) -> str:
    for pattern, stand_in in VARYING:
        text = re.sub(pattern, stand_in, text)
    return text.replace("\r", "").strip()


def commands(text: str) -> list[tuple[str, str]]:
    """Every command that is to be run, with the output that the document shows."""
    shown = "".join(block["block"] for block in CONSOLE.finditer(text) if block["reason"] is None)
    assert not shown or shown.startswith("$ ")
    parts = re.split(r"^\$ ", shown, flags=re.MULTILINE)[1:]
    return [(command, output) for command, _, output in (part.partition("\n") for part in parts)]


@pytest.mark.skipif(shutil.which("curl") is None and "CI" not in os.environ, reason="apt-get install curl")
@pytest.mark.parametrize("name", [name for name, text in DOCUMENTS.items() if commands(text)])
def test_console_blocks_print_what_they_show(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """In order, in one shell. A server that the document starts, or expects from `make run`, runs beside it."""
    todo = commands(DOCUMENTS[name])
    migrates = todo[0][0] == "users-api migrate"
    script = [PRELUDE] if migrates else [PRELUDE, "serve"]
    for command, output in todo:
        is_server = command.startswith("users-api serve") and not output.strip()
        script += [command.removeprefix("users-api ") if is_server else command, "printf '\\n=====\\n'"]
    url = request.getfixturevalue("empty_database" if migrates else "database")
    text = "\n".join(script).replace("localhost:8000", "localhost:PORT").replace("PORT", str(free_port()))
    # The key of a document is refused, since everybody knows it: a reader has another one too.
    key, entry = make_api_key("reader", read_only=True)
    text = re.sub(KEY, key, re.sub(DIGEST, entry.split(":")[1], text))
    ended = subprocess.run(
        ["bash"],
        input=text,
        env={
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "LANG": "C.UTF-8",
            "DATABASE_URL": url,
            "DIRECT_URL": url,
            "DRAIN_SECONDS": "0",
            "PYTHONPATH": str(ROOT),  # the commands import what the tests import
        },
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=100,
    )
    printed = ended.stdout.split("\n=====\n")
    for (command, output), found in zip(todo, printed, strict=False):
        assert normalised(found) == normalised(output), command
    assert len(printed) == len(todo) + 1, ended.stdout


def test_a_key_that_is_published_lets_nobody_in() -> None:
    texts = [*DOCUMENTS.values(), (ROOT / ".env.example").read_text(), (ROOT / "compose.yaml").read_text()]
    published = {digest for text in texts for digest in re.findall(DIGEST, text)}
    published |= {sha256(key.encode()).hexdigest() for text in texts for key in re.findall(KEY, text)}
    assert published
    for digest in published:
        with pytest.raises(ValueError, match=r"^entry 2 is of the key that the documentation shows: .*`users-api key"):
            parse_api_keys(f"{make_api_key('mine', read_only=True)[1]},reporting:{digest}:read")


def test_no_block_is_skipped_by_accident() -> None:
    marked = {
        name: sum(block["reason"] is not None for block in CONSOLE.finditer(text)) for name, text in DOCUMENTS.items()
    }
    assert {name: number for name, number in marked.items() if number} == NOT_RUN
    for name, text in DOCUMENTS.items():
        found = set(re.findall(r"^ *```(\w*)$", text, re.MULTILINE)) - {
            "",
            "console",
            "text",
            "json",
            "yaml",
            "sql",
            "mermaid",
            "python",  # of docs/add-a-resource.md, written and run by tests/system/test_tutorial.py
        }
        assert not found, f"{name}: a command belongs into a console block, which is run"


@pytest.mark.skipif(len(RESOURCES) > 1, reason="docs/neon.md shows the newest migration of this project alone")
def test_doctor_prints_what_its_document_shows(rig: Rig, neon: NeonDatabase) -> None:
    """A compute that sleeps, and a migration that is pending; numbers, line ends and the database's name aside."""
    (block,) = (
        block["block"] for block in CONSOLE.finditer(DOCUMENTS["docs/neon.md"]) if "doctor --rep" in block["block"]
    )
    command, _, shown = block.removeprefix("$ ").partition("\n")
    program = Path(sys.executable).with_name("users-api")
    variables = environment(**neon.environment())
    subprocess.run([program, "migrate", "rollback", "--yes"], env=variables, check=True, capture_output=True)
    rig.suspend()
    arguments = command.split()[1:]
    ended = subprocess.run([program, *arguments], env=variables, capture_output=True, text=True, timeout=60)

    def outline(text: str) -> str:
        return re.sub(r"\s+", " ", re.sub(r"\d+(\.\d+)*", "N", re.sub(r"test_\d+", "neondb", text))).strip()

    assert outline(ended.stdout) == outline(shown)
    assert ended.stdout.splitlines()[-1] == shown.splitlines()[-1]


def anchors(text: str) -> set[str]:
    """The anchors of a document's headings, as they are made on GitHub."""
    headings = re.findall(
        r"^#+ (.+)$", re.sub(r"^ *```.*?^ *```$", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE
    )
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name: str) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", DOCUMENTS[name]):
        if link.startswith("https://"):
            continue
        path, _, anchor = unquote(link).partition("#")
        target = (ROOT / name).parent / path if path else ROOT / name
        assert target.exists(), link
        assert target.resolve().is_relative_to(ROOT), link
        assert not anchor or anchor in anchors(target.read_text()), link


def test_every_document_is_linked_from_the_readme() -> None:
    for name in DOCUMENTS:
        if name.startswith("docs/") or ("/" not in name and name != "README.md"):
            assert f"]({name})" in DOCUMENTS["README.md"], name


def test_every_path_that_is_named_exists() -> None:
    """In the documents, the configuration of the project, and the comments of the code."""
    others = ["Makefile", "pyproject.toml", "Dockerfile", "compose.yaml", ".env.example"]
    files = [ROOT / name for name in [*others, *DOCUMENTS]] + [*ROOT.glob("api/**/*.py"), *ROOT.glob("sql/**/*.sql")]
    path = re.compile(r"(?<![\w/.-])(?:api|tests|benchmarks|sql|migrations|docs)/[\w./-]+\.(?:py|sql|md|json)\b")
    missing = [
        f"{file.relative_to(ROOT)}: {found}"
        for file in files
        for found in path.findall(file.read_text())
        if not (ROOT / found).exists() and "team" not in found  # docs/add-a-resource.md adds those
    ]
    assert not missing


def test_the_readme_is_short() -> None:
    assert len(DOCUMENTS["README.md"].splitlines()) <= 150
