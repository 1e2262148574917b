"""What clients may do to a socket: garbage, floods, silence, and going without a word.

Each of it ends at most that socket. A bystander on another socket notices nothing, and the
gateway's log, which the fixture looks at, stays free of errors.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import pytest

from services.gateway.hub import UNKNOWN_WAIT_S
from shared.identity import Principal
from tests.gateway.conftest import READERS, StartGateway, bearer
from tests.gateway.feed import Feed
from tests.gateway.metrics import metric
from tests.gateway.raw_socket import BINARY, CLOSE, PING, PONG, TEXT, Frame, RawSocket, frame
from tests.gateway.samples import Told, principal
from tests.processes import ServiceProcess
from tests.shared.waiting import eventually

LOCAL: Final = principal("local", "local")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Let both readers of sockets pass every test that has a gateway."""
    if "socket_reader" in metafunc.fixturenames:
        metafunc.parametrize("socket_reader", READERS, indirect=True, scope="session")


class Scene:
    """An upload, a socket that watches it, and a bystander that does too."""

    def __init__(self, told: Told, feed: Feed, peer: RawSocket, bystander: RawSocket) -> None:
        self.told: Final = told
        self.feed: Final = feed
        self.peer: Final = peer
        self.bystander: Final = bystander

    async def bystander_is_well(self) -> None:
        """See that events still arrive next door."""
        await self.feed.tell(self.told.created())
        assert (await self.bystander.hear())["type"] == "created"


@asynccontextmanager
async def staged(
    service: ServiceProcess, feed: Feed, caller: Principal, path: str = "/api/v1/ws/{}"
) -> AsyncIterator[Scene]:
    """Yield a scene in which both have their snapshot."""
    told = Told(owner=caller)
    await feed.tell(told.created())
    headers = list(bearer(caller).items())
    bystanders = RawSocket.opened(service.port, f"/api/v1/ws/{told.id}", headers=headers)
    peers = RawSocket.opened(service.port, path.format(told.id), headers=headers)
    async with bystanders as bystander, peers as peer:
        for one in (peer, bystander):
            await one.hear()
        yield Scene(told, feed, peer, bystander)


@pytest.fixture
async def scene(gateway: ServiceProcess, feed: Feed, caller: Principal) -> AsyncIterator[Scene]:
    """A scene in dialect media."""
    async with staged(gateway, feed, caller) as one:
        yield one


HUGE: Final = struct.pack("!BBQ", 0x81, 0xFF, 2**63 - 1) + b"\0\0\0\0" + b"x" * 1000

GARBAGE: dict[str, tuple[bytes, set[int | None]]] = {
    "reserved bits": (frame(TEXT, b"{}", rsv=4), {1002}),
    "compressed, not agreed": (frame(TEXT, b"{}", rsv=1), {1002}),
    "unknown opcode": (frame(3, b"{}"), {1002}),
    "unknown control opcode": (frame(11, b"{}"), {1002}),
    "fragmented control frame": (frame(PING, b"x", fin=False), {1002}),
    "long control frame": (frame(PING, b"x" * 126), {1002}),
    "continuation of nothing": (frame(0, b"x"), {1002}),
    "message within a message": (
        frame(TEXT, b"{", fin=False) + frame(TEXT, b"}"),
        {1002},
    ),
    "invalid UTF-8": (frame(TEXT, b"\xff\xfe"), {1007}),
    "half a character": (frame(TEXT, "ä".encode()[:1]), {1007}),
    "invalid close code": (frame(CLOSE, struct.pack("!H", 1005)), {1002}),
    "close with one byte": (frame(CLOSE, b"x"), {1002}),
    "close reason of no text": (frame(CLOSE, struct.pack("!H", 1000) + b"\xff"), {1007}),
    "huge declared length": (HUGE, {1009}),
    "length beyond 63 bits": (struct.pack("!BBQ", 0x81, 0xFF, 2**64 - 1), {1002, 1009}),
    "HTTP again": (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", {1002}),
    "noise": (bytes(range(256)) * 40, {1002}),
}


@pytest.mark.parametrize("kind", GARBAGE)
async def test_garbage(scene: Scene, kind: str) -> None:
    """A breach of the protocol ends the socket with the code for it, and no other."""
    data, codes = GARBAGE[kind]
    await scene.peer.send(data)
    assert await scene.peer.end() in codes
    await scene.bystander_is_well()


async def test_frames_without_a_mask(scene: Scene) -> None:
    """A client that does not mask may be cut or served; it disturbs nobody."""
    await scene.peer.send(frame(TEXT, b'{"type":"ping"}', mask=False) + b"\x81\x00" * 500)
    await scene.bystander_is_well()


@pytest.mark.parametrize("size", [65 * 1024, 1024 * 1024])
async def test_message_too_big(scene: Scene, size: int) -> None:
    """A message over 64 KiB ends the socket with 1009, also in many pieces."""
    await scene.peer.send(frame(TEXT, b"x" * size))
    assert await scene.peer.end() == 1009
    await scene.bystander_is_well()


async def test_message_too_big_in_pieces(scene: Scene) -> None:
    """The limit counts for the message, not for its fragments."""
    pieces = [frame(TEXT, b"x" * 1000, fin=False)]
    pieces += [frame(0, b"x" * 1000, fin=False) for _ in range(70)]
    await scene.peer.send(b"".join(pieces))
    assert await scene.peer.end() == 1009
    await scene.bystander_is_well()


async def test_big_but_allowed(scene: Scene) -> None:
    """A message of nearly 64 KiB is read, and refused for what it says."""
    await scene.peer.say({"type": "x", "pad": "x" * (60 * 1024)})
    assert (await scene.peer.hear())["type"] == "error"


async def test_fragmented_message(scene: Scene) -> None:
    """A message in fragments, with a ping in between, is one message."""
    await scene.peer.send(
        frame(TEXT, b'{"type":', fin=False) + frame(PING, b"now") + frame(0, b'"ping"}')
    )
    frames = [await scene.peer.frame() for _ in range(2)]
    assert Frame(PONG, b"now") in frames
    assert any(one is not None and b'"pong"' in one.payload for one in frames)


async def test_fragments_without_end(scene: Scene, socket_reader: str) -> None:
    """A message of ever more empty fragments disturbs nobody; we end it, with 1008."""
    await scene.peer.send(frame(TEXT, fin=False) + frame(0, fin=False) * 5000)
    await scene.bystander_is_well()
    if socket_reader == READERS[0]:
        while (found := await scene.peer.frame()) is not None and found.opcode != CLOSE:
            pass
        assert found is not None
        assert int.from_bytes(found.payload[:2]) == 1008


async def test_one_byte_a_segment(scene: Scene) -> None:
    """A message that comes byte by byte is understood; others get theirs meanwhile."""
    scene.peer.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    said = frame(TEXT, json.dumps({"type": "ping", "pad": "x" * 2000}).encode())
    for n in range(len(said) - 1):
        await scene.peer.send(said[n : n + 1])
    await scene.bystander_is_well()
    assert (await scene.peer.hear())["type"] == "created"
    await scene.peer.send(said[-1:])
    assert (await scene.peer.hear())["type"] == "pong"


async def test_half_a_connection(scene: Scene) -> None:
    """Who ends its half, amid a frame or not, has ended the socket."""
    await scene.peer.send(frame(TEXT, b"x" * 100)[:-5])
    scene.peer.socket.shutdown(socket.SHUT_WR)
    assert await scene.peer.end(answers=False) in {1006, 1002, None}
    await scene.bystander_is_well()


async def test_reset_amid_a_frame(scene: Scene) -> None:
    """An RST in the middle of a frame ends that socket and nothing else."""
    await scene.peer.send(frame(TEXT, b"x" * 60_000)[:30_000])
    scene.peer.reset()
    await scene.bystander_is_well()


HARMLESS: dict[str, bytes] = {
    "binary": frame(BINARY, b"\x00\x01"),
    "unknown type": frame(TEXT, b'{"type":"dance"}'),
    "type of no text": frame(TEXT, b'{"type":[],"session_id":{}}'),
    "malformed JSON": frame(TEXT, b'{"type":'),
    "no object": frame(TEXT, b'"ping"'),
    "empty": frame(TEXT, b""),
    "deep nesting": frame(TEXT, b"[" * 60_000),
    "deep nesting of objects": frame(TEXT, b'{"type":' * 8_000),
    "half a surrogate": frame(TEXT, b'{"type":"\\ud800"}'),
    "large number": frame(TEXT, b'{"type":1e999}'),
}


@pytest.mark.parametrize("path", ["/api/v1/ws/{}", "/ws/upload-progress/{}"])
@pytest.mark.parametrize("kind", HARMLESS)
async def test_not_understood(
    gateway: ServiceProcess, feed: Feed, caller: Principal, path: str, kind: str
) -> None:
    """What is no message of the dialect gets an error, and the socket lives on."""
    async with staged(gateway, feed, caller, path) as scene:
        await scene.peer.send(HARMLESS[kind])
        assert "error" in (await scene.peer.hear()).values()
        await scene.peer.say({"type": "ping"})
        assert "pong" in (await scene.peer.hear()).values()


@pytest.mark.parametrize(
    "session_id", ["user:x", "../..", "\x00", "x" * 60_000, "ä" * 200, "", "{p00}"]
)
async def test_odd_session_ids(
    gateway: ServiceProcess, feed: Feed, caller: Principal, session_id: str
) -> None:
    """What can be no id is refused at once, whatever key it would name."""
    async with staged(gateway, feed, caller, "/ws/upload-progress") as scene:
        took = []
        for _ in range(3):
            started = time.monotonic()
            await scene.peer.say({"type": "subscribe_session", "session_id": session_id})
            assert (await scene.peer.hear())["event_type"] == "error"
            took.append(time.monotonic() - started)
        assert min(took) < UNKNOWN_WAIT_S / 2
        await scene.peer.say({"type": "unsubscribe_session", "session_id": session_id})
        assert (await scene.peer.hear())["event_type"] == "unsubscribed"


async def test_vanishing(gateway: ServiceProcess, feed: Feed, caller: Principal) -> None:
    """Clients that vanish amid a stream of events, by RST or FIN, leave not a word."""
    told = Told(owner=caller)
    await feed.tell(told.created())
    headers = list(bearer(caller).items())
    path = f"/api/v1/ws/{told.id}"

    async def watch(number: int) -> None:
        async with RawSocket.opened(gateway.port, path, headers=headers) as peer:
            for _ in range(number % 5):
                await peer.hear()
            if number % 2:
                await peer.send(frame(TEXT, b"x" * 100)[:-5])
                peer.reset()

    async def write() -> None:
        for step in range(100):
            await feed.tell(told.position(step + 1))
            await asyncio.sleep(0.005)

    await asyncio.gather(write(), *(watch(n) for n in range(60)))


async def test_vanishing_during_the_handshake(
    gateway: ServiceProcess, feed: Feed, caller: Principal
) -> None:
    """Clients that go while their handshake is being answered are nobody's trouble."""
    told = Told(owner=caller)
    await feed.tell(told.created())
    token = bearer(caller)["Authorization"]
    head = (
        f"GET /api/v1/ws/{told.id} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nAuthorization: "
        f"{token}\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    ).encode()
    for _ in range(40):
        _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(head)
        writer.transport.abort()
    async with staged(gateway, feed, caller) as scene:
        await scene.bystander_is_well()


@pytest.mark.parametrize(
    ("version", "key"),
    [
        *(("1.1", b"\xff"), ("1.1", "é".encode()), ("1.1", b"short"), ("1.1", b"")),
        ("1.0", b"dGhlIHNhbXBsZSBub25jZQ=="),
    ],
)
async def test_broken_handshakes(gateway: ServiceProcess, version: str, key: bytes) -> None:
    """A key that is none, or an older HTTP, is refused with 400, and is no fault of ours."""
    head = (
        f"GET /ws HTTP/{version}\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: "
    ).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(head + key + b"\r\n\r\n")
    assert (await reader.readline()).split()[1] == b"400"
    writer.transport.abort()


async def test_pings_are_answered(scene: Scene) -> None:
    """A ping of the client comes back as a pong with the same content."""
    for payload in (b"", b"x" * 125):
        await scene.peer.send(frame(PING, payload))
        assert await scene.peer.frame() == Frame(PONG, payload)


async def test_close_of_the_client_is_answered(scene: Scene) -> None:
    """A client that closes gets its code back, and the connection ends."""
    await scene.peer.send(frame(CLOSE, struct.pack("!H", 1000) + b"bye"))
    assert await scene.peer.end(answers=False) in {1000, 1005}
    await scene.bystander_is_well()


async def test_who_does_not_answer_pings_is_cut(
    start_gateway: StartGateway, feed: Feed
) -> None:
    """Pings go out to the silent; who answers stays, who does not is cut after the timeout."""
    service = start_gateway(
        AUTH_MODE="open", WEBSOCKET_PING_INTERVAL="0.3", WEBSOCKET_PING_TIMEOUT="2"
    )
    loop = asyncio.get_running_loop()
    async with staged(service, feed, LOCAL) as scene:
        started = loop.time()

        async def answer() -> int:
            answered = 0
            while loop.time() - started < 3:
                async with asyncio.timeout(5):
                    found = await scene.bystander.frame()
                assert found is not None
                assert found.opcode == PING
                await scene.bystander.send(frame(PONG, found.payload))
                answered += 1
            return answered

        async def be_silent() -> float:
            pings = 0
            while (found := await scene.peer.frame()) is not None:
                assert found.opcode == PING
                pings += 1
            assert pings == 1
            return loop.time() - started

        answered, cut_after = await asyncio.gather(answer(), be_silent())
        assert answered >= 3
        assert 2 < cut_after < 10
        await scene.bystander_is_well()


async def test_a_flood_of_requests_without_reading(
    start_gateway: StartGateway, feed: Feed
) -> None:
    """Who sends request after request and reads no answer is stopped in time."""
    any_rate = {"WEBSOCKET_MESSAGE_RATE": "1000000/s burst 1000000"}
    service = start_gateway(AUTH_MODE="open", WEBSOCKET_STALL_TIMEOUT="1", **any_rate)
    async with staged(service, feed, LOCAL) as scene:
        before = service.memory()
        flood = (frame(TEXT, b'{"type":"ping"}') + frame(PING, b"x" * 125)) * 500

        async def pour() -> None:
            while True:
                await asyncio.get_running_loop().sock_sendall(scene.peer.socket, flood)

        pouring = asyncio.ensure_future(pour())

        async def is_stopped() -> bool:
            await scene.bystander_is_well()
            assert service.memory() - before < 32 * 1024 * 1024
            return pouring.done()

        await eventually(is_stopped, "the flood is stopped", limit_s=20)
        assert isinstance(pouring.exception(), ConnectionError)


async def test_nothing_is_kept_of_sockets_that_went(
    start_gateway: StartGateway, feed: Feed
) -> None:
    """After many sockets have come and gone, the gateway watches nothing."""
    service = start_gateway(AUTH_MODE="open")
    told = Told(owner=LOCAL)
    await feed.tell(told.created())
    for _ in range(5):
        opened = [
            RawSocket.opened(service.port, path)
            for path in (f"/api/v1/ws/{told.id}", "/ws/upload-progress", "/api/v1/ws/none")
            for _ in range(10)
        ]
        peers = [await one.__aenter__() for one in opened]
        for number, peer in enumerate(peers):
            if number % 3:
                await peer.send(frame(CLOSE, struct.pack("!H", 1000)))
            else:
                peer.reset()
        for one in opened:
            await one.__aexit__(None, None, None)

    async def is_empty() -> bool:
        names = ("gateway_sockets", "gateway_topics", "gateway_subscriptions")
        return not any([await metric(service, name) for name in names])

    await eventually(is_empty, "no sockets, no topics")


def test_frames_of_the_tests() -> None:
    """The hand-made frames are right where they are meant to be."""
    one = frame(TEXT, json.dumps({"a": 1}).encode())
    assert one[1] & 0x80
    payload = bytes(b ^ one[2 + n % 4] for n, b in enumerate(one[6:]))
    assert json.loads(payload) == {"a": 1}
