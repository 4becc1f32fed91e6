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
from tests.support.waiting import wait_until

GADGETS = "/api/v1/gadgets"
TABLE = "create table gadgets (id bigint primary key, name text not null)"
READ = Statement(
    "gadgets/select_gadgets.sql",
    "select name::text from public.gadgets",
    (),
    (("name", "text"),),
    False,
    "",
    batched=True,
)
WRITE = Statement(
    "gadgets/insert_gadgets.sql",
    "insert into public.gadgets select * from unnest($1::text::bigint[], $2::text[]) returning id::bigint",
    ("text", "text[]"),
    (("id", "int8"),),
    True,
    "",
    batched=True,
)
OPERATION = Operation(summary="Gadgets", responses={200: ResponseDoc("Gadgets.")})


async def select_gadgets(database: Database, calls: Sequence[None]) -> list[str]:
    rows = await database.fetch(READ)
    return [",".join(row["name"] for row in rows)] * len(calls)


async def insert_gadgets(database: Database, gadgets: Sequence[tuple[int, str]]) -> list[asyncpg.Record]:
    ids, names = zip(*gadgets, strict=True)
    return await database.fetch(WRITE, f"{{{','.join(map(str, ids))}}}", names)


class Gadgets:
    """Says nothing of scopes, of the replica, of CORS, of tags."""

    def __init__(self, services: Services) -> None:
        self._gate = services.gate
        self._select = services.read(select_gadgets)
        self._insert = services.write(insert_gadgets, key=lambda gadget: gadget[0])

    async def list_gadgets(self, request: Request) -> Response:
        """GET /api/v1/gadgets."""
        return JSONBody(b'"%s"' % (await self._select(None)).encode())

    async def put_team(self, request: Request) -> Response:
        """PUT /api/v1/gadgets/{id}."""
        await self._insert((int(request.path_params["id"]), "a"))
        return Response(status_code=204)

    def routes(self) -> list[BaseRoute]:
        return [
            Route(GADGETS, Resource(gate=self._gate, get=(self.list_gadgets, OPERATION))),
            Route(f"{GADGETS}/{{id}}", Resource(gate=self._gate, put=(self.put_team, OPERATION))),
        ]


async def ping(database: Database) -> None:
    await select_gadgets(database, [None])


DESCRIPTION = Description(
    name="gadgets", noun="gadget", path=GADGETS, routes=lambda services: Gadgets(services).routes(), ping=ping
)
BOTH = (*RESOURCES, DESCRIPTION)


@pytest.fixture
def gadgets(database: str) -> str:
    """A database with a table of gadgets, which the roles of the service may use."""
    execute(database, TABLE)
    execute(database, f"grant all on gadgets to {SERVER}; grant select on gadgets to {READER}")
    return database


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def test_a_resource_has_scopes_of_its_own() -> None:
    scopes = scopes_of(BOTH)
    assert scopes.needed(GADGETS, "GET") == scopes.needed(f"{GADGETS}/1", "HEAD") == ("gadgets:read",)
    assert scopes.needed(f"{GADGETS}/1", "PUT") == ("gadgets:write",)
    assert scopes.needed(f"{USERS}/", "POST") == ("users:write",)
    # What belongs to no resource needs the scopes of all.
    for path in ("/metrics", "/api/v1/gadgetsters", "/api/v1", "/", ""):
        assert scopes.needed(path, "GET") == tuple(f"{each.name}:read" for each in BOTH)
        assert scopes.needed(path, "DELETE") == tuple(f"{each.name}:write" for each in BOTH)


@pytest.mark.parametrize("path", [USERS, f"{USERS}/gadgets", "/api/v1"])
def test_no_path_belongs_to_two_resources(path: str) -> None:
    with pytest.raises(ValueError, match="belongs to two resources"):
        Scopes({"users": USERS, "gadgets": path})


@pytest.mark.parametrize("path", ["/api/v1/groups", f"{GADGETS}sters", USERS])
def test_a_route_that_no_scope_guards_is_refused(database: str, path: str) -> None:
    stray = replace(DESCRIPTION, routes=lambda services: [Route(path, Gadgets(services).routes()[0].app)])  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=f"gadgets: the route '{path}' is not below {GADGETS}"):
        create_app(settings_for(database), described=(*RESOURCES, stray))


def test_keys_of_read_and_write_work_for_every_resource(gadgets: str) -> None:
    (reader, reads), (writer, writes) = (make_api_key("x", read_only=only) for only in (True, False))
    app = create_app(settings_for(gadgets, api_keys=f"{reads},{writes}"), described=BOTH)
    with serve(app) as url, httpx.Client(base_url=url) as client:
        for path in (GADGETS, USERS):
            assert client.get(path, headers=bearer(reader)).status_code == 200
            assert client.get(path).status_code == 401
        refused = client.put(f"{GADGETS}/1", headers=bearer(reader))
        assert_problem(refused, 403, "insufficient-scope", "These credentials lack the scope gadgets:write")
        assert client.put(f"{GADGETS}/1", headers=bearer(writer)).status_code == 204
        assert client.get(GADGETS, headers=bearer(reader)).json() == "a"


def test_the_replica_serves_it_and_its_writes_say_how_to_read_them(gadgets: str) -> None:
    app = create_app(settings_for(gadgets, read_database_url=gadgets), described=BOTH)
    with serve(app) as url, httpx.Client(base_url=url) as client:
        position = client.put(f"{GADGETS}/1").headers["read-after"]
        assert client.get(GADGETS, headers={"read-after": position}).json() == "a"
        assert_problem(client.get(GADGETS, headers={"read-after": "?"}), 422, "invalid")
        # A stream takes no turn on the replica, and says nothing of positions.
        assert "read-after" not in client.post(f"{USERS}/import", content=b"").headers


def test_browsers_may_send_the_methods_of_its_routes(database: str) -> None:
    app = create_app(settings_for(database, cors_origins="*"), described=BOTH)
    with serve(app) as url:
        asked = {"origin": "https://app.example.com", "access-control-request-method": "PUT"}
        answer = httpx.options(f"{url}{GADGETS}/1", headers=asked)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-methods"] == "GET, HEAD, POST, PUT, PATCH, DELETE"


def test_ready_asks_for_it(database: str, gadgets: str) -> None:
    app = create_app(settings_for(database, readiness_probe_seconds=1), described=BOTH)
    with serve(app) as url:
        # It gives the database 0.8 s, the first time with a new connection.
        wait_until(lambda: httpx.get(f"{url}/ready").status_code == 200)
        execute(database, "drop table gadgets")
    with serve(create_app(settings_for(database, readiness_probe_seconds=1), described=BOTH)) as url:
        assert httpx.get(f"{url}/ready").status_code == 503


def test_the_document_has_its_tag_and_its_scopes(database: str) -> None:
    made: Any = describe(settings_for(database), BOTH)
    put = made["paths"][f"{GADGETS}/{{id}}"]["put"]
    assert (put["tags"], put["security"]) == (["gadgets"], [{"bearer": ["gadgets:write"]}])
    assert made["paths"]["/health"]["get"]["tags"] == ["service"]
    assert " and gadgets on Neon Postgres." in made["info"]["description"]
    assert "`gadgets:read`, `gadgets:write` or several of them" in str(made)


def test_it_says_that_no_gate_bounds_it() -> None:
    with pytest.raises(TypeError, match="gate"):
        Resource(get=(select_gadgets, None))  # type: ignore[call-arg, arg-type]


async def test_a_batcher_refuses_a_statement_of_another_kind(gadgets: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write in a batcher of reads would travel with others of its key, and never be `outcome-unknown`."""
    database = PooledDatabase(database_options(settings_for(gadgets)))
    services = Services(database, database, None, None, 1, 1)  # type: ignore[arg-type]
    await database.open()
    try:
        with pytest.raises(TypeError, match=r"sql/gadgets/insert_gadgets\.sql needs a batcher made by `write`"):
            await services.read(insert_gadgets)((1, "a"))
        with pytest.raises(TypeError, match=r"sql/gadgets/select_gadgets\.sql needs a batcher made by `read`"):
            await services.write(select_gadgets, key=id)(None)
        monkeypatch.setattr("tests.system.test_omissions.READ", replace(READ, batched=False))
        with pytest.raises(TypeError, match=r"sql/gadgets/select_gadgets\.sql needs batched=True in its declaration"):
            await services.read(select_gadgets)(None)
        assert execute(gadgets, "select count(*) from gadgets") == [(0,)]
    finally:
        await database.close()


def test_users_stay_as_they_are(gadgets: str) -> None:
    with serve(create_app(settings_for(gadgets), described=BOTH)) as url, httpx.Client(base_url=url) as client:
        user = create(client)
        assert client.get(f"{USERS}/{user['id']}").json() == user
