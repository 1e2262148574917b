"""What one writes first: aiohttp, ``await ws.send_str(text)`` to one socket after another.

Same aiohttp and same event loop as the gateway. The loop turns once after each round, as it
must when the next event has to come from somewhere: without that, uvloop would gather many
rounds in memory and write them at once.

Usage: ``python -m bench.bounds.send_str PORT N PAYLOAD_FILE``
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from aiohttp import web

try:
    import uvloop as loop
except ImportError:  # not made for every platform; the gateway does without it there, too
    import asyncio as loop  # type: ignore[no-redef]


class _Rounds:
    """Holds the sockets and sends to all of them, forever, once they are complete."""

    def __init__(self, count: int, text: str) -> None:
        self._count = count
        self._text = text
        self._sockets: list[web.WebSocketResponse] = []
        self._complete = asyncio.Event()

    async def join(self, request: web.Request) -> web.WebSocketResponse:
        """Take one socket; it stays until its reader ends."""
        ws = web.WebSocketResponse(compress=False)
        await ws.prepare(request)
        self._sockets.append(ws)
        if len(self._sockets) == self._count:
            self._complete.set()
        async for _ in ws:
            pass
        return ws

    async def send(self) -> None:
        """Send round after round until a socket is gone."""
        await self._complete.wait()
        while True:
            for ws in self._sockets:
                await ws.send_str(self._text)
            await asyncio.sleep(0)


async def main(port: int, count: int, text: str) -> None:
    """Serve until the load has ended."""
    rounds = _Rounds(count, text)
    app = web.Application()
    app.router.add_get("/{any:.*}", rounds.join)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, backlog=1024).start()
    try:
        await rounds.send()
    except ConnectionError:
        await runner.cleanup()


if __name__ == "__main__":
    loop.run(main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]).read_text()))
