"""What is special about serving from S3: URLs that it signs, and artifacts of many parts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from shared.blobs.s3 import S3Store
from shared.sidecar import new_id
from tests.processes import wait_until
from tests.s3_servers import S3Server, SwiftServer, options_of
from tests.shared.blobs.artifact_conformance import end_while_one_is_put
from tests.shared.blobs.conformance import pattern
from tests.shared.blobs.memory_leases import MemoryLeases, Registry
from tests.shared.blobs.sharing_conformance import filled

PART: Final = 4096
NAME: Final = "attachment; filename=\"a_b.txt\"; filename*=UTF-8''a%C3%A9b.txt"


async def opened(server: S3Server) -> AsyncIterator[S3Store]:
    """Open a store of the test's own."""
    store = S3Store(
        options_of(server),
        prefix=f"urls/{new_id()}/",
        leases=MemoryLeases(Registry()),
        part_size=PART,
    )
    await store.open()
    yield store
    await store.close()


@pytest.fixture
async def store(s3_server: S3Server) -> AsyncIterator[S3Store]:
    """A store on each server."""
    async for one in opened(s3_server):
        yield one


@pytest.fixture
async def strict_store(swift_server: SwiftServer) -> AsyncIterator[S3Store]:
    """A store on the server that looks at signatures."""
    async for one in opened(swift_server):
        yield one


async def url_of(store: S3Store, body: bytes, lifetime_s: int = 60) -> str:
    """Return a URL of a new file."""
    return await store.url_of(
        await filled(store, body),
        disposition=NAME,
        content_type="text/csv",
        lifetime_s=lifetime_s,
    )


def status_of(url: str) -> int:
    """Return what a GET is answered with."""
    try:
        with urlopen(url, timeout=10) as answer:
            return int(answer.status)
    except HTTPError as refusal:
        with refusal:
            return refusal.code


async def test_url(store: S3Store) -> None:
    """Anybody gets the bytes, or a part of them, under the name and type that were signed."""
    body = pattern(10_000)
    url = await url_of(store, body)
    with urlopen(Request(url, headers={"Range": "bytes=5-99"}), timeout=10) as answer:
        assert (answer.status, answer.read()) == (206, body[5:100])
        assert answer.headers["Content-Disposition"] == NAME
        assert answer.headers["Content-Type"].startswith("text/csv")
        assert answer.headers["Cache-Control"] == "private, no-store"


async def test_url_is_signed(strict_store: S3Store) -> None:
    """The URL gives that file under that name, and ends."""
    url = await url_of(strict_store, b"some bytes")
    other = await filled(strict_store, b"other bytes")
    own = url.partition("?")[0].rpartition("/")[2]
    assert status_of(url) == 200
    assert status_of(url.replace(own, other)) == 403
    assert status_of(url.replace("text%2Fcsv", "text%2Fhtml")) == 403
    brief = await url_of(strict_store, b"some bytes", lifetime_s=2)
    assert status_of(brief) == 200
    wait_until(lambda: status_of(brief) == 403, "the URL has ended")


async def test_end_while_a_large_artifact_is_put(strict_store: S3Store) -> None:
    """One that had parts on the server already leaves none when its upload ends."""
    await end_while_one_is_put(strict_store, strict_store, pattern(20_000))
