"""The seam between what is told again and what comes: crossed at random, at full speed."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence

from tests.gateway.conftest import StartGateway
from tests.gateway.feed import Feed
from tests.gateway.returning import Returning
from tests.gateway.samples import Told, principal

LOCAL = principal("local", "local")
OPEN = {"AUTH_MODE": "open", "WEBSOCKET_MAX_CONNECTIONS_PER_USER": "10000"}
EVENTS_OF_ONE = 57
"""Few enough for the log to hold all."""
SEED = 20_260_101
LIMIT_S = 20


async def lives(feed: Feed, uploads: Sequence[Told], *, rest_s: float = 0.0) -> None:
    """Tell all that happens to uploads after their creation, each event of them by chance."""
    chance = random.Random(SEED)
    left = [one for one in uploads for _ in range(EVENTS_OF_ONE - 3)]
    chance.shuffle(left)
    await feed.tell(*(one.completed() for one in uploads))
    while left:
        batch = [left.pop() for _ in range(min(chance.randint(1, 20), len(left)))]
        await feed.tell(*(one.started() for one in batch))
        if rest_s:
            await asyncio.sleep(rest_s)
    await feed.tell(*(one.processed() for one in uploads))


async def watched(
    clients: Sequence[Returning], uploads: Sequence[Told], tell: Callable[[], Awaitable[None]]
) -> None:
    """Let clients come and go while something is told; each must get all of it, once."""
    over, every = asyncio.Event(), {one.id for one in uploads}
    running = [
        asyncio.ensure_future(one.run(over, set(one.uploads) or every)) for one in clients
    ]
    await asyncio.sleep(1.0)  # all are there, or have just left
    await tell()
    over.set()
    async with asyncio.timeout(LIMIT_S):
        await asyncio.gather(*running)
    assert [fault for one in clients for fault in one.faults] == []
    for one in clients:
        wanted = set(one.uploads) or every
        seen = [key for key in one.seen if key[0] in wanted]
        assert len(seen) == len(wanted) * EVENTS_OF_ONE


async def test_nothing_is_lost_or_told_twice(start_gateway: StartGateway, feed: Feed) -> None:
    """Two hundred clients that vanish and come back get each event once, in order."""
    chance = random.Random(SEED)
    ports = [start_gateway(**OPEN).port for _ in range(2)]
    uploads = [Told(owner=LOCAL) for _ in range(100)]
    await feed.tell(*(one.created() for one in uploads))
    clients = []
    for number in range(200):
        count = 1 if number % 4 == 0 else chance.randint(2, 8)
        chosen = [one.id for one in chance.sample(uploads, count)]
        own = random.Random(number)
        clients.append(Returning(ports, chosen, by_id=number % 2 == 0, chance=own))
    clients += [
        Returning(ports, (), by_id=False, chance=random.Random(number)) for number in range(4)
    ]
    await watched(clients, uploads, lambda: lives(feed, uploads))
    assert sum(one.connections for one in clients) > 2 * len(clients)


async def test_gateways_are_killed(start_gateway: StartGateway, feed: Feed) -> None:
    """Who comes back, to whichever gateway is there, misses nothing of fifty uploads."""
    gateways = [start_gateway(**OPEN) for _ in range(2)]
    ports = [one.port for one in gateways]
    uploads = [Told(owner=LOCAL) for _ in range(50)]
    await feed.tell(*(one.created() for one in uploads))
    clients = [
        Returning(ports, [one.id], by_id=number % 2 == 0, chance=random.Random(number))
        for number, one in enumerate(uploads)
    ]

    async def tell() -> None:
        telling = asyncio.ensure_future(lives(feed, uploads, rest_s=0.01))
        chance = random.Random(SEED)
        while not telling.done():
            await asyncio.sleep(chance.uniform(0.1, 0.4))
            killed = chance.choice(gateways)
            killed.kill()
            await asyncio.to_thread(killed.start)
        await telling

    await watched(clients, uploads, tell)
