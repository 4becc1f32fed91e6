"""Growth: instances are held to their share, the report says where a line bends, the page is what the results give."""

import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import psutil
import pytest
from click.testing import CliRunner

from benchmarks import cgroups, growth, sizing
from benchmarks.balancer import MISSING, find_haproxy
from benchmarks.measure import Measurement
from benchmarks.report import RESULTS
from benchmarks.sizing import Costs, Step, compute_for, costs, limits, plan, rewrite
from benchmarks.straightness import Point, bend, draw, merge, read_points, render, straightness
from tests.support import ROOT, lacking
from tests.support.waiting import wait_until
from tests.system.test_benchmarks import MACHINE

COSTS = Costs(server_us=70, balancer_us=35, read_us=10, write_us=4, bytes=2500)


def point(workload: str, instances: int, rate: float, **figures: Any) -> Point:
    """Return a planted point."""
    one = Point(
        workload, instances, rate, p50_ms=30, p99_ms=60, errors=0, connections=128 * instances,
        postgres_connections=10 * instances, server_us=50, postgres_us=14, balancer_us=20, bytes=2000,
        instance_cores=0.2, postgres_cores=0.1, balancer_cores=0.2, generator_cores=0.1, proxy_cores=0.1, busy_cores=1,
    )  # fmt: skip
    return replace(one, **figures)


def grown() -> list[Point]:
    """Return the points of a line that bends at 4 instances, where the machine's 2 cores are busy."""
    return [
        point(workload, count, rate, busy_cores=min(2, count / 2))
        for workload in ("get", "create", "mix")
        for count, rate in ((1, 1000), (2, 1960), (4, 3000))
    ]


def compared(workload: str, postgres_us: float, **others: Any) -> Measurement:
    """Return a planted measurement of the comparison."""
    figures: dict[str, Any] = {
        "system": "users_api", "workload": workload, "workers": 2, "connections": 128, "distance_ms": 0.0,
        "rows": 100_000, "round": 1, "requests_per_second": 1, "p50_ms": 1, "p99_ms": 1, "requests": 1, "refused": 0,
        "socket_errors": 0, "server_us": 1, "generator_cores": 0, "proxy_cores": 0,
    }  # fmt: skip
    return Measurement(**{**figures, "postgres_us": postgres_us, **others})


@pytest.fixture
def groups() -> cgroups.Cgroups:
    try:
        return cgroups.find()
    except cgroups.CgroupError as error:
        lacking(str(error))


def test_a_process_and_its_children_are_held_to_a_share_of_a_core(groups: cgroups.Cgroups) -> None:
    """Two processes that never wait are stopped by the kernel, and run on when they are let go."""
    spin = "import os\nos.fork()\nprint(flush=True)\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", spin], stdout=subprocess.PIPE) as spinning:
        process = psutil.Process(spinning.pid)
        try:
            assert spinning.stdout is not None
            spinning.stdout.readline()
            spinning.stdout.readline()
            (child,) = process.children()
            with groups.held(process, 0.1):
                group = groups.root / f"users-api-bench-{os.getpid()}-{process.pid}"
                assert {int(pid) for pid in (group / "cgroup.procs").read_text().split()} == {process.pid, child.pid}
                wait_until(lambda: "nr_throttled 0\n" not in (group / "cpu.stat").read_text())
            assert not group.exists()
            assert process.is_running()
        finally:
            for each in (*process.children(), process):
                each.kill()


def test_control_groups_of_version_2(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io")
    (tmp_path / "cgroup.subtree_control").write_text("")
    cgroups._delegate_cpu(tmp_path)
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+cpu"
    (tmp_path / "group").mkdir()
    found = cgroups._mounted(tmp_path)
    found._limit(tmp_path / "group", 0.2)
    assert (found, (tmp_path / "group" / "cpu.max").read_text()) == (cgroups.Cgroups(2, tmp_path), "2000 10000")


@pytest.mark.parametrize("name", ["cpu", "cpu,cpuacct"])
def test_control_groups_of_version_1(name: str, tmp_path: Path) -> None:
    # As where version 2 is mounted too, without the controller.
    (tmp_path / "cgroup.controllers").write_text("hugetlb")
    (tmp_path / name).mkdir()
    (tmp_path / name / "cgroup.procs").touch()
    found = cgroups._mounted(tmp_path)
    found._limit(tmp_path / name, 0.2)
    written = {file.name: file.read_text() for file in (tmp_path / name).glob("cpu.*")}
    assert found == cgroups.Cgroups(1, tmp_path / name)
    assert written == {"cpu.cfs_period_us": "10000", "cpu.cfs_quota_us": "2000"}


def test_without_control_groups_one_message_says_what_is_needed(tmp_path: Path) -> None:
    with pytest.raises(cgroups.CgroupError, match="needs Linux"):
        cgroups.find(tmp_path)
    # No kernel stands behind this directory.
    (tmp_path / "cgroup.controllers").write_text("cpu")
    with pytest.raises(cgroups.CgroupError, match="run as root"):
        cgroups.find(tmp_path)


@pytest.mark.parametrize("missing", ["haproxy", "control groups"])
def test_what_is_missing_is_said_before_anything_starts(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> cgroups.Cgroups:
        raise cgroups.CgroupError("no control groups")

    monkeypatch.setattr(growth, "find_haproxy", lambda: None if missing == "haproxy" else "/haproxy")
    monkeypatch.setattr(cgroups, "find", none)
    ended = CliRunner().invoke(growth.main, [])
    message = MISSING if missing == "haproxy" else "no control groups"
    assert (ended.exit_code, ended.output) == (2, f"benchmarks: {message}\n")


def test_a_figure_of_growth_is_the_median_of_its_rounds() -> None:
    rounds = [point("get", 2, rate, errors=1, p50_ms=rate / 10) for rate in (300.0, 100.0, 110.0)]
    (merged,) = merge(rounds)
    assert merged == point("get", 2, 110.0, errors=3, p50_ms=11.0)
    assert merged.warnings == ["3 errors"]
    assert "HAProxy used 95% of a core" in point("get", 1, 1, balancer_cores=0.95).warnings[0]


def test_a_line_bends_where_an_instance_carries_a_tenth_less() -> None:
    assert straightness(grown(), "get") == {1: 1.0, 2: 0.98, 4: 0.75}
    assert bend(grown(), "get") == 4
    assert bend(grown()[:2], "get") is None


def test_growth_becomes_json_markdown_and_a_chart() -> None:
    files = render(grown(), MACHINE, 2)
    document = json.loads(files["growth.json"])
    assert read_points(document) == grown()
    assert draw(document) == {"growth.svg": files["growth.svg"]}
    assert files["growth.md"].count("The line bends at 4 instances, with 75% of 4 times one. There 2.00 cores") == 3
    assert "all that the machine has" in files["growth.md"]
    assert "other work" not in files["growth.md"]
    assert "load average of 7.5" in render(grown(), {**MACHINE, "load_before": 7.5}, 2)["growth.md"]
    assert "Straight up to 2 instances" in render([p for p in grown() if p.instances < 4], MACHINE, 2)["growth.md"]
    text = "".join(ElementTree.fromstring(files["growth.svg"]).itertext())
    assert all(words in text for words in ("GET by id", "Straightness", "HAProxy"))


def test_costs_are_of_the_mix_where_its_line_is_straight() -> None:
    points = [replace(each, postgres_us=99 if each.instances == 4 else 14) for each in grown()]
    reads, writes = {"get": 4.0, "list": 28.0}, {"create": 20.0, "patch": 30.0, "delete": 10.0}
    comparison = [compared(name, cost) for name, cost in {**reads, **writes}.items()]
    comparison += [compared("get", 500.0, system="constant"), compared("get", 500.0, connections=1)]
    found = costs(points, comparison)
    # 70 x 4 + 15 x 28 = 700 of reads; 10 x 20 + 4 x 30 + 1 x 10 = 330 of writes.
    assert (found.read_us, found.write_us) == pytest.approx((14 * 700 / 1030, 14 * 330 / 1030))
    assert (found.server_us, found.balancer_us, found.bytes) == (50, 20, 2000)
    with pytest.raises(ValueError, match="lacks: list, create, patch, delete"):
        costs(points, comparison[:1])


@pytest.mark.parametrize(
    ("cores", "connections", "compute"),
    [
        *((0.1, 20, 0.25), (0.1, 93, 0.25), (0.1, 94, 0.5), (1.2, 20, 2), (8.01, 20, 9), (16.5, 20, 18)),
        *((57, 20, math.inf), (1, 5000, 9)),
    ],
)
def test_the_smallest_compute_with_cores_and_connections(cores: float, connections: int, compute: float) -> None:
    assert compute_for(cores, connections) == compute


@pytest.mark.parametrize(
    ("rate", "wanted"),
    [
        # 0.07 cores: one worker would do, but one of two may be lost.
        (1_000, Step(1_000, 2, 1, balancer_cores=1, primary=0.25, read_replicas=0, read_replica=0, gigabits=0.02)),
        # 6.3 cores at 70 % are 9; 8 at 100 % with one lost. 1.26 / 0.7 = 1.8 CU, and 90 connections fit.
        (90_000, Step(90_000, 9, 1, balancer_cores=5, primary=2, read_replicas=0, read_replica=0, gigabits=1.8)),
        # 70 cores. 14 / 0.7 = 20 CU are more than autoscale. A replica replays the writes: 14.3 / 2 + 5.7 = 12.9.
        (
            1_000_000,
            Step(1_000_000, 13, 8, balancer_cores=50, primary=6, read_replicas=2, read_replica=13, gigabits=20),
        ),
        # 28.6 CU of reads and 11.4 of writes: beside these 16 CU have too little room, so the replicas are larger.
        (
            2_000_000,
            Step(2_000_000, 13, 16, balancer_cores=100, primary=12, read_replicas=2, read_replica=26, gigabits=40),
        ),
    ],
)
def test_the_plan_for_a_rate(rate: int, wanted: Step) -> None:
    assert plan(rate, COSTS) == wanted


def test_a_plan_carries_its_rate_with_a_replica_lost() -> None:
    for rate in (1_000, 7_000, 14_286, 20_000, 31_000, 100_000, 444_444, 1_000_000, 2_000_000):
        step = plan(rate, COSTS)
        assert step.cores * 0.7 >= rate * COSTS.server_us / 1e6
        assert (step.replicas - 1) * step.workers >= rate * COSTS.server_us / 1e6


def test_limits_are_in_the_order_in_which_they_are_reached() -> None:
    found = limits(COSTS)
    rates = {what: rate for what, rate, _ in found}
    assert [rate for _, rate, _ in found] == sorted(rates.values())
    assert rates["one worker"] == pytest.approx(10_000)
    assert rates["0.25 CU"] == pytest.approx(12_500)
    assert rates["clients of the pooler"] == pytest.approx(10_000_000)
    assert rates["56 CU that only write"] == pytest.approx(9_800_000)


def test_the_computes_are_those_of_the_budget_of_connections() -> None:
    budget = (ROOT / "docs/neon.md").read_text().partition("## Connections to budget")[2].partition("## ")[0]
    for compute in (0.25, 0.5, 1, 2, 4):
        assert f"| {compute:g} CU | {sizing.max_connections(compute):,} |" in budget
    assert f"| 9 CU and more | {sizing.max_connections(9):,} |" in budget
    assert f"The pooler accepts {sizing.POOLER_CLIENTS:,} clients" in budget


def page(**tables: str) -> str:
    """Return a page with tables between their marks."""
    parts = [f"{sizing.BEGIN.format(name)}\n\n{text}\n\n{sizing.END}\nafter {name}\n" for name, text in tables.items()]
    return "\n".join(["before", *parts])


def test_only_the_parts_between_the_marks_are_rewritten() -> None:
    assert rewrite(page(one="old", two="old"), {"two": "new", "one": "newer"}) == page(one="newer", two="new")
    with pytest.raises(ValueError, match="lacks the marks"):
        rewrite(page(one="old"), {"one": "new", "two": "new"})


def test_the_page_has_what_the_committed_results_give() -> None:
    text = sizing.PAGE.read_text()
    assert rewrite(text, sizing.generate()) == text


def test_a_page_that_is_not_what_the_results_give_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file, right = tmp_path / "growth.md", sizing.generate(RESULTS)
    file.write_text(page(**dict.fromkeys(right, "old")))
    monkeypatch.setattr(sizing, "PAGE", file)
    checked = CliRunner().invoke(sizing.main, ["--check"])
    assert (checked.exit_code, "run python -m benchmarks.sizing" in checked.output) == (1, True)
    assert CliRunner().invoke(sizing.main, []).exit_code == 0
    assert file.read_text() == page(**right)
    assert CliRunner().invoke(sizing.main, ["--check"]).exit_code == 0


@pytest.mark.heavy
def test_growth_measures_instances_behind_a_balancer(groups: cgroups.Cgroups, tmp_path: Path) -> None:
    if find_haproxy() is None:
        lacking(MISSING)
    if shutil.which("wrk") is None:
        lacking("apt-get install wrk")
    command = [sys.executable, "-m", "benchmarks.growth", "--quick", "--output", str(tmp_path)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    points = read_points(json.loads((tmp_path / "growth.json").read_text()))
    assert [(each.workload, each.instances) for each in points] == [
        (workload, count) for count in (1, 2) for workload in ("get", "create", "mix")
    ]
    for each in points:
        assert each.errors == 0
        assert min(each.requests_per_second, each.p50_ms, each.server_us, each.postgres_us, each.balancer_us) > 0
        assert 0 < each.postgres_connections <= 10 * each.instances
    assert not [group.name for group in groups.root.glob("users-api-bench-*")]
