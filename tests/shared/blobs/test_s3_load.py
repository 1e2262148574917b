"""How the store on S3 bears load: many small requests, fast clients, servers far away."""

from __future__ import annotations

import asyncio
import random
import tracemalloc
from collections import Counter

import pytest
from msgspec.structs import replace

from tests.shared.blobs.conformance import content, finished, opened, pattern, writing
from tests.shared.blobs.s3_bench import PART, Bench, append, keys, sized
from tests.shared.samples import FACTS, new_sidecar
from tests.shared.waiting import eventually


async def test_marks_are_made_side_by_side(moto_bench: Bench) -> None:
    """A creation waits for two answers of a server that is far away, not for four."""
    proxy, sidecar = moto_bench.proxy, sized(pattern(1))
    async with opened(moto_bench.store(patience_s=10)) as store:
        before = len(proxy.calls)
        proxy.gate.clear()
        creating = asyncio.ensure_future(store.create(sidecar))
        try:
            await eventually(lambda: proxy.held == 2, "both marks are on their way")
        finally:
            proxy.gate.set()
        await creating
        assert len(proxy.calls) - before == 4


async def test_calls_of_one_request(moto_bench: Bench) -> None:
    """A file of full parts that comes in one request costs a call a part, and few besides."""
    body = pattern(5 * PART)
    sidecar = sized(body)
    async with opened(moto_bench.store(patience_s=10)) as store:
        await store.create(sidecar)
        before = len(moto_bench.proxy.calls)
        async with writing(store, sidecar.upload_id) as writer:
            await writer.write([body])
            await writer.finish(finished(writer.sidecar))
        made = Counter(one.kind for one in moto_bench.proxy.calls[before:])
        assert made == {
            "GET list-type": 3,  # what is there; which events are due; what is to go
            "GET": 1,  # the record
            "POST uploads": 1,
            "PUT uploadId partNumber": 5,
            "POST uploadId": 1,
            "PUT": 3,  # the layout, the mark of the event, the record
            "GET uploads": 1,
            "DELETE": 2,  # the layout, the mark of an unfinished upload
        }


@pytest.mark.parametrize(
    ("size", "least"),
    [
        pytest.param(700, 34, id="some"),
        pytest.param(3000, 121, id="many", marks=pytest.mark.slow),
    ],
)
async def test_small_requests_add_up(moto_bench: Bench, size: int, least: int) -> None:
    """Item 28: many requests of a few bytes, each with a turn of its own."""
    body = pattern(size)
    sidecar = sized(body)
    order = random.Random(1)
    async with opened(moto_bench.store(direct=True, part_size=1024)) as store:
        await store.create(sidecar)
        at, count = 0, 0
        while at < len(body):
            upto = min(at + order.randrange(1, 40), len(body))
            async with writing(store, sidecar.upload_id) as writer:
                assert writer.offset == at
                at = await append(writer, body, upto)
            count += 1
            pieces = [one for one in await keys(store) if ".tail." in one]
            assert len(pieces) <= 33
        async with writing(store, sidecar.upload_id) as writer:
            await writer.finish(finished(sidecar))
        assert count >= least  # more than there may be pieces
        assert await content(store, sidecar.upload_id) == body


@pytest.mark.slow
@pytest.mark.timeout(1800)
async def test_twelve_thousand_small_requests(moto_bench: Bench) -> None:
    """Item 28: more requests than there are part numbers, with parts of the real size."""
    body = pattern(12_000 * 1024)
    sidecar = sized(body)
    async with opened(moto_bench.store(direct=True, part_size=5 * 1024 * 1024)) as store:
        await store.create(sidecar)
        for at in range(0, len(body), 1024):
            async with writing(store, sidecar.upload_id) as writer:
                assert writer.offset == at
                await writer.write([body[at : at + 1024]])
                await writer.sync()
        async with writing(store, sidecar.upload_id) as writer:
            await writer.finish(finished(sidecar))
        assert await content(store, sidecar.upload_id) == body


async def test_memory_is_bounded_while_the_server_is_slow(moto_bench: Bench) -> None:
    """A client that is faster than S3 is held back: only the parts in flight pile up."""
    part, parallel = 256 * 1024, 4
    piece = pattern(64 * 1024)
    sidecar = replace(new_sidecar(), facts=replace(FACTS, size=None))
    async with opened(moto_bench.store(part_size=part, parallel_parts=parallel)) as store:
        await store.create(sidecar)
        moto_bench.proxy.delay_s = 0.05
        async with writing(store, sidecar.upload_id) as writer:
            await writer.write([piece])
            tracemalloc.start()
            try:
                for _ in range(100):
                    await writer.write([bytes(piece)] * 4)
                peak = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
            await writer.sync()
        # The proxy is in this process: it holds each part in flight too, in two copies.
        assert peak < (parallel * 4 + 2) * part + 2 * 1024 * 1024
        assert (await store.read(sidecar.upload_id)).offset == 401 * len(piece)
