"""`Email` against `EmailStr`: the same value or the same errors, near every edge of the fast path.

And `email_key` against PostgreSQL.
"""

import itertools
import json
import runpy
import string
import sys
import unicodedata
from enum import StrEnum
from typing import Annotated, Any

import email_validator
import pytest
from email_validator.rfc_constants import CASE_INSENSITIVE_MAILBOX_NAMES
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, EmailStr, Field, TypeAdapter, ValidationError, create_model

from api.users import emails
from api.users.emails import Email, email_key
from api.users.queries import NewUser
from tests.support.database import execute

Reference = Annotated[EmailStr, Field(max_length=254)]
email_field: TypeAdapter[str] = TypeAdapter(Email)
reference: TypeAdapter[str] = TypeAdapter(Reference)


class User(BaseModel):
    email: Email
    other: Email | None = None


class ReferenceUser(BaseModel):
    email: Reference
    other: Reference | None = None


def answer(adapter: TypeAdapter[str], value: object, **options: Any) -> tuple[type, str] | list[Any]:
    """The value and its exact type, or all of the errors: type, loc, msg, input and ctx."""
    try:
        valid = adapter.validate_python(value, **options)
    except ValidationError as refused:
        return list(refused.errors())
    return type(valid), valid


def answer_to_json(model: type[BaseModel], body: str) -> dict[str, Any] | list[Any]:
    try:
        return model.model_validate_json(body).model_dump()
    except ValidationError as refused:
        return list(refused.errors())


def assert_same(address: object) -> None:
    assert answer(email_field, address) == answer(reference, address), ascii(address)


def domain_of(length: int) -> str:
    """A domain of that many characters whose labels are all within the limit."""
    labels = "a." * 2 + "b" * 59 + "." + "c" * 63 + "." + "d" * 63 + "." + "e" * 59
    domain = labels[-(length - 3) :].lstrip(".") + ".co"
    return "x" * (length - len(domain)) + domain


ORDINARY = [
    "ada@example.com",
    "ada@example.org",
    "Ada@example.com",
    "Ada.Lovelace@Example.COM",
    "ADA@EXAMPLE.COM",
    "ada.lovelace@mail.example.co.uk",
    "ada+news@example.com",
    "ada+news+2026.01@example.com",
    "ada_lovelace@example.com",
    "ada-lovelace@example.com",
    "-ada-@example.com",
    "a@b.co",
    "1@2.co",
    "0123456789@123.com",
    "o'brien@example.ie",
    "a.b.c.d@a.b.c.d",
    "!#$%&'*+/=?^_`{|}~-@example.com",
    "--@example.com",
    "ada@my-company.example",
    "ada@a-b-c.example",
    "info@example.com",
    "INFO@example.com",
    "Postmaster@Example.com",
    "infos@example.com",
    "test@testing.com",
    "ada@latest.com",
    "ada@test.com",
    "local@local.example",
    "ada@local.host",
    "ada@xn.com",
    "l" * 55 + "@test.com",
]

SPECIAL_USE = [
    address
    for name in email_validator.SPECIAL_USE_DOMAIN_NAMES
    for address in (
        f"ada@{name}",
        f"ada@example.{name}",
        f"ada@EXAMPLE.{name.upper()}",
        f"ada@a.b.c.{name.title()}",
        f"ada@{name}.com",
        f"ada@x{name}.com",
        f"ada@example.x{name}",
        f"ada@example.{name}x",
        f"ada@example-{name}",
        f"{name}@{name}.{name}",
        f"ada.{name}@example.com",
        f"ada@example.{name}.",
    )
]

ODD = [
    # '@'
    "",
    " ",
    "@",
    "@@",
    "ada",
    "ada@",
    "@example.com",
    "ada@@example.com",
    "ada@b@example.com",
    "ada@example.com@",
    "ada\uff20example.com",
    "ada\ufe6bexample.com",
    # dots
    ".ada@example.com",
    "ada.@example.com",
    "a..b@example.com",
    ".@example.com",
    "ada@.example.com",
    "ada@example.com.",
    "ada@example..com",
    "ada@example.",
    "ada@.com",
    "ada@.",
    "ada@example\u3002com",
    "ada@example.com",
    # domains without a dot, and last labels
    "ada@example",
    "ada@com",
    "ada@example.1",
    "ada@example.123",
    "ada@example.1a",
    "ada@example.a1",
    "ada@example.c0m",
    "ada@example.c",
    "ada@example.co-m",
    "ada@127.0.0.1",
    "ada@1.2.3.4.5",
    # hyphens and underscores
    "ada@-example.com",
    "ada@example-.com",
    "ada@example.-com",
    "ada@example.com-",
    "ada@-.com",
    "ada@a--b.com",
    "ada@ab--c.com",
    "ada@abc--d.com",
    "ada@AB--c.com",
    "ada@a.bc--d.com",
    "ada@12--3.com",
    "ada@a---b.com",
    "ada@exam_ple.com",
    "ada@_example.com",
    "ada@example.c_m",
    # internationalized
    "adä@example.com",
    "ada\u0308@example.com",
    "\u0308ada@example.com",
    "用户@例子.广告",
    "ada@bücher.example",
    "ada@BÜCHER.example",
    "ada@bu\u0308cher.example",
    "ada@straße.de",
    "ada@ΕΧΑΜΠΛΕ.gr",
    "ada@faß.de",
    "ada@example.рф",
    "ada@אב.com",
    "ada@1.אב.com",
    "\u212aelvin@example.com",
    "ada@\u212aelvin.com",
    "ada@example.\u017fe",
    "ada@\uff45xample.com",
    "ada@exam\u00adple.com",
    "ada@exam\u200dple.com",
    "ad\u200ba@example.com",
    "ad\u00a0a@example.com",
    "ad\u202ea@example.com",
    "ada\u0338<a@example.com>",
    "😀@example.com",
    "ada@😀.com",
    "ada@example.\u0661\u0662",
    "\u0661@example.com",
    # Punycode
    "ada@xn--bcher-kva.example",
    "ada@XN--BCHER-KVA.example",
    "ada@Xn--bcher-kva.EXAMPLE",
    "ada@xn--a.com",
    "ada@xn--.com",
    "ada@xn---.com",
    "ada@a.xn--p1ai",
    "ada@xn--4dbc.com",
    "ada@1.xn--4dbc.com",
    "ada@xn-a.com",
    "ada@axn--b.com",
    "xn--ada@example.com",
    # quoted
    '"ada"@example.com',
    '"ada lovelace"@example.com',
    '"ada@b"@example.com',
    '"a\\"b"@example.com',
    '"a\\\\b"@example.com',
    '"".b@example.com',
    '""@example.com',
    '"ada"b@example.com',
    '"ada@example.com',
    'ada"@example.com',
    'a"d"a@example.com',
    '"adä"@example.com',
    "'ada'@example.com",
    # IP literals
    "ada@[127.0.0.1]",
    "ada@[256.0.0.1]",
    "ada@[IPv6:::1]",
    "ada@[ipv6:::1]",
    "ada@[IPv6:::1%eth0]",
    "ada@[IPv6:x]",
    "ada@[x:y]",
    "ada@[]",
    "ada@[127.0.0.1",
    # display names and comments
    "Ada <ada@example.com>",
    "Ada Lovelace <ADA@EXAMPLE.com>",
    '"Lovelace, Ada" <ada@example.com>',
    "<ada@example.com>",
    " < ada@example.com > ",
    "Ada <ada@example.com",
    "Ada ada@example.com>",
    "Ada <>",
    "Ada <<ada@example.com>>",
    "Ada <ada@example.test>",
    "Ada.L <ada@example.com> x",
    "ada(comment)@example.com",
    "(comment)ada@example.com",
    "ada@(comment)example.com",
    "ada@example.com(comment)",
    "mailto:ada@example.com",
    "ada@example.com,b@example.com",
    "ada@example.com;b@example.com",
    "ada@example.com:25",
    "ada@example.com/x",
    "a\\da@example.com",
    "[ada]@example.com",
    # blanks and control characters
    " ada@example.com",
    "ada@example.com ",
    "\tada@example.com\t",
    "ada@example.com\n",
    "\nada@example.com",
    "ada@example.com\r\n",
    "ada@exam\nple.com",
    "ada\n@example.com",
    "ada@example.com\x0b",
    "ada@example.com\x1c",
    "ada@example.com\x85",
    "ada@example.com\u2028",
    "ad a@example.com",
    "ada @example.com",
    "ada@ example.com",
    "ada@exam ple.com",
    "\0",
    "\0ada@example.com",
    "ad\0a@example.com",
    "ada@example.com\0",
    "ad\x7fa@example.com",
    "ada@exam\x1bple.com",
    # surrogates and the ends of Unicode
    "\ud800",
    "\ud800@example.com",
    "ada@\udfff.com",
    "\ud83d\ude00@example.com",
    "\ufeffada@example.com",
    "\uffff@example.com",
    "\U0010ffff@example.com",
    # RFC 2142's mailboxes
    *(f"{name.title()}@Example.com" for name in CASE_INSENSITIVE_MAILBOX_NAMES),
    "Info.x@example.com",
    "INFOS@example.com",
    '"INFO"@example.com',
]

LIMITS = [
    # the fast path's own limit, with and without something to lower
    *("l" * (n - 12) + "@example.com" for n in (63, 64, 65)),
    *("L" * (n - 12) + "@EXAMPLE.com" for n in (63, 64, 65)),
    # local part: 64, when STRICT
    *("l" * n + "@example.com" for n in (50, 51, 52, 53, 63, 64, 65)),
    # label: 63
    *(f"a@{'d' * n}.com" for n in (57, 58, 59, 62, 63, 64)),
    *(f"ada@example.{'d' * n}" for n in (62, 63, 64)),
    # domain: 253
    *(f"a@{domain_of(n)}" for n in (251, 252, 253, 254, 255)),
    # whole: 254, in octets
    *("l" * (n - 201) + "@" + domain_of(200) for n in (253, 254, 255)),
    *("ä" * n + "@" + domain_of(200) for n in (26, 27)),
    *("ada@" + "ü" * n + ".com" for n in (56, 57, 58, 59, 60)),
    f"Ada <{'l' * 60}@{domain_of(193)}>",
    f"Ada <{'l' * 60}@{domain_of(194)}>",
    # and pydantic's 2048
    *("l" * (n - 12) + "@example.com" for n in (2047, 2048, 2049)),
    "@" * 2049,
]

CORPUS = list(dict.fromkeys(ORDINARY + SPECIAL_USE + ODD + LIMITS))


def test_the_corpus_is_large_and_holds_both_kinds() -> None:
    assert len(CORPUS) >= 150
    accepted = sum(isinstance(answer(reference, address), tuple) for address in CORPUS)
    assert 80 < accepted < len(CORPUS) - 80
    assert [len(domain_of(n)) for n in range(190, 256)] == list(range(190, 256))


@pytest.mark.parametrize("address", CORPUS, ids=lambda address: ascii(address)[:60])
def test_the_corpus_gets_the_answers_of_emailstr(address: str) -> None:
    assert_same(address)
    body = json.dumps({"email": address, "other": address})
    assert answer_to_json(User, body) == answer_to_json(ReferenceUser, body)


def test_every_character_at_every_place_gets_the_answer_of_emailstr() -> None:
    ordinary = "a.b@c-d.e2.fg"
    odd = "\u00a0\u0130\u0131\u017f\u0308\u06f1\u200d\u212a\u2024\u3002\uff0e\uff20\ufe6b\ud800\ufb01\U0001f600"
    for character in [*map(chr, range(256)), *odd]:
        for place in range(len(ordinary) + 1):
            assert_same(ordinary[:place] + character + ordinary[place:])
            assert_same(ordinary[:place] + character + ordinary[place + 1 :])


def is_plain(text: str) -> bool:
    """The definition, of texts without other characters than a, 1, a dot, a hyphen and @."""
    local, at, domain = text.partition("@")
    *labels, last = domain.split(".")
    words = [word for label in [*labels, last] for word in label.split("-")]
    return bool(at and labels and last.isalpha() and all([*local.split("."), *words]) and "@" not in domain)


def test_the_expression_is_the_definition_of_a_plain_address() -> None:
    """Of every short text: a Python that compiles it wrong has no fast path, or takes what is no address."""
    for length in range(8):
        for characters in itertools.product("a1.-@", repeat=length):
            text = "".join(characters)
            assert bool(emails._is_plain(text)) == is_plain(text), text


# An example is a batch of addresses: drawing costs more than comparing. 5 x 600 batches
# hold more than 20,000 different ones.
EXAMPLES = settings(
    max_examples=600, deadline=None, database=None, suppress_health_check=list(HealthCheck), print_blob=True
)

atext = string.ascii_letters + string.digits + "!#$%&'*+/=?^_`{|}~-"
nasty = "@.-\"'\\()<>[],:; \t\n\r\0\x7fAZ_1\u00df\u00e4\u017f\u0308\u200b\u212a\u3002\uff0e\uff11\uff20\ud800\U0001f600"


def crossed(locals_: list[str], domains: list[str]) -> list[str]:
    """Each with each, and with one that is valid, so that the other half decides."""
    return [f"{local}@{domain}" for local in ["Ada", *locals_] for domain in ["B.co", *domains]]


# Atoms and labels joined by dots: what the regular expression takes apart, right or wrong by one character.
mailboxes = st.sampled_from(
    [
        form
        for name in CASE_INSENSITIVE_MAILBOX_NAMES
        for form in (name, name.upper(), name.title(), name.upper() + "S", f'"{name.upper()}"', f".{name}")
    ]
)
locals_ = mailboxes | st.text(atext + "......", max_size=12)
labels = st.one_of(
    st.text("abXN01", min_size=1, max_size=6),
    st.text("abXN01-", max_size=6),
    st.sampled_from(
        ["xn--bcher-kva", "xn--", "xN--a", "Test", "a", "1", ""]
        + [before + "-" * n + after for before in ("", "a", "ab", "abc") for n in (1, 2, 3) for after in ("", "d")]
    ),
)
tlds = (
    st.sampled_from(["com", "org", "CO", "c", "co-m", "c0", "0c", "0", "xn--p1ai", "рф", "", "com.", "-c", "c-"])
    | labels
)
domains = st.builds("{}.{}".format, labels, tlds) | st.builds("{}.{}.{}".format, labels, labels, tlds)
structured = st.builds(crossed, st.lists(locals_, min_size=4, max_size=4), st.lists(domains, min_size=8, max_size=8))

# Names that are reserved, and those that only look so.
reserved = st.builds(
    lambda local, before, name, after: (
        [f"{local}@{before}{recase(name)}{after}" for recase in (str, str.upper, str.title, str.swapcase)]
        + [f"{local}@{head}{before}{name}{after}" for head in ("a", "example", "test", "local.test", "a-b")]
    ),
    locals_,
    st.sampled_from(["", ".", "-", "x", "..", ".x", "a.", "test.", "1."]),
    st.sampled_from([*email_validator.SPECIAL_USE_DOMAIN_NAMES, "example", "example.com", "tes", "locals"]),
    st.sampled_from(["", ".", "x", ".com", "1", "-", ".test", " ", "\n"]),
)


@st.composite
def long_addresses(draw: st.DrawFn) -> list[str]:
    """Labels, domain, local part and whole near each of their limits, with a few odd characters."""

    def run(character: str, length: int, edges: str) -> str:
        characters = [character] * length
        for _ in range(draw(st.integers(0, 2))):
            characters[draw(st.sampled_from([0, 1, 2, 3, -1, -2])) % length] = draw(st.sampled_from(edges))
        return "".join(characters)

    near = st.sampled_from([1, 2, 3, 30, 50, 51, 52, 61, 62, 63, 64, 65])
    names = [run("d", draw(near), "-1Dd.") for _ in range(draw(st.integers(1, 4)))]
    domain = ".".join([*names, draw(st.sampled_from(["com", "C", "TEST", "a" * 63, "a" * 64, "1"]))])
    lengths = {1, 63, 64, 65} | {whole - len(domain) - 1 for whole in (63, 64, 65, 66, 253, 254, 255)}
    return [f"{run('l', length, 'LL+.ä')}@{domain}" for length in lengths if length > 0]


@st.composite
def mutated(draw: st.DrawFn) -> list[str]:
    """Ordinary addresses with one or two characters put in, taken out or replaced at the same places of each."""
    addresses = [list(address) for address in ORDINARY]
    for _ in range(draw(st.integers(1, 2))):
        place, taken = draw(st.integers(0, 70)), draw(st.integers(0, 1))
        put = draw(st.text(nasty, max_size=2) | st.text(st.characters(codec=None), max_size=1))
        for characters in addresses:
            start = place % (len(characters) + 1)
            characters[start : start + taken] = put
    return ["".join(characters) for characters in addresses]


# Free text in few characters, so that now and then it is an address; and in all of them.
free = st.builds(
    crossed,
    st.lists(st.text("abZ9_'+. -", max_size=6), min_size=3, max_size=3),
    st.lists(st.text("abZ9..-_@\n", max_size=8), min_size=6, max_size=6),
)
anything = st.lists(st.text(st.characters(codec=None), max_size=20), max_size=18)


@pytest.mark.parametrize(
    "strategy",
    [
        pytest.param(structured, id="structured"),
        pytest.param(reserved, id="reserved"),
        pytest.param(long_addresses(), id="long"),
        pytest.param(mutated(), id="mutated"),
        pytest.param(free | anything, id="free"),
    ],
)
def test_generated_addresses_get_the_answers_of_emailstr(strategy: st.SearchStrategy[list[str]]) -> None:
    @EXAMPLES
    @given(strategy)
    def same(addresses: list[str]) -> None:
        for address in addresses:
            assert_same(address)

    same()


class Text(str):
    __slots__ = ()


class Choice(StrEnum):
    VALID = "Ada@Example.com"
    INVALID = "ada@localhost"


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    "value",
    [
        *(None, 1, 1.5, True, [], {}, ["ada@example.com"], {"email": "ada@example.com"}, object()),
        *(b"ada@example.com", b"ada@localhost", b"\xff", bytearray(b"ADA@EXAMPLE.com"), bytearray(b"x")),
        *(Text("ada@example.com"), Text("ADA@EXAMPLE.com"), Text("x"), Choice.VALID, Choice.INVALID),
    ],
    ids=lambda value: repr(value).partition(" at 0x")[0],  # alike in each process
)
def test_what_is_not_a_plain_string_gets_the_answer_of_emailstr(value: object, strict: bool) -> None:
    assert answer(email_field, value, strict=strict) == answer(reference, value, strict=strict)


@pytest.mark.parametrize(
    "value", ["null", "1", "1.5", "true", "[]", "{}", '"\\ud800@example.com"', '"ada@b.co\\u0000"']
)
def test_what_is_not_a_string_in_json_gets_the_answer_of_emailstr(value: str) -> None:
    body = f'{{"email": {value}, "other": {value}}}'
    assert answer_to_json(User, body) == answer_to_json(ReferenceUser, body)


@pytest.mark.parametrize(
    "config",
    [
        ConfigDict(str_strip_whitespace=True),
        ConfigDict(str_to_lower=True),
        ConfigDict(str_to_upper=True),
        ConfigDict(str_max_length=15),
        ConfigDict(str_min_length=16),
        ConfigDict(coerce_numbers_to_str=True),
        ConfigDict(hide_input_in_errors=True),
        ConfigDict(strict=True),
    ],
    ids=str,
)
def test_a_model_s_settings_hold_as_for_emailstr(config: ConfigDict) -> None:
    model: Any = create_model("User", __config__=config, email=Email)
    reference_model: Any = create_model("User", __config__=config, email=Reference)
    for address in [*ORDINARY, *ODD, 1]:
        body = json.dumps({"email": address})
        assert answer_to_json(model, body) == answer_to_json(reference_model, body), ascii(address)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ALLOW_SMTPUTF8", False),
        ("ALLOW_EMPTY_LOCAL", True),
        ("ALLOW_QUOTED_LOCAL", True),
        ("ALLOW_DOMAIN_LITERAL", True),
        ("ALLOW_DISPLAY_NAME", True),
        ("STRICT", True),
        ("GLOBALLY_DELIVERABLE", False),
        ("TEST_ENVIRONMENT", True),
        ("SPECIAL_USE_DOMAIN_NAMES", []),
    ],
)
def test_email_validator_s_settings_hold_as_for_emailstr(
    monkeypatch: pytest.MonkeyPatch, name: str, value: object
) -> None:
    assert getattr(email_validator, name) != value
    before = [answer(reference, address) for address in CORPUS]
    monkeypatch.setattr(email_validator, name, value)
    after = [answer(reference, address) for address in CORPUS]
    assert before != after
    assert [answer(email_field, address) for address in CORPUS] == after


def test_the_special_use_domains_are_those_of_email_validator(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [*email_validator.SPECIAL_USE_DOMAIN_NAMES, "example.com", "zip"]
    monkeypatch.setattr(email_validator, "SPECIAL_USE_DOMAIN_NAMES", names)
    again: TypeAdapter[str] = TypeAdapter(runpy.run_path(emails.__file__)["Email"])
    for address in ("ada@example.com", "ada@Mail.Example.COM", "ada@a.zip", "ada@an-example.com", "ada@zip.org"):
        assert answer(again, address) == answer(reference, address)
    assert isinstance(answer(again, "ada@example.com"), list)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that email-validator is asked about."""
    asked: list[str] = []
    original = email_validator.validate_email

    def validate_email(email: str, **options: Any) -> email_validator.ValidatedEmail:
        asked.append(email)
        return original(email, **options)

    monkeypatch.setattr(email_validator, "validate_email", validate_email)
    return asked


def test_email_validator_is_not_asked_about_ordinary_addresses(asked: list[str]) -> None:
    assert len(ORDINARY) >= 20
    for address in ORDINARY:
        email_field.validate_python(address)
        User.model_validate_json(json.dumps({"email": address}))
    assert asked == []


def test_email_validator_is_asked_about_all_others(asked: list[str]) -> None:
    odd = [
        "ada@example.test",
        "ada@EXAMPLE.LOCAL",
        "ada@localhost",
        "ada@xn--bcher-kva.example",
        "ada@a--b.com",
        "ada@bücher.example",
        "adä@example.com",
        ".ada@example.com",
        '"ada"@example.com',
        "ada@example.c0",
        "ada@[127.0.0.1]",
        "ada",
        "l" * 53 + "@example.com",
    ]
    for address in odd:
        answer(email_field, address)
    assert asked == odd


@pytest.mark.parametrize("mode", ["validation", "serialization"])
def test_the_json_schema_is_that_of_emailstr(mode: Any) -> None:
    schema = email_field.json_schema(mode=mode)
    assert schema == reference.json_schema(mode=mode) == {"type": "string", "format": "email", "maxLength": 254}
    mine, theirs = (model.model_json_schema(mode=mode)["properties"] for model in (User, ReferenceUser))
    assert mine == theirs


def test_a_key_is_what_the_index_makes_of_an_address(postgres: str) -> None:
    """Of every character; one that only one of the two versions of Unicode has may differ, and is listed."""
    points = [n for n in range(1, sys.maxunicode + 1) if not 0xD800 <= n <= 0xDFFF]
    of_all = """
        select string_agg(lower(chr(n) collate pg_c_utf8), '' order by n),
            string_agg(unicode_assigned(chr(n))::int::text, '' order by n)
        from generate_series(1, 1114111) n where n not between 55296 and 57343
    """
    ((lowered, assigned),) = execute(postgres, of_all)
    assert isinstance(lowered, str)
    assert isinstance(assigned, str)
    assert len(lowered) == len(assigned) == len(points)
    both: list[str] = []
    one: list[str] = []
    for point, lower, is_assigned in zip(points, lowered, assigned, strict=True):
        # Behind a letter, where a word ends: str.lower() looks at what stands beside a character.
        if email_key(NewUser(f"a{chr(point)}", None)) != f"a{lower}":
            is_shared = is_assigned == "1" and unicodedata.category(chr(point)) != "Cn"
            (both if is_shared else one).append(f"U+{point:04X}")
    print("known to one of the two alone:", *one)
    assert both == []
