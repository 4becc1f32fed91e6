"""docs/add-a-resource.md as it stands: its commands and files in a copy of the project, held to the contract."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.database import execute

DOCUMENT = (ROOT / "docs/add-a-resource.md").read_text()
STEP = re.compile(
    r"^```console\n(?P<commands>.*?)^```$|^(?P<line>In )?`(?P<path>[^`\n]+)`:\n\n```\w+\n(?P<text>.*?)^```$",
    re.M | re.S,
)
ADDED = re.compile(r"(api|sql|tests)/teams/\w+\.\w+|migrations/\d{4}\.create-team[a-z-]+(\.rollback)?\.sql")
"""The files that a resource adds."""
FOLDERS = ("api", "sql", "migrations", "tests", "docs", "benchmarks")


class Project:
    """A copy of the project, in which commands run."""

    def __init__(self, root: Path) -> None:
        self.root = root
        ignored = shutil.ignore_patterns("__pycache__")
        for folder in FOLDERS:
            shutil.copytree(ROOT / folder, root / folder, ignore=ignored)
        for file in (*ROOT.glob("*.*"), ROOT / "Makefile", ROOT / "Dockerfile", ROOT / ".env.example"):
            if file.is_file():
                shutil.copy(file, root)

    def run(self, program: str, *arguments: str, ends_with: int = 0, **variables: str) -> str:
        """Run a program of the environment in the copy; return what it prints."""
        ended = subprocess.run(
            [Path(sys.executable).with_name(program), *arguments],
            cwd=self.root,
            env={**os.environ, "PYTHONPATH": str(self.root), **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert ended.returncode == ends_with, f"{program} {' '.join(arguments)}:\n{ended.stdout[-8000:]}"
        return ended.stdout

    def files(self) -> dict[str, bytes]:
        """Return the content of each file, by its path."""
        return {
            path.relative_to(self.root).as_posix(): path.read_bytes()
            for folder in FOLDERS
            for path in (self.root / folder).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }

    def do(self, command: str, database: str) -> None:
        """Run a command of the document; `make` has no environment in the copy, so do what its targets do."""
        program, *arguments = shlex.split(command)
        if command == "make lint":
            self.run("ruff", "format", "--check", ".")
            self.run("ruff", "check", ".")
            if (ROOT / ".mypy_cache").is_dir():  # go on from what `make lint` has found out about the project
                shutil.copytree(ROOT / ".mypy_cache", self.root / ".mypy_cache", dirs_exist_ok=True)
            self.run("mypy")
            self.run("lint-imports", "--no-cache")
            self.run("squawk", *(str(file) for file in self.root.glob("migrations/*[!k].sql")))
        elif command.startswith("make test ARGS="):
            self.test(arguments[-1].removeprefix("ARGS="))
        else:
            assert program == "users-api"
            self.run(program, *arguments, DATABASE_URL=database, DIRECT_URL=database)

    def test(self, *arguments: str) -> None:
        """Run tests of the copy, with batching alone."""
        self.run("pytest", "-p", "no:cacheprovider", "--exitfirst", "-m", "not slow", *arguments)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A copy of the project."""
    return Project(tmp_path)


@pytest.mark.timeout(900)
def test_the_tutorial_as_it_stands(project: Project, empty_database: str) -> None:
    before = project.files()
    for step in STEP.finditer(DOCUMENT):
        if step["commands"]:
            for command in step["commands"].splitlines():
                project.do(command.removeprefix("$ "), empty_database)
            continue
        file = project.root / step["path"]
        text = step["text"]
        if step["line"]:
            text, found = re.subn(rf"^{text.partition(' = ')[0]} = .*\n", text, file.read_text(), flags=re.M)
            assert found == 1
        file.write_text(text)

    after = project.files()
    assert [path for path in after if path not in before and not ADDED.fullmatch(path)] == []
    assert [path for path in before if after[path] != before[path]] == ["api/app.py"]
    lines = [file["api/app.py"].splitlines() for file in (before, after)]
    assert sum(old != new for old, new in zip(*lines, strict=True)) == 1

    project.test(
        "tests/system/tutorial_contract.py",
        *("tests/database/test_catalogue.py", "tests/database/test_migrations.py", "tests/database/test_statements.py"),
        *("tests/openapi/test_document.py", "tests/system/test_document_facts.py", "tests/system/test_documents.py"),
        "-k",
        "tutorial_contract or test_document and not console and not links and not linked or teams or catalogue or up_down_up or runs_twice",
    )
    for _ in range(2):
        project.do("users-api migrate rollback --yes", empty_database)
    assert execute(empty_database, "select to_regclass('teams'), to_regclass('team_members')") == [(None, None)]
    assert execute(empty_database, "select count(*) from pg_proc where proname = 'team_body'") == [(0,)]


@pytest.mark.parametrize("name", ["ab", "z" * 20])
def test_a_draft_passes_lint_whatever_its_name(project: Project, name: str) -> None:
    """The length of a name breaks lines, and its first letter sorts the imports."""
    project.run("users-api", "new-resource", name, "--singular", "x" * len(name))
    project.run("ruff", "format", "--check", ".")
    project.run("ruff", "check", ".")
