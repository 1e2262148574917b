"""What it takes to add a protocol: its own file, which this one stands for, and one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pytest_aiohttp import AiohttpClient

from services.gateway import dialects
from services.gateway.app import create_app
from services.gateway.dialects.protocol import Dialect, Told
from services.gateway.settings import Settings
from services.gateway.state import Change, ProgressState
from shared.identity import Principal
from tests.gateway.feed import Feed
from tests.gateway.samples import Told as Story
from tests.gateway.samples import principal
from tests.processes import RedisServer

LOCAL = principal("local", "local")
SERVICE = Path(dialects.__file__).parents[1]


class Terse(Dialect):
    """Bytes, as text, and nothing else."""

    name = "terse"
    paths = ("/terse/{upload_id}", "/terse")

    def encode(
        self, change: Change, state: ProgressState, told: Told | None = None
    ) -> bytes | tuple[bytes, ...]:
        """Return the bytes there are, and at the end two messages."""
        here = b"%d" % state.bytes_uploaded
        return (here, b"end") if state.is_over else here

    def reply(
        self, kind: str, *, subject: str, caller: Principal | None, data: dict[str, Any]
    ) -> bytes:
        """Return what kind of answer it would be."""
        return kind.encode()

    def heartbeat(self) -> bytes:
        """Return something short."""
        return b"."


async def test_one_line_adds_a_dialect(
    bus: RedisServer,
    feed: Feed,
    aiohttp_client: AiohttpClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A protocol that nobody has thought of gets all that a hub can do, by being listed."""
    monkeypatch.setattr(dialects, "ALL", (*dialects.ALL, Terse()))
    settings = Settings(redis_url=bus.url, auth_mode="open", websocket_heartbeat_interval=0.2)
    client = await aiohttp_client(create_app(settings))
    told = Story(owner=LOCAL)
    await feed.tell(told.created())
    async with (
        client.ws_connect(f"/terse/{told.id}") as one,
        client.ws_connect("/terse") as everything,
    ):
        assert await one.receive_str(timeout=5) == "0"
        await one.send_str('{"type":"ping"}')
        assert await one.receive_str(timeout=5) == "pong"
        await feed.tell(told.position(1000))
        assert await one.receive_str(timeout=5) == "1000"
        assert await one.receive_str(timeout=5) == "."
        await feed.tell(told.completed(offset=2000))
        seen = []
        while "end" not in seen:
            seen.append(await one.receive_str(timeout=5))
        assert [text for text in seen if text != "."] == ["2000", "end"]
        await everything.send_str("garbage")
        heard = []
        while "error" not in heard:
            heard.append(await everything.receive_str(timeout=5))
        assert "end" in heard


def test_nothing_else_knows_the_dialects_by_name() -> None:
    """No module outside the folder names one of them: so there is no second line to add."""
    known = {type(one).__name__ for one in dialects.ALL}
    for path in SERVICE.glob("*.py"):
        words = set(path.read_text(encoding="utf-8").replace("(", " ").split())
        assert not known & words, path.name
