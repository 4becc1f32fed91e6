"""The machine and the package versions of a measurement."""

import os
import platform
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from benchmarks.database import SETTINGS, Database

PACKAGES = (
    "asyncpg", "blacksheep", "fastapi", "httptools", "orjson", "pydantic",
    "sqlalchemy", "starlette", "uvicorn", "uvloop",
)  # fmt: skip

_LOAD_BEFORE = round(os.getloadavg()[0], 2)
"""The load average when the command began, before the benchmark adds its own."""


def describe_machine(database: Database) -> dict[str, Any]:
    """Return the machine, its load before the run, and the versions of the measured packages."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "kernel": f"{platform.system()} {platform.release()}",
        "load_before": _LOAD_BEFORE,
        "python": sys.version.split()[0],
        "postgresql": database.version,
        "postgresql_settings": SETTINGS,
        "packages": {name: _version(name) for name in PACKAGES},
    }


def summarise(machine: Mapping[str, Any]) -> str:
    """Return the machine and the main versions in one paragraph."""
    packages = machine["packages"]
    named = ", ".join(f"{name} {packages[name]}" for name in ("uvicorn", "starlette", "asyncpg") if name in packages)
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['kernel']}; "
        f"Python {machine['python']}, PostgreSQL {machine['postgresql']}, {named}. "
        "Server, PostgreSQL and load generator share this machine."
    )


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
