"""The alerts: promtool evaluates each on the series of a real server, healthy and with a fault planted in them."""

import json
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
import yaml
from prometheus_client.samples import Sample

from api.auth.keys import make_api_key
from tests.support import ROOT
from tests.support.commands import on, served
from tests.support.database import NewDatabase, execute
from tests.support.metrics import STATEMENT, Scrape
from tests.support.prometheus import prometheus, use_everything
from tests.support.users import USERS
from tests.support.waiting import wait_until

FILE = "deploy/kubernetes/monitoring/alerts.yaml"
SPEC = yaml.safe_load((ROOT / FILE).read_text())["spec"]
ALERTS = {rule["alert"]: rule for group in SPEC["groups"] for rule in group["rules"]}
PROMQL = {
    *("absent", "and", "by", "count", "histogram_quantile", "increase", "on", "rate", "sum"),
    "job",  # Prometheus adds it to every series.
}
REQUESTS, PROBLEMS = "http_request_duration_seconds", "users_api_problems_total"
COUNTED = ("_bucket", "_count", "_sum")
MINUTES = 120


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The alerts as a rule file: JSON is YAML."""
    path = tmp_path_factory.mktemp("rules") / "rules.json"
    path.write_text(json.dumps(SPEC))
    return path


@pytest.fixture(scope="module")
def exposed(
    new_database: NewDatabase, template: str, programs: Path, rules: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Sample]]:
    """What a server with a replica exposes, whose database fails at the end."""
    key, entry = make_api_key("prometheus", read_only=False)
    headers = {"authorization": f"Bearer {key}"}
    place = tmp_path_factory.mktemp("served")
    with new_database(template) as database:
        variables = {**on(database), "READ_DATABASE_URL": database, "API_KEYS": entry}
        with (
            served(cwd=place, **variables) as (url, _),  # type: ignore[arg-type]
            httpx.Client(base_url=url, headers=headers) as client,
            prometheus(programs, place, url.removeprefix("http://"), key, json.dumps([str(rules)])) as asked,
        ):
            for _ in range(2):
                use_everything(url, key)
                client.get("/ready")
                client.get(f"{USERS}/export")
            assert_quiet(asked)
            execute(database, "alter table users rename to gone")
            assert client.get(USERS).status_code == 503
            # A request is counted just after its response.
            wait_until(lambda: Scrape(client.get("/metrics").text).value(f"{REQUESTS}_count", status="503") == 1)
            yield Scrape(client.get("/metrics").text).samples


def assert_quiet(asked: httpx.Client) -> None:
    """Prometheus has loaded every alert and evaluated it on the server's own metrics; none is even pending."""

    def states(what: str) -> dict[str, str]:
        groups = asked.get("/rules").json()["data"]["groups"]
        return {rule["name"]: rule[what] for group in groups for rule in group["rules"]}

    wait_until(lambda: asked.get("/query", params={"query": "users_api_workers"}).json()["data"]["result"])
    wait_until(lambda: set(states("health").values()) == {"ok"})
    assert states("state").keys() == ALERTS.keys()
    # UsersApiDown is pending until the first scrape.
    wait_until(lambda: set(states("state").values()) == {"inactive"})


def test_there_are_few() -> None:
    assert len(ALERTS) == 10


@pytest.mark.parametrize("name", ALERTS)
def test_what_an_expression_names_is_exposed(name: str, exposed: list[Sample]) -> None:
    expression = ALERTS[name]["expr"]
    names = set(re.findall(r"(?<![\w.])[a-zA-Z_]\w*", re.sub(r'"[^"]*"', "", expression)))
    metrics = {sample.name for sample in exposed} & names
    labels = {label for sample in exposed if sample.name in metrics for label in sample.labels}
    assert metrics
    assert names - metrics - labels - PROMQL == set()
    for metric, matchers in re.findall(r"(\w+)\{([^}]*)\}", expression):
        for label, operator, value in re.findall(r'(\w+)(=~|!~|!=|=)"([^"]*)"', matchers):
            values = [sample.labels[label] for sample in exposed if sample.name == metric]
            # What a matcher names or excludes is among them.
            pattern = value if "~" in operator else re.escape(value)
            assert any(re.fullmatch(pattern, each) for each in values), (label, value)


def healthy(sample: Sample) -> str:
    """The values of a series: each minute repeats what the server has counted, but for faults and slow requests."""
    if sample.name == f"{REQUESTS}_bucket":
        return f"0+1x{MINUTES}"
    failures = sample.labels.get("status") == "503" or sample.name in (PROBLEMS, "users_api_statement_retries_total")
    counts = sample.name.endswith((*COUNTED, "_total")) and not failures and "failures" not in sample.name
    return f"{sample.value}{f'+{sample.value}' if counts else '+0'}x{MINUTES}"


class Fault(NamedTuple):
    """The series that are planted, by their name and some labels, and the labels with which the alert then fires."""

    name: str
    labels: dict[str, str]
    values: str
    fires_with: dict[str, str]
    only: Callable[[Sample], bool] = lambda _: True
    beside: bool = False
    """Planted beside what there is, and not in its place."""


URL = {"url": "DATABASE_URL"}
READS = {"statement": "users/select_users", "outcome": "ok"}
FAULTS = {
    "UsersApiDown": Fault("", {}, "_", {}),
    "UsersApiErrors": Fault(f"{REQUESTS}_count", {"status": "503"}, "0+5", {"job": "users-api"}),
    "UsersApiCannotConnect": Fault("users_api_connection_failures_total", URL, "0+6", URL),
    "UsersApiSlow": Fault(
        f"{REQUESTS}_bucket",
        {"route": f"{USERS}/{{id}}", "method": "GET", "status": "200"},
        "0+0",
        {"job": "users-api"},
        lambda sample: float(sample.labels["le"]) < 2,
    ),
    "UsersApiShedsLoad": Fault(PROBLEMS, {"kind": "overloaded"}, "0+1", {"job": "users-api"}),
    "UsersApiWaitsForConnections": Fault("users_api_pool_waiting", URL, "1+0", URL),
    "UsersApiOutcomeUnknown": Fault(PROBLEMS, {"kind": "outcome-unknown"}, "0+1", {"job": "users-api"}),
    "UsersApiConnectionsBreak": Fault("users_api_statement_retries_total", URL, "0+9", URL),
    "UsersApiReplicaUnused": Fault(f"{STATEMENT}_count", {**URL, **READS}, "0+999", {"job": "users-api"}, beside=True),
    "UsersApiVersionsDiffer": Fault(
        "users_api_build_info", {"version": "0.0.0"}, "1+0", {"job": "users-api"}, beside=True
    ),
}


def series(samples: list[Sample], fault: Fault | None) -> list[dict[str, str]]:
    """Return the samples as series of promtool, with a fault in them."""
    found, planted = {}, False
    for sample in samples:
        found[_series(sample.name, sample.labels)] = healthy(sample)
        if fault is None:
            continue
        if fault.beside and sample.name == fault.name:
            found[_series(sample.name, {**sample.labels, **fault.labels})] = f"{fault.values}x{MINUTES}"
            planted = True
        elif (
            sample.name.startswith(fault.name) and fault.labels.items() <= sample.labels.items() and fault.only(sample)
        ):
            found[_series(sample.name, sample.labels)] = f"{fault.values}x{MINUTES}"
            planted = True
    assert planted == (fault is not None)
    return [{"series": each, "values": values} for each, values in found.items()]


def _series(name: str, labels: dict[str, str]) -> str:
    every = {**labels, "job": "users-api", "instance": "10.0.0.1:8000"}
    return f"{name}{{{', '.join(f'{label}={json.dumps(value)}' for label, value in every.items())}}}"


@pytest.mark.parametrize("name", ALERTS)
def test_it_fires_on_its_fault_and_on_no_healthy_server(
    name: str, exposed: list[Sample], programs: Path, rules: Path, tmp_path: Path
) -> None:
    fault, rule = FAULTS[name], ALERTS[name]
    labels = {**rule["labels"], **fault.fires_with, **({"job": "users-api"} if fault.fires_with else {})}
    groups: list[dict[str, Any]] = [
        {
            "interval": "1m",
            "input_series": series(exposed, each),
            "alert_rule_test": [
                {
                    "eval_time": f"{MINUTES}m",
                    "alertname": name,
                    "exp_alerts": [{"exp_labels": labels, "exp_annotations": rule["annotations"]}] if each else [],
                }
            ],
        }
        for each in (None, fault)
    ]
    test = tmp_path / "test.json"
    test.write_text(json.dumps({"rule_files": [str(rules)], "evaluation_interval": "1m", "tests": groups}))
    done = subprocess.run([programs / "promtool", "test", "rules", test], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_has_a_runbook() -> None:
    document, lines = (ROOT / "docs/operations.md").read_text(), {}
    for heading, text in re.findall(r"^### (UsersApi\w+)\n\n(.*?)(?=\n\n#)", document, re.MULTILINE | re.DOTALL):
        lines[heading] = text.splitlines()
    assert list(lines) == list(ALERTS)
    for name, rule in ALERTS.items():
        assert rule["annotations"]["runbook_url"] == f"docs/operations.md#{name.lower()}"
        assert 3 <= len(lines[name]) <= 5
        assert [line for line in lines[name] if line.startswith("- Meaning: ")]
        assert [line for line in lines[name] if line.startswith("- Look at: ")]
        assert [line for line in lines[name] if line.startswith("- Do: ")]


def test_the_rules_are_valid(programs: Path, rules: Path) -> None:
    done = subprocess.run([programs / "promtool", "check", "rules", rules], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
