"""The manifests of deploy/kubernetes: rendered, held to the schemas of Kubernetes, and to what the service is like."""

import os
import re
from configparser import ConfigParser
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from api.settings import Settings
from api.telemetry.families import FAMILIES
from tests.support import ROOT
from tests.support.manifests import MANIFESTS, Manifest, of_kind, render
from tests.system.test_document_facts import rows, section

OVERLAYS = ("base", "neon", "cluster", "podman/migrate", "podman/one", "podman/two")
COMPONENTS = ("monitoring", "queue-wait")
OF_THE_OPERATOR = "monitoring.coreos.com/v1"
RESERVED = 7
"""Connections of PostgreSQL that are not for the service: docs/neon.md."""


def with_component(name: str, directory: Path) -> list[Manifest]:
    overlay, component = (os.path.relpath(MANIFESTS / each, directory.resolve()) for each in ("neon", name))
    (directory / "kustomization.yaml").write_text(yaml.safe_dump({"resources": [overlay], "components": [component]}))
    return render(directory)


def pods(manifests: list[Manifest]) -> list[Manifest]:
    """The specification of every pod."""
    return [
        each["spec"] if each["kind"] == "Pod" else each["spec"]["template"]["spec"]
        for each in manifests
        if each["kind"] in ("Deployment", "StatefulSet", "Job", "Pod")
    ]


def settings(manifests: list[Manifest]) -> dict[str, str]:
    found: dict[str, str] = of_kind(manifests, "ConfigMap")["data"]
    return found


def check_schemas(manifests: list[Manifest]) -> None:
    for each in manifests:
        if each["apiVersion"] != OF_THE_OPERATOR:
            kubernetes_validate.validate(each, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_fits_the_schemas(name: str) -> None:
    manifests = render(MANIFESTS / name)
    check_schemas(manifests)
    assert not [each for each in manifests if each["apiVersion"] == OF_THE_OPERATOR]


@pytest.mark.parametrize("name", COMPONENTS)
def test_a_component_fits_the_schemas(name: str, tmp_path: Path) -> None:
    manifests = with_component(name, tmp_path)
    check_schemas(manifests)
    assert {each["metadata"].get("namespace") for each in manifests if each["kind"] != "Namespace"} == {"users-api"}


@pytest.mark.parametrize("name", OVERLAYS)
def test_every_pod_is_restricted(name: str) -> None:
    """As the namespace's label demands, and with a root file system that is read-only."""
    manifests = render(MANIFESTS / name)
    assert of_kind(manifests, "Namespace")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for pod in pods(manifests):
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert (pod["enableServiceLinks"], pod["automountServiceAccountToken"]) == (False, False)
        for container in pod["containers"]:
            context = container["securityContext"]
            assert (context["readOnlyRootFilesystem"], context["allowPrivilegeEscalation"]) == (True, False)
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"].keys() == {"requests", "limits"}


@pytest.mark.parametrize("name", ["one", "two"])
def test_podman_plays_the_pod_of_the_deployment(name: str) -> None:
    """On the network of the machine, without what podman does otherwise; nothing else differs."""
    (played,) = pods(render(MANIFESTS / "podman" / name))
    deployment = of_kind(render(MANIFESTS / "base"), "Deployment")["spec"]["template"]["spec"]
    (container,) = deployment["containers"]
    for left_out in ("ports", "startupProbe", "livenessProbe", "readinessProbe"):
        del container[left_out]
    deployment["hostNetwork"] = True
    container["args"][2] = "127.0.0.1"
    container["image"] = "localhost/users-api:latest"
    container["envFrom"][0] = played["containers"][0]["envFrom"][0]
    assert played == deployment


def test_the_settings_of_the_base() -> None:
    manifests = render(MANIFESTS / "base")
    data = settings(manifests)
    assert {name.lower() for name in data} <= Settings.model_fields.keys()
    deployment = of_kind(manifests, "Deployment")["spec"]["template"]["spec"]
    # A worker that hangs is killed 2 s after GRACE_SECONDS.
    assert deployment["terminationGracePeriodSeconds"] > int(data["GRACE_SECONDS"]) + 2
    (container,) = deployment["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"http": 8000, "metrics": int(data["METRICS_PORT"])}
    paths = {probe: container[f"{probe}Probe"]["httpGet"]["path"] for probe in ("startup", "liveness", "readiness")}
    assert paths == {"startup": "/health", "liveness": "/health", "readiness": "/ready"}


def test_every_selector_selects_the_servers(tmp_path: Path) -> None:
    manifests = with_component("monitoring", tmp_path)
    deployment = of_kind(manifests, "Deployment")["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    assert deployment["selector"]["matchLabels"] == labels
    assert of_kind(manifests, "Service")["spec"]["selector"] == labels
    assert of_kind(manifests, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == labels
    monitor, service = of_kind(manifests, "ServiceMonitor")["spec"], of_kind(manifests, "Service")
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert monitor["endpoints"][0]["port"] in {port["name"] for port in service["spec"]["ports"]}
    policy = of_kind(manifests, "NetworkPolicy")["spec"]
    assert policy["podSelector"]["matchLabels"].items() <= labels.items()
    egress = {port["port"] for rule in policy["egress"] for port in rule["ports"]}
    assert egress == {53, 5432, 443, 4318}


def connections(manifests: list[Manifest]) -> tuple[int, int]:
    """The connections of one replica, and of as many as there may be in an update, without those that drain."""
    deployment, autoscaler = of_kind(manifests, "Deployment")["spec"], of_kind(manifests, "HorizontalPodAutoscaler")
    args = deployment["template"]["spec"]["containers"][0]["args"]
    each = int(args[args.index("--workers") + 1]) * int(settings(manifests)["POOL_MAX_SIZE"])
    assert autoscaler["spec"]["minReplicas"] == 2
    return each, each * (autoscaler["spec"]["maxReplicas"] + deployment["strategy"]["rollingUpdate"]["maxSurge"])


def test_the_budget_of_connections() -> None:
    """As many replicas as the smallest compute carries, and PgBouncer's pool in the cluster."""
    each, most = connections(render(MANIFESTS / "neon"))
    _, smallest, *_ = rows(section("docs/neon.md", "Connections to budget"))
    pooled = int(smallest[-1])
    assert most <= pooled < most + each

    manifests = render(MANIFESTS / "cluster")
    each, most = connections(manifests)
    pgbouncer = ConfigParser()
    pgbouncer.read_string(of_kind(manifests, "ConfigMap", "pgbouncer")["data"]["pgbouncer.ini"])
    pool, clients = (int(pgbouncer["pgbouncer"][name]) for name in ("default_pool_size", "max_client_conn"))
    assert most <= min(pool, clients)
    assert pool <= 100 - RESERVED  # PostgreSQL's own max_connections
    assert of_kind(manifests, "Deployment", "pgbouncer")["spec"]["replicas"] == 1
    egress = of_kind(manifests, "NetworkPolicy")["spec"]["egress"]
    assert {"port": 6432} in egress[1]["ports"]


def test_the_wait_for_a_statement_as_a_signal(tmp_path: Path) -> None:
    metrics = of_kind(with_component("queue-wait", tmp_path), "HorizontalPodAutoscaler")["spec"]["metrics"]
    assert [metric["type"] for metric in metrics] == ["Pods", "Resource"]
    (rule,) = yaml.safe_load((MANIFESTS / "queue-wait/adapter-rule.yaml").read_text())["rules"]["custom"]
    assert metrics[0]["pods"]["metric"]["name"] == rule["name"]["as"]
    family = rule["seriesQuery"].split("_sum{")[0]
    assert family in FAMILIES
    assert f"rate({family}_sum" in rule["metricsQuery"]
    assert f"rate({family}_count" in rule["metricsQuery"]


def test_the_job_knows_the_exit_codes() -> None:
    job = of_kind(render(MANIFESTS / "base"), "Job")["spec"]
    template = job["template"]["spec"]
    (first, _) = job["podFailurePolicy"]["rules"]
    assert template["restartPolicy"] == "Never"  # what podFailurePolicy demands
    assert first["action"] == "FailJob"
    assert first["onExitCodes"] == {"containerName": template["containers"][0]["name"], "operator": "In", "values": [2]}
    secrets = [source["secretRef"]["name"] for source in template["containers"][0]["envFrom"]]
    assert secrets == ["users-api-migrate"]


def secrets_of(value: object) -> set[str]:
    """The names of the secrets that a part of a manifest refers to."""
    if isinstance(value, list):
        return {name for each in value for name in secrets_of(each)}
    if not isinstance(value, dict):
        return set()
    names = {value[key]["name"] for key in ("secret", "secretRef", "secretKeyRef") if key in value}
    return names | secrets_of(list(value.values()))


@pytest.mark.parametrize("name", ["neon", "cluster", "podman/migrate", "podman/one", "podman/two"])
def test_the_document_makes_every_secret(name: str) -> None:
    text = (ROOT / "docs/operations.md").read_text()
    command = r"podman secret create (\S+)" if name.startswith("podman") else r"create secret generic (\S+)"
    assert secrets_of(pods(render(MANIFESTS / name))) <= set(re.findall(command, text))
    place, _, part = name.partition("/")
    assert (f"play {part}" if part else f"deploy/kubernetes/{place}") in text


def test_the_selectors_of_the_document() -> None:
    """The migrations alone, and the database with all that is its own."""
    manifests = render(MANIFESTS / "cluster")
    labels = [(each["kind"], each["metadata"].get("labels", {})) for each in manifests]
    assert [kind for kind, its in labels if its.get("app.kubernetes.io/component") == "migrate"] == ["Job"]
    database = [kind for kind, its in labels if its.get("app.kubernetes.io/name") in ("postgres", "pgbouncer")]
    assert sorted(database) == ["ConfigMap", "Deployment", "Service", "Service", "StatefulSet"]
