"""Bound of storing on S3: aiobotocore's multipart upload of a file, four parts at a time.

No more than anyone would write who has the file on a disk. Prints how many seconds it took
from the first request to the last answer, and how many of CPU.

Usage: ``python -m bench.bounds.s3_multipart ENDPOINT BUCKET FILE``; credentials are taken from
the environment.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from typing import TYPE_CHECKING, Any, Final

from aiobotocore.config import AioConfig
from aiobotocore.session import get_session

if TYPE_CHECKING:
    from types_aiobotocore_s3.client import S3Client
    from types_aiobotocore_s3.type_defs import CompletedPartTypeDef

PART_SIZE: Final = 8 << 20
PARALLEL: Final = 4
CHECKSUMS: Final = "when_supported"
"""What ingest is set to as well."""


async def _upload(client: S3Client, bucket: str, path: str) -> None:
    where: dict[str, Any] = {"Bucket": bucket, "Key": "bound"}
    where["UploadId"] = (await client.create_multipart_upload(**where))["UploadId"]
    free = asyncio.Semaphore(PARALLEL)

    async def send(fd: int, number: int) -> CompletedPartTypeDef:
        async with free:
            content = os.pread(fd, PART_SIZE, number * PART_SIZE)
            answer = await client.upload_part(**where, PartNumber=number + 1, Body=content)
        return {"PartNumber": number + 1, "ETag": answer["ETag"]}

    fd = os.open(path, os.O_RDONLY)
    try:
        count = -(-os.fstat(fd).st_size // PART_SIZE)
        parts = await asyncio.gather(*(send(fd, number) for number in range(count)))
    finally:
        os.close(fd)
    await client.complete_multipart_upload(**where, MultipartUpload={"Parts": parts})


async def main(endpoint: str, bucket: str, path: str) -> None:
    """Upload the file once."""
    config = AioConfig(
        s3={"addressing_style": "path"},
        max_pool_connections=PARALLEL,
        request_checksum_calculation=CHECKSUMS,
        response_checksum_validation=CHECKSUMS,
    )
    async with get_session().create_client(
        "s3", endpoint_url=endpoint, config=config
    ) as client:
        await client.head_bucket(Bucket=bucket)
        begun, cpu = time.perf_counter(), time.process_time()
        await _upload(client, bucket, path)
        print(time.perf_counter() - begun, time.process_time() - cpu)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
