"""CORS_ORIGINS: each entry is an origin as browsers send it, or is refused with its remedy."""

import pytest

from api.http.cors import parse_origins

SENT = {
    "https://app.example.com": "https://app.example.com",
    "HTTPS://App.Example.COM": "https://app.example.com",
    "https://app.example.com:443": "https://app.example.com",
    "http://app.example.com:80": "http://app.example.com",
    "https://app.example.com:": "https://app.example.com",
    "https://app.example.com:0443": "https://app.example.com",
    "https://app.example.com:80": "https://app.example.com:80",
    "http://app.example.com:443": "http://app.example.com:443",
    "http://LOCALHOST:3000": "http://localhost:3000",
    "http://127.0.0.1:8080": "http://127.0.0.1:8080",
    "http://[::1]:3000": "http://[::1]:3000",
    "http://[0:0:0:0:0:0:0:1]:80": "http://[::1]",
    "http://[2001:DB8:0:0:1:0:0:1]": "http://[2001:db8::1:0:0:1]",
    "https://xn--bcher-kva.example": "https://xn--bcher-kva.example",
    "https://my_app.example.com": "https://my_app.example.com",
    "https://example.com.": "https://example.com.",
    "https://1and1.example2": "https://1and1.example2",
}
"""Each origin, and how a browser writes it (`new URL(…).origin`)."""
REFUSED = {
    "https://*.example.com": "a wildcard",
    "http://localhost:*": "a wildcard",
    "https://*": "a wildcard",
    "**": "a wildcard",
    "null": "is null",
    "NULL": "is null",
    "https://b\u00fccher.example": "Punycode",
    "https://\uff41pp.example.com": "Punycode",
    "https://app.example.com\u200b": "Punycode",
    "http://\u212aelvin.example": "Punycode",
    "https://app.example.com/": "a / at the end",
    "https://app.example.com/app": "a path",
    "https://app.example.com?x": "is not an origin",
    "https://app.example.com#x": "is not an origin",
    "https://app.example.com\\": "is not an origin",
    "https://ada:sesame@app.example.com": "without a user",
    "https://app.example.com;https://b.example": "is not an origin",
    "app.example.com": "write http:// or https://",
    "//app.example.com": "write http:// or https://",
    "ftp://app.example.com": "write http:// or https://",
    "https:app.example.com": "write http:// or https://",
    "https://": "is not an origin",
    "https://:443": "is not an origin",
    "https://a..b": "is not an origin",
    "https://.example.com": "is not an origin",
    "https://a%41.example": "is not an origin",
    '"https://app.example.com"': "is not an origin",
    '["https://app.example.com"]': "is not an origin",
    "https://app.example.com:0": "a port",
    "https://app.example.com:65536": "a port",
    "https://app.example.com:x": "is not an origin",
    "https://app.example.com:80:80": "is not an origin",
    "https://app.example.com:-1": "is not an origin",
    "http://127.1": "an address",
    "http://2130706433": "an address",
    "http://0x7f.1": "an address",
    "http://127.0.0.01": "an address",
    "http://127.0.0.1.": "an address",
    "http://256.0.0.1": "an address",
    "http://app.example.1": "an address",
    "http://[::ffff:1.2.3.4]": "an address",
    "http://[::1": "is not an origin",
    "http://[fe80::1%eth0]": "is not an origin",
    "http://[:::]": "an address",
    "http://::1": "is not an origin",
}


@pytest.mark.parametrize(("written", "sent"), SENT.items())
def test_an_origin_is_what_a_browser_sends(written: str, sent: str) -> None:
    assert parse_origins(written) == [sent]


@pytest.mark.parametrize(("written", "reason"), REFUSED.items())
def test_what_no_browser_sends_is_refused_with_the_remedy(written: str, reason: str) -> None:
    with pytest.raises(ValueError, match=r"^entry 2 (has|is) .*: \w+") as refused:
        parse_origins(f"https://a.example {written}")
    assert reason in str(refused.value)
    assert "sesame" not in str(refused.value)


def test_several_origins() -> None:
    assert parse_origins(" https://a.example,http://b.example:1\n*\t") == [
        "https://a.example",
        "http://b.example:1",
        "*",
    ]
    for nothing in ("", " ", ",", " , "):
        with pytest.raises(ValueError, match="there is no entry"):
            parse_origins(nothing)
