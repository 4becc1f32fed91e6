"""The private parts of uvicorn are what api/server was written against: see api/server/internals.py."""

import ast
import hashlib
import inspect
import re
import textwrap
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest
import uvicorn

from api.server.internals import RELIANCES, STATUS_LINE, Reliance

API = Path(__file__).parents[1] / "api"
OURS = [each for each in RELIANCES if issubclass(resolve_name(each.by), resolve_name(each.of))]
each_reliance = pytest.mark.parametrize("reliance", RELIANCES, ids=lambda reliance: reliance.of.partition(":")[2])


def digest(function: Any) -> str:
    return hashlib.sha256(inspect.getsource(function).encode()).hexdigest()[:12]


def assigned(owner: type) -> set[str]:
    """Return the attributes that the methods of a class assign to `self`."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(owner)))
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self"
    }


@each_reliance
def test_methods_are_those_that_ours_were_written_against(reliance: Reliance) -> None:
    owner = resolve_name(reliance.of)
    found = {name: digest(getattr(owner, name)) for name in reliance.methods if hasattr(owner, name)}
    assert found == dict(reliance.methods), (
        f"uvicorn {uvicorn.__version__} has changed: compare these methods with {reliance.by}, then note their digests"
    )


@each_reliance
def test_attributes_exist(reliance: Reliance) -> None:
    assert set(reliance.attributes) <= assigned(resolve_name(reliance.of))


@pytest.mark.parametrize("reliance", OURS, ids=lambda reliance: reliance.by)
def test_every_inherited_member_that_ours_uses_or_overrides_is_listed(reliance: Reliance) -> None:
    theirs, ours = resolve_name(reliance.of), resolve_name(reliance.by)
    used: set[str] = set()
    for each in ours.__mro__[: ours.__mro__.index(theirs)]:
        tree = ast.parse(textwrap.dedent(inspect.getsource(each)))
        used.update(
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("self", "super()")
        )
        used.update(vars(each))
    members = assigned(theirs) | {name for name in vars(theirs) if callable(getattr(theirs, name))}
    assert used & members <= {*reliance.methods, *reliance.attributes}


def test_private_modules_of_uvicorn_are_imported_in_one_place() -> None:
    private = re.compile(r"(from|import) uvicorn\.")
    found = {str(path.relative_to(API)) for path in API.rglob("*.py") if private.search(path.read_text())}
    assert found == {"server/internals.py"}


def test_a_status_line_ends_with_a_line_break() -> None:
    assert STATUS_LINE[200] == b"HTTP/1.1 200 OK\r\n"
