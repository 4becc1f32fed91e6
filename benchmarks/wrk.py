"""Run wrk and parse its report."""

import re
import resource
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

MISSING = "wrk is not installed: apt-get install wrk (Debian, Ubuntu), brew install wrk (macOS)"

_MILLISECONDS = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0, "h": 3_600_000.0}
_SECONDS = {unit: factor / 1000 for unit, factor in _MILLISECONDS.items()}
_BYTES = {"": 1.0, "K": 2.0**10, "M": 2.0**20, "G": 2.0**30, "T": 2.0**40}


class WrkError(Exception):
    """wrk is missing or failed; the message names the remedy."""


@dataclass(frozen=True)
class Load:
    """The report of wrk, and its own CPU use."""

    requests: int
    seconds: float
    requests_per_second: float
    p50_ms: float
    p99_ms: float
    refused: int  # answers outside 2xx and 3xx
    socket_errors: int
    generator_cores: float = 0.0  # CPU seconds of wrk itself for each second
    bytes_read: float = 0.0  # heads and bodies of all answers


def find_wrk() -> str:
    """Return wrk's path. Raises WrkError."""
    path = shutil.which("wrk")
    if path is None:
        raise WrkError(MISSING)
    return path


def run_wrk(
    url: str, script: Path, arguments: tuple[object, ...], *, seconds: int, connections: int, threads: int = 1
) -> Load:
    """Load `url` (scheme, host, port) with the requests of a script for `seconds`. Raises WrkError."""
    command = [find_wrk(), "--latency", "--timeout", "10s", f"-t{min(threads, connections)}", f"-c{connections}"]
    command += [f"-d{seconds}s", "-s", str(script), url, "--", *map(str, arguments)]
    before = _children_cpu_seconds()
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        raise WrkError(f"wrk failed: {(run.stderr or run.stdout).strip()}")
    load = parse_wrk(run.stdout)
    cores = (_children_cpu_seconds() - before) / load.seconds if load.seconds else 0.0
    return Load(**{**load.__dict__, "generator_cores": cores})


def parse_wrk(output: str) -> Load:
    """Parse the report of `wrk --latency`. Raises WrkError if it is none."""
    summary = re.search(r"(\d+) requests in ([\d.]+)(us|ms|s|m|h), ([\d.]+)([KMGT]?)B read", output)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", output)
    if not summary or not rate:
        raise WrkError(f"this is no report of wrk: {output.strip()[:500]}")
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", output)
    errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", output)
    return Load(
        requests=int(summary[1]),
        seconds=float(summary[2]) * _SECONDS[summary[3]],
        requests_per_second=float(rate[1]),
        p50_ms=_percentile(output, 50),
        p99_ms=_percentile(output, 99),
        refused=int(refused[1]) if refused else 0,
        socket_errors=sum(map(int, errors.groups())) if errors else 0,
        bytes_read=float(summary[4]) * _BYTES[summary[5]],
    )


def _percentile(output: str, percent: int) -> float:
    found = re.search(rf"^\s*{percent}%\s+([\d.]+)(us|ms|s|m|h)\s*$", output, re.MULTILINE)
    return float(found[1]) * _MILLISECONDS[found[2]] if found else 0.0


def _children_cpu_seconds() -> float:
    # The CPU time of the children that have ended: while wrk runs, no other child of this process ends.
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
