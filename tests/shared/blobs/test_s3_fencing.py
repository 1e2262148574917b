"""A writer on S3 that does not know that its lease has run out harms nobody.

Its calls were on their way when it lost the lease, and land when others have written. What it
writes here differs from what the upload gets from others, so that a single byte of it in the
wrong place shows.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from typing import Final

import pytest
from msgspec.structs import replace

from shared.blobs.s3 import S3Store
from shared.blobs.s3_writer import S3Writer
from shared.blobs.store import UploadBusy
from shared.leases import LeaseLost
from shared.sidecar import Sidecar, new_id
from tests.s3_proxy import S3Proxy
from tests.s3_servers import Reachable, S3Server, options_of
from tests.shared.blobs.conformance import content, finished, opened, pattern
from tests.shared.blobs.memory_leases import MemoryLeases, Registry
from tests.shared.samples import FACTS, new_sidecar

PART: Final = 512


@pytest.fixture
def registry() -> Registry:
    """What grants leases, and takes them away."""
    return Registry()


@pytest.fixture
async def store(s3_server: S3Server, registry: Registry) -> AsyncIterator[S3Store]:
    """A store with small parts, two of them in flight."""
    made = store_on(s3_server, f"fencing/{new_id()}/", registry)
    async with opened(made) as store:
        yield store


async def endless(store: S3Store) -> Sidecar:
    """Create an upload without a length."""
    sidecar = new_sidecar()
    sidecar = replace(sidecar, facts=replace(FACTS, size=None))
    await store.create(sidecar)
    return sidecar


@pytest.mark.parametrize("seed", range(3))
async def test_what_lands_late_changes_nothing(
    s3_server: S3Server, registry: Registry, store: S3Store, seed: int
) -> None:
    """Writers die again and again with calls on their way, which reach the server any time
    later: the bytes are always those that were acknowledged, then and in the end."""
    order = random.Random(seed)
    upload_id = (await endless(store)).upload_id
    truth = b""
    async with AsyncExitStack() as stack:
        late: list[tuple[S3Proxy, asyncio.Future[None]]] = []
        for _ in range(4):
            proxy = await stack.enter_async_context(proxy_of(s3_server))
            living = await stack.enter_async_context(
                opened(store_on(proxy, store.keys.prefix, registry))
            )
            writer = await living.acquire(upload_id)
            assert writer.offset >= len(truth)
            truth += b"Z" * (writer.offset - len(truth))  # came late, and nobody had gone on
            for _ in range(order.randrange(1, 4)):
                fresh = pattern(order.randrange(3 * PART), order.randrange(10**6))
                await writer.write([fresh])
                await writer.sync()
                truth += fresh
                assert writer.offset == len(truth)
                if late and order.random() < 0.5:
                    await land(*late.pop())
                assert (await store.read(upload_id)).offset == len(truth)
            proxy.gate.clear()
            doomed = asyncio.ensure_future(write_more(writer, order.randrange(4 * PART)))
            await settle(proxy)
            registry.expire(upload_id)
            late.append((proxy, doomed))
        while late:
            await land(*late.pop())
    last = await store.acquire(upload_id)
    truth += b"Z" * (last.offset - len(truth))
    await last.write([b"the end"])
    await last.finish(finished(last.sidecar))
    await last.close()
    assert await content(store, upload_id) == truth + b"the end"


def proxy_of(server: S3Server) -> S3Proxy:
    """Return a proxy before the server."""
    return S3Proxy(
        server.url,
        access_key_id=server.access_key_id,
        secret_access_key=server.secret_access_key,
    )


def store_on(server: Reachable, prefix: str, registry: Registry) -> S3Store:
    """Return a store on the same objects, as another process has it."""
    return S3Store(
        options_of(server, patience_s=5),
        prefix=prefix,
        leases=MemoryLeases(registry),
        part_size=PART,
        parallel_parts=2,
    )


async def write_more(writer: S3Writer, size: int) -> None:
    """Write what will not be acknowledged, until the lease is missed."""
    with suppress(OSError):
        await writer.write([b"Z" * size])
        await writer.sync()
    await writer.close()


async def settle(proxy: S3Proxy) -> None:
    """Wait until all calls that can be on their way are."""
    before = -1
    while before != proxy.held:
        before = proxy.held
        await asyncio.sleep(0.05)


async def land(proxy: S3Proxy, doomed: asyncio.Future[None]) -> None:
    """Let the calls of the dead reach the server."""
    proxy.gate.set()
    await doomed


async def test_what_is_in_flight_at_a_takeover_lands_nowhere(
    store: S3Store, registry: Registry
) -> None:
    """Parts of the dead one that arrive after the first bytes of its heir are not counted."""
    sidecar = await endless(store)
    dead = await store.acquire(sidecar.upload_id)
    await dead.write([b"a" * (PART + 100)])
    await dead.sync()
    await dead.write([b"Z" * (2 * PART)])  # these are on their way
    registry.expire(sidecar.upload_id, noticed=False)
    heir = await store.acquire(sidecar.upload_id)
    truth = b"a" * (PART + 100) + b"Z" * (heir.offset - PART - 100)
    fresh = pattern(5 * PART + 7)
    await heir.write([fresh])
    await heir.sync()
    await dead.sync()
    assert heir.offset == len(truth + fresh)
    assert (await store.read(sidecar.upload_id)).offset == heir.offset
    await heir.finish(finished(heir.sidecar))
    await heir.close()
    await dead.close()
    assert await content(store, sidecar.upload_id) == truth + fresh


async def test_a_loss_that_is_noticed_is_not_acknowledged(
    store: S3Store, registry: Registry
) -> None:
    """A sync whose lease ended meanwhile fails, though the server has taken all of it."""
    sidecar = await endless(store)
    writer = await store.acquire(sidecar.upload_id)
    await writer.write([b"x" * 100])
    registry.expire(sidecar.upload_id)
    for job in (writer.sync, lambda: writer.record(sidecar)):
        with pytest.raises(LeaseLost):
            await job()
    assert writer.offset == 0
    await writer.close()
    assert (await store.read(sidecar.upload_id)).offset == 0


async def test_a_registry_that_has_forgotten_grants_greater_fences(
    s3_server: S3Server, store: S3Store
) -> None:
    """After a wipe of Redis the first writer still counts as newer than all before."""
    sidecar = await endless(store)
    for _ in range(5):
        writer = await store.acquire(sidecar.upload_id)
        await writer.write([b"0123456789" * 100])
        await writer.sync()
        await writer.close()
    fresh = store_on(s3_server, store.keys.prefix, Registry())
    async with opened(fresh) as other:
        writer = await other.acquire(sidecar.upload_id)
        await writer.write([b"after the wipe"])
        await writer.sync()
        await writer.close()
        assert (await store.read(sidecar.upload_id)).offset == 5014


async def test_who_is_refused_leaves_the_holder_alone(store: S3Store) -> None:
    """A second writer gets nothing, and the first one goes on."""
    sidecar = await endless(store)
    writer = await store.acquire(sidecar.upload_id)
    with pytest.raises(UploadBusy):
        await store.acquire(sidecar.upload_id)
    await writer.write([b"on"])
    await writer.sync()
    await writer.close()
    assert (await store.read(sidecar.upload_id)).offset == 2
