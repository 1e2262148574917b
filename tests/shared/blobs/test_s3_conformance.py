"""The blob store on S3 keeps all promises of a blob store, on two servers."""

from __future__ import annotations

import pytest

from shared.blobs.s3 import S3Store
from tests.s3_servers import S3Server, options_of
from tests.shared.blobs.conformance import BlobStoreConformance, OpenStore
from tests.shared.blobs.memory_leases import MemoryLeases, Registry

PART: int = 4096


class TestS3Store(BlobStoreConformance):
    """The promises, with parts so small that most uploads have several."""

    @pytest.fixture
    def open_store(self, s3_server: S3Server, request: pytest.FixtureRequest) -> OpenStore:
        """Open the same store again and again, as other processes would."""
        registry = Registry()
        name = f"{abs(hash(request.node.name)):x}"

        def open_one() -> S3Store:
            return S3Store(
                options_of(s3_server),
                prefix=f"conformance/{name}/",
                leases=MemoryLeases(registry),
                part_size=PART,
            )

        return open_one
