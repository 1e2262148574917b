"""The URL of an upload, as the client must use it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from multidict import MultiMapping

from shared.proxies import PublicUrl

__all__ = ["COLLECTION", "Locations"]

COLLECTION: Final = "/api/v1/uploads"


class Locations:
    """Builds URLs of uploads.

    Args:
        public_url: Base that always holds; empty takes it from each request.
        trusted_proxies: Networks whose forwarding headers are believed.

    Raises:
        StartupError: One of the networks is none.

    """

    def __init__(self, public_url: str, trusted_proxies: Iterable[str]) -> None:
        self._base: Final = PublicUrl(public_url, trusted_proxies)

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
        return f"{self._base.of(headers=headers, scheme=scheme, peer=peer)}{COLLECTION}"
