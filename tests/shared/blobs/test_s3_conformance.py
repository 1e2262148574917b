"""The blob store on S3 keeps all promises of a blob store, on two servers."""

from __future__ import annotations

from typing import Final

import pytest

from shared.blobs.s3 import S3Store
from shared.blobs.store import BlobStore
from shared.sidecar import new_id
from tests.s3_servers import S3Server, options_of
from tests.shared.blobs.artifact_conformance import ArtifactConformance
from tests.shared.blobs.chunk_conformance import ChunkConformance
from tests.shared.blobs.conformance import BlobStoreConformance, OpenStore
from tests.shared.blobs.memory_leases import MemoryLeases, Registry
from tests.shared.blobs.sharing_conformance import SharingConformance

PART: Final = 4096


@pytest.fixture
def open_store(s3_server: S3Server) -> OpenStore:
    """Open the same store again and again, as other processes would."""
    registry = Registry()
    prefix = f"conformance/{new_id()}/"

    def open_one() -> BlobStore:
        return S3Store(
            options_of(s3_server),
            prefix=prefix,
            leases=MemoryLeases(registry),
            part_size=PART,
        )

    return open_one


class TestS3Store(BlobStoreConformance):
    """The promises, with parts so small that most uploads have several."""


class TestS3Chunks(ChunkConformance):
    """The promises about chunks."""


class TestS3Sharing(SharingConformance):
    """The promises about bytes that several uploads have; here each has a copy."""


class TestS3Artifacts(ArtifactConformance):
    """The promises about what is made of the bytes, with those too large for one part."""
