"""The HTTP contract, row by row, against the application on PostgreSQL."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from api.app import create_app
from api.settings import Settings
from tests.support.catalogue import empty
from tests.support.database import NewDatabase, execute
from tests.support.serving import serve, settings_for
from tests.support.users import assert_invalid, assert_problem, create

USERS = "/api/v1/users"
JSON = {"content-type": "application/json"}

on_neon_too = pytest.mark.parametrize(
    "client", ["PostgreSQL", pytest.param("Neon", marks=pytest.mark.slow)], indirect=True
)
"""For one or two tests of each statement, which run behind the rig too."""


@contextmanager
def serving(settings: Settings) -> Iterator[httpx.Client]:
    with serve(create_app(settings)) as url, httpx.Client(base_url=url) as client:
        yield client


@pytest.fixture(scope="module")
def shared(new_database: NewDatabase, template: str) -> Iterator[str]:
    """The URL of one database for all of these tests: each leaves nothing but rows."""
    with new_database(template) as url:
        yield url


@pytest.fixture
def database(shared: str) -> str:
    empty(shared)
    return shared


@pytest.fixture(scope="module")
def clients(shared: str) -> Iterator[dict[bool, httpx.Client]]:
    """Clients of the real application, by whether requests share statements."""
    with (
        serving(settings_for(shared, batching=True)) as batched,
        serving(settings_for(shared, batching=False)) as alone,
    ):
        yield {True: batched, False: alone}


@pytest.fixture(params=["PostgreSQL"])
def client(request: pytest.FixtureRequest, batching: bool) -> Iterator[httpx.Client]:
    """An HTTP client of the real application, on an empty database: PostgreSQL as it is, or behind the rig."""
    if request.param == "Neon":
        with serving(request.getfixturevalue("neon").settings(batching=batching)) as client:
            yield client
    else:
        request.getfixturevalue("database")
        yield request.getfixturevalue("clients")[batching]


# The user


def test_a_user_has_exactly_five_keys_in_order(client: httpx.Client) -> None:
    before = datetime.now(UTC)
    user = create(client, name="Ada")
    assert list(user) == ["id", "email", "name", "created_at", "updated_at"]
    assert (user["email"], user["name"]) == ("ada@example.com", "Ada")
    assert isinstance(user["id"], int)
    assert user["created_at"] == user["updated_at"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00", user["created_at"])
    assert abs((datetime.fromisoformat(user["created_at"]) - before).total_seconds()) < 60


@pytest.mark.parametrize(
    "name", [None, "", "Ada", 'quote " and \\', "tab\tnewline\n\x01\x7f", "Zoë 🦊 \u2028", "x" * 255]
)
def test_a_user_is_byte_for_byte_the_same_everywhere(client: httpx.Client, name: str | None) -> None:
    created = client.post(USERS, json={"email": "ada@example.com", "name": name})
    url = created.headers["location"]
    body = created.content
    assert created.json()["name"] == name
    assert client.get(url).content == body
    assert client.get(USERS).content == b"[" + body + b"]"
    assert client.get(USERS, params={"skip": 0}).content == b"[" + body + b"]"
    assert client.get(USERS, params={"email": "ADA@example.com"}).content == b"[" + body + b"]"
    assert client.patch(url, json={}).content == body


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("Ada@EXAMPLE.com", "Ada@example.com"),
        ("Ada Lovelace <ada@example.com>", "ada@example.com"),
        (" ada@example.com ", "ada@example.com"),
        ("ada@bücher.example.com", "ada@bücher.example.com"),
        ("ada@xn--bcher-kva.example.com", "ada@bücher.example.com"),
        ("δοκιμή@example.com", "δοκιμή@example.com"),
        ("a+b.c@example.com", "a+b.c@example.com"),
    ],
)
def test_an_address_is_normalised_as_email_validator_does(client: httpx.Client, sent: str, kept: str) -> None:
    assert create(client, sent)["email"] == kept


# POST /api/v1/users


@pytest.mark.parametrize("path", [USERS, USERS + "/"])
def test_create(client: httpx.Client, path: str) -> None:
    response = client.post(path, json={"email": "ada@example.com"})
    assert response.status_code == 201
    assert response.headers["content-type"] == "application/json"
    assert response.headers["location"] == f"{USERS}/{response.json()['id']}"
    assert response.headers["etag"] == '"1"'
    assert response.json()["name"] is None


@on_neon_too
@pytest.mark.parametrize("email", ["ada@example.com", "ADA@example.com", "ada@EXAMPLE.COM"])
def test_create_with_a_taken_address(client: httpx.Client, email: str) -> None:
    create(client, "Ada@example.com")
    assert_problem(client.post(USERS, json={"email": email}), 409, "email-taken", "Email already registered")
    assert len(client.get(USERS).json()) == 1


def test_addresses_are_unique_without_regard_to_case_beyond_ascii(client: httpx.Client) -> None:
    create(client, "ÄÖÜ@example.com")
    assert client.post(USERS, json={"email": "äöü@example.com"}).status_code == 409


@pytest.mark.parametrize(
    ("body", "locations"),
    [
        ("{}", [["body", "email"]]),
        ('{"email": null}', [["body", "email"]]),
        ('{"email": 1}', [["body", "email"]]),
        ('{"email": "nobody"}', [["body", "email"]]),
        ('{"email": "a@b"}', [["body", "email"]]),
        ('{"email": "a b@example.com"}', [["body", "email"]]),
        ('{"email": "a\\u0000@example.com"}', [["body", "email"]]),
        (f'{{"email": "{"a" * 250}@example.com"}}', [["body", "email"]]),
        ('{"email": "a@example.com", "name": 1}', [["body", "name"]]),
        ('{"email": "a@example.com", "name": ["x"]}', [["body", "name"]]),
        ('{"email": "a@example.com", "name": "nul \\u0000"}', [["body", "name"]]),
        (f'{{"email": "a@example.com", "name": "{"x" * 256}"}}', [["body", "name"]]),
        ('{"email": "a", "name": 1}', [["body", "email"], ["body", "name"]]),
        ("", [["body"]]),
        ("nonsense", [["body"]]),
        ("[]", [["body"]]),
        ("null", [["body"]]),
        ('"text"', [["body"]]),
        ("NaN", [["body"]]),
        ('{"email": NaN}', [["body", "email"]]),
        ('{"email": "a@example.com"', [["body"]]),
        ('{"email": "a@example.com", "name": "\\ud800"}', [["body"]]),
        (b'{"email": "a@example.com", "name": "\xff"}', [["body"]]),
        ("[" * 30_000, [["body"]]),
        ('{"a":' * 10_000, [["body"]]),
        ('{"email": "a@example.com"} {}', [["body"]]),
    ],
)
def test_create_refuses_what_is_not_valid(client: httpx.Client, body: str | bytes, locations: list[Any]) -> None:
    assert_invalid(client.post(USERS, content=body, headers=JSON), *locations)
    assert client.get(USERS).json() == []


@pytest.mark.parametrize(
    "value", ["NaN", "Infinity", "-Infinity", '[{"y": NaN}]', "01", "1.", "+1", "'x'", "nul", '"\t"']
)
def test_what_is_no_json_is_refused_in_an_ignored_key_too(write: Any, value: str) -> None:
    refused = write(content=f'{{"name": "NaN", "email": "b@example.com", "x": {value}}}', headers=JSON)
    assert_invalid(refused, ["body"])
    assert refused.json()["errors"][0]["type"] == "json_invalid"


def test_numbers_that_are_none_may_be_the_text_of_a_value(write: Any) -> None:
    response = write(json={"email": "b@example.com", "name": "NaN, Infinity and -Infinity"})
    assert response.json()["name"] == "NaN, Infinity and -Infinity"


@pytest.mark.parametrize("coding", ["gzip", "br", "identity, gzip", "x"])
def test_a_compressed_body_is_refused(write: Any, coding: str) -> None:
    refused = write(json={"name": "x"}, headers={"content-encoding": coding})
    assert_problem(refused, 415, None, "The body must not have a Content-Encoding")
    assert refused.headers["accept-encoding"] == "identity"


def test_of_a_repeated_key_the_last_counts_and_unknown_keys_are_ignored(client: httpx.Client) -> None:
    body = '{"email": "first@example.com", "role": {"admin": true}, "id": 7, "email": "last@example.com"}'
    response = client.post(USERS, content=body, headers=JSON)
    assert response.status_code == 201
    assert response.json()["email"] == "last@example.com"


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "Application/JSON"])
def test_json_may_be_named_with_parameters_and_in_any_case(client: httpx.Client, content_type: str) -> None:
    headers = {"content-type": content_type}
    assert client.post(USERS, content=b'{"email": "a@example.com"}', headers=headers).status_code == 201


@pytest.fixture(params=["POST", "PATCH"])
def write(request: pytest.FixtureRequest, client: httpx.Client) -> Any:
    """Send a body by POST and by PATCH."""
    path = USERS if request.param == "POST" else f"{USERS}/{create(client)['id']}"
    return lambda **keys: client.request(request.param, path, **keys)


@pytest.mark.parametrize("content_type", ["text/plain", "application/jsonx", "application/x-www-form-urlencoded", None])
def test_a_body_that_is_not_json_is_refused(write: Any, content_type: str | None) -> None:
    headers = {"content-type": content_type} if content_type else {}
    assert_problem(write(content=b'{"email": "a@example.com"}', headers=headers), 415)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_beyond_64_kib_is_refused(write: Any, chunked: bool) -> None:
    def chunks() -> Iterator[bytes]:
        yield b'{"email": "b@example.com", "more": "'
        for _ in range(65):
            yield b"x" * 1024
        yield b'"}'

    content = chunks() if chunked else b"".join(chunks())
    assert_problem(write(content=content, headers=JSON), 413)


def test_a_body_of_64_kib_is_not(client: httpx.Client) -> None:
    start, end = b'{"email": "a@example.com", "more": "', b'"}'
    body = start + b"x" * (64 * 1024 - len(start) - len(end)) + end
    assert client.post(USERS, content=body, headers=JSON).status_code == 201
    assert client.post(USERS, content=body + b" ", headers=JSON).status_code == 413


# GET /api/v1/users


@pytest.fixture
def ids(client: httpx.Client) -> list[int]:
    return [create(client, f"user{n}@example.com")["id"] for n in range(7)]


def listed(client: httpx.Client, query: str = "") -> list[int]:
    response = client.get(f"{USERS}?{query}")
    assert response.status_code == 200, response.text
    return [user["id"] for user in response.json()]


def test_list_of_nobody(client: httpx.Client) -> None:
    for path in (USERS, USERS + "/"):
        response = client.get(path)
        assert (response.status_code, response.content) == (200, b"[]")
        assert response.headers["content-type"] == "application/json"
        assert "link" not in response.headers


@pytest.mark.parametrize("path", [USERS, USERS + "/"])
def test_neither_path_redirects(client: httpx.Client, path: str) -> None:
    assert client.get(path, follow_redirects=False).status_code == 200


def test_list_is_ordered_by_id(client: httpx.Client, ids: list[int]) -> None:
    client.patch(f"{USERS}/{ids[2]}", json={"name": "moved on disk"})
    assert listed(client) == sorted(ids)


@on_neon_too
def test_list_by_skip_and_limit(client: httpx.Client, ids: list[int]) -> None:
    assert listed(client, "limit=3") == ids[:3]
    assert listed(client, "skip=2&limit=3") == ids[2:5]
    assert listed(client, "skip=5&limit=3") == ids[5:]
    assert listed(client, "skip=7") == []
    assert listed(client, "skip=9223372036854775807") == []


@on_neon_too
def test_list_by_keyset(client: httpx.Client, ids: list[int]) -> None:
    assert listed(client, "after=0&limit=3") == ids[:3]
    assert listed(client, f"after={ids[2]}&limit=3") == ids[3:6]
    assert listed(client, "after=9223372036854775807") == []


@pytest.mark.parametrize("first", ["limit=3", "limit=3&skip=0", "limit=3&after=0"])
def test_links_lead_through_every_page(client: httpx.Client, ids: list[int], first: str) -> None:
    url, seen, pages = f"{USERS}?{first}", list[int](), 0
    while url:
        response = client.get(url)
        page = [user["id"] for user in response.json()]
        seen, pages = seen + page, pages + 1
        link = response.headers.get("link", "")
        assert bool(link) == (len(page) == 3)
        assert not link or link == f'<{USERS}?after={page[-1]}&limit=3>; rel="next"'
        url = response.links["next"]["url"] if link else ""
    assert (seen, pages) == (ids, 3)


def test_limits_default_and_bounds(client: httpx.Client, database: str) -> None:
    execute(database, "insert into users (email) select i || '@example.com' from generate_series(1, 1001) i")
    assert len(listed(client)) == 100
    assert len(listed(client, "limit=1000")) == 1000
    assert len(listed(client, "limit=1")) == 1


@pytest.mark.parametrize(
    ("query", "location"),
    [
        ("limit=0", ["query", "limit"]),
        ("limit=-1", ["query", "limit"]),
        ("limit=1001", ["query", "limit"]),
        ("limit=ten", ["query", "limit"]),
        ("limit=", ["query", "limit"]),
        ("limit=1.5", ["query", "limit"]),
        ("skip=-1", ["query", "skip"]),
        ("skip=x", ["query", "skip"]),
        ("skip=9223372036854775808", ["query", "skip"]),
        ("after=-1", ["query", "after"]),
        ("after=x", ["query", "after"]),
        ("after=9223372036854775808", ["query", "after"]),
        ("skip=0&after=0", ["query"]),
        ("skip=1&after=1", ["query"]),
        ("email=a@example.com&limit=0", ["query", "limit"]),
    ],
)
def test_list_refuses_a_query_that_is_not_valid(client: httpx.Client, query: str, location: list[str]) -> None:
    assert_invalid(client.get(f"{USERS}?{query}"), location)


def test_unknown_parameters_are_ignored_and_the_last_of_a_repeated_one_counts(
    client: httpx.Client, ids: list[int]
) -> None:
    assert listed(client, "sort=name&limit=5&%ff=%00&limit=2") == ids[:2]


@pytest.mark.parametrize("email", ["USER3@example.com", "user3@EXAMPLE.com", " user3@example.com "])
def test_find_by_address(client: httpx.Client, ids: list[int], email: str) -> None:
    response = client.get(USERS, params={"email": email})
    assert [user["id"] for user in response.json()] == [ids[3]]
    assert "link" not in response.headers


@on_neon_too
@pytest.mark.parametrize("email", ["user9@example.com", "", "user3", "\0", "\udc80", "x" * 9999, "' or 1=1 --"])
def test_find_nobody_by_address(client: httpx.Client, ids: list[int], email: str) -> None:
    quoted = "".join(f"%{byte:02x}" for byte in email.encode("utf-8", "surrogateescape"))
    response = client.get(f"{USERS}?email={quoted}")
    assert (response.status_code, response.json()) == (200, [])


# GET /api/v1/users/{id}


def test_get(client: httpx.Client) -> None:
    user = create(client, name="Ada")
    response = client.get(f"{USERS}/{user['id']}")
    assert (response.status_code, response.json()) == (200, user)
    assert response.headers["etag"] == '"1"'


@pytest.mark.parametrize("method", ["GET", "PATCH", "DELETE"])
@pytest.mark.parametrize(
    "user_id",
    [
        *("999", "0", "-1", "9223372036854775807", "9223372036854775808", "9" * 400),
        *("1.0", "1e3", "0x1", "\u0661", "²", "x", "null", "%00", "%ff", "%20", "1%2F2", "'", "1;drop"),
    ],
)
def test_an_id_that_nobody_has_is_not_found(client: httpx.Client, method: str, user_id: str) -> None:
    keys: dict[str, Any] = {"json": {}} if method == "PATCH" else {}
    assert_problem(client.request(method, f"{USERS}/{user_id}", **keys), 404)


@pytest.mark.parametrize("method", ["GET", "PATCH", "DELETE"])
def test_not_found_says_so_as_clients_know_it(client: httpx.Client, method: str) -> None:
    keys: dict[str, Any] = {"json": {}} if method == "PATCH" else {}
    assert_problem(client.request(method, f"{USERS}/999", **keys), 404, detail="User not found")


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ('"1"', 304),
        ('W/"1"', 304),
        ('"7", "1"', 304),
        ("*", 304),
        ('"2"', 200),
        ('""', 200),
        ("1", 200),
        ('"' + "9" * 400 + '"', 200),
        ('w/"1"', 200),
        ('"1" garbage', 200),
    ],
)
def test_get_honours_if_none_match(client: httpx.Client, header: str, status: int) -> None:
    url = f"{USERS}/{create(client)['id']}"
    response = client.get(url, headers={"if-none-match": header})
    assert response.status_code == status
    assert response.headers["etag"] == '"1"'
    assert (response.content == b"") == (status == 304)


def test_if_none_match_of_an_absent_user_is_404(client: httpx.Client) -> None:
    assert client.get(f"{USERS}/999", headers={"if-none-match": "*"}).status_code == 404


# PATCH /api/v1/users/{id}


def test_patch_changes_what_it_names(client: httpx.Client) -> None:
    user = create(client, name="Ada")
    url = f"{USERS}/{user['id']}"
    response = client.patch(url, json={"name": "Countess"})
    assert response.status_code == 200
    assert response.headers["etag"] == '"2"'
    changed = response.json()
    assert changed == {**user, "name": "Countess", "updated_at": changed["updated_at"]}
    assert changed["updated_at"] > user["updated_at"]
    assert client.patch(url, json={"email": "b@example.com"}).json()["name"] == "Countess"
    both = client.patch(url, json={"email": "C@example.com", "name": "C"}).json()
    assert (both["email"], both["name"]) == ("C@example.com", "C")
    assert client.get(url).json() == both


@on_neon_too
def test_patch_tells_absent_from_null(client: httpx.Client) -> None:
    url = f"{USERS}/{create(client, name='Ada')['id']}"
    assert client.patch(url, json={"email": "b@example.com"}).json()["name"] == "Ada"
    assert client.patch(url, json={"name": None}).json()["name"] is None
    assert_invalid(client.patch(url, json={"email": None}), ["body", "email"])
    assert_invalid(client.patch(url, json={"email": "nobody"}), ["body", "email"])


@pytest.mark.parametrize("patch", [{}, {"name": "Ada"}, {"email": "ada@example.com"}, {"unknown": 1}])
def test_a_patch_that_changes_nothing_leaves_time_and_etag(client: httpx.Client, patch: dict[str, Any]) -> None:
    user = create(client, name="Ada")
    response = client.patch(f"{USERS}/{user['id']}", json=patch)
    assert (response.status_code, response.json(), response.headers["etag"]) == (200, user, '"1"')


def test_patch_may_change_the_case_of_ones_own_address(client: httpx.Client) -> None:
    user = create(client)
    response = client.patch(f"{USERS}/{user['id']}", json={"email": "ADA@example.com"})
    assert (response.status_code, response.json()["email"]) == (200, "ADA@example.com")


@on_neon_too
def test_patch_to_a_taken_address(client: httpx.Client) -> None:
    create(client)
    other = create(client, "other@example.com")
    response = client.patch(f"{USERS}/{other['id']}", json={"email": "ADA@example.com", "name": "x"})
    assert_problem(response, 409, "email-taken", "Email already registered")
    assert client.get(f"{USERS}/{other['id']}").json() == other


@pytest.mark.parametrize("body", ['{"email": "x"}', '{"name": 1}', "[]", "", '{"name": "\\u0000"}'])
def test_patch_refuses_what_is_not_valid(client: httpx.Client, body: str) -> None:
    response = client.patch(f"{USERS}/{create(client)['id']}", content=body, headers=JSON)
    assert_problem(response, 422, "invalid")


IF_MATCH = [
    ('"1"', True),
    ("*", True),
    ('"7", "1"', True),
    ('"2"', False),
    ('W/"1"', False),
    ('"0"', False),
    ('"x"', False),
    ("1", False),
    ("", False),
    ('"' + "9" * 18 + '"', False),
    ('"' + "9" * 19 + '"', False),
    ('"' + "9" * 400 + '"', False),
    (',"7" ,\t"1",', True),
    ('"a,b", "1"', True),
    ('"a, b", "1"', False),
    ('w/"1"', False),
    ('"1" garbage', False),
    ('garbage, "1"', False),
    ('"1" "7"', False),
    ('"1', False),
    ('*, "1"', False),
]


@pytest.mark.parametrize(("header", "matches"), IF_MATCH)
def test_patch_honours_if_match(client: httpx.Client, header: str, matches: bool) -> None:
    url = f"{USERS}/{create(client)['id']}"
    response = client.patch(url, json={"name": "new"}, headers={"if-match": header})
    if matches:
        assert (response.status_code, response.headers["etag"]) == (200, '"2"')
    else:
        assert_problem(response, 412, "version-mismatch")
    assert client.get(url).json()["name"] == ("new" if matches else None)


# DELETE /api/v1/users/{id}


@on_neon_too
def test_delete(client: httpx.Client) -> None:
    url = f"{USERS}/{create(client)['id']}"
    response = client.delete(url)
    assert (response.status_code, response.content) == (204, b"")
    assert "content-type" not in response.headers
    assert_problem(client.get(url), 404, detail="User not found")
    assert_problem(client.delete(url), 404, detail="User not found")
    assert listed(client) == []
    create(client)


@pytest.mark.parametrize(("header", "matches"), IF_MATCH)
def test_delete_honours_if_match(client: httpx.Client, header: str, matches: bool) -> None:
    url = f"{USERS}/{create(client)['id']}"
    response = client.delete(url, headers={"if-match": header})
    if matches:
        assert response.status_code == 204
    else:
        assert_problem(response, 412, "version-mismatch")
    assert client.get(url).status_code == (404 if matches else 200)


@pytest.mark.parametrize(("header", "matches"), IF_MATCH)
def test_get_honours_if_match(client: httpx.Client, header: str, matches: bool) -> None:
    response = client.get(f"{USERS}/{create(client)['id']}", headers={"if-match": header})
    if matches:
        assert response.status_code == 200
    else:
        assert_problem(response, 412, "version-mismatch")


@pytest.mark.parametrize("header", ["*", '"1"', '"2"'])
@pytest.mark.parametrize("method", ["PATCH", "DELETE"])
def test_a_change_on_if_none_match_is_refused(client: httpx.Client, method: str, header: str) -> None:
    keys: dict[str, Any] = {"json": {"name": "new"}} if method == "PATCH" else {}
    url = f"{USERS}/{create(client)['id']}"
    assert_problem(client.request(method, url, headers={"if-none-match": header}, **keys), 412, "version-mismatch")
    assert client.get(url).headers["etag"] == '"1"'


@pytest.mark.parametrize(
    ("name", "header", "status"),
    [
        ("if-match", "*", 201),
        ("if-match", '"1"', 412),
        ("if-match", "garbage", 412),
        ("if-none-match", "*", 412),
        ("if-none-match", '"1"', 201),
    ],
)
def test_the_conditions_of_a_creation_are_about_the_list(
    client: httpx.Client, name: str, header: str, status: int
) -> None:
    """RFC 9110, sections 13.1.1 and 13.1.2: it is there, and has no ETag."""
    response = client.post(USERS, json={"email": "ada@example.com"}, headers={name: header})
    assert response.status_code == status
    if status == 412:
        assert_problem(response, 412, "version-mismatch")
    assert len(client.get(USERS).json()) == (status == 201)
    # A request that is refused anyway is so for its own reason (section 13.2.1).
    assert client.post(USERS, json={}, headers={name: header}).status_code == 422


def test_a_list_of_tags_is_read_in_linear_time(client: httpx.Client) -> None:
    url = f"{USERS}/{create(client)['id']}"
    for header in ("," + " " * 30_000 + "x", "," * 30_000 + "x", '"' * 30_000, '"",' * 10_000 + "x", "W/" * 15_000):
        assert client.get(url, headers={"if-none-match": header}).elapsed.total_seconds() < 1


def test_conditions_may_come_in_several_lines(client: httpx.Client) -> None:
    url = f"{USERS}/{create(client)['id']}"
    assert client.get(url, headers=[("if-none-match", '"7"'), ("if-none-match", '"1"')]).status_code == 304
    tags = [("if-match", '"7"'), ("if-match", '"1"')]
    assert client.patch(url, json={"name": "new"}, headers=tags).status_code == 200
    assert_problem(client.delete(url, headers=tags), 412, "version-mismatch")


@pytest.mark.parametrize("method", ["PATCH", "DELETE"])
def test_if_match_of_an_absent_user_is_404(client: httpx.Client, method: str) -> None:
    keys: dict[str, Any] = {"json": {}} if method == "PATCH" else {}
    response = client.request(method, f"{USERS}/999", headers={"if-match": '"1"'}, **keys)
    assert_problem(response, 404, detail="User not found")


# Everything else


def test_health(client: httpx.Client) -> None:
    response = client.get("/health")
    assert (response.status_code, response.content) == (200, b'{"status":"healthy"}')


@pytest.mark.parametrize("path", ["/api", "/api/v1", "/api/v1/user", f"{USERS}/1/", f"{USERS}/1/x", "/health/"])
def test_a_path_that_is_none(client: httpx.Client, path: str) -> None:
    assert_problem(client.get(path), 404)


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("PUT", USERS, "GET, HEAD, POST"),
        ("DELETE", USERS + "/", "GET, HEAD, POST"),
        ("OPTIONS", USERS, "GET, HEAD, POST"),
        ("POST", f"{USERS}/1", "DELETE, GET, HEAD, PATCH"),
        ("PUT", f"{USERS}/x", "DELETE, GET, HEAD, PATCH"),
        ("POST", "/health", "GET, HEAD"),
    ],
)
def test_a_method_that_a_path_does_not_have(client: httpx.Client, method: str, path: str, allow: str) -> None:
    response = client.request(method, path)
    assert_problem(response, 405)
    assert response.headers["allow"] == allow


def test_head_answers_as_get_without_a_body(client: httpx.Client) -> None:
    url = f"{USERS}/{create(client)['id']}"
    for path in (url, USERS, USERS + "/", "/health"):
        get, head = client.get(path), client.head(path)
        assert (head.status_code, head.content) == (200, b"")
        own = ("date", "x-request-id")
        assert {k: v for k, v in head.headers.items() if k not in own} == {
            k: v for k, v in get.headers.items() if k not in own
        }
    missing = client.head(f"{USERS}/999")
    assert (missing.status_code, missing.content) == (404, b"")
