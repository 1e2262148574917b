"""The URL of an upload, as the client must use it.

Behind an ingress the request that arrives is not the one that the client sent. What the ingress
says of it is believed only from trusted proxies (security item 28).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import Final

from multidict import MultiMapping

from shared.errors import StartupError

__all__ = ["Locations"]

COLLECTION: Final = "/api/v1/uploads"
_HOST: Final = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
_PREFIX: Final = re.compile(r"(?:/[A-Za-z0-9._~-]+)*/?")
_FORWARDED_PAIR: Final = re.compile(r'\s*(proto|host)\s*=\s*"?([^";,]*)"?\s*', re.IGNORECASE)


class Locations:
    """Builds URLs of uploads.

    Args:
        public_url: Base that always holds; empty takes it from each request.
        trusted_proxies: Networks whose forwarding headers are believed.

    Raises:
        StartupError: One of the networks is none.

    """

    def __init__(self, public_url: str, trusted_proxies: Iterable[str]) -> None:
        self._public_url: Final = public_url.rstrip("/")
        try:
            self._trusted: Final = [ipaddress.ip_network(one) for one in trusted_proxies]
        except ValueError as exc:
            raise StartupError(f"TRUSTED_PROXIES: {exc}") from exc

    def of(
        self, upload_id: str, *, headers: MultiMapping[str], scheme: str, peer: str | None
    ) -> str:
        """Return the URL of an upload.

        Args:
            upload_id: Of the upload.
            headers: Of the request that creates it.
            scheme: Of the connection it came on.
            peer: Address at the other end of that connection.

        """
        return f"{self.collection(headers=headers, scheme=scheme, peer=peer)}/{upload_id}"

    def collection(self, *, headers: MultiMapping[str], scheme: str, peer: str | None) -> str:
        """Return the URL of the collection; arguments as for ``of``."""
        return f"{self._public_url or self._base(headers, scheme, peer)}{COLLECTION}"

    def _base(self, headers: MultiMapping[str], scheme: str, peer: str | None) -> str:
        host, prefix = headers.get("Host", ""), ""
        if self._is_trusted(peer):
            said = _forwarded(headers)
            host, scheme = said.get("host", host), said.get("proto", scheme)
            prefix = _nearest(headers, "X-Forwarded-Prefix")
        if not _HOST.fullmatch(host) or scheme not in {"http", "https"}:
            return ""  # a path alone is right too: clients resolve it (item 46)
        return f"{scheme}://{host}{prefix.rstrip('/') if _PREFIX.fullmatch(prefix) else ''}"

    def _is_trusted(self, peer: str | None) -> bool:
        try:
            address = ipaddress.ip_address(peer or "")
        except ValueError:
            return False
        # A listener on [::] sees an IPv4 peer as ::ffff:a.b.c.d.
        address = getattr(address, "ipv4_mapped", None) or address
        return any(address in network for network in self._trusted)


def _forwarded(headers: MultiMapping[str]) -> dict[str, str]:
    """Return ``proto`` and ``host`` as the nearest proxy gave them; RFC 7239, else ``X-``."""
    if "Forwarded" in headers:
        nearest = _nearest(headers, "Forwarded")
        pairs = (_FORWARDED_PAIR.fullmatch(part) for part in nearest.split(";"))
        return {pair[1].lower(): pair[2] for pair in pairs if pair}
    names = {"proto": "X-Forwarded-Proto", "host": "X-Forwarded-Host"}
    found = {key: _nearest(headers, name) for key, name in names.items()}
    return {key: value for key, value in found.items() if value}


def _nearest(headers: MultiMapping[str], name: str) -> str:
    """Return the last value of a header; those before it may be the client's inventions.

    A proxy adds its own after a comma, or in a line of its own.
    """
    return headers.getall(name, [""])[-1].rpartition(",")[2].strip()
