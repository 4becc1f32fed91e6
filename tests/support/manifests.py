"""The manifests of deploy/kubernetes, as kustomize renders them."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.support import ROOT, lacking

MANIFESTS = ROOT / "deploy/kubernetes"
KUBECTL = Path(sys.executable).with_name("kubectl")

Manifest = dict[str, Any]


def render(directory: Path) -> list[Manifest]:
    """Return the manifests of a kustomization."""
    if not KUBECTL.exists():
        lacking("no kubectl, which renders the manifests: make install")
    rendered = subprocess.run([KUBECTL, "kustomize", directory], capture_output=True, text=True, check=False)
    assert rendered.returncode == 0, rendered.stderr
    return list(yaml.safe_load_all(rendered.stdout))


def of_kind(manifests: list[Manifest], kind: str, name: str = "users-api") -> Manifest:
    """Return the manifest of a kind, and of a name without what kustomize adds to it."""
    (found,) = (each for each in manifests if each["kind"] == kind and each["metadata"]["name"].startswith(name))
    return found
