"""`users-api new-resource`: what it writes and refuses; tests/system/test_tutorial.py lints and tests a draft."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from api.cli import main


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that looks like a checkout with six migrations."""
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "migrations").mkdir()
    (tmp_path / "migrations/0006.create-others.sql").touch()
    (tmp_path / "migrations/0006.create-others.rollback.sql").touch()
    monkeypatch.setattr("api.cli.new_resource.ROOT", tmp_path)
    monkeypatch.setattr("api.cli.new_resource.MIGRATIONS_DIRECTORY", tmp_path / "migrations")
    return tmp_path


def draft(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["new-resource", *arguments])


def files(checkout: Path) -> dict[str, str]:
    return {str(path.relative_to(checkout)): path.read_text() for path in checkout.rglob("*") if path.is_file()}


def test_it_says_what_it_wrote_and_what_to_do_next(checkout: Path) -> None:
    before = files(checkout)
    done = draft("companies", "--singular", "company")
    assert done.exit_code == 0, done.output
    written = {path: text for path, text in files(checkout).items() if path not in before}
    assert [line.removeprefix("wrote ") for line in done.output.splitlines() if line.startswith("wrote ")] == sorted(
        written
    )
    assert "migrations/0007.create-companies.sql" in written
    assert ', "companies")' in done.output
    assert "users-api migrate" in done.output
    assert not [path for path, text in written.items() if "widget" in (path + text).lower() or "NNNN" in path + text]
    assert 'Rows("company", "/api/v1/companies")' in written["api/companies/problems.py"]


@pytest.mark.parametrize("name", ["ab", "teams", "z" * 20])
def test_the_next_commands_are_in_columns(checkout: Path, name: str) -> None:
    """Whatever the length of the name."""
    done = draft(name, "--singular", "x" * len(name))
    lines = done.output.partition("Then:\n")[2].splitlines()
    assert f"make test ARGS=tests/{name}  run its tests" in done.output
    assert len(lines) == 5
    assert len({line.rindex("  ") for line in lines}) == 1


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (["Teams"], "one word of 2 to 20 lower-case letters"),
        (["t"], "one word"),
        (["work_teams"], "one word"),
        (["work-teams"], "one word"),
        (["../teams"], "one word"),
        (["t" * 21], "one word"),
        (["tēams"], "one word"),
        (["sheep"], "'sheep' cannot name one of sheep: pass another word"),
        (["classes", "--singular", "class"], "'class' cannot name one of classes"),
        (["teams", "--singular", "a team"], "'a team' cannot name one of teams"),
        (["records"], "the draft uses Record itself: choose another word"),
        (["names"], "the draft uses Name itself"),
    ],
)
def test_words_that_cannot_be_used(checkout: Path, arguments: list[str], remedy: str) -> None:
    before = files(checkout)
    refused = draft(*arguments)
    assert (refused.exit_code, remedy in refused.output) == (2, True), refused.output
    assert files(checkout) == before


@pytest.mark.parametrize(
    "path",
    [
        "api/teams/handlers.py",
        "api/teams.py",
        "sql/teams/select_teams.sql",
        "tests/teams/mine.txt",
        "migrations/0003.create-teams.sql",
    ],
)
def test_a_file_that_exists_is_never_touched(checkout: Path, path: str) -> None:
    (checkout / path).parent.mkdir(parents=True, exist_ok=True)
    (checkout / path).write_text("mine")
    before = files(checkout)
    refused = draft("teams")
    assert refused.exit_code == 2
    assert "exists, and is never overwritten: choose another NAME, or move it away" in refused.output
    assert files(checkout) == before


def test_a_second_run_changes_nothing(checkout: Path) -> None:
    assert draft("teams").exit_code == 0
    before = files(checkout)
    assert draft("teams").exit_code == 2
    assert files(checkout) == before


def test_an_installed_package_is_no_checkout(checkout: Path) -> None:
    (checkout / "pyproject.toml").unlink()
    refused = draft("teams")
    assert refused.exit_code == 2
    assert "needs a checkout of the project: clone it, and run `make install` there" in refused.output
