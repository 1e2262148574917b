"""Who sent a request, when proxies stand between."""

from __future__ import annotations

import pytest
from multidict import CIMultiDict

from shared.errors import StartupError
from shared.proxies import TrustedProxies

PROXIES = TrustedProxies(["10.0.0.0/8", "fd00::/8"])


@pytest.mark.parametrize(
    ("peer", "headers", "client"),
    [
        pytest.param("1.2.3.4", [], "1.2.3.4", id="direct"),
        pytest.param("1.2.3.4", [("X-Forwarded-For", "9.9.9.9")], "1.2.3.4", id="liar"),
        pytest.param("10.0.0.1", [("X-Forwarded-For", "9.9.9.9")], "9.9.9.9", id="proxy"),
        pytest.param(
            "10.0.0.1", [("X-Forwarded-For", "6.6.6.6, 9.9.9.9")], "9.9.9.9", id="invented"
        ),
        pytest.param(
            "10.0.0.1", [("X-Forwarded-For", "9.9.9.9, 10.2.3.4")], "9.9.9.9", id="two-proxies"
        ),
        pytest.param(
            "10.0.0.1",
            [("X-Forwarded-For", "6.6.6.6"), ("X-Forwarded-For", "9.9.9.9")],
            "9.9.9.9",
            id="two-lines",
        ),
        pytest.param("10.0.0.1", [("X-Forwarded-For", "10.5.5.5")], "10.5.5.5", id="inside"),
        pytest.param("10.0.0.1", [("X-Forwarded-For", "unknown")], "10.0.0.1", id="no-address"),
        pytest.param("10.0.0.1", [], "10.0.0.1", id="proxy-says-nothing"),
        pytest.param(
            "::ffff:10.0.0.1", [("X-Forwarded-For", "9.9.9.9")], "9.9.9.9", id="mapped"
        ),
        pytest.param("10.0.0.1", [("X-Forwarded-For", "9.9.9.9:5555")], "9.9.9.9", id="port"),
        pytest.param(
            "10.0.0.1",
            [("Forwarded", "for=6.6.6.6, for=9.9.9.9;proto=https;host=a")],
            "9.9.9.9",
            id="rfc7239",
        ),
        pytest.param(
            "10.0.0.1",
            [("Forwarded", 'for="[2001:db8:1:2::5]:4711"')],
            "2001:db8:1:2::/64",
            id="rfc7239-ipv6",
        ),
        pytest.param("2001:db8::1", [], "2001:db8::/64", id="ipv6"),
        pytest.param("fd00::1", [("X-Forwarded-For", "9.9.9.9")], "9.9.9.9", id="ipv6-proxy"),
        pytest.param(None, [("X-Forwarded-For", "9.9.9.9")], "", id="unix-socket"),
    ],
)
def test_whose_request_it_is(
    peer: str | None, headers: list[tuple[str, str]], client: str
) -> None:
    """The last address that no trusted proxy has counts, whatever stands before it."""
    assert PROXIES.client(CIMultiDict(headers), peer) == client


def test_a_network_that_is_none_is_told() -> None:
    """A typing error in the list must not silently trust nobody."""
    with pytest.raises(StartupError, match="TRUSTED_PROXIES"):
        TrustedProxies(["10.0.0.0/99"])
