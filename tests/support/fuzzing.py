"""Schemathesis over a served OpenAPI document."""

import os
import subprocess
import sys
from pathlib import Path

from tests.support import ROOT


def fuzz(url: str, key: str, directory: Path, *options: str) -> str:
    """Run every check of schemathesis with an API key, and return its report. Raises AssertionError for a finding."""
    schemathesis = Path(sys.executable).with_name("schemathesis")
    run = subprocess.run(
        [
            *(schemathesis, "--config-file", ROOT / "tests/openapi/schemathesis.toml"),
            *("run", f"{url}/openapi.json", "--header", f"Authorization: Bearer {key}", "--checks", "all"),
            *("--generation-deterministic", "--no-color", *options),
        ],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ROOT), "SCHEMATHESIS_HOOKS": "tests.openapi.schemathesis_hooks"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr
    return run.stdout
