"""The mutants of SQL files: one small change of a statement each."""

import re
from collections.abc import Iterator
from pathlib import Path

from tests.mutants.mutations import Mutant, mutant_of

_NOT_CODE = re.compile(r"'(?:[^']|'')*'|--[^\n]*")
_KEY = r"(?:[\w.]+|lower\([^()]*\))(?: desc\b)?"
_KEYS = rf"{_KEY}(?:, {_KEY})*"

_CHANGES = [
    *((r"<=", new) for new in ("<", ">")),
    *((r">=", new) for new in (">", "<")),
    *((r"<(?![=>])", new) for new in ("<=", ">=")),
    *((r"(?<!<)>(?!=)", new) for new in (">=", "<=")),
    (r"(?<![<>])=", "<>"),
    (r"<>", "="),
    (r"\band\b", "or"),
    (r"\bor\b", "and"),
    (r"\bnot (?!matched|null|distinct)", ""),
    (r"\bis (?=null|distinct)", "is not "),
    (r"\bis not (?=null|distinct)", "is "),
    (r"\bwhen (?=[\w.$]+(?:\(\))? then\b)(?!matched)", "when not "),
    (r"\bwhere\b", "where true or"),
    (r"\btrue\b", "false"),
    (r"\bfalse\b", "true"),
    (r"(?<=\w )\+(?= [\d(i])", "-"),
    (r"(?<=\) )-(?= i)", "+"),
    (r"\bmax(?=\()", "min"),
    (r"\bmin(?=\()", "max"),
    (r"\bgreatest(?=\()", "least"),
    (r"\bcoalesce(?=\()", "nullif"),
    (r"\blower(?=\()", ""),
    (r"\bleft join\b", "join"),
    (rf"\border by ({_KEYS})", ""),
    (rf"\border by ({_KEYS}), {_KEY}", r"order by \1"),
    (rf"\border by ({_KEY})(?<! desc)(?![\w.(]| desc)", r"order by \1 desc"),
    (r" desc\b", ""),
    (r"\b(?:limit|offset) (?:\((?:[^()]|\([^()]*\))*\)|(?:\d \* )?[\w.$:]+)", ""),
    (r"\bfor update skip locked\b", ""),
    (r"\bskip locked\b", ""),
    *((r"(?<![\w$.])(?<!returning )\d+\b", sign) for sign in ("+1", "-1")),
]
"""What is looked for outside strings and comments, and what takes its place; numbers are added to."""


def mutants(root: Path, beginning: str) -> list[Mutant]:
    """Return every mutant of the SQL files whose path begins so, such as `sql/users/insert`."""
    paths = sorted(path.relative_to(root).as_posix() for path in (root / "sql").rglob("*.sql"))
    return [mutant for path in paths if path.startswith(beginning) for mutant in _mutants(root, path)]


def _mutants(root: Path, path: str) -> list[Mutant]:
    source = (root / path).read_text(encoding="utf-8")
    mutated = dict.fromkeys(_mutate(source))
    return sorted((mutant_of(path, source, each) for each in mutated), key=lambda mutant: mutant.line)


def _mutate(source: str) -> Iterator[str]:
    code = _NOT_CODE.sub(lambda found: "\0" * len(found[0]), source)
    for pattern, new in _CHANGES:
        for found in re.finditer(pattern, code):
            text = str(int(found[0]) + int(new)) if new in ("+1", "-1") else found.expand(new)
            yield source[: found.start()] + text + source[found.end() :]
    for found in _NOT_CODE.finditer(source):
        if found[0].startswith("'"):
            for text in _other_strings(found[0][1:-1]):
                yield f"{source[: found.start()]}'{text}'{source[found.end() :]}"


def _other_strings(text: str) -> Iterator[str]:
    if amount := re.match(r"\d+(?= )", text):
        yield from (f"{int(amount[0]) + step}{text[amount.end() :]}" for step in (1, -1))
    else:
        yield f"XX{text}XX"
