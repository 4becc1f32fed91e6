"""The contract of a further resource, beyond its own tests: test_tutorial.py runs this in the copy that has teams."""

import re
from pathlib import Path

import httpx

from api.app import create_app, scopes_of
from api.auth.keys import make_api_key
from tests.support.fuzzing import fuzz
from tests.support.metrics import STATEMENT, scrape
from tests.support.serving import serve, settings_for
from tests.support.standby import Standby
from tests.support.users import USERS, assert_problem, create

TEAMS = "/api/v1/teams"


def test_its_scopes_are_its_own() -> None:
    scopes = scopes_of()
    for path in (TEAMS, f"{TEAMS}/", f"{TEAMS}/1/members/1"):
        assert scopes.needed(path, "GET") == ("teams:read",)
        assert {scopes.needed(path, method) for method in ("POST", "PUT", "PATCH", "DELETE")} == {("teams:write",)}
    assert scopes.needed(USERS, "GET") == ("users:read",)


def test_metrics_by_route_and_by_statement(client: httpx.Client) -> None:
    client.post(TEAMS, json={"name": "Analysts"})
    user = create(client)["id"]
    client.put(f"{TEAMS}/1/members/{user}")
    client.get(f"{TEAMS}/1/members")
    found = scrape(str(client.base_url))
    routes = found.all("http_request_duration_seconds_count", "route", "method", "status")
    assert routes[TEAMS, "POST", "201"] == 1
    assert routes[f"{TEAMS}/{{id}}/members/{{user_id}}", "PUT", "204"] == 1
    assert routes[f"{TEAMS}/{{id}}/members", "GET", "200"] == 1
    statements = found.all(f"{STATEMENT}_count", "statement")
    assert statements["teams/put_members",] == statements["teams/list_members",] == 1


def test_a_client_reads_its_own_writes_from_a_replica(database: str, standby: Standby) -> None:
    settings = settings_for(database, read_database_url=standby.url(database), replica_wait_seconds=10, pool_max_size=1)
    with serve(create_app(settings)) as url, httpx.Client(base_url=url, timeout=40) as client:
        position = client.post(TEAMS, json={"name": "Analysts"}).headers["read-after"]
        assert client.get(f"{TEAMS}/1", headers={"read-after": position}).json()["name"] == "Analysts"
        user = create(client)["id"]
        position = client.put(f"{TEAMS}/1/members/{user}").headers["read-after"]
        assert len(client.get(f"{TEAMS}/1/members", headers={"read-after": position}).json()) == 1
        standby.pause()
        position = client.delete(f"{TEAMS}/1").headers["read-after"]
        # The replica answers, which has not replayed it. Then it is waited for.
        assert client.get(f"{TEAMS}/1").status_code == 200
        standby.resume()
        assert client.get(f"{TEAMS}/1", headers={"read-after": position}).status_code == 404


def test_a_key_names_a_creation_of_one_resource(client: httpx.Client) -> None:
    headers = {"idempotency-key": "one"}
    assert client.post(TEAMS, json={"name": "Analysts"}, headers=headers).status_code == 201
    refused = client.post(USERS, json={"email": "ada@example.com"}, headers=headers)
    assert_problem(refused, 422, "idempotency-key-reused")


def test_schemathesis_finds_nothing(database: str, tmp_path: Path) -> None:
    key, entry = make_api_key("schemathesis", read_only=False)
    with serve(create_app(settings_for(database, api_keys=entry))) as url:
        report = fuzz(url, key, tmp_path, "--include-path-regex", f"^{TEAMS}", "--max-examples", "5")
    assert re.search(r"Selected: +8", report), report
