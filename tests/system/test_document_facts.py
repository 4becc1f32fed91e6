"""Figures and lists in the documents are those of the code, of pyproject.toml and of the committed results."""

import ast
import json
import os
import re
import tomllib
from pathlib import Path
from statistics import median
from typing import Literal, get_args, get_origin

import pytest
from pydantic.fields import FieldInfo

import api
from api.app import RESOURCES, describe
from api.cli.serve import serve
from api.http.request import MAX_BODY_BYTES
from api.server.progress import MIN_BYTES, PERIOD_SECONDS
from api.server.protocol import MAX_HEAD_BYTES, MAX_HEADERS, MAX_PIPELINED
from api.settings import Settings
from api.telemetry.families import FAMILIES
from api.users.bulk.handlers import CHUNK_ROWS
from tests.support.serving import settings_for

ROOT = Path(api.__file__).parent.parent
FURTHER = {each.name for each in RESOURCES[1:]}
"""The resources that were added to this one: the documents are not about them."""
STATEMENTS = len([file for file in ROOT.glob("sql/**/*.sql") if file.parent.name not in FURTHER])
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
CONFIGURATION = """\
# Configuration

<!-- Made from api/settings.py by a test: `WRITE=1 make test ARGS="-k configuration"` writes this file. -->

Settings come from the environment, from the files in `SECRETS_DIR`, or from `.env` in the working directory
([.env.example](../.env.example)); the first of these that has a value wins. A value that cannot be used ends the
command with one line that names it, and exit code 2. Blanks around a value are no part of it. In `.env`, `${x}` is no
reference: a value is taken as it stands.

`SECRETS_DIR` is for secrets that Kubernetes or Compose mounts. Each file is named after a setting, as `DATABASE_URL` or
`database_url`, and holds its value. Names that begin with a dot are skipped, and so are unrelated ones. A name that
looks like a setting but is none ends the command, and so does a file that cannot be read. With two
workers or more, SIGHUP reads the files again.

`DATABASE_URL` is for the server, `DIRECT_URL` for the commands that need a session. Without either, every command uses
the embedded PostgreSQL in `.data/`.

| variable | default | range | meaning |
|---|---|---|---|
"""


def read(name: str) -> str:
    return (ROOT / name).read_text()


def rows(text: str) -> list[list[str]]:
    """The cells of every row of the tables in a text."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line[1:].removesuffix("|").split("|")] for line in lines]


def section(name: str, heading: str) -> str:
    """Return the section of a document below a heading, up to the next one."""
    _, found = re.split(rf"^#+ {re.escape(heading)}$", read(name), flags=re.MULTILINE)
    return re.split(r"^#+ ", found, flags=re.MULTILINE)[0]


def range_of(field: FieldInfo) -> str:
    """The values that a setting takes, such as `1 to 1000`; empty where its description says it."""
    if get_origin(field.annotation) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(field.annotation))
    if field.annotation is bool:
        return "`true`, `false`"
    words = {"ge": "{:d}", "gt": "above {:g}", "le": "to {:d}", "lt": "below {:g}"}
    bounds = [
        word.format(getattr(each, name))
        for each in field.metadata
        for name, word in words.items()
        if hasattr(each, name)
    ]
    return " ".join(bounds) if bounds and bounds[-1].startswith("to") else ", ".join(bounds)


def test_configuration_is_made_from_the_settings() -> None:
    table = ""
    for name, field in Settings.model_fields.items():
        default = "" if field.default is None else f"`{str(field.default).lower().removesuffix('.0')}`"
        table += re.sub(" +", " ", f"| `{name.upper()}` | {default} | {range_of(field)} | {field.description} |\n")
    if "WRITE" in os.environ:
        (ROOT / "docs/configuration.md").write_text(CONFIGURATION + table)
    assert read("docs/configuration.md") == CONFIGURATION + table


def test_the_layers_are_those_of_the_contract() -> None:
    contract = tomllib.loads(read("pyproject.toml"))["tool"]["importlinter"]["contracts"][0]
    shown = [
        cells[0].strip("`") for cells in rows(section("docs/architecture.md", "The layers")) if cells[0].startswith("`")
    ]
    assert shown == contract["layers"]
    # Neither list has the resources that were added: lint-imports knows them by their resource.py.
    found = {path.stem for path in ROOT.glob("api/*") if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert found - {"__init__", "__main__"} - FURTHER == {name for line in shown for name in line.split(" : ")}


def test_the_size_of_the_code() -> None:
    lengths = {
        path: len(path.read_text().splitlines())
        for path in ROOT.glob("api/**/*.py")
        if path.relative_to(ROOT).parts[1] not in FURTHER
    }
    claim = re.search(
        r"about ([\d,]+) files and ([\d,]+) lines, and no file has more than (\d+)", read("docs/architecture.md")
    )
    assert claim
    files, lines, most = (int(figure.replace(",", "")) for figure in claim.groups())
    assert files == pytest.approx(len(lengths), rel=0.1)
    assert lines == pytest.approx(sum(lengths.values()), rel=0.1)
    assert [str(path) for path, length in lengths.items() if length > most] == []


def test_every_layer_has_its_folder_of_tests() -> None:
    folders = {path.name for path in (ROOT / "tests").iterdir() if (path / "__init__.py").exists()}
    assert folders - FURTHER <= set(re.findall(r"`([a-z]+)`", section("docs/architecture.md", "The tests")))


def test_figures_are_those_of_the_committed_comparison() -> None:
    results = {
        (what, against): (float(measured.removesuffix("x")), target, verdict)
        for what, against, measured, target, verdict in rows(section("benchmarks/results/comparison.md", "Targets"))[1:]
    }
    header, *table = rows(section("README.md", "Figures"))
    assert len(table) >= 8
    assert any(what.startswith("batching off") for what, *_ in table)
    for what, *cells in table:
        for against, cell in zip(header[1:], cells, strict=True):
            if cell:
                ratio = results[what, against.removeprefix("against ")][0]
                assert cell == f"{ratio:.{0 if ratio >= 10 else 1}f}\N{MULTIPLICATION SIGN}", what
    latency = results["one connection, idle, p50", "Starlette + asyncpg"][0]
    assert f"p50 is {latency:.2f}\N{MULTIPLICATION SIGN} that of Starlette + asyncpg" in read("README.md")
    for workload, claim in (("GET by id", "GET needs 1/{} of the CPU"), ("PATCH", "PATCH 1/{}:")):
        costs = {
            system: sum(int(cost.replace(",", "")) for cost in (server, postgres))
            for system, _, _, _, server, postgres, _ in rows(
                section("benchmarks/results/comparison.md", f"{workload}: 2 workers, 128 connections")
            )[1:]
        }
        assert claim.format(costs["FastAPI + SQLAlchemy"] // costs["users-api"]) in read("README.md")
    cores: dict[str, list[float]] = {"users_api": [], "fastapi_sqlalchemy": []}
    for each in json.loads(read("benchmarks/results/comparison.json"))["measurements"]:
        if (each["workload"], each["connections"]) == ("get", 128) and each["system"] in cores:
            cores[each["system"]].append(each["generator_cores"])
    ours, theirs = (f"{median(rounds):.2f}" for rounds in cores.values())
    assert f"{ours} of a core with this service, and {theirs} with FastAPI" in read("README.md")
    met = [verdict for *_, verdict in results.values()].count("met")
    assert f"{met} of {len(results)} targets are met" in read("README.md")
    for (what, _), (measured, target, verdict) in results.items():
        if verdict != "met":
            times, wanted = (f"{ratio}\N{MULTIPLICATION SIGN}" for ratio in (round(measured), target.strip(">= x")))
            assert f"{what} {times} (target {wanted})" in read("README.md")


def test_each_incident_was_tried() -> None:
    """Every row of the table names tests, and they exist."""
    _, *table = rows(section("docs/operations.md", "What happens when"))
    assert len(table) == 12
    for what, *_, named in table:
        tests = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", named)
        assert tests, what
        for path, function in tests:
            found = [node for node in ast.walk(ast.parse(read(path))) if isinstance(node, FUNCTIONS)]
            assert function in [node.name for node in found], f"{path}::{function}"


def test_the_budget_of_connections() -> None:
    _, *table = rows(section("docs/neon.md", "Connections to budget"))
    for _, *figures in table:
        most, usable, workers, pooled = (int(figure.replace(",", "")) for figure in figures)
        assert (usable, workers, pooled) == (most - 7, (most - 7) // 10, most * 9 // 10)
    assert Settings.model_fields["pool_max_size"].default == 10


def document() -> str:
    """The OpenAPI document without the further resources."""
    return json.dumps(describe(settings_for("postgresql://ada:sesame@127.0.0.1:1/x"), RESOURCES[:1]), indent=2)


def test_every_problem_has_its_line() -> None:
    documented = {cells[0].strip("`") for cells in rows(section("docs/api.md", "Errors"))[1:]}
    assert documented == set(re.findall(r"urn:problem:users-api:([a-z-]+)", document()))


def test_every_endpoint_has_its_line() -> None:
    served = set(re.findall(r'^    "(/[^"]*)"', document(), re.M))
    documented = set(re.findall(r"`[A-Z]+ (/\S*)`", section("docs/api.md", "Endpoints")))
    assert served <= documented


@pytest.mark.parametrize(
    ("name", "fact"),
    [
        ("docs/api.md", f"{MAX_HEAD_BYTES // 1024} KiB and {MAX_HEADERS} fields | 431"),
        ("docs/api.md", f"{MAX_BODY_BYTES // 1024} KiB | 413"),
        ("docs/api.md", f"pipelined requests | {MAX_PIPELINED} |"),
        ("docs/api.md", f"at least {MIN_BYTES // 1024} KiB of it in {PERIOD_SECONDS:g} s"),
        ("docs/api.md", {1000: "at most a thousand at a time"}[CHUNK_ROWS]),
        ("docs/operations.md", f"{STATEMENTS} statements fit the database"),
        ("docs/operations.md", f"within {Settings.model_fields['grace_seconds'].default + 2:g} seconds"),
        *(("docs/operations.md", f"`{name}") for name in FAMILIES),
        ("README.md", "http://127.0.0.1:{}".format(*(each.default for each in serve.params if each.name == "port"))),
    ],
)
def test_facts(name: str, fact: str) -> None:
    assert fact in read(name)
