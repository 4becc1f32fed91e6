"""The Grafana dashboard: Prometheus evaluates each of its queries on the service's own metrics."""

import json
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx

from api.auth.keys import make_api_key
from api.telemetry.families import FAMILIES
from tests.support import ROOT
from tests.support.commands import on, served
from tests.support.prometheus import prometheus, use_everything
from tests.support.waiting import wait_until

DASHBOARD = json.loads((ROOT / "api/telemetry/dashboard.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = {
    f"{panel['title']}, {target['legendFormat']}": target["expr"] for panel in PANELS for target in panel["targets"]
}
# The variables of the dashboard as Grafana fills them in, "All" chosen; the interval is a minimum of four scrapes.
VARIABLES = {"$job": ".*", "$instance": ".*", "$__rate_interval": "30s"}


def ask(client: httpx.Client, query: str) -> list[dict[str, Any]]:
    for name, value in VARIABLES.items():
        query = query.replace(name, value)
    answer = client.get("/query", params={"query": query}).json()
    assert answer["status"] == "success", answer
    found: list[dict[str, Any]] = answer["data"]["result"]
    return found


def answered(client: httpx.Client, query: str) -> list[dict[str, Any]]:
    """What a query finds, once there is something: a scrape that comes late leaves nothing until the next one."""
    while not (found := ask(client, query)):  # pytest's timeout bounds it
        time.sleep(0.05)
    return found


def test_every_query_has_an_answer(programs: Path, directory: Path, tmp_path: Path, database: str) -> None:
    key, entry = make_api_key("prometheus", read_only=False)
    variables = {**on(database), "API_KEYS": entry, "DRAIN_SECONDS": "0"}
    with served("--workers", "2", cwd=directory, **variables) as (url, _):  # type: ignore[arg-type]
        text = httpx.get(f"{url}/metrics", headers={"authorization": f"Bearer {key}"}).text
        checked = subprocess.run(
            [programs / "promtool", "check", "metrics"], input=text, capture_output=True, text=True
        )
        assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")
        with prometheus(programs, tmp_path, url.removeprefix("http://"), key) as client:
            wait_until(lambda: ask(client, "sum(users_api_workers) == 2"))
            use_everything(url, key)
            # The last of what is used: a scrape that has it has all of it.
            wait_until(lambda: ask(client, 'sum(http_request_duration_seconds_count{status="401"}) == 1'))
            use_everything(url, key)
            wait_until(lambda: ask(client, 'sum(http_request_duration_seconds_count{status="401"}) == 2'))
            for name, query in QUERIES.items():
                found = answered(client, query)
                values = [float(each["value"][1]) for each in found]
                # The quantile of an unused route or statement is NaN.
                assert [value for value in values if value >= 0], (name, found)
                labels = set(re.findall(r"\{\{(\w+)\}\}", name))
                assert all(labels <= each["metric"].keys() for each in found), (name, found)
            (workers,) = answered(client, next(query for name, query in QUERIES.items() if name.startswith("Workers")))
            assert workers["value"][1] == "2"
            assert answered(client, 'sum(http_request_duration_seconds_count{status="401"})')[0]["value"][1] == "2"
            # What the variables offer.
            for variable in DASHBOARD["templating"]["list"][1:]:
                metric, label = re.fullmatch(r"label_values\((\w+).*, (\w+)\)", variable["query"]["query"]).groups()  # type: ignore[union-attr]
                assert answered(client, metric)[0]["metric"][label] in ("users-api", url.removeprefix("http://"))


def test_no_panel_hides_another() -> None:
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        area = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not area & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= area


def test_every_metric_is_shown() -> None:
    shown = " ".join(QUERIES.values())
    assert [name for name in FAMILIES if name not in shown] == []
