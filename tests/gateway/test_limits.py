"""How many sockets and subscriptions there may be, at real gateways that share a Redis."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack

import pytest

from services.gateway.admission import LEASE_S
from shared.identity import Principal
from shared.sidecar import new_id
from tests.gateway.conftest import AUTHENTICATED, StartGateway, bearer, token_of
from tests.gateway.feed import Feed
from tests.gateway.metrics import metric
from tests.gateway.raw_socket import RawSocket
from tests.gateway.samples import Told, principal
from tests.processes import ServiceProcess
from tests.shared.waiting import eventually

PATH = "/ws/upload-progress"
STREAM = "/v1/events"
MOST = 5


async def knock(
    stack: AsyncExitStack,
    service: ServiceProcess,
    headers: Mapping[str, str],
    path: str = PATH,
) -> RawSocket:
    """Ask for a socket, or an event stream, which stays open until the test ends."""
    opening = RawSocket.opened(service.port, path, headers=headers.items())
    return await stack.enter_async_context(opening)


async def test_a_user_over_two_gateways(start_gateway: StartGateway, caller: Principal) -> None:
    """The sixth socket of a user is refused at either gateway, until one of the five ends.

    An event stream is one of them.
    """
    here, there = start_gateway(**AUTHENTICATED), start_gateway(**AUTHENTICATED)
    async with AsyncExitStack() as stack:
        assert (await knock(stack, here, bearer(caller), STREAM)).status == 200
        services = (here, here, there, there)
        opened = [await knock(stack, service, bearer(caller)) for service in services]
        assert [one.status for one in opened] == [101] * (MOST - 1)
        assert (await knock(stack, there, bearer(caller), STREAM)).status == 429
        for service in (here, there):
            refused = await knock(stack, service, bearer(caller))
            assert refused.status == 429
            assert int(refused.headers["Retry-After"]) >= 1
            assert (await refused.body())["error_code"] == "RATE_LIMITED"
            late = await knock(stack, service, {})
            await late.say({"type": "ping", "token": token_of(caller)})
            assert "too many connections" in str(await late.hear())
            assert await late.end() == 1008
        refused_there = await metric(there, 'gateway_refused_total{reason="user"}')
        assert refused_there == 3
        assert (await knock(stack, here, bearer())).status == 101
        opened[-1].reset()

        async def is_let_in() -> bool:
            return (await knock(stack, here, bearer(caller))).status == 101

        await eventually(is_let_in, "there is room again")


async def test_a_storm_of_one_user(start_gateway: StartGateway) -> None:
    """A hundred handshakes at once at two gateways: five sockets, and 95 refusals.

    Gateways that get no answer from Redis in time, on a machine that is very busy, count for
    themselves; then there is another storm, of another user.
    """
    services = start_gateway(**AUTHENTICATED), start_gateway(**AUTHENTICATED)
    alone = 0.0
    for _ in range(5):
        headers = bearer(principal(f"user-{new_id()}"))
        async with AsyncExitStack() as stack:
            knocking = [knock(stack, services[n % 2], headers) for n in range(100)]
            statuses = [one.status for one in await asyncio.gather(*knocking)]
        assert len(statuses) == statuses.count(101) + statuses.count(429)
        before = alone
        alone = sum([await metric(one, "gateway_places_local_total") for one in services])
        if alone == before:
            assert statuses.count(101) == MOST
            return
    raise AssertionError("Redis was never asked")


async def test_nobody_is_counted_where_all_are_one(start_gateway: StartGateway) -> None:
    """With AUTH_MODE=open there is no limit for each user, unless it is set."""
    free = start_gateway()
    limited = start_gateway(WEBSOCKET_MAX_CONNECTIONS_PER_USER="2")
    async with AsyncExitStack() as stack:
        assert [(await knock(stack, free, {})).status for _ in range(12)] == [101] * 12
        statuses = [(await knock(stack, limited, {})).status for _ in range(3)]
        assert statuses == [101, 101, 429]


@pytest.mark.slow
async def test_gateway_killed(start_gateway: StartGateway, caller: Principal) -> None:
    """The places of a gateway that is killed -9 come back when its leases end."""
    doomed, there = start_gateway(**AUTHENTICATED), start_gateway(**AUTHENTICATED)
    async with AsyncExitStack() as stack:
        for service in (doomed, doomed, doomed, there, there):
            assert (await knock(stack, service, bearer(caller))).status == 101
        doomed.kill()
        killed = time.monotonic()
        assert (await knock(stack, there, bearer(caller))).status == 429
        statuses: list[int] = []

        async def are_let_in() -> bool:
            await asyncio.sleep(0.2)
            statuses.append((await knock(stack, there, bearer(caller))).status)
            return statuses.count(101) == 3

        await eventually(are_let_in, "the places come back", limit_s=LEASE_S + 3)
        assert time.monotonic() - killed < LEASE_S + 2
        assert (await knock(stack, there, bearer(caller))).status == 429


async def test_subscriptions_of_a_socket(
    start_gateway: StartGateway, feed: Feed, caller: Principal
) -> None:
    """One subscription too many is an error, no close; what a follower has anyway is free."""
    env = {**AUTHENTICATED, "WEBSOCKET_MAX_SUBSCRIPTIONS": "3"}
    service = start_gateway(**env)
    own = [Told(owner=caller) for _ in range(5)]
    others = [Told(owner=principal(f"other-{new_id()}")) for _ in range(4)]
    await feed.tell(*(one.created() for one in (*own, *others)))
    boss = principal(caller.user_id, caller.tenant, "admin")
    async with AsyncExitStack() as stack:
        peer = await knock(stack, service, bearer(boss))
        heard = {(await peer.hear())["session_id"] for _ in own}
        assert heard == {one.id for one in own}

        async def subscribe(told: Told) -> list[str]:
            await peer.say({"type": "subscribe_session", "session_id": told.id})
            kinds: list[str] = []
            while not kinds or kinds[-1] not in {"subscribed", "error"}:
                kinds.append((await peer.hear())["event_type"])
            return kinds

        for one in others[:3]:
            assert (await subscribe(one))[-1] == "subscribed"
        assert await subscribe(others[3]) == ["error"]
        await peer.say({"type": "unsubscribe_session", "session_id": others[0].id})
        assert (await peer.hear())["event_type"] == "unsubscribed"
        assert (await subscribe(others[3]))[-1] == "subscribed"
        await feed.tell(own[0].completed())
        assert (await peer.hear())["event_type"] == "upload_complete"
        several = await knock(stack, service, bearer(boss), "/v1/events/ws")
        ids = [one.id for one in others]
        await several.say({"type": "subscribe", "ids": ids})
        assert (await several.hear())["type"] == "error"
        await several.say({"type": "subscribe", "ids": ids[1:]})
        while (answer := await several.hear()).get("type") != "subscribed":
            assert answer.get("type") != "error"
        assert answer["ids"] == ids[1:]
