"""What ``Upload-Concat`` says, without I/O: a piece, or a file to be joined from pieces.

Clients that send one file over several connections make a partial upload for each, and then
a final one that names them in order (items 89 to 102).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final
from urllib.parse import urljoin, urlsplit

from shared.errors import InvalidRequest, PayloadTooLarge
from shared.sidecar import is_upload_id

__all__ = ["PARTIAL", "named_parts", "total_size"]

PARTIAL: Final = "partial"
_FINAL: Final = "final;"
_MAX_PARTS: Final = 10_000
_DEFAULT_PORTS: Final = {"http": ":80", "https": ":443"}


def named_parts(value: str, collection: str) -> tuple[str, ...]:
    """Return the ids of the uploads that a final one joins, in order; none for a partial one.

    Args:
        value: ``Upload-Concat``.
        collection: URL of the collection as the client sees it, or its path alone.

    Raises:
        InvalidRequest: It is neither ``partial`` nor ``final;`` and URLs (item 91), one of
            them is no upload's of this collection, or there are too many (item 101).

    """
    if value == PARTIAL:
        return ()
    urls = [url for url in value.removeprefix(_FINAL).split(" ") if url]
    if not value.startswith(_FINAL) or not urls:
        raise InvalidRequest("Upload-Concat must be partial, or final; and the URLs of parts.")
    if len(urls) > _MAX_PARTS:
        raise InvalidRequest(f"Upload-Concat may name {_MAX_PARTS} uploads.")
    return tuple(_id_in(url, collection) for url in urls)


def _id_in(url: str, collection: str) -> str:
    """Return the id in the URL of an upload.

    Relative ones are resolved as RFC 3986 says, and with the collection as their folder too,
    so that a bare id will do. Whether a proxy ends TLS is not seen here, so both schemes do.
    """
    ours = urlsplit(collection)
    try:
        for base in (collection, f"{collection}/"):
            resolved = urlsplit(urljoin(base, url))
            folder, _, last = resolved.path.rpartition("/")
            is_ours = folder == ours.path and (
                (resolved.scheme, resolved.netloc) == (ours.scheme, ours.netloc)
                or (resolved.scheme in _DEFAULT_PORTS and _host(url) == _host(collection))
            )
            bare = not (resolved.query or resolved.fragment or ".." in url)
            if is_ours and bare and is_upload_id(last):
                return last
    except ValueError:  # brackets that hold no address
        pass
    raise InvalidRequest("Upload-Concat names what is no upload of this server.")


def _host(url: str) -> str:
    parts = urlsplit(url)
    return parts.netloc.lower().removesuffix(_DEFAULT_PORTS.get(parts.scheme, ":"))


def total_size(sizes: Iterable[int | None], *, max_size: int) -> int | None:
    """Return the length of what is joined (item 92); ``None`` while a part's is unknown.

    Args:
        sizes: Declared lengths of the parts, in bytes.
        max_size: Largest upload in bytes; 0 is no limit.

    Raises:
        PayloadTooLarge: Even the parts that are known are over the limit (item 102).

    """
    known = list(sizes)
    total = sum(size or 0 for size in known)
    if max_size and total > max_size:
        raise PayloadTooLarge(
            f"The upload may have at most {max_size} bytes.",
            headers={"Tus-Max-Size": str(max_size)},
        )
    return None if None in known else total
