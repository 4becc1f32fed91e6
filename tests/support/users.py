"""Users over HTTP, and what a problem must contain."""

import re
from collections.abc import Sequence
from typing import Any

import httpx

USERS = "/api/v1/users"


def create(client: httpx.Client, email: str = "ada@example.com", **keys: Any) -> dict[str, Any]:
    response = client.post(USERS, json={"email": email, **keys})
    assert response.status_code == 201, response.text
    user: dict[str, Any] = response.json()
    return user


def assert_problem(response: httpx.Response, status: int, kind: str | None = None, detail: str | None = None) -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert set(body) == {"type", "title", "status", "detail", "request_id"} | ({"errors"} if status == 422 else set())
    assert body["type"] == (f"urn:problem:users-api:{kind}" if kind else "about:blank")
    assert body["status"] == status
    assert body["title"] == {
        400: "Bad Request",
        401: "Unauthorized",
        403: "Forbidden",
        404: "Not Found",
        405: "Method Not Allowed",
        406: "Not Acceptable",
        408: "Request Timeout",
        409: "Conflict",
        412: "Precondition Failed",
        413: "Content Too Large",
        415: "Unsupported Media Type",
        416: "Range Not Satisfiable",
        422: "Unprocessable Content",
        500: "Internal Server Error",
        503: "Service Unavailable",
        504: "Gateway Timeout",
    }.get(status)
    assert re.fullmatch("[0-9a-f]{16}", body["request_id"])
    if detail is not None:
        assert body["detail"] == detail


def assert_invalid(response: httpx.Response, *locations: Sequence[str | int]) -> None:
    assert_problem(response, 422, "invalid")
    errors = response.json()["errors"]
    assert [error["loc"] for error in errors] == [list(location) for location in locations]
    assert all(set(error) == {"loc", "msg", "type"} and error["msg"] for error in errors)
