"""Raw requests as data, each with the answer that RFC 9110 and RFC 9112 ask for: test_raw_requests.py sends them."""

from typing import NamedTuple

HOST = b"host: api.example.com"
JSON = b"content-type: application/json"
CHUNKED = b"transfer-encoding: chunked"
USERS = b"/api/v1/users"
END = b"0\r\n\r\n"


class Raw(NamedTuple):
    """One or more requests, sent at once. NEW in them becomes a number of five digits that none has had.

    `statuses` are those of the answers. After them the connection ends, or the next request gets its own answer.
    nginx may refuse a request itself, or understand or change it so that `behind_nginx` is right too; () leaves it out.
    """

    sent: bytes
    statuses: tuple[int, ...]
    behind_nginx: tuple[int, ...] | None


CASES: dict[str, Raw] = {}


def add(name: str, sent: bytes, *statuses: int, nginx: tuple[int, ...] | None = None) -> None:
    assert name not in CASES, name
    CASES[name] = Raw(sent, statuses, nginx)


def head(line: bytes, *fields: bytes, host: bytes | None = HOST) -> bytes:
    return b"\r\n".join([line, *([host] if host else []), *fields, b"", b""])


def get(target: bytes, *fields: bytes, host: bytes | None = HOST) -> bytes:
    return head(b"GET %s HTTP/1.1" % target, *fields, host=host)


def post(body: bytes, *fields: bytes, path: bytes = USERS) -> bytes:
    return head(b"POST %s HTTP/1.1" % path, *fields, b"content-length: %d" % len(body)) + body


def chunked(body: bytes, *fields: bytes, method: bytes = b"POST", path: bytes = USERS) -> bytes:
    return head(b"%s %s HTTP/1.1" % (method, path), JSON, CHUNKED, *fields) + body


NEW = b'{"email":"userNEW@example.com"}'
assert len(NEW) == 31
NEW_LENGTH = len(NEW) + 2  # NEW becomes five digits


def create(*fields: bytes) -> bytes:
    return head(b"POST %s HTTP/1.1" % USERS, JSON, b"content-length: %d" % NEW_LENGTH, *fields) + NEW


# The request line (RFC 9112, section 3)

add("a plain GET", get(b"/health"), 200)
add("an empty line before it", b"\r\n" + get(b"/health"), 200)
add("several empty lines before it", b"\r\n\r\n\r\n" + get(b"/health"), 200)
add("HTTP/1.0", head(b"GET /health HTTP/1.0", host=None), 200, nginx=(400,))  # which adds no Host of its own
add("HTTP/1.0 with a host", head(b"GET /health HTTP/1.0"), 200)
add("HTTP/1.0 that would stay", head(b"GET /health HTTP/1.0", b"connection: keep-alive"), 200)
add("HTTP/0.9", b"GET /health\r\n", 400, nginx=())  # nginx serves it, and sends no status
for version in (b"HTTP/0.9", b"HTTP/1.2", b"HTTP/2.0", b"HTTP/3", b"HTTP/1", b"HTTP/1.", b"HTTP/1.10", b"HTTP/11"):
    # A higher minor version could be served as 1.1 (RFC 9110, section 2.5); llhttp knows none, nginx takes it.
    add(f"the version {version.decode()}", head(b"GET /health %s" % version), 400, nginx=(200,))
for version in (b"http/1.1", b"HTTPS/1.1", b"HTTP/1,1", b"HTTP 1.1", b"HTTP/01.1", b"HTTP/-1.1", b"HTTP/1.1x"):
    add(f"the protocol {version.decode()}", head(b"GET /health %s" % version), 400)
add("the preface of HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400)
add("TLS", b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03" + b"\x00" * 20, 400)
add("no HTTP at all", b"nonsense\r\n\r\n", 400)
add("a tab instead of a blank", b"GET\t/health\tHTTP/1.1\r\n%s\r\n\r\n" % HOST, 400)
add("a blank before the method", b" GET /health HTTP/1.1\r\n%s\r\n\r\n" % HOST, 400)
# Section 3 lets a server take several blanks for one.
add("two blanks before the target", head(b"GET  /health HTTP/1.1"), 200)
add("two blanks before the version", head(b"GET /health  HTTP/1.1"), 200)
add("bare line feeds", b"GET /health HTTP/1.1\nhost: x\n\n", 400, nginx=(200,))  # section 2.2: MAY
add("bare carriage returns", b"GET /health HTTP/1.1\rhost: x\r\r", 400)
add("a bare carriage return in the line", b"GET /health\r HTTP/1.1\r\n%s\r\n\r\n" % HOST, 400)
add("no target", b"GET HTTP/1.1\r\n%s\r\n\r\n" % HOST, 400)
add("a blank target", b"GET  HTTP/1.1\r\n%s\r\n\r\n" % HOST, 400)
add("a request line of 40 KiB", get(b"/" + b"x" * 40_000), 431)

# Methods (RFC 9110, section 9)

add("HEAD", head(b"HEAD /health HTTP/1.1"), 200)
add("HEAD of what is not there", head(b"HEAD /nothing HTTP/1.1"), 404)
for method in (b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"PURGE", b"PROPFIND"):
    add(f"{method.decode()} where it is not allowed", head(b"%s /health HTTP/1.1" % method), 405)
add("TRACE", head(b"TRACE /health HTTP/1.1"), 405)
# 501 is a SHOULD (section 9.1); the parser knows the registered methods alone, and what it does not know is no HTTP.
add("an unknown method", head(b"FETCH /health HTTP/1.1"), 400)
add("a method in lower case", head(b"get /health HTTP/1.1"), 400)
add("a method in mixed case", head(b"Get /health HTTP/1.1"), 400)
add("a method with a NUL", head(b"GE\0T /health HTTP/1.1"), 400)
add("a method of 10 KiB", head(b"G" * 10_000 + b" /health HTTP/1.1"), 400)
add("CONNECT", head(b"CONNECT api.example.com:443 HTTP/1.1"), 400)
add("CONNECT to a path", head(b"CONNECT /health HTTP/1.1"), 400)

# Targets (RFC 9112, section 3.2)

add("the absolute form", get(b"http://api.example.com/health"), 200)
add("the absolute form in upper case", get(b"HTTP://API.example.com/health"), 200)
add("the absolute form with a port", get(b"http://api.example.com:80/health"), 200)
add("the absolute form without a path", get(b"http://api.example.com"), 200)
add("the absolute form with a query alone", get(b"http://api.example.com?x"), 200)
add("the absolute form of another host", get(b"http://other.example.com/health"), 200)
add("the absolute form with a user", get(b"http://ada:x@api.example.com/health"), 400)
add("the absolute form without a host", get(b"http:///health"), 400)
add("the absolute form with a port that is none", get(b"http://api.example.com:port/health"), 400)
add("the absolute form of another scheme", get(b"ftp://api.example.com/health"), 400, nginx=(200,))
add("the absolute form, and no Host", get(b"http://api.example.com/health", host=None), 400, nginx=(200,))
add("the authority form", get(b"api.example.com:80"), 400)
add("a relative path", get(b"health"), 400)
add("a query alone", get(b"?limit=1"), 400)
add("the asterisk form", head(b"OPTIONS * HTTP/1.1"), 404)
add("the asterisk form of GET", get(b"*"), 400)
add("a fragment", get(b"/health#x"), 400, nginx=(200,))  # nginx cuts it off
add("a fragment behind a query", get(b"/health?x#y"), 400, nginx=(200,))
add("bytes beyond ASCII in the path", get(b"/\xc3\xa9"), 400)
add("a NUL in the path", get(b"/health\0"), 400)
add("a control character in the path", get(b"/health\x01"), 400)
add("DEL in the path", get(b"/health\x7f"), 400)

# Paths: what is not exactly the path of a route is 404

for path in (b"/health", b"/ready", b"/metrics", b"/docs", b"/openapi.json", b"/docs/start.js", USERS, USERS + b"/"):
    for name, encoded in (("a line feed", b"%0A"), ("CR and LF", b"%0D%0A"), ("a NUL", b"%00")):
        add(f"{name} behind {path.decode()}", get(path + encoded), 404)
for path in (
    b"/health/",
    b"//health",
    b"/./health",
    b"/x/../health",
    b"/HEALTH",
    b"/health%20",
    b"/health%0Ax",
    b"/%0Ahealth",
):
    add(f"the path {path.decode()}", get(path), 404)
for path in (b"/health;x=1", b"/health%2F", b"/%2Fhealth", b"/health%3Fx", b"/health%23x", b"/health%", b"/health%zz"):
    add(f"the path {path.decode()}", get(path), 404)
add("an encoded letter", get(b"/%68ealth"), 200)  # RFC 3986, section 6.2.2.2: the same path
add("an encoded slash separates nothing", get(b"/api%2Fv1%2Fusers"), 404)
add("an encoded slash in an id", get(USERS + b"/1%2f2"), 404)
add("import with a line feed", head(b"POST %s/import%%0A HTTP/1.1" % USERS, b"content-length: 0"), 405)
add("a user with a line feed", get(USERS + b"/1%0A"), 404)
add("an empty query", get(b"/health?"), 200)
add("a query of odd characters", get(b'/health?<>"{}|\\^`[]'), 200)
add("a second question mark", get(b"/health?a?b"), 200)

# Host (RFC 9112, section 3.2)

add("no Host", get(b"/health", host=None), 400)
add("two Hosts", get(b"/health", HOST), 400)
add("two different Hosts", get(b"/health", b"host: other.example.com"), 400)
add("two Hosts in HTTP/1.0", head(b"GET /health HTTP/1.0", HOST), 400)
for host in (
    *(b"example.com", b"EXAMPLE.com.", b"example.com:8000", b"example.com:", b"127.0.0.1:80", b"[::1]", b"[::1]:80"),
    *(b"a_b", b"a~b", b"x%20y", b"[::ffff:127.0.0.1]"),
):
    add(f"the host {host.decode()}", get(b"/health", host=b"host: " + host), 200)
for host in (
    *(b"", b"a b", b"a, b", b"example.com/evil", b"example.com/evil?x", b"example.com?x", b"example.com#x", b"x:port"),
    *(b"x:80:80", b":80", b"x:-1", b"ada@example.com", b"ada:x@example.com", b"http://example.com", b"[::1", b"::1"),
    *(b"[::1]x", b"[]", b"[v1.x]", b"[::1%25eth0]", b"x%zz", b"x%", b"caf\xc3\xa9", b"x\xff", b"<x>", b"x\\y", b"x|y"),
    *(b'"x"', b"x^y", b"x`y", b"{x}", b"a\tb"),
):
    # nginx hands on the name, so these reach us.
    add(f"the host {host.decode('latin-1')!r}", get(b"/health", host=b"host: " + host), 400)
add("a host with a NUL", get(b"/health", host=b"host: a\0b"), 400)
add("a host of 40 KiB", get(b"/health", host=b"host: " + b"x" * 40_000), 431)
add("the next request has another host", get(b"/health") + get(b"/health", host=b"host: a b"), 200, nginx=(200, 400))

# Fields (RFC 9112, section 5)

add("a field without a blank", get(b"/health", b"x:1"), 200)
add("an empty field", get(b"/health", b"x:"), 200)
add("a field with bytes beyond ASCII", get(b"/health", b"x: \xc3\xa9\xff"), 200)
add("a field with a tab", get(b"/health", b"x: a\tb"), 200)
add("a name of all characters", get(b"/health", b"!#$%&'*+-.^_`|~09azAZ: 1"), 200)
add("100 fields", get(b"/health", *[b"x-%d: 1" % n for n in range(99)]), 200)
add("101 fields", get(b"/health", *[b"x-%d: 1" % n for n in range(100)]), 431)
add("30 KiB of fields", get(b"/health", *[b"x: " + b"y" * 3000] * 10), 200)
add("40 KiB of fields", get(b"/health", *[b"x: " + b"y" * 4000] * 10), 431)
add("a folded line", get(b"/health", b"x: a", b" b"), 400)
add("a folded line with a tab", get(b"/health", b"x: a", b"\tb"), 400)
add("a fold before the first field", b"GET /health HTTP/1.1\r\n host: x\r\n%s\r\n\r\n" % HOST, 400)
add("a blank before the colon", get(b"/health", b"x : 1"), 400)
add("a tab before the colon", get(b"/health", b"x\t: 1"), 400)
add("no colon", get(b"/health", b"nonsense"), 400, nginx=(200,))
add("no name", get(b"/health", b": 1"), 400)
add("a blank in the name", get(b"/health", b"a b: 1"), 400)
for character in b'()<>@,;\\"/[]?={}\x01\x7f\xe9':
    # nginx drops a field with such a name, as its ignore_invalid_headers says.
    add(f"a name with {chr(character)!r}", get(b"/health", b"a%cb: 1" % character), 400, nginx=(200,))
add("a NUL in a name", get(b"/health", b"a\0b: 1"), 400)
for character in b"\0\x01\x08\x0b\x0c\x1b\x7f\r":
    # nginx looks for NUL alone, and hands on the rest.
    add(f"a value with {chr(character)!r}", get(b"/health", b"x: a%cb" % character), 400)
add("a bare line feed behind a field", b"GET /health HTTP/1.1\r\n%s\nx: 1\r\n\r\n" % HOST, 400, nginx=(200,))
add("two X-Request-Ids", get(b"/health", b"x-request-id: a", b"x-request-id: b"), 200)

# Framing (RFC 9112, section 6)

add("a body of a GET", get(b"/health", b"content-length: 3") + b"abc", 200)
add("a chunked body of a GET", get(b"/health", CHUNKED) + b"3\r\nabc\r\n" + END, 200)
add("a length of zero", get(b"/health", b"content-length: 0"), 200)
add("a length with zeros before it", get(b"/health", b"content-length: 0003") + b"abc", 200)
for length in (
    *(b"", b"+3", b"-3", b"3.0", b"0x3", b"3 3", b"3,3", b"3, 3", b"three", b"3;", b"\xc2\xb3", b"1e1"),
    *(b"18446744073709551616", b"9" * 50),
):
    add(f"the length {length.decode()!r}", get(b"/health", b"content-length: " + length) + b"abc", 400)
# Python refuses to read a number of more than 4,300 digits.
add(
    "a length with 4,300 zeros before it",
    head(b"POST %s HTTP/1.1" % USERS, JSON, b"content-length: %s%d" % (b"0" * 4300, NEW_LENGTH)) + NEW,
    201,
)
add("a length of 4,301 digits", head(b"POST %s HTTP/1.1" % USERS, JSON, b"content-length: " + b"9" * 4301) + NEW, 400)
add("two lengths", get(b"/health", b"content-length: 3", b"content-length: 3") + b"abc", 400)
add("two different lengths", get(b"/health", b"content-length: 3", b"content-length: 0") + b"abc", 400)
add("a length and chunks", get(b"/health", b"content-length: 3", CHUNKED) + END, 400)
add("chunks and a length", get(b"/health", CHUNKED, b"content-length: 3") + END, 400)
add("chunks in HTTP/1.0", head(b"GET /health HTTP/1.0", CHUNKED) + END, 400)
add("chunks in any case", get(b"/health", b"Transfer-Encoding: ChUnKeD") + END, 200)
for coding in (
    b"gzip, chunked",
    b"identity, chunked",
    b"gzip",
    b"identity",
    b"xchunked",
    b"chunked;q=1",
    b"br,chunked",
    b"chun ked",
    b'"chunked"',
    b"x, chunked",
):
    # A coding that is not known is 501 (section 6.1); without chunked at the end it could be 400 as well.
    add(
        f"the coding {coding.decode()}",
        head(b"DELETE %s/1 HTTP/1.1" % USERS, b"transfer-encoding: " + coding) + END,
        501,
    )
for coding in (b"chunked, chunked", b"chunked, gzip", b"chunked,", b"", b"\x0bchunked"):
    sent = head(b"DELETE %s/1 HTTP/1.1" % USERS, b"transfer-encoding: " + coding) + END
    add(f"the coding {coding.decode()!r}", sent, 400)
add("two lines of codings", get(b"/health", b"transfer-encoding: gzip", CHUNKED) + END, 501)
add("chunked twice", get(b"/health", CHUNKED, CHUNKED) + END, 400)
add("a blank before the colon of a coding", get(b"/health", b"transfer-encoding : chunked") + END, 400)
add("a folded coding", get(b"/health", b"transfer-encoding:", b" chunked") + END, 400)

# Chunks (RFC 9112, section 7.1)

BODY = b"%x\r\n%s\r\n" % (NEW_LENGTH, NEW)
add("one chunk", chunked(BODY + END), 201)
add("a chunk in upper case with zeros", chunked(b"000%X\r\n%s\r\n000\r\n\r\n" % (NEW_LENGTH, NEW)), 201)
add("an extension of a chunk", chunked(b'%x;a=b;c="d"\r\n%s\r\n0;e\r\n\r\n' % (NEW_LENGTH, NEW)), 201)
add("chunks of one byte", chunked(b"".join(b"1\r\n%c\r\n" % byte for byte in b"nonsense") + END), 422)
add("trailers", chunked(BODY + b'0\r\nx-trailer: 1\r\nif-match: "9"\r\n\r\n'), 201)
add(
    "trailers that would decide",
    chunked(BODY + b"0\r\nhost: a b\r\nexpect: 100-continue\r\nconnection: close\r\n\r\n"),
    201,
)
# Section 6.5.1: a framing field is no trailer. It may be dropped, as nginx does.
for field in (b"content-length: 5", CHUNKED):
    add(f"the trailer {field.decode()}", chunked(BODY + b"0\r\n%s\r\n\r\n" % field), 400, nginx=(201,))
add("30 KiB of trailers", chunked(BODY + b"0\r\n" + b"x: %s\r\n" % (b"y" * 3000) * 10 + b"\r\n"), 201)
add("40 KiB of trailers", chunked(BODY + b"0\r\n" + b"x: %s\r\n" % (b"y" * 4000) * 10 + b"\r\n"), 431, nginx=(201,))
add("one trailer of 40 KiB", chunked(BODY + b"0\r\nx: %s\r\n\r\n" % (b"y" * 40_000)), 431, nginx=(201,))
add("an extension of 40 KiB", chunked(b"1;%s\r\na\r\n" % (b"x" * 40_000) + END), 431, nginx=(422,))
for name, size in {
    "a sign": b"+1",
    "a minus": b"-1",
    "0x": b"0x1",
    "no size": b"",
    "no hexadecimal digit": b"g",
    "a blank before it": b" 1",
    "a blank behind it": b"1 ",
    "a size beyond 64 bits": b"1" + b"0" * 16,
    "two sizes": b"1,1",
}.items():
    for method in (b"POST", b"DELETE"):
        path = USERS if method == b"POST" else USERS + b"/999999"
        sent = chunked(size + b"\r\na\r\n" + END, method=method, path=path)
        add(f"{method.decode()}: a chunk's size: {name}", sent, 400, nginx=(404,) if method == b"DELETE" else (422,))
add("a chunk that is longer than its size", chunked(b"1\r\nab\r\n" + END), 400)
add("a chunk that is shorter than its size", chunked(b"3\r\nab\r\n" + END), 400, nginx=(422,))
add("a chunk with bare line feeds", chunked(b"1\na\n0\n\n"), 400, nginx=(422,))
add("a chunk without its end", chunked(b"1\r\na" + END), 400)
add("a line feed in an extension", chunked(b"1;a\nb\r\na\r\n" + END), 400, nginx=(422,))
add("a carriage return in an extension", chunked(b"1;a\rb\r\na\r\n" + END), 400, nginx=(422,))
add("a folded trailer", chunked(b"1\r\na\r\n0\r\nx: a\r\n b\r\n\r\n"), 400, nginx=(422,))
add("a trailer without a colon", chunked(b"1\r\na\r\n0\r\nnonsense\r\n\r\n"), 400, nginx=(422,))

# Pipelining (RFC 9112, section 9.3.2), and the end of a connection (section 9.6)

add("three at once", get(b"/health") + get(b"/nothing") + get(b"/ready"), 200, 404, 200)
add("a body between two", get(b"/health") + post(b"x") + get(b"/ready"), 200, 415, 200)
add("a request in a body", post(get(b"/ready"), JSON), 422)
add("a request in a chunk", chunked(b"%x\r\n%s\r\n" % (len(get(b"/ready")), get(b"/ready")) + END), 422)
add("an invalid request behind one", get(b"/health") + b"nonsense\r\n\r\n", 200, nginx=(200, 400))
add("an invalid body behind one", get(b"/health") + chunked(b"z\r\n"), 200, nginx=(200, 400))
add("an empty line between two", get(b"/health") + b"\r\n" + get(b"/ready"), 200, 200)
add("what follows the end is ignored", get(b"/health", b"connection: close") + get(b"/ready"), 200)
add("close in any case", get(b"/health", b"Connection: x, CLOSE") + get(b"/ready"), 200)
add("HTTP/1.0 ends the connection", head(b"GET /health HTTP/1.0") + get(b"/ready"), 200)
add("keep-alive", get(b"/health", b"connection: keep-alive, x"), 200)
add("a connection option that names Host", get(b"/health", b"connection: host"), 200)

# Expect and Upgrade (RFC 9110, sections 10.1.1 and 7.8)

add("Expect without a body", get(b"/health", b"expect: 100-continue"), 200)
add("Expect with its body", create(b"expect: 100-continue"), 201)
add(
    "Expect in HTTP/1.0",
    head(b"POST %s HTTP/1.0" % USERS, JSON, b"expect: 100-continue", b"content-length: 1") + b"x",
    422,
)
add(
    "Expect, refused before the body",
    head(b"POST %s HTTP/1.1" % USERS, b"expect: 100-continue", b"content-length: 5"),
    415,
    nginx=(415, 400),
)
add("an expectation that is none", create(b"expect: x"), 201)
add("h2c", get(b"/health", b"connection: upgrade, http2-settings", b"upgrade: h2c", b"http2-settings: AAMAAABk"), 200)
add("a WebSocket", get(b"/health", b"connection: upgrade", b"upgrade: websocket", b"sec-websocket-key: x"), 200)
add("an Upgrade with a body", create(b"connection: upgrade", b"upgrade: h2c"), 201)
add("an Upgrade with chunks", chunked(BODY + END, b"connection: upgrade", b"upgrade: h2c"), 201)
add("an Upgrade that is no option", get(b"/health", b"upgrade: websocket"), 200)
add("an Upgrade to TLS", get(b"/health", b"connection: upgrade", b"upgrade: TLS/1.3"), 200)

# Content (RFC 9110, section 8)

add("a user", create(), 201)
add("JSON with parameters", post(b"{}", b"content-type: application/json; charset=utf-8"), 422)
add("no type", post(b"{}"), 415)
add("another type", post(b"{}", b"content-type: text/plain"), 415)
add("a type and more", post(b"{}", b"content-type: application/json text"), 415)
add("a list of types", post(b"{}", b"content-type: application/json, text/plain"), 415)
add("two types", post(b"{}", JSON, b"content-type: text/plain"), 400)
for coding in (b"gzip", b"br", b"identity, gzip", b"x"):
    add(f"the content coding {coding.decode()}", post(b"{}", JSON, b"content-encoding: " + coding), 415)
    sent = post(b"{}", b"content-type: text/csv", b"content-encoding: " + coding, path=USERS + b"/import")
    add(f"the content coding {coding.decode()} of an import", sent, 415)
add("two lines of content codings", post(b"{}", JSON, b"content-encoding: identity", b"content-encoding: gzip"), 415)
add("identity", post(b"{}", JSON, b"content-encoding: Identity"), 422)
for number in (b"NaN", b"Infinity", b"-Infinity", b'[1, {"y": NaN}]'):
    add(
        f"JSON with {number.decode()} in an ignored key",
        post(b'{"email":"ada@example.com","x":%s}' % number, JSON),
        422,
    )
add("a body of 65 KiB", post(b" " * 65 * 1024, JSON), 413)
add("chunks of 65 KiB", chunked(b"400\r\n%s\r\n" % (b" " * 1024) * 65 + END), 413)
add(
    "a body beyond what there is",
    head(b"POST %s HTTP/1.1" % USERS, JSON, b"content-length: 99999999999", b"connection: close"),
    413,
    nginx=(),
)

# Conditions (RFC 9110, section 13). The user 1 has the version 1.

for header, status in {
    b'"1"': 200,
    b"*": 200,
    b'"7", "1"': 200,
    b', "7" ,\t"1",,': 200,
    b'"2"': 412,
    b'W/"1"': 412,
    b'w/"1"': 412,
    b'"1" garbage': 412,
    b'garbage, "1"': 412,
    b'"1" "7"': 412,
    b'"1': 412,
    b"1": 412,
    b'*, "1"': 412,
    b'"a,"1"': 412,
}.items():
    add(f"If-Match: {header.decode()}", get(USERS + b"/1", b"if-match: " + header), status)
for header, status in {
    b'"1"': 304,
    b'W/"1"': 304,
    b"*": 304,
    b'"7", W/"1"': 304,
    b'w/"1"': 200,
    b'"1" garbage': 200,
    b'"1" "7"': 200,
    b'"2"': 200,
    b"": 200,
}.items():
    add(f"If-None-Match: {header.decode()}", get(USERS + b"/1", b"if-none-match: " + header), status)
add("If-Match in two lines", get(USERS + b"/1", b'if-match: "7"', b'if-match: "1"'), 200)
add("If-Match of a list that changes", create(b"if-match: *"), 201)
add("If-Match of a tag that the list has not", create(b'if-match: "1"'), 412)
add("If-None-Match of a list that is there", create(b"if-none-match: *"), 412)
add("If-None-Match of a tag that the list has not", create(b'if-none-match: "1"'), 201)
for header in (b"*", b'"1"'):
    sent = post(b"", b"content-type: text/csv", b"if-match: " + header, path=USERS + b"/import")
    add(f"If-Match of an import: {header.decode()}", sent, 412)
add("If-None-Match of a user", head(b"DELETE %s/1 HTTP/1.1" % USERS, b"if-none-match: *"), 412)

# Headers with one value

for field in (b"idempotency-key: 5", b"request-timeout: 5"):
    add(f"two fields {field.decode()}", create(field, field), 400)
add("a key of 4,500 characters", create(b"idempotency-key: " + b"x" * 4500), 422)
add("a key with a NUL", create(b"idempotency-key: a\0b"), 400)
add("a key beyond ASCII", create(b"idempotency-key: \xed\xa0\x80"), 422)
add("a deadline that is none", get(USERS, b"request-timeout: 1, 2"), 422)
add("an id of 4,500 characters", get(b"/health", b"x-request-id: " + b"x" * 4500), 200)
add("an id with a NUL", get(b"/health", b"x-request-id: a\0b"), 400)
add("an id beyond ASCII", get(b"/health", b"x-request-id: \xed\xa0\x80"), 200)

# Ranges (RFC 9110, section 14)

ASSET = b"/docs/swagger-ui.css"
for header, status in {
    b"bytes=0-9": 206,
    b"BYTES=0-9": 206,
    b"bytes=5-": 206,
    b"bytes=-5": 206,
    b"bytes=0-99999999999999999999": 206,
    b"bytes=99999999-": 416,
    b"bytes=-0": 416,
    b"bytes=9-5": 200,
    b"bytes=": 200,
    b"bytes=a-b": 200,
    b"bytes": 200,
    b"items=0-9": 200,
    b"bytes=0-1,5-9": 200,
    b"bytes=0-1,99999999-": 200,
}.items():
    add(f"Range: {header.decode()}", get(ASSET, b"range: " + header), status)
add("Range of HEAD", head(b"HEAD %s HTTP/1.1" % ASSET, b"range: bytes=99999999-"), 200)
add("Range of what has none", get(b"/health", b"range: bytes=0-1"), 200)
add("If-Range that does not match", get(ASSET, b"range: bytes=99999999-", b'if-range: "x"'), 200)
add("If-None-Match of an asset", get(ASSET, b"if-none-match: *"), 304)
add("If-Match of an asset", get(ASSET, b'if-match: "x"'), 412)
add("If-None-Match of the document", get(b"/openapi.json", b"if-none-match: *"), 304)
