"""Connection URLs: which parameters are honoured, and which are refused."""

import os
import ssl
import string
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import pytest
import trustme
from hypothesis import given, settings
from hypothesis import strategies as st

from api.neon.errors import InvalidURLError
from api.neon.url import parse_url

SECRET = "npg_sesame"
NEON = f"postgresql://owner:{SECRET}@ep-cool-1-pooler.eu-central-1.aws.neon.tech/neondb"
LOCAL = f"postgresql://owner:{SECRET}@localhost/neondb"
KEEPALIVE = ("keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout")


@pytest.fixture(scope="module", autouse=True)
def authority(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The only authority of the system: to read all those of a real one for each URL would take most of the time."""
    directory = tmp_path_factory.mktemp("authorities")
    path = directory / "one.pem"
    trustme.CA().cert_pem.write_to_path(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(path))
        patch.setenv("SSL_CERT_DIR", str(directory))
        yield path


def notes_of(url: str) -> str:
    return "\n".join(parse_url(url).notes)


def test_the_url_of_neons_console() -> None:
    url = parse_url(f"{NEON}?sslmode=require&channel_binding=require")
    assert url.hosts == (("ep-cool-1-pooler.eu-central-1.aws.neon.tech", 5432),)
    assert (url.user, url.password, url.database, url.sslmode) == ("owner", SECRET, "neondb", "verify-full")
    assert url.pooled
    assert not parse_url(NEON.replace("-pooler", "")).pooled
    assert url.notes == ("channel_binding: asyncpg cannot do it, verified TLS takes its place",)
    assert SECRET not in repr(url)

    arguments = url.asyncpg_arguments()
    context = arguments.pop("ssl")
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
    assert arguments == {
        "host": ["ep-cool-1-pooler.eu-central-1.aws.neon.tech"],
        "port": [5432],
        "user": "owner",
        "password": SECRET,
        "database": "neondb",
        "direct_tls": False,
        "target_session_attrs": "any",
        "krbsrvname": "postgres",
        "gsslib": "gssapi",
    }
    keywords = url.psycopg_arguments()
    assert keywords["sslmode"] == "verify-full"
    assert Path(keywords["sslrootcert"]).is_file()
    assert keywords["channel_binding"] == "require"


def test_honoured_keys_reach_both_drivers() -> None:
    url = parse_url(
        f"{NEON}?application_name=users&connect_timeout=7&target_session_attrs=read-write&sslnegotiation=direct"
    )
    arguments, keywords = url.asyncpg_arguments(), url.psycopg_arguments()
    assert arguments["server_settings"] == {"application_name": "users"}
    assert (arguments["timeout"], arguments["direct_tls"]) == (7.0, True)
    assert arguments["target_session_attrs"] == keywords["target_session_attrs"] == "read-write"
    assert (keywords["application_name"], keywords["connect_timeout"]) == ("users", "7")
    assert keywords["sslnegotiation"] == "direct"
    assert url.notes == ()


def test_an_address_and_a_file_of_authorities_reach_both_drivers(authority: Path) -> None:
    url = parse_url(f"{NEON}?hostaddr=203.0.113.1&sslrootcert={quote(str(authority))}")
    assert url.sslrootcert == authority
    assert url.asyncpg_arguments()["host"] == ["203.0.113.1"]
    keywords = url.psycopg_arguments()
    assert (keywords["hostaddr"], keywords["sslrootcert"]) == ("203.0.113.1", str(authority))


@pytest.mark.parametrize("seconds", [1, 600])
def test_the_bounds_of_a_timeout(seconds: int) -> None:
    assert parse_url(f"{LOCAL}?connect_timeout={seconds}").connect_timeout == seconds


@pytest.mark.parametrize("value", ["any", "primary", "standby", "prefer-standby", "read-write", "read-only"])
def test_the_sessions_that_both_drivers_can_choose(value: str) -> None:
    url = parse_url(f"{LOCAL}?target_session_attrs={value}")
    assert url.asyncpg_arguments()["target_session_attrs"] == value


@pytest.mark.parametrize(
    ("before_database", "query", "hosts"),
    [
        ("u:p@db", "", [("db", 5432)]),
        ("u:p@[::1]:5433", "", [("::1", 5433)]),
        ("u:p@[fe80::1%25eth0]", "", [("fe80::1%eth0", 5432)]),
        ("u:p@a:1,b:65535", "", [("a", 1), ("b", 65535)]),
        (f"u:p@{'a' * 63}.com.", "", [(f"{'a' * 63}.com.", 5432)]),
        ("u:p@a,b:5433", "", [("a", 5432), ("b", 5433)]),
        ("u:p@", "host=a,b&port=1,2", [("a", 1), ("b", 2)]),
        ("u:p@", "host=a,b&port=5433", [("a", 5433), ("b", 5433)]),
        ("u:p@", "host=a,::1", [("a", 5432), ("::1", 5432)]),
        ("u:p@ignored", "host=a", [("a", 5432)]),
        ("u:p@", "host=/run/postgresql", [("/run/postgresql", 5432)]),
        ("u:p@:5433", "host=/run/a:b", [("/run/a:b", 5433)]),
        ("u:p@%2Frun%2Fpostgresql:5433", "", [("/run/postgresql", 5433)]),
        ("", "host=db&user=u&password=p", [("db", 5432)]),
    ],
)
def test_hosts(before_database: str, query: str, hosts: list[tuple[str, int]]) -> None:
    url = parse_url(f"postgres://{before_database}/d?{query}")
    assert list(url.hosts) == hosts
    assert (url.user, url.password, url.database) == ("u", "p", "d")
    assert url.psycopg_arguments()["host"] == ",".join(host for host, _ in hosts)
    assert url.psycopg_arguments()["port"] == ",".join(str(port) for _, port in hosts)


@pytest.mark.parametrize(
    ("written", "password"),
    [
        ("p%40%3A%2F%3F%23%25", "p@:/?#%"),
        ("p@ss:w@rd#1", "p@ss:w@rd#1"),
        ("p+ss&w=rd", "p+ss&w=rd"),
        ("p%C3%A4ss", "päss"),
        ("", None),
    ],
)
def test_passwords(written: str, password: str | None) -> None:
    assert parse_url(f"postgresql://u:{written}@localhost/d").password == password


def test_the_last_key_wins_and_an_empty_one_is_absent() -> None:
    url = parse_url(f"{LOCAL}?application_name=a&application_name=b&application_name=&&sslmode=\n")
    assert (url.application_name, url.sslmode) == ("b", "disable")


@pytest.mark.parametrize(
    ("host", "private"),
    [
        *((host, True) for host in ("localhost", "127.8.9.1", "[::1]", "10.1.2.3", "172.31.0.1", "192.168.1.1")),
        *((host, True) for host in ("169.254.1.1", "[fd00::1]", "[fe80::1]", "postgres_1", "%2Ftmp")),
        *((host, True) for host in ("db.internal", "db.LOCAL", "db.localhost", "db.test", "db,localhost")),
        *((host, False) for host in ("db.example.com", "8.8.8.8", "134744072", "0x08080808", "172.32.0.1")),
        *((host, False) for host in ("[2001:db8::1]", "internal.example.com", "localhost.example.com")),
        *((host, False) for host in ("localhost,db.example.com", "%2Ftmp,db.example.com", "192.0.2.1")),
    ],
)
def test_clear_text_only_to_private_hosts(host: str, private: bool) -> None:
    url = f"postgresql://u:{SECRET}@{host}/d"
    assert parse_url(url).sslmode == ("disable" if private else "verify-full")
    assert parse_url(f"{url}?sslmode=prefer").sslmode == ("disable" if private else "verify-full")
    if private:
        assert parse_url(f"{url}?sslmode=disable").asyncpg_arguments()["ssl"] is False
        assert parse_url(f"{url}?sslmode=disable").psycopg_arguments()["sslmode"] == "disable"
    else:
        with pytest.raises(InvalidURLError, match="clear text"):
            parse_url(f"{url}?sslmode=disable")


@pytest.mark.parametrize(
    ("url", "sslmode", "note"),
    [
        (f"{NEON}?sslmode=require", "verify-full", ""),
        (f"{NEON}?sslmode=verify-full&sslrootcert=system", "verify-full", ""),
        (f"{NEON}?sslmode=verify-ca", "verify-full", "sslmode=verify-ca: treated as verify-full"),
        (f"{NEON}?sslmode=prefer", "verify-full", "sslmode=prefer: treated as verify-full"),
        (f"{NEON}?sslmode=allow", "verify-full", "sslmode=allow: treated as verify-full"),
        (f"{NEON}?sslmode=no-verify", "no-verify", "WARNING"),
        (f"{LOCAL}?sslmode=prefer", "disable", "no TLS to a private address"),
        (f"{LOCAL}?sslmode=require", "verify-full", ""),
        (f"{LOCAL}?sslmode=no-verify&sslrootcert=/none", "no-verify", "sslrootcert: dropped"),
        (f"{LOCAL}?sslrootcert=system", "verify-full", ""),
        ("postgresql://u@/d?host=/tmp&sslmode=require", "disable", "a Unix socket has no TLS"),
    ],
)
def test_sslmode(url: str, sslmode: str, note: str) -> None:
    assert parse_url(url).sslmode == sslmode
    assert note in notes_of(url)
    assert bool(note) == bool(parse_url(url).notes)


@pytest.mark.parametrize(
    ("query", "note"),
    [
        ("channel_binding=prefer", "channel_binding: asyncpg cannot do it, verified TLS"),
        ("channel_binding=require&sslmode=no-verify", "nothing verifies the server"),
        ("options=endpoint%3Dep-cool-1", "options: dropped, Neon finds the compute"),
        ("options=-c%20statement_timeout%3D5s", "options: dropped, Neon's pooler refuses"),
        ("pgbouncer=true", "pgbouncer: dropped, prepared statements work"),
        ("connection_limit=5", "connection_limit: dropped, POOL_MAX_SIZE"),
        ("pool_timeout=5", "pool_timeout: dropped, ACQUIRE_TIMEOUT_SECONDS"),
        ("schema=public", "schema: dropped, the role's search_path"),
        ("socket_timeout=5", "socket_timeout: dropped, STATEMENT_TIMEOUT_SECONDS"),
        ("statement_cache_size=0", "statement_cache_size: dropped, STATEMENT_CACHE_SIZE"),
        *((f"{key}=1", f"{key}: dropped, every socket has TCP keepalive") for key in KEEPALIVE),
        *((f"{key}=/x", f"{key}: dropped, no file adds") for key in ("passfile", "service")),
        *((f"{key}=true", f"{key}: dropped, sslmode decides") for key in ("ssl", "sslaccept")),
        *((f"{key}=/x", f"{key}: dropped, Neon supports no client") for key in ("sslcert", "sslkey", "sslpassword")),
        ("colour=blue", "colour: dropped, not a key that this application knows"),
        (f"{SECRET}%21%0A=1", "a key that is not a name: dropped"),
    ],
)
def test_notes_say_why_a_key_is_dropped(query: str, note: str) -> None:
    notes = notes_of(f"{NEON}?{query}")
    assert note in notes
    assert SECRET not in notes
    assert "blue" not in notes


def test_disabled_channel_binding_is_honoured_without_a_note() -> None:
    url = parse_url(f"{NEON}?channel_binding=disable")
    assert (url.notes, url.psycopg_arguments()["channel_binding"]) == ((), "disable")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "must begin with postgresql://"),
        (f"psql '{NEON}'", "must begin with postgresql://"),
        (NEON.replace("postgresql", "mysql"), "must begin with postgresql://"),
        (f"postgresql://:{SECRET}@localhost/d", "names no user"),
        (f"postgresql://u:{SECRET}@localhost", "names no database"),
        (f"postgresql://u:{SECRET}@/d", "host is missing"),
        (f"postgresql://u:{SECRET}@a,,b/d", "host is missing"),
        (f"postgresql://u:{SECRET}/x@localhost/d", "port is not a number"),
        (f"postgresql://u:{SECRET}?x@localhost/d", "a part of the query has no ="),
        (f"postgresql://{SECRET}/x@localhost/d", "names no user"),
        (f"postgresql://u:{SECRET}%@localhost/d", "two hexadecimal digits"),
        (f"postgresql://u:{SECRET}%zz@localhost/d", "two hexadecimal digits"),
        (f"postgresql://u:{SECRET}%ff@localhost/d", "not UTF-8"),
        (f"postgresql://u:{SECRET}\udcff@localhost/d", "not UTF-8"),
        (f"postgresql://u:{SECRET}%00@localhost/d", "NUL"),
        (f"postgresql://u:{SECRET}@localhost/d\0", "NUL"),
        (f"postgresql://u:{SECRET}@local host/d", "DNS name"),
        (f"postgresql://u:{SECRET}@{'a' * 64}.com/d", "DNS name"),
        (f"postgresql://u:{SECRET}@[localhost]/d", "IP address"),
        (f"postgresql://u:{SECRET}@::1/d", "for IPv6"),
        (f"postgresql://u:{SECRET}@%2Ftmp%2Ca/d", "directory"),
        (f"postgresql://u:{SECRET}@/d?host=a:5432", "IP address"),
        (f"postgresql://u:{SECRET}@localhost:x/d", "port is not a number"),
        (f"postgresql://u:{SECRET}@localhost:0/d", "port is not a number"),
        (f"postgresql://u:{SECRET}@localhost:65536/d", "port is not a number"),
        (f"postgresql://u:{SECRET}@localhost:\u0665/d", "port is not a number"),
        (f"postgresql://u:{SECRET}@a,b,c/d?port=1,2", "as many ports as hosts"),
        (f"{LOCAL}?password={SECRET}&{SECRET}", "has no ="),
        (f"{LOCAL}?sslmode={SECRET}", "sslmode must be one of disable"),
        (f"{LOCAL}?channel_binding={SECRET}", "channel_binding must be one of"),
        (f"{LOCAL}?target_session_attrs={SECRET}", "target_session_attrs must be one of any, primary"),
        (f"{LOCAL}?sslnegotiation={SECRET}", "sslnegotiation must be one of"),
        (f"{LOCAL}?sslnegotiation=direct", "needs TLS"),
        (f"{LOCAL}?connect_timeout=0", "connect_timeout must be"),
        (f"{LOCAL}?connect_timeout=601", "connect_timeout must be"),
        (f"{LOCAL}?connect_timeout=1.5{SECRET}", "connect_timeout must be"),
        (f"{NEON}?sslrootcert=/none/{SECRET}", "sslrootcert: .*No such file"),
        (f"{NEON}?sslrootcert=/tmp", "sslrootcert: "),
        (f"{NEON}?sslrootcert={quote(__file__)}", "sslrootcert: "),
        (f"{NEON}?sslmode=disable", "clear text"),
        (f"{NEON}?sslmode=disable&hostaddr=127.0.0.1", "clear text"),
        (f"{LOCAL}?sslmode=disable&hostaddr=8.8.8.8", "clear text"),
        (f"{LOCAL}?hostaddr=localhost{SECRET}", "hostaddr must be one IP address"),
        (f"postgresql://u:{SECRET}@a,b/d?hostaddr=127.0.0.1", "hostaddr must be one IP address"),
        (f"postgresql://u:{SECRET}@%2Ftmp/d?hostaddr=127.0.0.1", "hostaddr must be one IP address"),
    ],
)
def test_refusals_name_the_fault_and_no_secret(url: str, message: str) -> None:
    with pytest.raises(InvalidURLError, match=message) as raised:
        parse_url(url)
    assert SECRET not in f"{raised.value!r}{raised.value.__cause__!r}"
    assert raised.value.__suppress_context__ or raised.value.__context__ is None


def test_a_system_without_authorities(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    with pytest.raises(InvalidURLError, match="ca-certificates"):
        parse_url(NEON)
    assert parse_url(f"{NEON}?sslmode=no-verify").tls_context()
    # A directory of single files is read during handshakes only, so the context knows none of them yet.
    (tmp_path / "002c0b4f.0").touch()
    monkeypatch.setenv("SSL_CERT_DIR", f"/none{os.pathsep}{tmp_path}")
    assert parse_url(NEON).sslmode == "verify-full"
    assert parse_url(NEON).psycopg_arguments()["sslrootcert"] == "system"


texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)


@settings(deadline=None)  # some URLs load the system's authorities
@given(user=texts, password=st.one_of(st.just(""), texts), database=texts)
def test_any_name_survives(user: str, password: str, database: str) -> None:
    encoded = [quote(text, safe="") for text in (user, password, database)]
    netloc = "postgresql://{}:{}@localhost/{}".format(*encoded)
    query = "postgresql://localhost/?user={}&password={}&dbname={}".format(*encoded)
    for url in (parse_url(netloc), parse_url(query)):
        assert (url.user, url.password, url.database) == (user, password or None, database)
        keywords = url.psycopg_arguments()
        assert (keywords["user"], keywords["password"], keywords["dbname"]) == (user, password, database)


@settings(deadline=None)  # some URLs load the system's authorities
@given(
    st.one_of(
        st.text(),
        st.text(st.sampled_from(string.ascii_letters + string.digits + "@:/?#[]%,&=\0 ")).map(
            "postgresql://u:p@".__add__
        ),
        st.lists(
            st.sampled_from(
                ["@", ":", "/", "?", "%2F", "%", "[", "]", "::1", ",", "a", "9", "&", "=", "host", "\ud800"]
            )
        )
        .map("".join)
        .map("postgres://".__add__),
    )
)
def test_arbitrary_text_is_parsed_or_refused(text: str) -> None:
    with suppress(InvalidURLError):
        parse_url(text).psycopg_arguments()
