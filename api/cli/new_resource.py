"""`users-api new-resource`."""

import keyword
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import click

from api.app import RESOURCES
from api.database.files import MIGRATIONS_DIRECTORY, ROOT

_DRAFT = Path(__file__).parent / "first_draft"
_WORD = re.compile("[a-z]{2,20}")


@click.command("new-resource")
@click.argument("name")
@click.option("--singular", help="The word for one of them.  [default: NAME without its last s]")
def new_resource(name: str, singular: str | None) -> None:
    """Write the first draft of a resource NAME, such as teams: versioned rows with a unique name.

    The draft has its table, statements, handlers, OpenAPI document and tests, and passes them and `make lint` as it is.
    It is yours from then on: change it by hand. The command never touches a file that exists.

    NAME is the plural, one word in lower case: it names the package api/NAME, the path /api/v1/NAME, the table, and the
    scopes NAME:read and NAME:write. It needs a checkout with `make install`. docs/add-a-resource.md goes on from there.

    Exit code 2 if NAME cannot be used or a file exists, else 0.

    \b
    Examples:
      users-api new-resource teams
      users-api new-resource companies --singular company
    """
    noun = name.removesuffix("s") if singular is None else singular
    _check_files(name)
    _check_words(name, noun)
    number = 1 + max(int(file.name[:4]) for file in MIGRATIONS_DIRECTORY.glob("[0-9]*.sql"))
    files = {_fill_in(path, name, noun, number): text for path, text in _drafts().items()}
    for path, text in files.items():
        (ROOT / path).parent.mkdir(parents=True, exist_ok=True)
        with (ROOT / path).open("x", encoding="utf-8") as file:
            file.write(_fill_in(text, name, noun, number))
        click.echo(f"wrote {path}")
    _format([path for path in files if path.endswith(".py")])
    names = ", ".join(f'"{each}"' for each in (*(each.name for each in RESOURCES), name))
    click.echo(f"\nNow change one line in api/app.py:\n\nRESOURCES = load({names})\n\nThen:")
    commands = [(command.format(name=name), what) for command, what in _NEXT.items()]
    width = max(len(command) for command, _ in commands)
    for command, what in commands:
        click.echo(f"  {command:{width}}  {what}")


_NEXT = {
    "users-api migrate": "apply its migration",
    "make lint": "check the types, the layers, the migration",
    "make test ARGS=tests/{name}": "run its tests",
    "users-api check-sql": "print each GRANT that a role of its own would need",
    "users-api serve": "serve it",
}
"""The commands to run after the change of api/app.py, and the purpose of each."""


def _check_words(name: str, noun: str) -> None:
    """Raise click.BadParameter if the words cannot name a package and its classes."""
    if not _WORD.fullmatch(noun) or noun == name or keyword.iskeyword(noun):
        raise click.BadParameter(f"{noun!r} cannot name one of {name}: pass another word", param_hint="--singular")
    lines = re.findall(r"^(?:from .*|import .*|\w+ = )", "\n".join(_drafts().values()), re.M)
    used = set(re.findall(r"\w+", " ".join(lines)))
    for word in (name, noun, name.capitalize(), noun.capitalize(), noun.upper()):
        if word in used:
            raise click.BadParameter(f"the draft uses {word} itself: choose another word", param_hint="NAME")


def _check_files(name: str) -> None:
    """Raise click.UsageError if the draft cannot be written, or if one of its files may exist."""
    if not (ROOT / "pyproject.toml").is_file() or find_spec("ruff") is None:
        raise click.UsageError("this needs a checkout of the project: clone it, and run `make install` there")
    if not _WORD.fullmatch(name):
        raise click.BadParameter("use one word of 2 to 20 lower-case letters, such as teams", param_hint="NAME")
    taken = [*ROOT.glob(f"*/{name}"), *ROOT.glob(f"*/{name}.py"), *MIGRATIONS_DIRECTORY.glob(f"*.create-{name}.sql")]
    if taken:
        found = taken[0].relative_to(ROOT)
        raise click.UsageError(f"{found} exists, and is never overwritten: choose another NAME, or move it away")


def _drafts() -> dict[str, str]:
    """Return the text of each file of the draft, by its path: those of a resource `widgets`."""
    return {
        path.relative_to(_DRAFT).as_posix().removesuffix(".txt"): path.read_text(encoding="utf-8")
        for path in sorted(_DRAFT.rglob("*.txt"))
    }


def _fill_in(text: str, name: str, noun: str, number: int) -> str:
    text = text.replace("NNNN", f"{number:04}")
    for word, replacement in (("widgets", name), ("widget", noun)):
        for form in (str.lower, str.capitalize, str.upper):
            text = text.replace(form(word), form(replacement))
    return text


def _format(paths: list[str]) -> None:
    """Sort the imports and break the lines of Python files, which depend on the length of the name."""
    for command in (["check", "--fix", "--select", "I"], ["format"]):
        subprocess.run([sys.executable, "-m", "ruff", *command, "--quiet", "--no-cache", *paths], cwd=ROOT, check=True)  # noqa: S603
