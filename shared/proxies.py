"""What the proxies in front of a service say of a request, and whether it is believed.

Anybody can send these headers, so they count only on connections from proxies that are trusted
(security item 28). Behind a proxy the request that arrives is not the one that the client sent:
the URLs that it is told are built from what the proxy says.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import Final, TypeAlias

from multidict import MultiMapping

from shared.errors import StartupError

__all__ = ["PublicUrl", "TrustedProxies", "forwarded", "nearest"]

_Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

_PAIR: Final = re.compile(r'\s*(proto|host|for)\s*=\s*"?([^";,]*)"?\s*', re.IGNORECASE)
_HOST: Final = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
_PREFIX: Final = re.compile(r"(?:/[A-Za-z0-9._~-]+)*/?")
_NODE: Final = re.compile(r"\[([0-9A-Fa-f:.]+)\](?::[0-9]{1,5})?|([0-9.]+)(?::[0-9]{1,5})?")


class TrustedProxies:
    """The networks whose word is taken.

    Args:
        networks: ``TRUSTED_PROXIES``, such as ``10.0.0.0/8``.

    Raises:
        StartupError: One of them is no network.

    """

    def __init__(self, networks: Iterable[str]) -> None:
        try:
            self._networks: Final = [ipaddress.ip_network(one) for one in networks]
        except ValueError as exc:
            raise StartupError(f"TRUSTED_PROXIES: {exc}") from exc

    def trusts(self, peer: str | None) -> bool:
        """Tell whether a connection comes from one of them."""
        address = _address(peer)
        return address is not None and any(address in network for network in self._networks)

    def client(self, headers: MultiMapping[str], peer: str | None) -> str:
        """Return the address of whoever sent a request, as far as it can be believed.

        That is the last one in the chain that is no trusted proxy: what stands before it,
        the client may have invented. Of IPv6 the network (/64) is returned, since a client
        has as many addresses in it as it likes. Empty where there is no address.

        Args:
            headers: Of the request.
            peer: Address at the other end of the connection.

        """
        found = _address(peer)
        if self.trusts(peer):
            for said in reversed(_chain(headers)):
                found = _address(said) or found
                if not self.trusts(said):
                    break
        if found is None:
            return ""
        if isinstance(found, ipaddress.IPv6Address):
            return str(ipaddress.ip_network((found, 64), strict=False))
        return str(found)


class PublicUrl:
    """The base of a service's URLs, as the client must use them.

    Args:
        given: Base that always holds; empty takes it from each request.
        trusted_proxies: Networks whose forwarding headers are believed.

    Raises:
        StartupError: One of the networks is none.

    """

    def __init__(self, given: str, trusted_proxies: Iterable[str]) -> None:
        self._given: Final = given.rstrip("/")
        self._proxies: Final = TrustedProxies(trusted_proxies)

    def of(self, *, headers: MultiMapping[str], scheme: str, peer: str | None) -> str:
        """Return the base, without a slash at its end.

        Args:
            headers: Of the request.
            scheme: Of the connection it came on.
            peer: Address at the other end of that connection.

        """
        if self._given:
            return self._given
        host, prefix = headers.get("Host", ""), ""
        if self._proxies.trusts(peer):
            said = forwarded(headers)
            host, scheme = said.get("host", host), said.get("proto", scheme)
            prefix = nearest(headers, "X-Forwarded-Prefix")
        if not _HOST.fullmatch(host) or scheme not in {"http", "https"}:
            return ""  # a path alone is right too: clients resolve it (item 46)
        return f"{scheme}://{host}{prefix.rstrip('/') if _PREFIX.fullmatch(prefix) else ''}"


def _address(text: str | None) -> _Address | None:
    try:
        address = ipaddress.ip_address(text or "")
    except ValueError:
        return None
    # A listener on [::] sees an IPv4 peer as ::ffff:a.b.c.d.
    return getattr(address, "ipv4_mapped", None) or address


def _chain(headers: MultiMapping[str]) -> list[str]:
    """Return the addresses that proxies have noted, the nearest one last."""
    if "Forwarded" in headers:
        hops = ",".join(headers.getall("Forwarded")).split(",")
        nodes = [dict(_pairs(hop)).get("for", "") for hop in hops]
    else:
        nodes = ",".join(headers.getall("X-Forwarded-For", [])).split(",")
    return [_without_port(node.strip()) for node in nodes if node.strip()]


def _without_port(node: str) -> str:
    match = _NODE.fullmatch(node)
    return (match[1] or match[2]) if match else node


def _pairs(hop: str) -> list[tuple[str, str]]:
    pairs = (_PAIR.fullmatch(part) for part in hop.split(";"))
    return [(pair[1].lower(), pair[2]) for pair in pairs if pair]


def forwarded(headers: MultiMapping[str]) -> dict[str, str]:
    """Return ``proto`` and ``host`` as the nearest proxy gave them; RFC 7239, else ``X-``."""
    if "Forwarded" in headers:
        return dict(_pairs(nearest(headers, "Forwarded")))
    names = {"proto": "X-Forwarded-Proto", "host": "X-Forwarded-Host"}
    found = {key: nearest(headers, name) for key, name in names.items()}
    return {key: value for key, value in found.items() if value}


def nearest(headers: MultiMapping[str], name: str) -> str:
    """Return the last value of a header; those before it may be the client's inventions.

    A proxy adds its own after a comma, or in a line of its own.
    """
    return headers.getall(name, [""])[-1].rpartition(",")[2].strip()
