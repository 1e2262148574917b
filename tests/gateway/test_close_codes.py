"""Each code that a gateway closes sockets with, and what provokes it at a real one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import pytest

from shared.identity import Principal
from tests.gateway.conftest import StartGateway, bearer, faults, token_of
from tests.gateway.feed import Feed
from tests.gateway.metrics import metric
from tests.gateway.raw_socket import TEXT, RawSocket, frame
from tests.gateway.samples import Told, principal
from tests.processes import RedisServer, ServiceProcess, running
from tests.shared.waiting import eventually

DASHBOARD: Final = "/ws/upload-progress"
MEDIA: Final = "/api/v1/ws"
LOCAL: Final = principal("local", "local")
STALL_S: Final = 1.5


class Scene:
    """A gateway, and an upload of somebody who may call it."""

    def __init__(
        self, service: ServiceProcess, feed: Feed, told: Told, owner: Principal
    ) -> None:
        self.service: Final = service
        self.feed: Final = feed
        self.told: Final = told
        self.owner: Final = owner

    @asynccontextmanager
    async def socket(
        self, path: str = "", caller: Principal | None = None, *, told_apart: bool = True
    ) -> AsyncIterator[RawSocket]:
        """Open a socket of the owner, or somebody else, that watches the upload."""
        headers = bearer(caller or self.owner) if told_apart else {}
        path = path or f"{MEDIA}/{self.told.id}"
        async with RawSocket.opened(
            self.service.port, path, headers=headers.items(), receive_buffer=4096
        ) as peer:
            assert peer.status == 101
            yield peer


async def bad_token(scene: Scene) -> int | None:
    """A token that nobody has signed."""
    path = f"{MEDIA}/{scene.told.id}?token=garbage"
    async with scene.socket(path, told_apart=False) as peer:
        assert (await peer.hear())["type"] == "error"
        return await peer.end()


async def no_token_in_time(scene: Scene) -> int | None:
    """Nothing said of who is calling within WEBSOCKET_AUTH_TIMEOUT."""
    async with scene.socket(told_apart=False) as peer:
        started = time.monotonic()
        assert (await peer.hear())["type"] == "error"
        assert time.monotonic() - started > 0.9
        return await peer.end()


async def first_message_without_token(scene: Scene) -> int | None:
    """A first message that does not say who is calling."""
    async with scene.socket(DASHBOARD, told_apart=False) as peer:
        await peer.say({"type": "ping"})
        assert (await peer.hear())["event_type"] == "error"
        return await peer.end()


async def token_ends(scene: Scene) -> int | None:
    """The end of the token's life."""
    path = f"{MEDIA}/{scene.told.id}?token={token_of(scene.owner, lives_s=1)}"
    async with scene.socket(path, told_apart=False) as peer:
        await peer.hear()
        return await peer.end()


async def expired_refresh(scene: Scene) -> int | None:
    """A refresh by a token that has ended: no event is delivered after it."""
    async with scene.socket() as peer:
        await peer.hear()
        await peer.say({"token": token_of(scene.owner, lives_s=-120)})
        assert (await peer.hear())["type"] == "error"
        await scene.feed.tell(scene.told.completed())
        return await peer.end()


async def refresh_that_has_ended_meanwhile(scene: Scene) -> int | None:
    """A refresh does not keep the socket beyond its own end."""
    async with scene.socket() as peer:
        await peer.hear()
        await peer.say({"token": token_of(scene.owner, lives_s=0.7)})
        assert (await peer.hear())["type"] == "authenticated"
        return await peer.end()


async def somebody_elses_upload(scene: Scene) -> int | None:
    """An upload that is not the caller's."""
    async with scene.socket(caller=principal("stranger")) as peer:
        assert "Access denied to this upload" in str(await peer.hear())
        return await peer.end()


async def somebody_elses_refresh(scene: Scene) -> int | None:
    """A refresh by the token of another user."""
    async with scene.socket() as peer:
        await peer.hear()
        await peer.say({"token": token_of(principal("stranger"))})
        assert (await peer.hear())["type"] == "error"
        return await peer.end()


async def unknown_upload(scene: Scene) -> int | None:
    """An id that nobody has heard of within two seconds."""
    async with scene.socket(f"{MEDIA}/nobody-knows-it") as peer:
        assert (await peer.hear())["type"] == "error"
        return await peer.end()


async def too_many_messages(scene: Scene) -> int | None:
    """More messages than WEBSOCKET_MESSAGE_RATE has in its burst; those before are answered."""
    async with scene.socket(f"{DASHBOARD}/{scene.told.id}") as peer:
        await peer.hear()
        await peer.send(frame(TEXT, b'{"type":"ping"}') * 100)
        kinds = [(await peer.hear())["event_type"] for _ in range(100)]
        assert kinds == ["pong"] * 100
        await peer.send(frame(TEXT, b'{"type":"ping"}') * 30)
        code: int | None = None
        while code is None and (found := await peer.frame()) is not None:
            code = int.from_bytes(found.payload[:2]) if found.opcode != TEXT else None
        return code


async def message_too_big(scene: Scene) -> int | None:
    """A message over 64 KiB."""
    async with scene.socket() as peer:
        await peer.hear()
        await peer.send(frame(TEXT, b"x" * (64 * 1024 + 1)))
        return await peer.end()


async def too_many_waiting(scene: Scene) -> int | None:
    """Messages that pile up behind one that takes its time, although their rate is allowed."""
    async with scene.socket(DASHBOARD) as peer:
        unknown = b'{"type":"subscribe_session","session_id":"unknown-%d"}'
        await peer.send(b"".join(frame(TEXT, unknown % n) for n in range(300)))
        code: int | None = None
        while code is None and (found := await peer.frame()) is not None:
            code = int.from_bytes(found.payload[:2]) if found.opcode != TEXT else None
        return code


async def stuck(scene: Scene, peer: RawSocket) -> None:
    """Write until nothing goes out to the peer any more."""
    await peer.hear()

    async def is_stalled() -> bool:
        await scene.feed.tell(*(scene.told.created() for _ in range(50)))
        return await metric(scene.service, "gateway_stalled") == 1

    await eventually(is_stalled, "it is stuck")


async def closed_as_slow(scene: Scene, peer: RawSocket, bound: str) -> int | None:
    """Wait for the end of a peer that is stuck; only then read."""
    name = f'gateway_slow_total{{bound="{bound}"}}'

    async def is_given_up() -> bool:
        if bound == "queue":
            await scene.feed.tell(*(scene.told.created() for _ in range(100)))
        return await metric(scene.service, name) == 1

    await eventually(is_given_up, f"it is too slow by {bound}")
    return await peer.end()


async def too_slow_by_time(scene: Scene) -> int | None:
    """Nothing drained within WEBSOCKET_STALL_TIMEOUT."""
    async with scene.socket() as peer:
        await stuck(scene, peer)
        started = time.monotonic()
        code = await closed_as_slow(scene, peer, "time")
        assert time.monotonic() - started > STALL_S - 1
        return code


async def too_slow_by_bytes(scene: Scene) -> int | None:
    """More lifecycle events behind a peer that does not read than are kept for it."""
    async with scene.socket() as peer:
        return await closed_as_slow(scene, peer, "queue")


Provoke = Callable[[Scene], Awaitable[int | None]]

STRICT: Final[list[tuple[int, Provoke]]] = [
    (4001, bad_token),
    (4001, no_token_in_time),
    (4001, first_message_without_token),
    (4001, token_ends),
    (4001, expired_refresh),
    (4001, refresh_that_has_ended_meanwhile),
    (4003, somebody_elses_upload),
    (4003, somebody_elses_refresh),
    (4004, unknown_upload),
    (1008, too_many_messages),
    (1009, message_too_big),
    (1013, too_slow_by_bytes),
]
"""At a gateway where everyone must say who he is."""


def name_of(one: object) -> str:
    """Return how a case is called."""
    return getattr(one, "__name__", str(one))


@pytest.mark.parametrize(("code", "provoke"), STRICT, ids=name_of)
async def test_codes(
    gateway: ServiceProcess, feed: Feed, caller: Principal, code: int, provoke: Provoke
) -> None:
    """Each misdeed ends the socket with its code, which is counted."""
    told = Told(owner=caller)
    await feed.tell(told.created())
    name = f'gateway_closed_total{{code="{code}"}}'
    before = await metric(gateway, name)
    assert await provoke(Scene(gateway, feed, told, caller)) == code
    if code != 1009:  # the reader's own
        assert await metric(gateway, name) == before + 1


@pytest.fixture(scope="module")
def patient(
    bus: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServiceProcess]:
    """A gateway that lets clients talk as much as they like, but not read slowly."""
    env = {
        "REDIS_URL": bus.url,
        "WEBSOCKET_STALL_TIMEOUT": str(STALL_S),
        "WEBSOCKET_MESSAGE_RATE": "1000000/s burst 1000000",
    }
    service = ServiceProcess("gateway", env, tmp_path_factory.mktemp("patient") / "log")
    with running(service):
        yield service
    assert faults(service) == []


@pytest.mark.parametrize(
    ("code", "provoke"), [(1008, too_many_waiting), (1013, too_slow_by_time)], ids=name_of
)
async def test_codes_of_a_patient_gateway(
    patient: ServiceProcess, feed: Feed, code: int, provoke: Provoke
) -> None:
    """The same for bounds that lie behind those which are usually met first."""
    told = Told(owner=LOCAL)
    await feed.tell(told.created())
    assert await provoke(Scene(patient, feed, told, LOCAL)) == code


async def test_1012(start_gateway: StartGateway, feed: Feed) -> None:
    """The end of a socket's longest life, and that of the process, mean: reconnect."""
    service, told = start_gateway(WEBSOCKET_MAX_AGE="2"), Told(owner=LOCAL)
    await feed.tell(told.created())
    scene = Scene(service, feed, told, LOCAL)
    async with scene.socket() as peer:
        started = time.monotonic()
        await peer.hear()
        assert await peer.end() == 1012
        assert 1.7 < time.monotonic() - started < 10
    async with scene.socket() as peer:
        await peer.hear()
        started = time.monotonic()
        ending = asyncio.create_task(asyncio.to_thread(service.terminate))
        assert await peer.end() == 1012
        assert time.monotonic() - started < 8
        assert await ending == 0


async def test_1013_without_redis(tmp_path: Path) -> None:
    """While Redis is away, who logs in is told to try again later."""
    redis = RedisServer(tmp_path / "redis")
    service = ServiceProcess("gateway", {"REDIS_URL": redis.url}, tmp_path / "log")
    with running(redis, service):
        redis.kill()
        async with RawSocket.opened(service.port, DASHBOARD) as peer:
            assert peer.status == 101
            assert await peer.end() == 1013
    assert faults(service) == []
