"""Names of keys, against those who ask for uploads by them."""

from __future__ import annotations

import pytest

from services.gateway.keys import Keys
from services.gateway.state import ID_FORM
from shared.streams import command, connect
from tests.gateway.feed import Feed
from tests.gateway.samples import Told
from tests.processes import RedisServer, ServiceProcess
from tests.shared.waiting import eventually

PREFIX = "upload_progress"


async def test_no_key_of_another_kind_can_be_asked_for_as_an_upload(
    gateway: ServiceProcess, bus: RedisServer, feed: Feed
) -> None:
    """Catches keys that stand where a projection would: an id of that name was 503, and
    closed sockets with 1013 whose clients then came back for ever.
    """
    told = Told(session_id="mine")
    await feed.record(told.created())
    redis = connect(bus.url)

    async def names() -> list[str]:
        found = [one.decode() async for one in redis.scan_iter(f"{PREFIX}:*")]
        there = {f"{PREFIX}:{told.id}", Keys(PREFIX).tenants, Keys(PREFIX).canary}
        return found if there <= set(found) else []

    found = await eventually(names, "the keys of each kind")
    asked = [one.removeprefix(f"{PREFIX}:") for one in found]
    for one in filter(ID_FORM.fullmatch, asked):
        assert await command(redis, "TYPE", f"{PREFIX}:{one}") == b"hash", one
    await redis.aclose()


@pytest.mark.parametrize("name", ["tenants", "canary", "cleaner"])
def test_what_gateways_share_is_named_as_no_upload_can_be(name: str) -> None:
    """Catches such a key that happens not to be there when others are looked at."""
    assert not ID_FORM.fullmatch(getattr(Keys(PREFIX), name).removeprefix(f"{PREFIX}:"))
