"""Reads what a service tells about itself on its internal listener."""

from __future__ import annotations

import asyncio

from tests.processes import ServiceProcess

__all__ = ["metric", "scraped", "value_in"]


async def scraped(service: ServiceProcess, path: str = "/metrics") -> str:
    """Return what is answered there, the head too."""
    reader, writer = await asyncio.open_connection("127.0.0.1", service.internal_port)
    head = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
    writer.write(head.encode())
    text = (await reader.read()).decode()
    writer.close()
    await writer.wait_closed()
    return text


async def metric(service: ServiceProcess, name: str) -> float:
    """Return the value of one series, with its labels as they are written; 0 if none.

    A name without labels is the sum over all of its series.
    """
    return value_in(await scraped(service), name)


def value_in(text: str, name: str) -> float:
    """Return the same of what was scraped."""
    begins = (f"{name} ",) if "{" in name else (f"{name} ", f"{name}{{")
    found = [line for line in text.splitlines() if line.startswith(begins)]
    return sum(float(line.rpartition(" ")[2]) for line in found)
