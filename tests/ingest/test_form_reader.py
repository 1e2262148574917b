"""The file of a form, read by somebody who does not always wait for it."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from typing import Any

import pytest
from aiohttp import BodyPartReader, MultipartReader, StreamReader
from aiohttp.base_protocol import BaseProtocol

from services.ingest.form_reader import FilePart
from tests.ingest.form_client import BOUNDARY, body_of, file_part

KIND = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


@pytest.mark.parametrize("turns", range(6))
async def test_a_wait_that_ends_with_the_read_loses_nothing(turns: int) -> None:
    """Bytes that come just when the wait for them is given up are those of the next read."""
    loop, content = asyncio.get_running_loop(), os.urandom(70_000)
    body = body_of([file_part(content)])
    head = body.index(b"\r\n\r\n") + 4
    connection = BaseProtocol(loop)
    connection.connection_made(asyncio.Transport())
    stream = StreamReader(connection, 2**20, loop=loop)
    stream.feed_data(body[:head])
    part = await MultipartReader(KIND, stream).next()
    assert isinstance(part, BodyPartReader)
    nobody: Any = None
    file = FilePart(part, "", nobody)
    reading = asyncio.ensure_future(file.read())
    await asyncio.sleep(0.01)
    assert not reading.done()

    stream.feed_data(body[head:])
    stream.feed_eof()
    for _ in range(turns):
        await asyncio.sleep(0)
    reading.cancel()
    found = b""
    with suppress(asyncio.CancelledError):
        found = await reading
    while piece := await file.read():
        found += piece

    assert found == content
