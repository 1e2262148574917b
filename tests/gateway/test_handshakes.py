"""What is asked for where only a WebSocket is, and is none."""

from __future__ import annotations

import asyncio
from typing import Final

import pytest

from tests.gateway.conftest import bearer
from tests.processes import ServiceProcess

KEY: Final = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
UPGRADE: Final = "Upgrade: websocket\r\nConnection: Upgrade\r\n"


@pytest.mark.parametrize(
    "asked",
    [
        pytest.param("", id="for a page"),
        pytest.param("Upgrade: h2c\r\nConnection: Upgrade\r\n", id="for another protocol"),
        *(
            pytest.param(f"{UPGRADE}{version}", id=f"for {name}")
            for name, version in {
                "an older version": "Sec-WebSocket-Version: 8\r\n",
                "no version": "",
                "two versions": "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Version: 8\r\n",
            }.items()
        ),
    ],
)
async def test_what_is_no_handshake_is_told_what_is(
    gateway: ServiceProcess, asked: str
) -> None:
    """Catches a client, or a proxy that drops the upgrade, that is told only that it is bad:
    426 says what is spoken here, and in which version (RFC 6455 section 4.4).
    """
    (token,) = (f"{name}: {value}\r\n" for name, value in bearer().items())
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(f"GET /ws HTTP/1.1\r\nHost: x\r\n{token}{KEY}{asked}\r\n".encode())
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    assert head.startswith("http/1.1 426 ")
    assert "\r\nupgrade: websocket\r\n" in head
    assert "\r\nsec-websocket-version: 13\r\n" in head
    writer.transport.abort()
