"""Interim responses (RFC 9110 section 15.2), which aiohttp has no public call for.

The only module that knows how: they are written past the response that is still to come, the
way aiohttp itself sends ``100 Continue``. aiohttp counts them as the beginning of that
response and would not let it be replaced by an error, so the count is set back. A test pins it.
"""

from __future__ import annotations

from collections.abc import Mapping

from aiohttp import HttpVersion11, web

__all__ = ["send_interim", "takes_interim"]


def takes_interim(request: web.BaseRequest) -> bool:
    """Tell whether the client can read interim responses: those of HTTP/1.0 cannot."""
    return request.version >= HttpVersion11


async def send_interim(
    request: web.BaseRequest, status: int, reason: str, headers: Mapping[str, str] = {}
) -> None:
    """Send an interim response. Only before the response is begun, by who handles the request.

    Args:
        request: What it answers.
        status: 100 to 199.
        reason: After the status.
        headers: Values must be free of line breaks.

    Raises:
        ConnectionError: The client has gone.

    """
    lines = (f"{name}: {value}\r\n" for name, value in headers.items())
    head = f"HTTP/1.1 {status} {reason}\r\n{''.join(lines)}\r\n"
    await request.writer.write(head.encode("ascii"))
    request.writer.output_size = 0
