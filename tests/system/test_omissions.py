"""A second resource: what it may forget is derived from its description, or refused."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import asyncpg
import httpx
import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from api.app import RESOURCES, create_app, describe, scopes_of
from api.auth.keys import make_api_key
from api.auth.scopes import Scopes
from api.database.fetch import Database, PooledDatabase
from api.database.options import database_options
from api.database.statements import Statement
from api.http.operation import Operation, ResponseDoc
from api.http.resource import Resource
from api.http.response import JSONBody
from api.resources.description import Description
from api.resources.services import Services
from tests.support.database import execute
from tests.support.roles import READER, SERVER
from tests.support.serving import serve, settings_for
from tests.support.users import USERS, assert_problem, create

TEAMS = "/api/v1/teams"
TABLE = "create table teams (id bigint primary key, name text not null)"
READ = Statement(
    "teams/select_teams.sql", "select name::text from public.teams", (), (("name", "text"),), False, "", batched=True
)
WRITE = Statement(
    "teams/insert_teams.sql",
    "insert into public.teams select * from unnest($1::text::bigint[], $2::text[]) returning id::bigint",
    ("text", "text[]"),
    (("id", "int8"),),
    True,
    "",
    batched=True,
)
OPERATION = Operation(summary="Teams", responses={200: ResponseDoc("Teams.")})


async def select_teams(database: Database, calls: Sequence[None]) -> list[str]:
    rows = await database.fetch(READ)
    return [",".join(row["name"] for row in rows)] * len(calls)


async def insert_teams(database: Database, teams: Sequence[tuple[int, str]]) -> list[asyncpg.Record]:
    ids, names = zip(*teams, strict=True)
    return await database.fetch(WRITE, f"{{{','.join(map(str, ids))}}}", names)


class Teams:
    """Says nothing of scopes, of the replica, of CORS, of tags."""

    def __init__(self, services: Services) -> None:
        self._gate = services.gate
        self._select = services.read(select_teams)
        self._insert = services.write(insert_teams, key=lambda team: team[0])

    async def list_teams(self, request: Request) -> Response:
        """GET /api/v1/teams."""
        return JSONBody(b'"%s"' % (await self._select(None)).encode())

    async def put_team(self, request: Request) -> Response:
        """PUT /api/v1/teams/{id}."""
        await self._insert((int(request.path_params["id"]), "a"))
        return Response(status_code=204)

    def routes(self) -> list[BaseRoute]:
        return [
            Route(TEAMS, Resource(gate=self._gate, get=(self.list_teams, OPERATION))),
            Route(f"{TEAMS}/{{id}}", Resource(gate=self._gate, put=(self.put_team, OPERATION))),
        ]


async def ping(database: Database) -> None:
    await select_teams(database, [None])


DESCRIPTION = Description(
    name="teams", noun="team", path=TEAMS, routes=lambda services: Teams(services).routes(), ping=ping
)
BOTH = (*RESOURCES, DESCRIPTION)


@pytest.fixture
def teams(database: str) -> str:
    """A database with a table of teams, which the roles of the service may use."""
    execute(database, TABLE)
    execute(database, f"grant all on teams to {SERVER}; grant select on teams to {READER}")
    return database


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def test_a_resource_has_scopes_of_its_own() -> None:
    scopes = scopes_of(BOTH)
    assert scopes.needed(TEAMS, "GET") == scopes.needed(f"{TEAMS}/1", "HEAD") == ("teams:read",)
    assert scopes.needed(f"{TEAMS}/1", "PUT") == ("teams:write",)
    assert scopes.needed(f"{USERS}/", "POST") == ("users:write",)
    # What belongs to no resource needs the scopes of all.
    for path in ("/metrics", "/api/v1/teamsters", "/api/v1", "/", ""):
        assert scopes.needed(path, "GET") == ("users:read", "teams:read")
        assert scopes.needed(path, "DELETE") == ("users:write", "teams:write")


@pytest.mark.parametrize("path", [USERS, f"{USERS}/teams", "/api/v1"])
def test_no_path_belongs_to_two_resources(path: str) -> None:
    with pytest.raises(ValueError, match="belongs to two resources"):
        Scopes({"users": USERS, "teams": path})


@pytest.mark.parametrize("path", ["/api/v1/groups", f"{TEAMS}sters", USERS])
def test_a_route_that_no_scope_guards_is_refused(database: str, path: str) -> None:
    stray = replace(DESCRIPTION, routes=lambda services: [Route(path, Teams(services).routes()[0].app)])  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=f"teams: the route '{path}' is not below {TEAMS}"):
        create_app(settings_for(database), described=(*RESOURCES, stray))


def test_keys_of_read_and_write_work_for_every_resource(teams: str) -> None:
    (reader, reads), (writer, writes) = (make_api_key("x", read_only=only) for only in (True, False))
    app = create_app(settings_for(teams, api_keys=f"{reads},{writes}"), described=BOTH)
    with serve(app) as url, httpx.Client(base_url=url) as client:
        for path in (TEAMS, USERS):
            assert client.get(path, headers=bearer(reader)).status_code == 200
            assert client.get(path).status_code == 401
        refused = client.put(f"{TEAMS}/1", headers=bearer(reader))
        assert_problem(refused, 403, "insufficient-scope", "These credentials lack the scope teams:write")
        assert client.put(f"{TEAMS}/1", headers=bearer(writer)).status_code == 204
        assert client.get(TEAMS, headers=bearer(reader)).json() == "a"


def test_the_replica_serves_it_and_its_writes_say_how_to_read_them(teams: str) -> None:
    app = create_app(settings_for(teams, read_database_url=teams), described=BOTH)
    with serve(app) as url, httpx.Client(base_url=url) as client:
        position = client.put(f"{TEAMS}/1").headers["read-after"]
        assert client.get(TEAMS, headers={"read-after": position}).json() == "a"
        assert_problem(client.get(TEAMS, headers={"read-after": "?"}), 422, "invalid")
        # A stream takes no turn on the replica, and says nothing of positions.
        assert "read-after" not in client.post(f"{USERS}/import", content=b"").headers


def test_browsers_may_send_the_methods_of_its_routes(database: str) -> None:
    app = create_app(settings_for(database, cors_origins="*"), described=BOTH)
    with serve(app) as url:
        asked = {"origin": "https://app.example.com", "access-control-request-method": "PUT"}
        answer = httpx.options(f"{url}{TEAMS}/1", headers=asked)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-methods"] == "GET, HEAD, POST, PUT, PATCH, DELETE"


def test_ready_asks_for_it(database: str, teams: str) -> None:
    app = create_app(settings_for(database, readiness_probe_seconds=1), described=BOTH)
    with serve(app) as url:
        assert httpx.get(f"{url}/ready").status_code == 200
        execute(database, "drop table teams")
    with serve(create_app(settings_for(database, readiness_probe_seconds=1), described=BOTH)) as url:
        assert httpx.get(f"{url}/ready").status_code == 503


def test_the_document_has_its_tag_and_its_scopes(database: str) -> None:
    made: Any = describe(settings_for(database), BOTH)
    put = made["paths"][f"{TEAMS}/{{id}}"]["put"]
    assert (put["tags"], put["security"]) == (["teams"], [{"bearer": ["teams:write"]}])
    assert made["paths"]["/health"]["get"]["tags"] == ["service"]
    assert made["info"]["description"].startswith("Users and teams on Neon Postgres.")
    assert "`users:read`, `users:write`, `teams:read`, `teams:write` or several of them" in str(made)


def test_it_says_that_no_gate_bounds_it() -> None:
    with pytest.raises(TypeError, match="gate"):
        Resource(get=(select_teams, None))  # type: ignore[call-arg, arg-type]


async def test_a_batcher_refuses_a_statement_of_another_kind(teams: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write in a batcher of reads would travel with others of its key, and never be `outcome-unknown`."""
    database = PooledDatabase(database_options(settings_for(teams)))
    services = Services(database, database, None, None, 1, 1)  # type: ignore[arg-type]
    await database.open()
    try:
        with pytest.raises(TypeError, match=r"sql/teams/insert_teams\.sql needs a batcher made by `write`"):
            await services.read(insert_teams)((1, "a"))
        with pytest.raises(TypeError, match=r"sql/teams/select_teams\.sql needs a batcher made by `read`"):
            await services.write(select_teams, key=id)(None)
        monkeypatch.setattr("tests.system.test_omissions.READ", replace(READ, batched=False))
        with pytest.raises(TypeError, match=r"sql/teams/select_teams\.sql needs batched=True in its declaration"):
            await services.read(select_teams)(None)
        assert execute(teams, "select count(*) from teams") == [(0,)]
    finally:
        await database.close()


def test_users_stay_as_they_are(teams: str) -> None:
    with serve(create_app(settings_for(teams), described=BOTH)) as url, httpx.Client(base_url=url) as client:
        user = create(client)
        assert client.get(f"{USERS}/{user['id']}").json() == user
