"""The URLs that clients are given, with and without an ingress in front."""

from __future__ import annotations

from urllib.parse import urljoin, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy

from services.ingest.location import COLLECTION, Locations
from shared.errors import StartupError

PROXY = "10.0.0.7"
ID = "0" * 8
PATH = f"{COLLECTION}/{ID}"

Pairs = list[tuple[str, str]] | dict[str, str]


def location(
    headers: Pairs,
    *,
    scheme: str = "http",
    peer: str | None = PROXY,
    public_url: str = "",
    trusted: tuple[str, ...] = ("10.0.0.0/8", "::1"),
) -> str:
    """Return the URL that a client gets whose request came with these headers."""
    sent = CIMultiDict({"Host": "direct:8080"})
    sent.extend(headers)
    locations = Locations(public_url, trusted)
    return locations.of(ID, headers=CIMultiDictProxy(sent), scheme=scheme, peer=peer)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_without_a_proxy(scheme: str) -> None:
    """A direct client gets the host that it asked, over the scheme that it used."""
    assert location({}, scheme=scheme) == f"{scheme}://direct:8080{PATH}"


@pytest.mark.parametrize(
    ("headers", "base"),
    [
        ({"X-Forwarded-Proto": "https"}, "https://direct:8080"),
        ({"X-Forwarded-Host": "up.example"}, "http://up.example"),
        ({"X-Forwarded-Host": "up.example:8443"}, "http://up.example:8443"),
        ({"X-Forwarded-Host": "[2001:db8::1]:8443"}, "http://[2001:db8::1]:8443"),
        ({"X-Forwarded-Proto": "https", "X-Forwarded-Host": "a.b"}, "https://a.b"),
        ({"X-Forwarded-Prefix": "/up"}, "http://direct:8080/up"),
        ({"X-Forwarded-Prefix": "/up/"}, "http://direct:8080/up"),
        ({"X-Forwarded-Prefix": "/a/b-c_d.e~f"}, "http://direct:8080/a/b-c_d.e~f"),
        ({"X-Forwarded-Prefix": "/"}, "http://direct:8080"),
        ({"Forwarded": "proto=https;host=a.b"}, "https://a.b"),
        ({"Forwarded": 'for=1.2.3.4; Host="a.b:99" ;PROTO=https'}, "https://a.b:99"),
        ({"Forwarded": 'for="[::1]";host="[2001:db8::1]"'}, "http://[2001:db8::1]"),
        ({"Forwarded": "for=1.2.3.4"}, "http://direct:8080"),
        ({"Forwarded": "host=a.b", "X-Forwarded-Host": "c.d"}, "http://a.b"),
        ({"Forwarded": "", "X-Forwarded-Host": ""}, "http://direct:8080"),
    ],
)
def test_behind_a_trusted_proxy(headers: dict[str, str], base: str) -> None:
    """What a trusted proxy says of scheme, host and prefix is believed."""
    assert location(headers) == base + PATH


@pytest.mark.parametrize(
    "headers",
    [
        [("Forwarded", "host=evil;proto=http, host=good;proto=https")],
        [("Forwarded", "host=evil"), ("Forwarded", "host=good;proto=https")],
        [("X-Forwarded-Host", "evil, good"), ("X-Forwarded-Proto", "http,https")],
        [
            ("X-Forwarded-Host", "evil"),
            ("X-Forwarded-Proto", "http"),
            ("X-Forwarded-Host", "good"),
            ("X-Forwarded-Proto", "https"),
        ],
    ],
)
def test_nearest_proxy_counts(headers: list[tuple[str, str]]) -> None:
    """Of several values the last one is believed: those before came from the client."""
    assert location(headers) == f"https://good{PATH}"


@pytest.mark.parametrize(
    "peer", ["192.0.2.1", "11.0.0.1", "::2", "fe80::1%eth0", "", None, "x"]
)
@pytest.mark.parametrize("name", ["X-Forwarded-Host", "Forwarded", "X-Forwarded-Prefix"])
def test_strangers_are_not_believed(peer: str | None, name: str) -> None:
    """Forwarding headers from any other peer change nothing."""
    assert location({name: "host=evil"}, peer=peer) == f"http://direct:8080{PATH}"


@pytest.mark.parametrize("peer", ["::1", "10.255.255.255", "::ffff:10.0.0.1"])
def test_every_form_of_a_trusted_address(peer: str) -> None:
    """An IPv4 proxy is known on an IPv6 listener too, where its address is mapped."""
    assert location({"X-Forwarded-Host": "a.b"}, peer=peer) == f"http://a.b{PATH}"


def test_nobody_is_trusted_by_default() -> None:
    """Without trusted networks nobody's forwarding headers are believed."""
    assert location({"X-Forwarded-Host": "evil"}, trusted=()) == f"http://direct:8080{PATH}"


@pytest.mark.parametrize(
    "headers",
    [
        *({"Host": host} for host in ("", "a b", "a/b", "a@b", "a?b", "a#b", "ä", "a:b", "[")),
        {"Host": "a:123456"},
        {"Host": "a\r\nSet-Cookie: x"},
        {"X-Forwarded-Host": "evil/path?"},
        {"X-Forwarded-Proto": "javascript"},
        {"X-Forwarded-Proto": "HTTPS "},
        {"Forwarded": "proto=gopher;host=a"},
        {"Forwarded": 'host="a/b"'},
    ],
)
def test_nonsense_gives_a_path(headers: dict[str, str]) -> None:
    """A host or scheme that cannot be one is not repeated: clients get a path alone."""
    sent = CIMultiDict({"Host": "direct"} | headers)
    got = Locations("", ("10.0.0.0/8",)).of(
        ID, headers=CIMultiDictProxy(sent), scheme="http", peer=PROXY
    )
    assert got in {PATH, f"https://direct{PATH}"}
    assert urljoin("http://origin/api/v1/uploads", got).endswith(PATH)


@pytest.mark.parametrize(
    "prefix", ["up", "//evil", "/a//b", "/../x?", "/a b", "/a%2e", "https://evil", "/a\r\nX: y"]
)
def test_bad_prefix_is_ignored(prefix: str) -> None:
    """A prefix that would change more than the path's beginning is left out."""
    assert location({"X-Forwarded-Prefix": prefix}) == f"http://direct:8080{PATH}"


@pytest.mark.parametrize("public_url", ["https://up.example/base", "https://up.example/base/"])
def test_public_url_wins(public_url: str) -> None:
    """A configured base holds whatever requests and proxies say."""
    headers = {"Host": "x", "X-Forwarded-Host": "y", "Forwarded": "host=z"}
    assert location(headers, public_url=public_url) == f"https://up.example/base{PATH}"


@pytest.mark.parametrize("network", ["x", "10.0.0.0/33", "10.0.0.1/8", "10.0.0", "*", ""])
def test_bad_network_stops_the_start(network: str) -> None:
    """A network that is none is told by the name of its setting."""
    with pytest.raises(StartupError, match="TRUSTED_PROXIES"):
        Locations("", ("::1", network))


@given(st.text(max_size=30), st.text(max_size=30), st.text(max_size=30), st.text(max_size=30))
def test_never_another_path(host: str, forwarded: str, proto: str, prefix: str) -> None:
    """Whatever proxies say, the URL is HTTP, has no query, and ends with the upload's path."""
    headers = {
        "Host": host,
        "Forwarded": forwarded,
        "X-Forwarded-Host": forwarded,
        "X-Forwarded-Proto": proto,
        "X-Forwarded-Prefix": prefix,
    }
    parts = urlsplit(location(headers))
    assert parts.scheme in {"", "http", "https"}
    assert parts.path.endswith(PATH)
    assert (parts.query, parts.fragment, parts.username) == ("", "", None)
