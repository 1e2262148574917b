"""Reads what a service tells about itself on its internal listener."""

from __future__ import annotations

import asyncio

from tests.processes import ServiceProcess

__all__ = ["metric"]


async def metric(service: ServiceProcess, name: str) -> float:
    """Return the value of one series, with its labels as they are written; 0 if none."""
    reader, writer = await asyncio.open_connection("127.0.0.1", service.internal_port)
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
    text = (await reader.read()).decode()
    writer.close()
    await writer.wait_closed()
    found = [line for line in text.splitlines() if line.startswith(f"{name} ")]
    return float(found[0].rpartition(" ")[2]) if found else 0.0
