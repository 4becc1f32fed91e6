"""The benchmarks: their peers serve the API, and their instruments measure what they claim."""

import asyncio
import dataclasses
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from api.app import create_app
from api.auth.keys import make_api_key
from benchmarks import endurance, latency, overload, plan, profile, recovery, scaling, soak
from benchmarks.charts import Axis, Panel, line_chart, short
from benchmarks.database import execute, new_database
from benchmarks.delay import new_loop, start_proxy
from benchmarks.instructions import FIGURES
from benchmarks.measure import Job, Measurement, Point, run_jobs
from benchmarks.openloop import Outcome, Phase, Trace, gets, run_phases
from benchmarks.peers import blacksheep_asyncpg, constant, fastapi_asyncpg, fastapi_sqlalchemy, starlette_textbook
from benchmarks.processes import free_port
from benchmarks.progress import Progress
from benchmarks.redraw import DRAW
from benchmarks.report import RESULTS, as_trial, draw, keep, render
from benchmarks.systems import SYSTEMS, parse_system, serving
from benchmarks.tables import targets_table
from benchmarks.targets import TARGETS, medians
from benchmarks.workloads import WORKLOADS
from benchmarks.wrk import MISSING, WrkError, parse_wrk
from tests.support import ROOT
from tests.support.serving import serve, settings_for

USERS = "/api/v1/users/"
KEYS = ["id", "email", "name", "created_at", "updated_at"]
PEERS = {
    peer.__name__.rpartition(".")[2]: peer.create_app
    for peer in (fastapi_sqlalchemy, fastapi_asyncpg, starlette_textbook, blacksheep_asyncpg)
}
MACHINE = {
    "cpu": "A <CPU> & more", "cores": 2, "memory_gib": 8.0, "kernel": "Linux 6", "python": "3.11", "postgresql": "18.0",
    "packages": {"uvicorn": "0.54"},
}  # fmt: skip
TITLES = {system.name: system.title for system in SYSTEMS.values()}


@pytest.mark.parametrize("create_app", PEERS.values(), ids=PEERS)
def test_a_peer_serves_the_api(create_app: Callable[[str], Any], database: str) -> None:
    taken = 400 if create_app is fastapi_sqlalchemy.create_app else 409  # the older API's status, kept on purpose
    with serve(create_app(database)) as url, httpx.Client(base_url=url) as client:
        created = client.post(USERS, json={"email": "ada@example.com", "name": "Ada"})
        assert created.status_code == 201, created.text
        user = created.json()
        assert list(user) == KEYS
        assert (user["email"], user["name"], user["created_at"]) == ("ada@example.com", "Ada", user["updated_at"])
        one = f"{USERS}{user['id']}"
        assert client.get(one).json() == user
        assert client.post(USERS, json={"email": "ada@example.com"}).status_code == taken
        assert client.post(USERS, json={"email": "not an address"}).status_code in (400, 422)
        other = client.post(USERS, json={"email": "bob@example.com"}).json()
        assert other["name"] is None
        assert client.get(USERS).json() == [user, other]
        assert client.get(USERS, params={"skip": 1, "limit": 1}).json() == [other]
        if create_app is not fastapi_sqlalchemy.create_app:
            assert client.get(USERS, params={"after": user["id"], "limit": 100}).json() == [other]
            assert client.patch(one, json={"email": "bob@example.com"}).status_code == 409

        renamed = client.patch(one, json={"name": "Ada L."})
        assert renamed.status_code == 200
        assert {**renamed.json(), "updated_at": None} == {**user, "name": "Ada L.", "updated_at": None}
        assert client.patch(one, json={"name": None}).json()["name"] is None
        assert client.patch(one, json={"email": "ada@example.org"}).json()["email"] == "ada@example.org"

        assert client.delete(one).status_code == 204
        assert client.delete(one).status_code == 404
        assert client.get(one).status_code == 404
        assert client.patch(one, json={"name": "x"}).status_code == 404
        assert client.get(one).json()["detail"] == "User not found"


def test_the_peers_bodies_have_the_keys_of_the_service(client: httpx.Client) -> None:
    assert list(client.post(USERS, json={"email": "ada@example.com"}).json()) == KEYS
    with serve(constant.app) as url:
        assert list(httpx.get(f"{url}{USERS}1").json()) == KEYS


def test_the_proxy_delays_a_round_trip_and_keeps_order_and_bytes(tmp_path: Path) -> None:
    seconds, socket = 0.03, tmp_path / "socket"

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        await close(writer)
        heard_the_end.set()

    heard_the_end = asyncio.Event()

    async def talk() -> None:
        async with await asyncio.start_unix_server(echo, socket), await start_proxy(socket, seconds) as proxy:
            reader, writer = await asyncio.open_connection(*proxy.sockets[0].getsockname())
            start = time.monotonic()
            writer.write(b"ping")
            assert await reader.readexactly(4) == b"ping"
            assert time.monotonic() - start >= seconds
            # Many on their way at once: the distance is paid once, and nothing overtakes.
            chunks = [os.urandom(1 + 37 * number) for number in range(200)]
            for chunk in chunks:
                writer.write(chunk)
                await asyncio.sleep(0)
            assert await reader.readexactly(sum(map(len, chunks))) == b"".join(chunks)
            await close(writer)
            await heard_the_end.wait()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(talk())


def test_the_proxy_forwards_what_was_sent_before_a_close(tmp_path: Path) -> None:
    async def answer_and_leave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"x" * 100_000)
        await close(writer)

    async def talk() -> None:
        socket = tmp_path / "socket"
        async with await asyncio.start_unix_server(answer_and_leave, socket), await start_proxy(socket, 0.01) as proxy:
            reader, writer = await asyncio.open_connection(*proxy.sockets[0].getsockname())
            assert await reader.read() == b"x" * 100_000
            await close(writer)
        # Without a target the connection ends instead of hanging.
        async with await start_proxy(tmp_path / "nobody", 0.01) as proxy:
            reader, writer = await asyncio.open_connection(*proxy.sockets[0].getsockname())
            assert await reader.read() == b""
            await close(writer)

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(talk())


WRK = """Running 3s test @ http://127.0.0.1:8000
  1 threads and 128 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     4.57ms    1.59ms  39.27ms   95.63%
    Req/Sec    28.25k     2.63k   31.54k    86.67%
  Latency Distribution
     50%    4.33ms
     75%    4.70ms
     90%  950.00us
     99%    1.20s
  84476 requests in 3.01s, 39.72MB read
"""


def test_the_report_of_wrk_is_read() -> None:
    load = parse_wrk(WRK + "Requests/sec:  28073.83\nTransfer/sec:     13.20MB\n")
    assert (load.requests, load.seconds, load.requests_per_second) == (84476, 3.01, 28073.83)
    assert (load.p50_ms, load.p99_ms, load.refused, load.socket_errors) == (4.33, 1200.0, 0, 0)
    errors = (
        "  Socket errors: connect 1, read 2, write 3, timeout 4\n  Non-2xx or 3xx responses: 17\nRequests/sec: 5.00\n"
    )
    load = parse_wrk(WRK + errors)
    assert (load.refused, load.socket_errors) == (17, 10)
    with pytest.raises(WrkError, match="unable to connect"):
        parse_wrk("unable to connect to 127.0.0.1:8000 Connection refused")


@pytest.mark.parametrize("module", ["run", "scaling", "overload", "latency", "profile"])
def test_without_wrk_one_message_says_how_to_get_it(module: str, tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{module}"],
        cwd=ROOT, env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (run.returncode, run.stdout, run.stderr) == (2, "", f"benchmarks: {MISSING}\n")


def measured(job: Job, round_number: int = 1, **figures: float) -> Measurement:
    speed = {"users_api": 40.0, "users_api_unbatched": 15.0, "fastapi_sqlalchemy": 1.0, "constant": 50.0}
    defaults: dict[str, Any] = {
        "requests_per_second": 700 * speed.get(job.system.name, 2.0), "p50_ms": 3.0, "p99_ms": 9.0, "requests": 1000,
        "refused": 0, "socket_errors": 0, "server_us": 40.0, "postgres_us": 8.0, "generator_cores": 0.4,
        "proxy_cores": 0.0,
    }  # fmt: skip
    return Measurement(*job.key, round=round_number, **{**defaults, **figures})


def test_the_figure_of_a_job_is_the_median_of_its_rounds() -> None:
    job = Job(SYSTEMS["users_api"], WORKLOADS["get"])
    rounds = [measured(job, n, requests_per_second=rate, refused=n) for n, rate in enumerate((500.0, 100.0, 200.0))]
    (result,) = medians(rounds).values()
    assert (result.requests_per_second, result.refused, result.requests) == (200.0, 3, 3000)
    assert result.warnings == ["3 of 3000 answers were neither 2xx nor 3xx"]


def test_a_figure_that_the_generator_limits_says_so() -> None:
    job = Job(SYSTEMS["constant"], WORKLOADS["get"])
    assert "its limit, not the system's" in measured(job, generator_cores=0.95).warnings[0]


@pytest.mark.parametrize("jobs", [plan.default_plan(), plan.full_plan()], ids=["default", "full"])
def test_every_plan_measures_every_target(jobs: Sequence[Job]) -> None:
    assert len({job.key for job in jobs}) == len(jobs)
    table = targets_table(medians([measured(job) for job in jobs]), TITLES)
    assert len(table.splitlines()) == len(TARGETS) + 2
    assert "not measured" not in table
    assert "| met |" in table.replace("    met", "met")
    assert "NOT met" in table  # the two latencies are equal


@pytest.mark.parametrize("full", [False, True])
def test_a_run_becomes_json_markdown_and_charts(full: bool) -> None:
    jobs = plan.full_plan() if full else plan.default_plan()
    measurements = [measured(job, n) for n in (1, 2) for job in jobs]
    at_rates = [Point("users_api", 1000, 999.0, 0.3, 1.0, 2.0, 150.0, 40.0, 0.2, workers=2)]
    files = render(measurements, MACHINE, {"rounds": 2, "warm_up": 1}, TITLES, at_rates)
    assert files["comparison.md"].index("|     1,000 |") < files["comparison.md"].index("## Targets")
    document = json.loads(files["comparison.json"])
    assert len(document["measurements"]) == len(measurements)
    assert document["machine"]["cpu"] == MACHINE["cpu"]
    charts = {name for name in files if name.endswith(".svg")}
    assert {"throughput-get.svg", "throughput-list.svg", "throughput-create.svg"} <= charts
    assert "distance-get.svg" in charts
    assert ({"distance-create.svg", "connections.svg"} <= charts) == full
    for name in charts:
        assert f"({name})" in files["comparison.md"]
        assert_svg(files[name], "users-api")


def test_a_trial_writes_only_where_it_is_told_to(tmp_path: Path) -> None:
    assert "nothing was written" in keep({"a.md": "text"}, None, is_whole=False)
    assert keep({"a.md": "text"}, tmp_path / "new", is_whole=False) == f"written to {tmp_path / 'new'}: a.md"
    assert (tmp_path / "new" / "a.md").read_text() == "text"


def test_a_trial_says_so_over_its_tables() -> None:
    files = as_trial({"a.md": "# A\n| met |\n", "a.json": "{}"})
    assert files["a.md"].startswith("**TRIAL: ")
    assert files["a.json"] == "{}"
    quick = {
        file.stem: file.read_text() for file in (ROOT / "benchmarks").glob("*.py") if '"--quick"' in file.read_text()
    }
    assert quick.keys() == {"growth", "latency", "profile", "recovery", "run", "scaling"}
    assert all("as_trial(files) if quick" in text for text in quick.values())


def locust(url: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "locust", "-f", "benchmarks/locustfile.py", "--headless", "--host", url]
    return subprocess.run(
        [*command, "--users", "2", "--spawn-rate", "2", "--run-time", "3s", "--only-summary"],
        cwd=ROOT, env={**os.environ, **variables}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_the_locustfile_says_in_one_line_that_it_needs_a_key(database: str) -> None:
    with serve(create_app(settings_for(database, api_keys=make_api_key("x", read_only=False)[1]))) as url:
        for variables, reason in (
            ({}, "asks for a key: set API_KEY"),
            ({"API_KEY": "wrong"}, "refuses the key in API_KEY"),
        ):
            ended = locust(url, **variables)
            said = [line for line in ended.stderr.splitlines() if "locustfile: " in line]
            assert (ended.returncode, len(said)) == (1, 1), ended.stderr
            assert f"{url} {reason}" in said[0]
            assert "Traceback" not in ended.stderr
            assert "Aggregated" not in ended.stdout + ended.stderr
    ended = locust(nowhere := f"http://127.0.0.1:{free_port()}")
    assert f"locustfile: {nowhere} does not answer (" in ended.stderr
    assert (ended.returncode, "Traceback" in ended.stderr) == (1, False)


def test_percentiles_of_the_locustfile_have_the_time_that_requests_waited() -> None:
    """Answers take 0.2 s, and requests are due every 0.1 s: each waits longer than the one before it."""

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await constant.app(scope, receive, send)
            return
        await asyncio.sleep(0.2)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"[" + constant.BODY + b"]"})

    median, slowest = {}, {}
    with serve(slow) as url:
        for interval in ("0", "0.1"):
            ended = locust(url, INTERVAL_SECONDS=interval)
            percentiles = re.findall(r"^ +Aggregated +((?:\d+ +){11}\d+)$", ended.stderr, re.MULTILINE)
            figures = [int(figure) for figure in percentiles[-1].split()]
            median[interval], slowest[interval] = figures[0], figures[-2]
    # Any single answer may be late on a loaded machine.
    assert median["0"] < 600 < slowest["0.1"]


def test_charts_need_something_to_compare() -> None:
    assert draw([measured(Job(SYSTEMS["users_api"], WORKLOADS["get"]))], TITLES) == {}


@pytest.mark.long
def test_the_committed_charts_are_drawn_from_the_committed_json(tmp_path: Path) -> None:
    drawn = []
    for attempt in ("first", "second"):
        directory = shutil.copytree(RESULTS, tmp_path / attempt, ignore=shutil.ignore_patterns("*.svg"))
        command = [sys.executable, "-m", "benchmarks.redraw", str(directory)]
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
        drawn.append({file.name: file.read_bytes() for file in directory.glob("*.svg")})
    # Two processes draw the same bytes from the same data.
    assert drawn[0] == drawn[1]
    assert {file.name for file in RESULTS.glob("*.svg")} == set(drawn[0])
    stored = {name.removesuffix(".json") for name in os.listdir(RESULTS) if name.endswith(".json")}
    assert stored == {*DRAW, FIGURES.stem}  # what is counted has no chart
    for name, content in drawn[0].items():
        text = content.decode()
        assert_svg(text, "")
        # No date, no version of matplotlib, no embedded font.
        assert not re.search(r"dc:date|dc:creator|matplotlib v|@font-face|<glyph", text), name
        assert "<text" in text


def test_a_logarithmic_axis_says_so() -> None:
    lines = {"a line": [(1.0, 5.0), (100.0, 2000.0)]}
    chart = line_chart("title", "note", Panel(Axis("x", "log"), Axis("y"), lines))
    assert_svg(chart, "x (log scale)")
    assert "y (log scale)" not in chart


def test_importing_the_benchmarks_does_not_import_matplotlib() -> None:
    code = "import sys, benchmarks.redraw, benchmarks.run; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_scaling_becomes_json_markdown_and_charts() -> None:
    made = scaling.experiments((10_000, 1_000_000))
    files = scaling.render(made, [measured(point.job) for each in made for point in each.points], MACHINE, 1)
    assert len(json.loads(files["scaling.json"])["measurements"])
    for each in made:
        assert f"## {each.title}" in files["scaling.md"]
        assert_svg(files[f"scaling-{each.name}.svg"], each.title)


def test_a_profile_becomes_json_markdown_and_a_chart() -> None:
    job = Job(SYSTEMS["users_api"], WORKLOADS["get"])
    results = {system.name: measured(job, server_us=30.0 + 5 * n) for n, (_, system, _) in enumerate(profile.LAYERS)}
    at_rates = [
        Point(system.name, rate, 1.0, 1.0, 1.0, 1.0, 100.0 + 10 * n, 60.0, 0.1)
        for n, (_, system, _) in enumerate(profile.LAYERS) for rate in latency.RUN_RATES
    ]  # fmt: skip
    calls = profile.Calls({"epoll_pwait": 2.5, "accept4": 0.01}, 2.2)
    files = profile.render(results, at_rates, calls, MACHINE, 1)
    assert "| epoll_pwait |      2.50 |" in files["profile.md"]
    assert "accept4" not in files["profile.md"]
    assert all(title in files["profile.md"] for title, _, _ in profile.LAYERS)
    assert_svg(files["profile.svg"], "PostgreSQL")


@pytest.mark.parametrize(
    ("options", "answer"), [((), b"problem+json"), (("--stock",), b"Invalid HTTP request received.")]
)
def test_a_stack_runs_under_either_protocol(options: Sequence[str], answer: bytes, database: str) -> None:
    _, stack, _ = profile.LAYERS[0]
    system = dataclasses.replace(stack, command=(*stack.command, *options))
    with serving(system, 1, database) as server:
        address = ("127.0.0.1", int(server.url.rpartition(":")[2]))
        with socket.create_connection(address) as connection, connection.makefile("rb") as received:
            connection.sendall(b"this is not HTTP\r\n\r\n")
            assert answer in received.read()


def test_an_overload_becomes_json_markdown_and_a_chart() -> None:
    phases = [Phase("before", 10, 2), Phase("overload", 40, 2), Phase("after", 10, 2)]
    good = [Outcome(second / 10, 200, 0.02, False) for second in range(60)]
    refused = [Outcome(2 + n / 30, 503, 0.001, True) for n in range(60)]
    files = overload.render(MACHINE, 12.0, 0.3, phases, Trace(good + refused))
    document = json.loads(files["overload.json"])
    assert [phase["refused"] for phase in document["phases"]] == [0, 60, 0]
    assert document["recovery_seconds"] == 0
    assert "NOT met" not in files["overload.md"]
    assert_svg(files["overload.svg"], "refused, 503")

    # A refusal without Retry-After, and one long after the overload.
    late = [Outcome(5.9, 503, 0.001, False), Outcome(3.0, 500, 0.001, False)]
    files = overload.render(MACHINE, 12.0, 0.3, phases, Trace(good + refused + late))
    assert json.loads(files["overload.json"])["recovery_seconds"] == pytest.approx(1.9)
    assert "NOT met: only 503" in files["overload.md"]


def test_recovery_counts_from_the_end_of_the_outage() -> None:
    """A request that waited is answered late; one that fails late is a recovery that came late."""
    before = [Outcome(n / 60, 503, 3.0, True) for n in range(240)]
    after = [Outcome(5 + n / 60, 200, 0.01, False) for n in range(360)]
    assert recovery.first_answer(before + after, 5.0) == pytest.approx(0.01)
    waited = Outcome(4.9, 200, 0.105, False)
    assert recovery.first_answer([*before, *after, waited], 5.0) == pytest.approx(0.005)
    assert recovery.all_answered(after, 5.0) == pytest.approx(0.01)
    assert 1.9 < recovery.all_answered(before + after, 5.0) < 2.1  # but for the last 1 % of the refusals
    assert recovery.first_answer(before, 5.0) == recovery.all_answered(before, 5.0) == float("inf")


def test_recovery_says_what_missed_its_bounds() -> None:
    good, bad = recovery.Cell(0.0, 2.0, 3.0, True), recovery.Cell(20.0, 2.0, 3.0, True)
    found = [recovery.Recovery(good, 0.1, 0.2, 0, 0), recovery.Recovery(bad, 0.1, 2.1, 90, 7)]
    files = recovery.render(MACHINE, found)
    assert files["recovery.md"].count("NOT met") == 1
    assert recovery.draw(json.loads(files["recovery.json"])) == {"recovery.svg": files["recovery.svg"]}
    assert_svg(files["recovery.svg"], "99 % answered 200")


def test_latency_becomes_json_markdown_and_a_chart() -> None:
    def point(system: str, offered: int, goodput: float, p99_ms: float) -> Point:
        return Point(system, offered, goodput, 1.0, p99_ms, 2 * p99_ms, 50.0, 9.0, 0.5)

    rounds = [
        [point("users_api", 250, 250, 2 + n), point("users_api", 500, 499, 3 + n), point("users_api", 1000, 700, 900)]
        for n in range(3)
    ]
    rounds[0] += [point("starlette_textbook", 250, 250, 5)]  # in one round of three: no median
    points = latency.merge(rounds, latency.COMPARED, (250, 500, 1000))
    assert [(p.offered, p.p99_ms, p.is_held) for p in points] == [(250, 3, True), (500, 4, True), (1000, 900, False)]
    files = latency.render(points, TITLES, MACHINE, 3)
    assert len(json.loads(files["latency.json"])["points"]) == 3
    assert files["latency.md"].count("| users-api |") == 3
    assert_svg(files["latency.svg"], "users-api")


def soaked(grows_mb_an_hour: float, seconds: int, *failed: Outcome) -> tuple[dict[str, Any], str, str, bool]:
    """The document, the text and the chart of a load, and whether it was good."""
    samples = [endurance.Sample(s, (50 + grows_mb_an_hour * s / 7200,) * 2, 4, 6) for s in range(0, seconds, 5)]
    # What is filled once, in the first minute, is no growth.
    samples[0] = endurance.Sample(0, (40, 40), 4, 2)
    answers = [Outcome(due / 2, 200, 0.002, False) for due in range(2 * seconds)]
    files, is_good = endurance.render(MACHINE, 2, seconds, 0.2, Trace([*answers, *failed]), samples)
    assert_svg(files["soak.svg"], "errors a second")
    return json.loads(files["soak.json"]), files["soak.md"], files["soak.svg"], is_good


def test_a_soak_becomes_json_markdown_and_a_chart() -> None:
    document, text, chart, is_good = soaked(0.5, 600)
    assert is_good
    assert document["slope_mb_an_hour"] == pytest.approx(0.5)
    assert (document["errors"], len(document["samples"])) == (0, 120)
    assert "NOT met" not in text
    for word in ("Memory of each worker", "Latency", "Connections", "Answers", "worker 2", "p99", "to PostgreSQL"):
        assert_svg(chart, word)
    assert "+3.00 MB an hour" in soaked(3, 600)[1]
    assert not soaked(3, 600)[3]
    for failure in (Outcome(7, 503, 0.01, True), Outcome(8, 0, 0.01, False)):
        document, text, _, is_good = soaked(0, 600, failure)
        assert (document["errors"], is_good, "NOT met: none is allowed" in text) == (1, False, True)
    document, text, _, is_good = soaked(100, 50)
    assert (document["slope_mb_an_hour"], is_good, "too short to tell" in text) == (None, True, True)


def test_the_mix_of_a_soak() -> None:
    requests = soak.mix(1000)
    sent = [next(requests).split(b" ", 2)[:2] for _ in range(20_000)]
    methods = Counter(method.decode() for method, _ in sent)
    assert methods["DELETE"] == 100
    assert (1500 < methods["POST"] < 2500, 600 < methods["PATCH"] < 1000) == (True, True)
    deleted = [path for method, path in sent if method == b"DELETE"]
    assert len(set(deleted)) == 100
    assert not set(deleted) & {path for method, path in sent if method != b"DELETE"}


@pytest.mark.heavy
def test_a_soak_holds_its_load(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.soak", "--minutes", "0.1", "--rate", "50", "--output", str(tmp_path)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    found = json.loads((tmp_path / "soak.json").read_text())
    assert (found["errors"], len(found["samples"][0]["workers_mb"])) == (0, 2)
    assert found["requests"] > 150
    assert found["samples"][-1]["postgres_connections"] > 0


def test_an_open_loop_sends_on_schedule_and_hears_every_answer() -> None:
    length = (b"content-length", b"5")

    async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or scope["path"].endswith("7"):
            await constant.app(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 503, "headers": [(b"retry-after", b"1"), length]})
        await send({"type": "http.response.body", "body": b"later"})

    with serve(refuse) as url:
        port = int(url.rpartition(":")[2])
        trace = asyncio.run(run_phases(port, [Phase("one", 50, 1.0), Phase("two", 100, 1.5)], gets(100)))
    # What is due in the last moments of a phase is not sent if the machine gives no processor then: here half a second.
    assert 150 <= len(trace.outcomes) <= 200
    assert {(each.status, each.has_retry_after) for each in trace.outcomes} == {(200, False), (503, True)}
    assert trace.unsent == 0
    # The server is gone: a request without an answer counts as an outcome too.
    trace = asyncio.run(run_phases(free_port(), [Phase("one", 100, 1.0)], gets(100)))
    assert {each.status for each in trace.outcomes} == {0}


def test_an_open_loop_counts_the_time_in_which_it_was_busy_itself() -> None:
    def requests() -> Iterator[bytes]:
        for number, request in enumerate(gets(100)):
            if number == 20:
                time.sleep(0.3)  # as where the machine gives it no processor
            yield request

    with serve(constant.app) as url:
        trace = asyncio.run(run_phases(int(url.rpartition(":")[2]), [Phase("one", 100, 2.0)], requests()))
    assert sum(each.seconds > 0.1 for each in trace.outcomes) >= 15


def test_another_system_is_a_command_line() -> None:
    system = parse_system("go=./users -listen '127.0.0.1:{port}'")
    assert (system.name, system.command) == ("go", ("./users", "-listen", "127.0.0.1:{port}"))
    for text in ("go", "go=./users", "=x {port}"):
        with pytest.raises(ValueError, match="NAME=COMMAND"):
            parse_system(text)
    assert any(job.system is system for job in plan.default_plan([system]))


def test_another_system_is_a_checkout_of_this_service(tmp_path: Path) -> None:
    (tmp_path / "api").mkdir()
    (tmp_path / "api" / "__main__.py").touch()
    ours, system = SYSTEMS["users_api"], parse_system(f"before={tmp_path}")
    assert (system.title, system.root, system.is_ours) == ("users-api, before", tmp_path, True)
    assert (system.command, system.environment) == (ours.command, ours.environment)
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    assert parse_system(f"before={tmp_path}").command == (str(python), *ours.command[1:])


def test_progress_is_a_line_for_each_measurement_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(2, sys.stderr)
    progress.begin("first")
    progress.finish("first: 5 req/s", [])
    progress.finish("second: 6 req/s", ["3 socket errors"])
    progress.close()
    assert capsys.readouterr().err == "1/2 first: 5 req/s\n2/2 second: 6 req/s; 3 socket errors\n"


@pytest.mark.parametrize(("value", "text"), [(0.4, "0.4"), (9860, "9,860"), (1_000_000, "1M"), (12.4, "12"), (0, "0")])
def test_numbers_are_short(value: float, text: str) -> None:
    assert short(value) == text


@pytest.mark.heavy
@pytest.mark.skipif(shutil.which("wrk") is None and "CI" not in os.environ, reason="apt-get install wrk")
def test_a_run_measures_a_real_system(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.run", "--quick", "--rows", "2000", "--connections", "8"]
    # The mix sends every kind of request.
    command += ["--only", "users_api", "--workload", "mix", "--output", str(tmp_path)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    for found in json.loads((tmp_path / "comparison.json").read_text())["measurements"]:
        assert (found["system"], found["workload"], found["warnings"]) == ("users_api", "mix", [])
        assert min(found["requests"], found["server_us"], found["postgres_us"], found["p50_ms"]) > 0


@pytest.mark.heavy
def test_no_write_reaches_the_table_of_the_next_job() -> None:
    """The slow peer has most of its clients' writes left when they are gone."""
    slow, ours = SYSTEMS["starlette_textbook"], SYSTEMS["users_api"]
    with new_database() as database:
        jobs = [
            Job(system, WORKLOADS[workload], 1, 64, distance_ms=50.0, rows=1000, seconds=1)
            for system, workload in ((slow, "create"), (slow, "get"), (ours, "create"), (ours, "get"))
        ]
        assert [each.warnings for each in run_jobs(jobs, database, 1, warm_up=0)] == [[]] * len(jobs)
        assert execute(database.url, "select count(*) from users") == [(1000,)]


@pytest.mark.heavy
def test_the_locustfile_runs_without_a_failure_and_sends_its_key(database: str) -> None:
    keys: set[bytes] = set()
    key, entry = make_api_key("locust", read_only=False)
    service = create_app(settings_for(database, api_keys=entry))

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        keys.update(value for name, value in scope.get("headers", ()) if name == b"authorization")
        await service(scope, receive, send)

    with serve(app) as url:
        command = [sys.executable, "-m", "locust", "-f", "benchmarks/locustfile.py", "--headless", "--host", url]
        run = subprocess.run(
            [*command, "--users", "2", "--spawn-rate", "2", "--run-time", "5s", "--only-summary"],
            cwd=ROOT, env={**os.environ, "API_KEY": key}, capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert run.returncode == 0, run.stderr  # locust's exit code says whether a request failed
    assert "/api/v1/users/[id]" in run.stderr
    assert keys == {f"Bearer {key}".encode()}


async def close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    await writer.wait_closed()


def assert_svg(text: str, word: str) -> None:
    root = ElementTree.fromstring(text)  # raises where it is not well-formed
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert word in "".join(root.itertext())
    assert "nan" not in text
