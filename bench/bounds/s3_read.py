"""Bound of serving from S3: aiobotocore's plain read of an object, dropped piece by piece.

Prints how many seconds it took from the request to the last byte, how many bytes came, and
how many seconds of CPU.

Usage: ``python -m bench.bounds.s3_read ENDPOINT BUCKET KEY``; credentials are taken from the
environment.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Final

from aiobotocore.config import AioConfig
from aiobotocore.session import get_session

_PIECE: Final = 1 << 20


async def main(endpoint: str, bucket: str, key: str) -> None:
    """Read the object once."""
    config = AioConfig(s3={"addressing_style": "path"})
    async with get_session().create_client(
        "s3", endpoint_url=endpoint, config=config
    ) as client:
        await client.head_bucket(Bucket=bucket)
        begun, cpu, count = time.perf_counter(), time.process_time(), 0
        answer = await client.get_object(Bucket=bucket, Key=key)
        async with answer["Body"] as body:
            while piece := await body.read(_PIECE):
                count += len(piece)
        print(time.perf_counter() - begun, count, time.process_time() - cpu)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
