"""The URL of an upload, as the client must use it.

Behind an ingress the request that arrives is not the one that the client sent. What the ingress
says of it is believed only from trusted proxies (security item 28).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from multidict import MultiMapping

from shared.proxies import TrustedProxies, forwarded, nearest

__all__ = ["Locations"]

COLLECTION: Final = "/api/v1/uploads"
_HOST: Final = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
_PREFIX: Final = re.compile(r"(?:/[A-Za-z0-9._~-]+)*/?")


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
        self._proxies: Final = TrustedProxies(trusted_proxies)

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
        if self._proxies.trusts(peer):
            said = forwarded(headers)
            host, scheme = said.get("host", host), said.get("proto", scheme)
            prefix = nearest(headers, "X-Forwarded-Prefix")
        if not _HOST.fullmatch(host) or scheme not in {"http", "https"}:
            return ""  # a path alone is right too: clients resolve it (item 46)
        return f"{scheme}://{host}{prefix.rstrip('/') if _PREFIX.fullmatch(prefix) else ''}"
