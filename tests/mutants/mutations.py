"""The mutants of a Python module: one small change of its source each."""

import ast
import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import libcst as cst
from libcst.metadata import MetadataWrapper, ParentNodeProvider
from mutmut.mutation import mutators

Change = Callable[[Any], Iterable[cst.CSTNode]]


@dataclass(frozen=True)
class Mutant:
    """A file's source with one change. `before` and `after` are the lines that differ, without their indentation."""

    path: str
    line: int
    before: str
    after: str
    source: str

    @property
    def diff(self) -> str:
        """The change as people read it."""
        return f"{self.path}:{self.line}\n  - {self.before}\n  + {self.after}"


def mutants(root: Path, module: str) -> list[Mutant]:
    """Return every mutant of `api/{module}.py` in the order of its lines, without those that are the same program."""
    path = f"api/{module}.py"
    source = (root / path).read_text()
    wrapper = MetadataWrapper(cst.parse_module(source))
    seen = {ast.dump(ast.parse(source))}
    found = []
    finder = _Finder()
    wrapper.visit(finder)
    for old, new in finder.changes:
        mutated = wrapper.module.deep_replace(old, new).code
        try:
            program = ast.dump(ast.parse(mutated))
        except SyntaxError:
            continue
        if program not in seen:
            seen.add(program)
            found.append(mutant_of(path, source, mutated))
    return sorted(found, key=lambda mutant: mutant.line)


class _Finder(cst.CSTVisitor):  # type: ignore[misc]
    """Collects the changes of a module."""

    METADATA_DEPENDENCIES = (ParentNodeProvider,)

    def __init__(self) -> None:
        super().__init__()
        self.changes: list[tuple[cst.CSTNode, cst.CSTNode]] = []
        self._functions = 0

    def on_visit(self, node: cst.CSTNode) -> bool:
        self._functions += isinstance(node, cst.FunctionDef)
        for kind, change in _CHANGES:
            if isinstance(node, kind):
                self.changes += [(node, new) for new in change(node)]
        # Within functions most strings are messages, and their words are nobody's concern.
        if isinstance(node, cst.SimpleString) and not self._functions and not self._is_docstring(node):
            self.changes += [(node, new) for new in list(mutators.operator_string(node))[:1]]
        return not isinstance(node, (cst.Annotation, cst.Import, cst.ImportFrom))

    def on_leave(self, original_node: cst.CSTNode) -> None:
        self._functions -= isinstance(original_node, cst.FunctionDef)

    def _is_docstring(self, node: cst.SimpleString) -> bool:
        return isinstance(self.get_metadata(ParentNodeProvider, node), cst.Expr)


def _negated(node: cst.If | cst.While | cst.IfExp | cst.Assert | cst.CompIf) -> Iterable[cst.CSTNode]:
    test = node.test.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()])
    yield node.with_changes(test=cst.UnaryOperation(cst.Not(), test))


def _without_a_keyword(node: cst.Call) -> Iterable[cst.CSTNode]:
    """A default in the place of what was passed: a bound removed, a flag forgotten."""
    for argument in node.args:
        if argument.keyword is not None:
            yield node.with_changes(args=[each for each in node.args if each is not argument])


def _without_a_statement(node: cst.SimpleStatementLine) -> Iterable[cst.CSTNode]:
    """Assignments to names stay: without one the next line fails, which any test sees."""
    statement = node.body[0]
    match statement:
        case cst.Expr(value=cst.Call() | cst.Await()) | cst.Return() | cst.Raise() | cst.Del() | cst.AugAssign():
            yield node.with_changes(body=[cst.Pass()])
        case cst.Assign(targets=[cst.AssignTarget(target=cst.Attribute() | cst.Subscript())]):
            yield node.with_changes(body=[cst.Pass()])


def _without_a_decorator(node: cst.FunctionDef) -> Iterable[cst.CSTNode]:
    for decorator in node.decorators:
        yield node.with_changes(decorators=[each for each in node.decorators if each is not decorator])


def _without_a_handler(node: cst.Try) -> Iterable[cst.CSTNode]:
    for handler in node.handlers:
        never = handler.with_changes(type=cst.Tuple(()), whitespace_after_except=cst.SimpleWhitespace(" "))
        yield node.with_changes(handlers=[never if each is handler else each for each in node.handlers])


def _smaller(node: cst.Integer) -> Iterable[cst.CSTNode]:
    if node.evaluated_value:
        yield node.with_changes(value=str(node.evaluated_value - 1))


_CHANGES: list[tuple[Any, Change]] = [
    (cst.BaseNumber, mutators.operator_number),
    (cst.Integer, _smaller),
    (cst.Name, mutators.operator_name),
    (cst.UnaryOperation, mutators.operator_remove_unary_ops),
    (cst.CSTNode, mutators.operator_keywords),
    (cst.CSTNode, mutators.operator_swap_op),
    (cst.Match, mutators.operator_match),
    ((cst.If, cst.While, cst.IfExp, cst.CompIf), _negated),
    (cst.Call, _without_a_keyword),
    (cst.SimpleStatementLine, _without_a_statement),
    (cst.FunctionDef, _without_a_decorator),
    (cst.Try, _without_a_handler),
]


def mutant_of(path: str, source: str, mutated: str) -> Mutant:
    """Return the mutant of a file that is so, and then otherwise."""
    old, new = source.splitlines(), mutated.splitlines()
    changes = [c for c in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes() if c[0] != "equal"]
    start, stop = changes[0][1], changes[-1][2]
    new_start, new_stop = changes[0][3], changes[-1][4]
    before, after = (" ".join(line.strip() for line in lines) for lines in (old[start:stop], new[new_start:new_stop]))
    return Mutant(path, start + 1, before, after, mutated)
