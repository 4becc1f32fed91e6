"""Which hosts only this machine can reach, and which URLs of keys they allow."""

import socket

import pytest

from api.auth.loopback import check_key_set_url, is_loopback

LOOPBACK = ["127.0.0.1", "127.9.9.9", "::1", "localhost"]
OTHERS = ["0.0.0.0", "::", "", "0", "192.0.2.7", "10.0.0.1", "169.254.1.1", "fe80::1", "no-such-host.invalid"]


@pytest.mark.parametrize("host", LOOPBACK)
def test_loopback_addresses(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", OTHERS)
def test_other_addresses(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize(
    ("addresses", "expected"),
    [
        (["127.0.0.1", "::1"], True),
        (["127.0.0.1", "192.0.2.7"], False),
        (["192.0.2.7", "127.0.0.1"], False),
        (["::1%lo"], True),
        (["fe80::1%eth0"], False),
    ],
)
def test_a_name_is_loopback_if_each_of_its_addresses_is(
    monkeypatch: pytest.MonkeyPatch, addresses: list[str], expected: bool
) -> None:
    found = [(socket.AF_INET6, socket.SOCK_STREAM, 6, "", (address, 0)) for address in addresses]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    assert is_loopback("name") == expected


@pytest.mark.parametrize(
    "url",
    [
        "https://auth.example.com/jwks.json",
        "https://auth.example.com:1/",
        "https://127.0.0.1:65535",
        *(f"http://{host}:8080/jwks.json" for host in ("127.0.0.1", "[::1]", "localhost")),
        "http://127.0.0.1/",
    ],
)
def test_urls_of_keys(url: str) -> None:
    check_key_set_url(url)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("", "https:// URL"),
        ("auth.example.com/jwks.json", "https:// URL"),
        ("http://auth.example.invalid/jwks.json", "https:// URL"),
        ("http://192.0.2.7/", "https:// URL"),
        ("http:///jwks.json", "https:// URL"),
        ("ftp://127.0.0.1/jwks.json", "https:// URL"),
        ("file:///etc/passwd", "https:// URL"),
        ("https:///jwks.json", "without a user"),
        ("https://@auth.example.com/", "without a user"),
        ("https://ada:sesame@auth.example.com/", "without a user"),
        ("http://ada@127.0.0.1/", "without a user"),
        ("https://auth.example.com:0/", "cannot be read"),
        ("https://auth.example.com:65536/", "cannot be read"),
        ("https://auth.example.com:x/", "cannot be read"),
        ("https://[::1/", "cannot be read"),
        ("https://auth.example.com/a b", "a blank"),
        ("https://auth.example.com/\u200b", "an invisible character"),
        ("https://auth.example.com/\n", "an invisible character"),
    ],
)
def test_urls_that_are_none(url: str, reason: str) -> None:
    """Anyone in between could replace the keys; and a password in a URL would be logged."""
    with pytest.raises(ValueError, match=reason) as refused:
        check_key_set_url(url)
    assert "sesame" not in str(refused.value)
