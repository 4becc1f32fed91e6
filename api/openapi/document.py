"""OpenAPI 3.1 from the route table: each method of a Resource carries an Operation, and pydantic makes the schemas."""

import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from pydantic import BaseModel, TypeAdapter
from starlette.routing import BaseRoute

from api.auth.problems import (
    insufficient_scope,
    invalid_credentials,
    keys_unavailable,
    several_credentials,
    unauthenticated,
)
from api.auth.scopes import Scopes
from api.errors import Problem, database_problems, internal_error, problem_body
from api.http.gate import gate_problems
from api.http.headers import REQUEST_HEADERS, REQUEST_ID, RESPONSE_HEADERS
from api.http.operation import Content, Operation, ResponseDoc
from api.http.resource import Resource, resources

_REFERENCE = "#/components/schemas/{model}"
_INTRODUCTION = """\
{names} on Neon Postgres. Every error is `application/problem+json` (RFC 9457): programs match its `type`, and \
operators find its `request_id` in the log. GET also serves HEAD; an unsupported method is 405, with `Allow`. Input \
that is not HTTP is 400, a head that is too large 431, a head that does not arrive in time 408. A client may set the \
id of its request in `X-Request-Id` (1 to 64 of the characters `A-Za-z0-9._:/+=-`), and its trace in `traceparent` \
(W3C Trace Context).
"""
_REQUEST_ID = "2b9ea715591e7aa5"
_VALIDATION_ERROR = {
    "type": "object",
    "description": "An entry in `errors` of a 422.",
    "properties": {
        "loc": {
            "type": "array",
            "items": {"type": ["string", "integer"]},
            "description": "The location; `body`, `query` or `header` first.",
        },
        "msg": {"type": "string"},
        "type": {"type": "string", "description": "The kind of error, as pydantic names it."},
    },
    "required": ["loc", "msg", "type"],
    "additionalProperties": False,
}
_PROBLEM = {
    "type": "object",
    "description": "An error (RFC 9457).",
    "properties": {
        "type": {
            "type": "string",
            "format": "uri",
            "description": "The kind of error, for programs: `urn:problem:users-api:…`, or `about:blank` if the status "
            "is enough.",
        },
        "title": {"type": "string", "description": "The name of the status."},
        "status": {"type": "integer", "minimum": 400, "maximum": 599},
        "detail": {"type": "string", "description": "The explanation, for people."},
        "request_id": {"type": "string", "pattern": REQUEST_ID, "description": "X-Request-Id, the id in the log."},
        "errors": {
            "type": "array",
            "items": {"$ref": _REFERENCE.format(model="ValidationError")},
            "description": "The validation errors; only a 422 has them.",
        },
    },
    "required": ["type", "title", "status", "detail", "request_id"],
    "additionalProperties": False,
}
_ALWAYS = "X-Request-Id"


def document(routes: Iterable[BaseRoute], scopes: Scopes, words: Mapping[str, str]) -> dict[str, Any]:
    """Return the OpenAPI document of `routes`: their operations, the scopes and the schemas that these use.

    `words` has what the descriptions call the resources: `names` of all, the `noun` for one, and a `path`.
    Raises ValueError if an operation links to none.
    """
    schemas: dict[str, Any] = {"Problem": _PROBLEM, "ValidationError": _VALIDATION_ERROR}
    paths: dict[str, dict[str, Any]] = {}
    links: dict[str, set[str]] = {}
    for path, resource in resources(routes):
        if path.endswith("/"):  # the same as without it
            continue
        for method, (handler, operation) in resource.methods.items():
            if operation is not None:
                described = _operation(handler.__name__, method, path, operation, resource, scopes, schemas)
                paths.setdefault(path, {})[method.lower()] = described
                links[handler.__name__] = {name for each in operation.responses.values() for name in each.links}
    for name, names in links.items():
        if unknown := names - links.keys():
            raise ValueError(f"{name}: no operation has the name in `links`: {', '.join(sorted(unknown))}")
    return {
        "openapi": "3.1.1",
        "info": {
            "title": "users-api",
            "version": version("users-api"),
            "description": _INTRODUCTION.replace("{names}", words["names"].capitalize()),
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "paths": dict(sorted(paths.items())),
        "components": {
            "schemas": schemas,
            "parameters": {
                name: {"name": name, "in": "header", "required": False, **described}
                for name, described in _fill_in(REQUEST_HEADERS, words).items()
            },
            "headers": _fill_in(RESPONSE_HEADERS, words),
            "securitySchemes": {"bearer": _bearer(scopes)},
        },
    }


def _fill_in(described: Mapping[str, Any], words: Mapping[str, str]) -> dict[str, Any]:
    text = json.dumps(described)
    for name, word in words.items():
        text = text.replace(f"{{{name}}}", word)
    filled: dict[str, Any] = json.loads(text)
    return filled


def _bearer(scopes: Scopes) -> dict[str, Any]:
    named = ", ".join(f"`{name}:read`, `{name}:write`" for name in scopes.names)
    return {
        "type": "http",
        "scheme": "bearer",
        "description": "An API key, or a token (JWT) of the configured issuer. A key allows reading, or reading and "
        f"writing; a token's `scope` contains {named} or {'both' if len(scopes.names) == 1 else 'several of them'}.",
    }


def _operation(
    name: str,
    method: str,
    path: str,
    operation: Operation,
    resource: Resource,
    scopes: Scopes,
    schemas: dict[str, Any],
) -> dict[str, Any]:
    writes = method != "GET"
    needed = scopes.needed(path, method)
    problems = [*operation.problems, internal_error()]
    headers = [*operation.headers]
    if resource.gate:
        headers.append("Request-Timeout")
        problems += gate_problems()
    if not resource.is_open:
        problems += [several_credentials(), unauthenticated(), invalid_credentials("The token has expired")]
        problems += [insufficient_scope(" ".join(needed)), keys_unavailable()]
    if operation.uses_database:
        problems += database_problems(writes=writes)
    described: dict[str, Any] = {
        "operationId": name,
        "summary": operation.summary,
        "description": operation.description,
        "tags": [scopes.owner(path) or "service"],
        "security": [] if resource.is_open else [{"bearer": [*needed]}],
        "parameters": [
            *_parameters(operation.path, "path"),
            *_parameters(operation.query, "query"),
            *({"$ref": f"#/components/parameters/{header}"} for header in headers),
        ],
    }
    if operation.body:
        described["requestBody"] = {"required": True, "content": _contents(operation.body, schemas)}
    described["responses"] = {
        **{str(status): _response(response, schemas) for status, response in operation.responses.items()},
        **_problem_responses(problems),
    }
    return described


def _parameters(model: type[BaseModel] | None, location: str) -> list[dict[str, Any]]:
    """Return the fields of a model as parameters. The type null is left out: a query string cannot express it."""
    if model is None:
        return []
    schema = _without_null_defaults(model.model_json_schema())
    parameters = []
    for name, of_field in schema["properties"].items():
        kinds = [kind for kind in of_field.pop("anyOf", ()) if kind != {"type": "null"}]
        of_field.update(*kinds[:1])
        parameter = {"name": name, "in": location, "required": name in schema.get("required", ())}
        parameters.append({**parameter, "description": of_field.pop("description", ""), "schema": of_field})
    return parameters


def _response(response: ResponseDoc, schemas: dict[str, Any]) -> dict[str, Any]:
    described = {"description": response.description, "headers": _headers([*response.headers, _ALWAYS])}
    if response.content:
        described["content"] = _contents(response.content, schemas)
    if response.links:
        described["links"] = {
            name: {"operationId": name, "parameters": {"id": "$response.body#/id"}} for name in response.links
        }
    return described


def _problem_responses(problems: Sequence[Problem]) -> dict[str, Any]:
    """Return a response for each status, with an example for each of its problems."""
    by_status: dict[int, list[Problem]] = {}
    for problem in problems:
        by_status.setdefault(problem.status, []).append(problem)
    return {str(status): _problem_response(alike) for status, alike in sorted(by_status.items())}


def _problem_response(problems: Sequence[Problem]) -> dict[str, Any]:
    bodies = [problem_body(problem, _REQUEST_ID) for problem in problems]
    examples = {problem.kind or "about-blank": {"value": body} for problem, body in zip(problems, bodies, strict=True)}
    described: dict[str, Any] = {
        "description": "; ".join(dict.fromkeys(problem.detail for problem in problems)),
        "content": {
            "application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}, "examples": examples}
        },
    }
    headers = [header for header in problems[0].headers or () if header in RESPONSE_HEADERS]
    return {**described, "headers": _headers([*headers, _ALWAYS])}


def _headers(names: Iterable[str]) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _contents(contents: Iterable[Content], schemas: dict[str, Any]) -> dict[str, Any]:
    return {
        content.media_type: {"schema": _schema(content.schema, schemas), "example": content.example}
        for content in contents
    }


def _schema(described: Any, schemas: dict[str, Any]) -> Mapping[str, Any]:
    """Return the JSON Schema of a schema or a type. Models are added to `schemas` and referenced."""
    if isinstance(described, Mapping):
        return described
    schema = _without_null_defaults(TypeAdapter(described).json_schema(ref_template=_REFERENCE))
    schemas.update({name: _without_null_defaults(model) for name, model in schema.pop("$defs", {}).items()})
    if isinstance(described, type) and issubclass(described, BaseModel):
        schemas[described.__name__] = schema
        return {"$ref": _REFERENCE.format(model=described.__name__)}
    return schema


def _without_null_defaults(schema: dict[str, Any]) -> dict[str, Any]:
    """Take each default of null out of a model's schema: a key is optional by being absent from `required`.

    Generated clients take a key with a default for one that is always sent.
    """
    for of_field in schema.get("properties", {}).values():
        if of_field.get("default", ...) is None:
            del of_field["default"]
    return schema
