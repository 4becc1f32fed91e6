"""Search by the beginning of an address or a name, and by creation time, in either order: each page once."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from api.app import create_app
from api.resources.cursors import MAX_ID, Position, read_cursor, write_cursor
from tests.support.catalogue import empty
from tests.support.database import execute, locked
from tests.support.serving import serve, settings_for
from tests.support.users import assert_invalid, create

USERS = "/api/v1/users"


def walk(client: httpx.Client, **query: Any) -> list[list[dict[str, Any]]]:
    """Every page, by the links alone."""
    pages = []
    response = client.get(USERS, params=query)
    while True:
        assert response.status_code == 200, response.text
        pages.append(response.json())
        if "next" not in response.links:
            return pages
        response = client.get(response.links["next"]["url"])


def emails(pages: list[list[dict[str, Any]]]) -> list[str]:
    return [user["email"] for page in pages for user in page]


@pytest.fixture(scope="module")
def database(postgres: str, template: str) -> Iterator[str]:
    """One database for all of these tests: they only read, or fill it themselves."""
    execute(postgres, f"create database searched template {template}")
    yield postgres.replace("/postgres?", "/searched?")
    execute(postgres, "drop database searched with (force)")


@pytest.fixture(scope="module")
def server(database: str) -> Iterator[httpx.Client]:
    with serve(create_app(settings_for(database))) as url, httpx.Client(base_url=url) as client:
        yield client


@pytest.fixture
def client(server: httpx.Client, database: str) -> httpx.Client:
    empty(database)
    return server


@pytest.fixture
def people(client: httpx.Client) -> httpx.Client:
    for email, name in [
        ("ada.lovelace@example.com", "Ada Lovelace"),
        ("countess@example.com", "ada"),
        ("Ada@example.com", None),
        ("grace@example.com", "Grace Hopper"),
        ("bob@example.com", "ADAM"),
        ("zoe@example.com", "Élodie"),
        ("100%@example.com", "50% _off_"),
        ("a@example.com", "\\a"),
    ]:
        create(client, email, name=name)
    return client


@pytest.mark.parametrize("limit", [1, 2, 100])
@pytest.mark.parametrize(
    ("q", "found"),
    [
        # "ada" < "ada lovelace" < "ada@example.com" < "adam": in the order of what matched, each user once.
        ("ada", ["countess@example.com", "ada.lovelace@example.com", "Ada@example.com", "bob@example.com"]),
        ("ADA", ["countess@example.com", "ada.lovelace@example.com", "Ada@example.com", "bob@example.com"]),
        ("ada ", ["ada.lovelace@example.com"]),
        ("ada.", ["ada.lovelace@example.com"]),
        ("grace@example.com", ["grace@example.com"]),
        ("grace@example.com.", []),
        ("lovelace", []),
        ("élo", ["zoe@example.com"]),
        ("ÉLO", ["zoe@example.com"]),
        ("nobody", []),
        # What LIKE takes for wildcards and escapes stands for itself.
        ("%", []),
        ("100%", ["100%@example.com"]),
        ("50% _", ["100%@example.com"]),
        ("___", []),
        ("\\", ["a@example.com"]),
        ("a' or '1'='1", []),
        ("\U0010ffff", []),
    ],
)
def test_by_the_beginning_of_an_address_or_a_name(people: httpx.Client, q: str, found: list[str], limit: int) -> None:
    pages = walk(people, q=q, limit=limit)
    assert emails(pages) == found
    assert all(len(page) <= limit for page in pages)


def test_a_user_is_the_same_object_in_a_search(people: httpx.Client) -> None:
    (user,) = people.get(USERS, params={"q": "grace"}).json()
    assert people.get(USERS, params={"q": "grace"}).content == b"[" + people.get(f"{USERS}/{user['id']}").content + b"]"


word = st.text("aAbB .é", min_size=1, max_size=4)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    people=st.lists(st.tuples(st.text("aAbB", min_size=1, max_size=4), st.none() | word)),
    q=word,
    limit=st.integers(1, 4),
)
def test_every_match_is_found_once_and_in_order(
    client: httpx.Client, database: str, people: list[tuple[str, str | None]], q: str, limit: int
) -> None:
    empty(database)
    expected: dict[str, tuple[str, int]] = {}
    for local, name in people:
        response = client.post(USERS, json={"email": f"{local}@example.com", "name": name})
        if response.status_code == 201:
            keys = [key.lower() for key in (f"{local}@example.com", name) if key is not None]
            matching = [key for key in keys if key.startswith(q.lower())]
            if matching:
                expected[response.json()["email"]] = (min(matching), response.json()["id"])
    pages = walk(client, q=q, limit=limit)
    assert emails(pages) == sorted(expected, key=expected.__getitem__)


def test_pages_stay_bounded_where_everybody_matches_twice(client: httpx.Client, database: str) -> None:
    """Behind all the names come all the addresses, of users that were found already: pages may be empty, never slow."""
    execute(
        database,
        "insert into users (email, name)"
        " select 'user' || n || '@example.com', 'user ' || n from generate_series(1, 100) n",
    )
    pages = walk(client, q="user", limit=10)
    assert sorted(emails(pages)) == sorted(f"user{n}@example.com" for n in range(1, 101))
    assert [len(page) for page in pages[:10]] == [10] * 10
    assert len(pages) <= 10 + 100 / 20 + 1


@pytest.fixture
def days(client: httpx.Client, database: str) -> httpx.Client:
    """Users of ten days, two at each time, whose ids run against their creation."""
    execute(
        database,
        "insert into users (email, created_at) select n || '@example.com', timestamptz '2026-01-10T00:00:00Z'"
        " - interval '1 day' * (n / 2) from generate_series(0, 19) n",
    )
    return client


@pytest.mark.parametrize("limit", [1, 3, 20, 100])
def test_by_creation(days: httpx.Client, limit: int) -> None:
    oldest = emails(walk(days, order="created_at", limit=limit))
    assert oldest == [f"{n}@example.com" for day in range(9, -1, -1) for n in (2 * day, 2 * day + 1)]
    assert emails(walk(days, order="-created_at", limit=limit)) == oldest[::-1]


@pytest.mark.parametrize("limit", [1, 3, 100])
@pytest.mark.parametrize("order", [None, "created_at", "-created_at"])
@pytest.mark.parametrize(
    ("bounds", "first", "last"),
    [
        ({"created_after": "2026-01-05T00:00:00Z"}, 6, 10),
        ({"created_before": "2026-01-05T00:00:00Z"}, 1, 4),
        ({"created_after": "2026-01-04T23:59:59.999999Z", "created_before": "2026-01-05T00:00:00.000001Z"}, 5, 5),
        ({"created_after": "2026-01-05T02:00:00+02:00", "created_before": "2026-01-07t00:00:00z"}, 6, 6),
        ({"created_after": "2026-02-01T00:00:00Z"}, 1, 0),
        ({"created_after": "0001-01-01T00:00:00Z", "created_before": "9999-12-31T23:59:59Z"}, 1, 10),
    ],
)
def test_between_two_times(
    days: httpx.Client, bounds: dict[str, str], first: int, last: int, order: str | None, limit: int
) -> None:
    found = walk(days, **bounds, **({"order": order} if order else {}), limit=limit)
    created = [datetime.fromisoformat(user["created_at"]) for page in found for user in page]
    expected = [datetime(2026, 1, day, tzinfo=UTC) for day in range(first, last + 1) for _ in range(2)]
    assert created == (expected[::-1] if order == "-created_at" else expected)


def test_a_time_as_an_answer_shows_it_needs_no_escape(client: httpx.Client) -> None:
    first, second = create(client, "a@example.com"), create(client, "b@example.com")
    assert client.get(f"{USERS}?created_after={first['created_at']}").json() == [second]
    later = (datetime.fromisoformat(second["created_at"]) + timedelta(microseconds=1)).isoformat()
    assert client.get(f"{USERS}?created_after={first['created_at']}&created_before={later}").json() == [second]


@pytest.mark.parametrize("limit", [1, 3, 20, 100])
def test_by_id_backwards(days: httpx.Client, limit: int) -> None:
    ids = [user["id"] for page in walk(days, order="id", limit=limit) for user in page]
    assert ids == sorted(ids)
    assert len(ids) == 20
    assert [user["id"] for page in walk(days, order="-id", limit=limit) for user in page] == ids[::-1]
    assert [user["id"] for user in days.get(USERS, params={"order": "-id", "after": ids[5]}).json()] == ids[4::-1]
    assert days.get(USERS, params={"order": "-id", "after": 0}).json() == []
    assert len(days.get(USERS, params={"order": "-id", "after": MAX_ID}).json()) == 20


@pytest.mark.parametrize(
    "query",
    [
        "q=ada&email=ada@example.com",
        "q=ada&order=id",
        "q=ada&order=created_at",
        "q=ada&skip=0",
        "q=ada&after=0",
        "q=ada&created_after=2026-01-01T00:00:00Z",
        "email=ada@example.com&order=id",
        "email=ada@example.com&cursor=WyJhIiwxXQ",
        "order=-id&skip=1",
        "order=id&created_before=2026-01-01T00:00:00Z",
        "order=created_at&after=5",
        "order=-created_at&skip=5",
        "created_after=2026-01-01T00:00:00Z&after=5",
        "cursor=WyJhIiwxXQ",
        "order=id&cursor=WyJhIiwxXQ",
        "order=created_at&cursor=WyJhIiwxXQ",
    ],
)
def test_what_does_not_fit_together_is_said(client: httpx.Client, query: str) -> None:
    refused = client.get(f"{USERS}?{query}")
    assert_invalid(refused, ["query"])
    message = refused.json()["errors"][0]["msg"]
    assert "cannot be used together with" in message or "must be a time" in message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("q", ""),
        ("q", "x" * 256),
        ("q", "a\0"),
        ("order", "name"),
        ("order", ""),
        ("created_after", ""),
        ("created_after", "yesterday"),
        ("created_after", "2026-01-01"),
        ("created_after", "2026-01-01T00:00:00"),
        ("created_after", "2026-02-30T00:00:00Z"),
        ("created_after", "2026-01-01T00:00:60Z"),
        ("created_before", "1700000000"),
        ("created_before", "0001-01-01T00:00:00+14:00"),
        ("created_before", "infinity"),
        ("created_before", "2026-01-01T00:00:00+24:00"),
        ("created_before", "2026-01-01T00:00:00+23:60"),
        ("created_before", "2026-01-01T24:00:00Z"),
        ("created_before", "2026-01-01T23:60:00Z"),
        ("created_before", "2026-01-30T23:59:60Z"),
        ("created_before", "2026-01-31T23:59:60+01:00"),
        ("created_before", "2026-01-31T22:59:60Z"),
        ("created_before", "9999-12-31T23:59:60Z"),
        ("created_before", "\uff12026-01-01T00:00:00Z"),
    ],
)
def test_what_is_no_such_value(client: httpx.Client, name: str, value: str) -> None:
    assert_invalid(client.get(USERS, params={name: value}), ["query", name])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2026-02-29T00:00:00Z", "has a day that is in no calendar"),
        ("2026-13-01T00:00:00Z", "has a day that is in no calendar"),
        ("2026-01-01T00:00:00+24:00", "must be a time such as"),
        ("2026-01-01T25:00:00Z", "must be a time such as"),
        ("2026-01-01T00:00:60Z", "has the second 60"),
        ("0000-01-01T00:00:00Z", "is no time of the years 1 to 9999"),
        ("0001-01-01T00:00:00+01:00", "is no time of the years 1 to 9999"),
        ("9999-12-31T23:59:60Z", "is no time of the years 1 to 9999"),
    ],
)
def test_what_is_wrong_with_a_time_is_said(client: httpx.Client, text: str, message: str) -> None:
    assert client.get(USERS, params={"created_after": text}).json()["errors"][0]["msg"].startswith(message)


@pytest.mark.parametrize(
    ("text", "is_before"),
    [
        ("2016-12-31T23:59:60Z", "2017-01-01T00:00:00.000001Z"),
        ("2016-12-31T23:59:60.25Z", "2017-01-01T00:00:00.250001Z"),
        ("1990-12-31T15:59:60-08:00", "1991-01-01T00:00:00.000001Z"),
        ("2024-02-29T00:00:00Z", "2024-02-29T00:00:00.000001Z"),
        ("2024-02-29t00:00:00.123456789z", "2024-02-29T00:00:00.123457Z"),
        ("2024-02-29 00:00:00-00:00", "2024-02-29T00:00:00.000001Z"),
    ],
)
def test_times_of_rfc_3339(client: httpx.Client, database: str, text: str, is_before: str) -> None:
    """A user created a microsecond later is found, and one created then is not."""
    for number, moment in enumerate((is_before, is_before + "::timestamptz - interval '1 microsecond'")):
        at = moment.replace(is_before, f"'{is_before}'")
        execute(database, f"insert into users (email, created_at) values ('{number}@example.com', {at})")
    assert emails(walk(client, created_after=text)) == ["0@example.com"]


ADDRESSES = ["josé@bücher.example.com", "joe@example.com", "zoë@example.com"]


@pytest.mark.parametrize(
    ("q", "found"),
    [
        ("jose\u0301@bücher.example.com", ADDRESSES[:1]),
        ("josé@xn--bcher-kva.example.com", ADDRESSES[:1]),
        ("JOSE\u0301@XN--BCHER-KVA.EXAMPLE.COM", ADDRESSES[:1]),
        ("jose\u0301@bu\u0308cher", ADDRESSES[:1]),
        ("josé@xn--bcher-kva", ADDRESSES[:1]),
        ("josé@xn--bcher-kva.ex", ADDRESSES[:1]),
        ("josé@bücher\u3002example.com", ADDRESSES[:1]),
        (" josé@bücher.example.com ", ADDRESSES[:1]),
        ("jose\u0301", ADDRESSES[:1]),
        ("zoe\u0308", ADDRESSES[2:]),
        ("josé@xn--bcher-kv.", []),
        ("josé@xn--" + "a\ud800".encode("punycode").decode(), []),
        ("josé@xn--99999999999", []),
        ("@", []),
    ],
)
@pytest.mark.parametrize("limit", [1, 100])
def test_an_address_in_another_form_is_found_too(client: httpx.Client, q: str, found: list[str], limit: int) -> None:
    for address in ADDRESSES:
        create(client, address)
    assert emails(walk(client, q=q, limit=limit)) == found
    if found and q.endswith("com"):
        assert [user["email"] for user in client.get(USERS, params={"email": q}).json()] == found


def test_a_decomposed_name_is_found_as_it_is(client: httpx.Client) -> None:
    create(client, "one@example.com", name="Zoe\u0308")
    create(client, "two@example.com", name="Zoë")
    assert emails(walk(client, q="zoe\u0308")) == ["one@example.com"]
    assert emails(walk(client, q="zoë")) == ["two@example.com"]


@pytest.mark.parametrize(
    "value", ["", "x", "WyJhIiwxXQ==x", "WyJhIl0", "WzEsMV0", "WyJhIiwtMV0", "WyJhIix0cnVlXQ", "é", "A" * 4096]
)
def test_a_cursor_that_nobody_gave(client: httpx.Client, value: str) -> None:
    assert_invalid(client.get(USERS, params={"q": "a", "cursor": value}), ["query", "cursor"])


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), st.integers(0, MAX_ID))
def test_a_cursor_there_and_back(key: str, id: int) -> None:
    assert read_cursor(write_cursor(Position(key, id))) == Position(key, id)


@pytest.mark.parametrize("key", ["2026-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "2026-01-01T00:00:00Z"])
def test_no_cursor_ends_in_a_500(client: httpx.Client, key: str) -> None:
    cursor = write_cursor(Position(key, MAX_ID))
    for query in ({"order": "created_at"}, {"order": "-created_at"}, {"q": "a"}):
        assert client.get(USERS, params={**query, "cursor": cursor}).status_code in (200, 422)


@pytest.mark.parametrize("order", ["id", "created_at"])
def test_a_user_whose_transaction_commits_late_is_behind_the_reader(
    client: httpx.Client, database: str, order: str
) -> None:
    """As documented: ids and times are given before the commit, so a reader has to look back."""
    with locked(database, "insert into users (email) values ('late@example.com')") as other:
        seen = create(client, "early@example.com")
        following = {"id": {"after": seen["id"]}, "created_at": {"created_after": seen["created_at"]}}[order]
        other.commit()
    assert client.get(USERS, params=following).json() == []
    back = datetime.fromisoformat(seen["created_at"]) - timedelta(minutes=2)
    again = client.get(USERS, params={"created_after": back.isoformat(), "order": "created_at"}).json()
    assert [user["email"] for user in again] == ["late@example.com", "early@example.com"]
    # A walk from the beginning shows each user that was there when it began.
    walk = client.get(USERS, params={"limit": 1})
    create(client, "new@example.com")
    rest = client.get(USERS, params={"after": walk.json()[0]["id"]})
    assert {user["email"] for user in walk.json() + rest.json()} >= {"late@example.com", "early@example.com"}
