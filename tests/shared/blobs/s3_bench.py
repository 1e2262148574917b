"""Stores on S3 that reach their server through a proxy, and what tests do with them."""

from __future__ import annotations

from typing import Any, Final

from msgspec.structs import replace

from shared.blobs.s3 import S3Store
from shared.blobs.store import BlobWriter
from shared.sidecar import Sidecar, new_id
from tests.s3_proxy import S3Proxy
from tests.s3_servers import S3Server, options_of
from tests.shared.blobs.memory_leases import MemoryLeases, Registry
from tests.shared.samples import FACTS, new_sidecar

__all__ = ["PART", "Bench", "append", "keys", "sized"]

PART: Final = 1024
"""Bytes of a part, unless a test wants others."""


class Bench:
    """A server behind a proxy, and stores that reach it through the proxy or past it."""

    def __init__(self, server: S3Server, proxy: S3Proxy) -> None:
        self.proxy: Final = proxy
        self.registry: Final = Registry()
        self.prefix: Final = f"faults/{new_id()}/"
        self._server: Final = server

    def store(self, *, direct: bool = False, patience_s: float = 0.0, **more: Any) -> S3Store:
        """Return one more store on the same objects, not opened yet."""
        options = options_of(self._server if direct else self.proxy, patience_s=patience_s)
        return S3Store(
            options,
            prefix=self.prefix,
            leases=MemoryLeases(self.registry),
            **{"part_size": PART, **more},
        )


def sized(body: bytes) -> Sidecar:
    """Return the record of a new upload of this length."""
    sidecar = new_sidecar()
    return replace(sidecar, facts=replace(FACTS, size=len(body)))


async def append(writer: BlobWriter, body: bytes, upto: int) -> int:
    """Write up to an offset in uneven pieces and sync; return what is acknowledged."""
    at = writer.offset
    while at < upto:
        size = min(700, upto - at)
        await writer.write([body[at : at + size]])
        at += size
    await writer.sync()
    return writer.offset


async def keys(store: S3Store) -> set[str]:
    """Return what is left below the store's prefix, but for the marks of events."""
    listed = await store.client.list_all(store.keys.prefix)
    names = {one.key.removeprefix(store.keys.prefix) for one in listed}
    return {one for one in names if not one.startswith("due/")}
