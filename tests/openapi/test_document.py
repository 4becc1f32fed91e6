"""The OpenAPI document: valid, complete, and confirmed against the application by schemathesis."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from api.app import create_app, describe, routes, scopes_of
from api.auth.keys import make_api_key
from api.database.fetch import PooledDatabase
from api.database.options import database_options
from api.http.operation import Operation, ResponseDoc
from api.http.resource import Resource, resources
from api.openapi.document import document as make_document
from api.users.schemas import ListQuery
from tests.support import ROOT
from tests.support.fuzzing import fuzz
from tests.support.serving import serve, settings_for

NOWHERE = "postgresql://ada:sesame@127.0.0.1:1/x"


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return describe(settings_for(NOWHERE))


def operations(document: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(path, method): found for path, item in document["paths"].items() for method, found in item.items()}


def test_it_is_valid(document: dict[str, Any]) -> None:
    OpenAPIV31SpecValidator(document).validate()


def test_every_operation_of_the_route_table_is_in_it(document: dict[str, Any]) -> None:
    settings = settings_for(NOWHERE)
    served = {
        (path, method.lower())
        for path, resource in resources(routes(settings, PooledDatabase(database_options(settings))))
        for method in resource.methods
        if not path.endswith("/")
    }
    assert set(operations(document)) == served


def test_every_operation_says_what_it_takes_gives_and_refuses(document: dict[str, Any]) -> None:
    for (path, method), operation in operations(document).items():
        where = f"{method} {path}"
        assert operation["summary"], where
        assert {int(status) for status in operation["responses"] if status < "400"}, where
        for status, response in operation["responses"].items():
            assert response["description"], (where, status)
            for media_type, content in response.get("content", {}).items():
                assert "example" in content or content["examples"], (where, status)
                assert (media_type == "application/problem+json") == (status >= "400"), (where, status)
        for content in operation.get("requestBody", {}).get("content", {}).values():
            assert "example" in content, where
        if path not in ("/health", "/ready"):
            (resource,) = operation["tags"]
            assert path.startswith(f"/api/v1/{resource}")
            assert operation["security"] == [{"bearer": [f"{resource}:{'read' if method == 'get' else 'write'}"]}]
            assert {"400", "401", "403", "500", "503"} <= set(operation["responses"]), where


@pytest.mark.parametrize(
    ("operation", "statuses"),
    [
        (("/api/v1/users", "get"), {200, 422}),
        (("/api/v1/users", "post"), {201, 409, 413, 415, 422}),
        (("/api/v1/users/{id}", "get"), {200, 304, 404, 412}),
        (("/api/v1/users/{id}", "patch"), {200, 404, 409, 412, 413, 415, 422}),
        (("/api/v1/users/{id}", "delete"), {204, 404, 409, 412}),
    ],
)
def test_the_refusals_of_the_contract(document: dict[str, Any], operation: tuple[str, str], statuses: set[int]) -> None:
    described = {int(status) for status in operations(document)[operation]["responses"]}
    assert statuses <= described
    assert described - statuses <= {400, 401, 403, 422, 500, 503, 504}


@pytest.mark.parametrize(
    ("links", "unknown"), [(["post"], ""), (["post", "update_thing", "delete_thing"], "delete_thing, update_thing")]
)
def test_a_link_to_no_operation_is_refused(links: list[str], unknown: str) -> None:
    """It stays behind where an operation has gone, and no validator of the document follows it."""

    async def post(request: Request) -> Response:
        return Response()

    operation = Operation(summary="A thing", responses={201: ResponseDoc("The thing.", links=links)})
    things = [Route("/things", Resource(gate=None, post=(post, operation)))]
    words = {"names": "things", "noun": "thing", "path": "/things"}
    if unknown:
        with pytest.raises(ValueError, match=f"^post: no operation has the name in `links`: {unknown}$"):
            make_document(things, scopes_of(), words)
    else:
        links_of = make_document(things, scopes_of(), words)["paths"]["/things"]["post"]["responses"]["201"]["links"]
        assert list(links_of) == links


def test_examples_are_what_the_schemas_say(document: dict[str, Any]) -> None:
    """Each example, of bodies, answers and problems, is validated by the schema beside it."""
    import jsonschema

    def check(content: dict[str, Any]) -> None:
        schema = {**content["schema"], "components": document["components"]}
        for example in (
            [content["example"]] if "example" in content else [e["value"] for e in content["examples"].values()]
        ):
            jsonschema.validate(example, schema, jsonschema.Draft202012Validator)

    for operation in operations(document).values():
        for response in [*operation["responses"].values(), operation.get("requestBody", {})]:
            for content in response.get("content", {}).values():
                check(content)


def schemas_in(part: Any) -> Iterator[dict[str, Any]]:
    """Every object in a part of the document that may be a schema."""
    if isinstance(part, dict):
        yield part
    for each in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
        yield from schemas_in(each)


def test_client_generators_understand_it(document: dict[str, Any]) -> None:
    """Nothing in it is what a generator of test_generators.py refuses, or misunderstands."""
    for schema in schemas_in(document):
        if "const" in schema:
            assert (schema["type"], type(schema["const"])) == ("string", str), schema
        assert schema.get("default", ...) is not None, schema
    for where, operation in operations(document).items():
        for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
            # A key of a body with a default counts as required.
            model = document["components"]["schemas"].get(content["schema"].get("$ref", "").rpartition("/")[2], {})
            assert not [name for name, of in model.get("properties", {}).items() if "default" in of], where
            assert media_type != "application/x-ndjson" or content["schema"]["format"] == "binary", where


@pytest.mark.parametrize("wanted", ["after=5", "email=ada@example.com", "q=ada", "order=-id", "order=created_at"])
def test_defaults_may_be_sent_with_any_other_parameter(document: dict[str, Any], wanted: str) -> None:
    """Some clients send the default of each parameter that they leave out."""
    name, _, value = wanted.partition("=")
    parameters = operations(document)["/api/v1/users", "get"]["parameters"]
    schemas = {each["name"]: each["schema"] for each in parameters if "schema" in each}
    assert name in schemas
    ListQuery.model_validate({key: of["default"] for key, of in schemas.items() if "default" in of} | {name: value})


def test_it_is_served_open_and_printed_the_same(document: dict[str, Any]) -> None:
    _, entry = make_api_key("x", read_only=True)
    with serve(create_app(settings_for(NOWHERE, api_keys=entry))) as url:
        served = httpx.get(f"{url}/openapi.json")
    assert served.headers["content-type"] == "application/json"
    printed = subprocess.run(
        [sys.executable, "-m", "api", "openapi"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert served.json() == httpx.Response(200, text=printed.stdout).json() == document


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(360)
def test_schemathesis_finds_nothing(database: str, document: dict[str, Any], tmp_path: Path) -> None:
    """All its checks, over examples, boundaries, random requests and sequences of them; with a key, and without."""
    key, entry = make_api_key("schemathesis", read_only=False)
    with serve(create_app(settings_for(database, api_keys=entry))) as url:
        report = fuzz(url, key, tmp_path, "--max-examples", "50", "--continue-on-failure")
    # It did not find nothing because it did nothing.
    assert re.search(rf"Tested: +{len(operations(document))}", report), report
    assert int(re.findall(r"(\d+) generated", report)[0]) > 400
