"""Read a connection URL against an allow-list: each key is honoured, translated or dropped, and TLS is decided.

The syntax is libpq's (https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING-URIS): a key without
a value counts as absent, the last of several wins, and a key wins over the same thing before the `?`.
"""

import re
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from urllib.parse import unquote

from api.neon.drivers import DatabaseURL
from api.neon.errors import InvalidURLError
from api.neon.tls import TLSMode

_SSLMODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full", "no-verify")
_SESSION_ATTRIBUTES = ("any", "primary", "standby", "prefer-standby", "read-write", "read-only")

# Clear text is allowed to this machine and private networks (RFC 1918, 3927, 4193, 4291), and to names that the public
# DNS does not serve (ICANN's .internal, RFC 6761, RFC 6762).
_LOOPBACK_AND_LINK = ("127.0.0.0/8", "169.254.0.0/16", "::1/128", "fe80::/10")
_PRIVATE_USE = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")
_PRIVATE_NETWORKS = tuple(map(ip_network, _LOOPBACK_AND_LINK + _PRIVATE_USE))
_PRIVATE_SUFFIXES = (".internal", ".local", ".localhost", ".test")

_DROPPED = {
    "connection_limit": "POOL_MAX_SIZE sets the size of the pool",
    "pgbouncer": "prepared statements work through PgBouncer 1.21 and later; for older ones set STATEMENT_CACHE_SIZE=0",
    "pool_timeout": "ACQUIRE_TIMEOUT_SECONDS bounds the wait for a connection",
    "schema": "the role's search_path decides",
    "socket_timeout": "STATEMENT_TIMEOUT_SECONDS bounds every statement",
    "statement_cache_size": "STATEMENT_CACHE_SIZE sets it",
    **dict.fromkeys(
        ("keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout"),
        "every socket has TCP keepalive and TCP_USER_TIMEOUT",
    ),
    **dict.fromkeys(("passfile", "service"), "no file adds to this URL"),
    **dict.fromkeys(("ssl", "sslaccept"), "sslmode decides about TLS"),
    **dict.fromkeys(("sslcert", "sslkey", "sslpassword"), "Neon supports no client certificates"),
}


def parse_url(url: str) -> DatabaseURL:
    """Read a postgresql:// or postgres:// URL, and the file of its authorities. Raises only InvalidURLError."""
    netloc, given = _split(url)
    hosts = _read_hosts(netloc, given.pop("host", ""), given.pop("port", ""))
    for key, name in (("user", "user"), ("dbname", "database")):
        if not given[key]:
            raise InvalidURLError(
                f"it names no {name}: write postgresql://USER:PASSWORD@HOST/DATABASE, "
                "and in the password %2F for /, %3F for ?, %25 for %"
            )
    notes: list[str] = []
    hostaddr = _read_hostaddr(given.pop("hostaddr", ""), hosts)
    sslmode = _decide_tls(given, [host for host, _ in hosts] + [hostaddr] * bool(hostaddr), notes)
    sslrootcert = given.pop("sslrootcert", "system")
    if sslrootcert != "system" and sslmode != "verify-full":
        notes.append("sslrootcert: dropped, this connection verifies nothing")
        sslrootcert = "system"
    sslnegotiation = _choose(given, "sslnegotiation", ("postgres", "direct"), "postgres")
    if sslnegotiation == "direct" and sslmode == "disable":
        raise InvalidURLError("sslnegotiation=direct needs TLS: remove it, or add sslmode=verify-full for a TCP host")
    channel_binding = _choose(given, "channel_binding", ("prefer", "require", "disable"), "")
    if channel_binding in ("prefer", "require"):
        instead = "verified TLS takes its place" if sslmode == "verify-full" else "and nothing verifies the server here"
        notes.append(f"channel_binding: asyncpg cannot do it, {instead}")
    timeout = given.pop("connect_timeout", "")
    if timeout and not (re.fullmatch("[0-9]{1,3}", timeout) and 1 <= int(timeout) <= 600):
        raise InvalidURLError("connect_timeout must be a whole number of seconds from 1 to 600")
    parsed = DatabaseURL(
        hosts=hosts,
        hostaddr=hostaddr or None,
        user=given.pop("user"),
        password=given.pop("password") or None,
        database=given.pop("dbname"),
        sslmode=sslmode,
        sslrootcert=None if sslrootcert == "system" else Path(sslrootcert),
        sslnegotiation=sslnegotiation,
        channel_binding=channel_binding or "prefer",
        target_session_attrs=_choose(given, "target_session_attrs", _SESSION_ATTRIBUTES, "any"),
        application_name=given.pop("application_name", None),
        connect_timeout=int(timeout) if timeout else None,
        notes=(*notes, *(_explain_dropped(key, value) for key, value in given.items())),
    )
    parsed.tls_context()  # an unusable file fails here, not at the first connection
    return parsed


def _split(url: str) -> tuple[str, dict[str, str]]:
    """Return the hosts as written, and the rest decoded. A password may hold `@`, `:` and `#` unencoded."""
    scheme, separator, rest = url.strip().partition("://")
    if not separator or scheme not in ("postgresql", "postgres"):
        raise InvalidURLError("it must begin with postgresql:// or postgres://, without quotes or a command around it")
    rest, _, query = rest.partition("?")
    authority, _, path = rest.partition("/")
    credentials, _, netloc = authority.rpartition("@")
    user, _, password = credentials.partition(":")
    given = {"user": _decode(user), "password": _decode(password), "dbname": _decode(path)}
    for part in filter(None, query.split("&")):
        key, separator, value = part.partition("=")
        if not separator:
            raise InvalidURLError("a part of the query has no =: write KEY=VALUE&KEY=VALUE, and %26 for & in a value")
        if value:
            given["dbname" if key == "database" else _decode(key)] = _decode(value)
    return netloc, given


def _decode(text: str) -> str:
    if re.search("%(?![0-9A-Fa-f]{2})", text):
        raise InvalidURLError("a % is not followed by two hexadecimal digits: write %25 for % in the password")
    try:
        decoded = unquote(text, errors="strict")
        decoded.encode()  # lone surrogates are how Python shows bytes of the environment that are not UTF-8
    except UnicodeError:
        raise InvalidURLError("a part of it is not UTF-8: percent-encode its UTF-8 bytes") from None
    if "\0" in decoded:
        raise InvalidURLError("it holds a NUL (%00), which PostgreSQL cannot take: remove it")
    return decoded


def _choose(given: dict[str, str], key: str, choices: tuple[str, ...], default: str) -> str:
    """Take a key out of those given, and check its value."""
    value = given.pop(key, default)
    if value not in (*choices, default):
        raise InvalidURLError(f"{key} must be one of {', '.join(choices)}")
    return value


def _read_hosts(netloc: str, query_hosts: str, query_ports: str) -> tuple[tuple[str, int], ...]:
    hosts, ports = [], []
    for written in netloc.split(","):
        match = re.fullmatch(r"(\[[^][]*\]|[^][:]*)(?::([^:]*))?", written)
        if match is None:
            raise InvalidURLError("a host cannot be read: write HOST:PORT, or [ADDRESS]:PORT for IPv6")
        hosts.append(_decode(match[1]))
        ports.append(match[2] or "")
    hosts = query_hosts.split(",") if query_hosts else hosts
    ports = query_ports.split(",") if query_ports else ports if any(ports) else [""]
    ports = ports * len(hosts) if len(ports) == 1 else ports
    if len(ports) != len(hosts):
        raise InvalidURLError("there are not as many ports as hosts: give one port for all, or one for each")
    return tuple((_read_host(host), _read_port(port)) for host, port in zip(hosts, ports, strict=True))


def _read_host(written: str) -> str:
    host = written[1:-1] if written.startswith("[") else written
    if host.startswith("/"):
        valid = True
    elif ":" in host or host != written:
        valid = isinstance(_read_address(host), IPv6Address)
    else:
        labels = host.removesuffix(".").split(".")
        valid = all(re.fullmatch("[A-Za-z0-9_-]{1,63}", label) for label in labels)
    if not valid or "," in host:  # libpq splits at every comma
        raise InvalidURLError(
            "a host is missing, or neither a DNS name, nor an IP address, nor a directory: write "
            "postgresql://USER:PASSWORD@HOST:PORT/DATABASE, and in the password %2F for /, %3F for ?"
        )
    return host


def _read_hostaddr(written: str, hosts: tuple[tuple[str, int], ...]) -> str:
    """Return the address that replaces the resolution of the host's name, "" if there is none."""
    if written and (len(hosts) > 1 or hosts[0][0].startswith("/") or _read_address(written) is None):
        raise InvalidURLError(
            "hostaddr must be one IP address, for a URL with one host: it replaces the look-up in DNS"
        )
    return written


def _read_port(written: str) -> int:
    if written and not (re.fullmatch("[0-9]{1,5}", written) and 1 <= int(written) <= 65535):
        raise InvalidURLError("a port is not a number from 1 to 65535; in the password write %2F for /, %3F for ?")
    return int(written or 5432)


def _read_address(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None


def _is_private(host: str) -> bool:
    if address := _read_address(host):
        return any(address in network for network in _PRIVATE_NETWORKS)
    # One label is the name of a Compose or Kubernetes service. It begins with a letter: 134744072 is 8.8.8.8.
    return bool(re.fullmatch("[A-Za-z][A-Za-z0-9_-]*", host)) or host.lower().endswith(_PRIVATE_SUFFIXES)


def _decide_tls(given: dict[str, str], hosts: list[str], notes: list[str]) -> TLSMode:
    """Take sslmode out of the keys given; add a note if it is treated differently than by libpq."""
    tcp_hosts = [host for host in hosts if not host.startswith("/")]
    private = all(map(_is_private, tcp_hosts))
    sslmode = _choose(given, "sslmode", _SSLMODES, "")
    if not tcp_hosts:
        if sslmode not in ("", "disable"):
            notes.append("sslmode: dropped, a Unix socket has no TLS")
        return "disable"
    if sslmode == "disable" and not private:
        raise InvalidURLError(
            "sslmode=disable would send the password and every row in clear text beyond a private network: "
            "write sslmode=verify-full"
        )
    if sslmode == "no-verify":
        notes.append("sslmode=no-verify: WARNING, any server at this address is trusted; for development only")
        return "no-verify"
    if sslmode in ("allow", "prefer"):
        notes.append(f"sslmode={sslmode}: {'no TLS to a private address' if private else 'treated as verify-full'}")
        return "disable" if private else "verify-full"
    if sslmode == "verify-ca":
        notes.append("sslmode=verify-ca: treated as verify-full, which checks the host's name too")
    clear = sslmode == "disable" or (not sslmode and private and "sslrootcert" not in given)
    return "disable" if clear else "verify-full"


def _explain_dropped(key: str, value: str) -> str:
    if key == "options":
        selector = all(option.startswith(("endpoint=", "project=")) for option in value.split())
        return "options: dropped, " + (
            "Neon finds the compute by the host's name in TLS (SNI)"
            if selector
            else "Neon's pooler refuses them; set them for the role with ALTER ROLE ... SET"
        )
    # A key can be part of a password that was not encoded: only a plain name is shown.
    name = key if re.fullmatch("[A-Za-z][A-Za-z0-9_.-]{0,40}", key) else "a key that is not a name"
    return f"{name}: dropped, {_DROPPED.get(key, 'not a key that this application knows')}"
