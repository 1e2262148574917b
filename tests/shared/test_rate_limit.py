"""Rate limits over the wire: who is stopped and how, and what Redis being away does."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import jwt
import pytest
from aiohttp import ClientResponse, web
from aiohttp.test_utils import TestClient, TestServer
from redis.asyncio import Redis

from shared import rate_limit
from shared.identity import overridable, public
from shared.rate_limit import RateLimiter, class_of, counts_as
from shared.serve import new_application
from shared.settings import CommonSettings
from shared.streams import command
from shared.token_bucket import Limit, take
from tests.processes import RedisServer
from tests.shared.conftest import StartRedis

SECRET = "0123456789abcdef0123456789abcdef"
Client = TestClient[web.Request, web.Application]


def bearer(user: str, tenant: str = "t") -> dict[str, str]:
    """Return the credentials of a user."""
    claims = {"sub": user, "tenant": tenant, "exp": time.time() + 600}
    return {"Authorization": f"Bearer {jwt.encode(claims, SECRET, 'HS256')}"}


async def answer(_: web.Request) -> web.Response:
    """Answer."""
    return web.Response(text="fine")


async def answer_named(_: web.Request) -> web.Response:
    """Answer, by whatever method the request names."""
    return web.Response(text="fine")


@public
async def answer_anybody(_: web.Request) -> web.Response:
    """Answer, whoever asks."""
    return web.Response(text="fine")


async def serve(stack: AsyncExitStack, redis_url: str | None, **settings: object) -> Client:
    """Serve an application of path ``/``, and two that differ: ``/named`` and ``/public``."""
    given = {"auth_mode": "required", "auth_jwt_secret": SECRET, **settings}
    app = new_application(CommonSettings(redis_url=redis_url, **given))  # type: ignore[arg-type]
    app.router.add_route("*", "/", answer)
    app.router.add_route("*", "/named", overridable(answer_named))
    app.router.add_route("*", "/public", answer_anybody)
    return await stack.enter_async_context(TestClient(TestServer(app)))


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    """Ends what a test has started."""
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> float:
    """Have a busy machine not taken for a Redis that is away; return what holds otherwise."""
    usual = rate_limit._PATIENCE_S
    monkeypatch.setattr(rate_limit, "_PATIENCE_S", 10.0)
    return usual


SLOW = {"rate_limit_read": "1/s burst 3", "rate_limit_create": "1/s burst 2"}


def statuses(asked: list[ClientResponse]) -> list[int]:
    """Return the statuses of answers."""
    return [one.status for one in asked]


async def test_a_caller_is_stopped(
    stack: AsyncExitStack, any_redis_server: RedisServer
) -> None:
    """After its burst a caller gets 429, with when to come back; others are not touched."""
    client = await serve(stack, any_redis_server.url, **SLOW)
    asked = [await client.get("/", headers=bearer("a")) for _ in range(4)]
    assert statuses(asked) == [200, 200, 200, 429]
    assert [one.headers["RateLimit"].split(";")[1] for one in asked] == [
        "r=2",
        "r=1",
        "r=0",
        "r=0",
    ]
    refused = asked[-1]
    assert refused.headers["RateLimit-Policy"] == '"read";q=3;w=3'
    assert 1 <= int(refused.headers["Retry-After"]) <= 2
    assert refused.content_type == "application/problem+json"
    body = await refused.json(content_type=None)
    assert body["error_code"] == "RATE_LIMITED"
    others = [bearer("b"), bearer("a", "other")]
    assert [(await client.get("/", headers=one)).status for one in others] == [200, 200]
    await asyncio.sleep(1.1)
    assert (await client.get("/", headers=bearer("a"))).status == 200


async def test_classes_do_not_starve_each_other(
    stack: AsyncExitStack, any_redis_server: RedisServer
) -> None:
    """Who may open no more uploads, and read nothing, still continues those that run."""
    client = await serve(stack, any_redis_server.url, **SLOW)
    for method, count in (("POST", 3), ("GET", 4)):
        asked = [await client.request(method, "/", headers=bearer("a")) for _ in range(count)]
        assert asked[-1].status == 429
    for method in ("PATCH", "HEAD", "DELETE", "PUT"):
        assert (await client.request(method, "/", headers=bearer("a"))).status == 200
    named = {**bearer("a"), "X-HTTP-Method-Override": "PATCH"}
    assert (await client.post("/named", headers=named)).status == 200


async def test_processes_count_together(
    stack: AsyncExitStack, any_redis_server: RedisServer
) -> None:
    """A caller gains nothing by asking several processes, even at the same time."""
    limit = {"rate_limit_read": "1/s burst 20"}
    clients = [await serve(stack, any_redis_server.url, **limit) for _ in range(3)]
    began = time.monotonic()
    asked = await asyncio.gather(
        *(client.get("/", headers=bearer("a")) for client in clients * 20)
    )
    earned = time.monotonic() - began
    assert 20 <= statuses(asked).count(200) <= 20 + earned


async def test_refused_logins_are_counted_by_address(
    stack: AsyncExitStack, any_redis_server: RedisServer
) -> None:
    """Guessing credentials is stopped, and keeps nobody out who has good ones."""
    client = await serve(stack, any_redis_server.url, rate_limit_login="1/s burst 2")
    bad = {"Authorization": "Bearer nonsense"}
    asked = [await client.get("/", headers=one) for one in (bad, {}, bad, bad)]
    assert statuses(asked) == [401, 401, 429, 429]
    assert (await client.get("/", headers=bearer("a"))).status == 200


async def test_anonymous_callers_count_by_address(
    stack: AsyncExitStack, any_redis_server: RedisServer
) -> None:
    """Where no credentials are needed, a trusted proxy's word tells callers apart."""
    client = await serve(stack, any_redis_server.url, trusted_proxies=("127.0.0.1/32",), **SLOW)
    for address in ("1.1.1.1", "2.2.2.2"):
        headers = {"X-Forwarded-For": address}
        asked = [await client.get("/public", headers=headers) for _ in range(4)]
        assert statuses(asked) == [200, 200, 200, 429]


async def test_a_client_cannot_name_itself(
    stack: AsyncExitStack, any_redis_server: RedisServer
) -> None:
    """Without trusted proxies a client that claims other addresses is still the same one."""
    client = await serve(stack, any_redis_server.url, **SLOW)
    asked = [
        await client.get("/public", headers={"X-Forwarded-For": f"1.1.1.{n}"}) for n in range(4)
    ]
    assert statuses(asked) == [200, 200, 200, 429]


async def test_options_are_free(stack: AsyncExitStack, any_redis_server: RedisServer) -> None:
    """Browsers ask OPTIONS on their own, and without credentials."""
    client = await serve(stack, any_redis_server.url, **SLOW)
    asked = [await client.options("/") for _ in range(10)]
    assert set(statuses(asked)) == {200}


@pytest.mark.parametrize(
    ("settings", "limited"),
    [
        ({"auth_mode": "open"}, False),
        ({"auth_mode": "open", "rate_limit_enabled": True}, True),
        ({"rate_limit_enabled": False}, False),
    ],
)
async def test_where_it_applies(
    stack: AsyncExitStack,
    redis_server: RedisServer,
    redis: Redis,
    settings: dict[str, object],
    limited: bool,
) -> None:
    """Where everyone is the local user nobody is limited, unless that is asked for."""
    client = await serve(stack, redis_server.url, **SLOW, **settings)
    asked = [await client.get("/", headers=bearer("a")) for _ in range(4)]
    assert (asked[-1].status == 429) is limited
    assert ("RateLimit" in asked[0].headers) is limited


@pytest.mark.parametrize("how", ["killed", "hanging"])
async def test_redis_away(
    stack: AsyncExitStack,
    start_redis: StartRedis,
    how: str,
    patience: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without Redis requests pass in good time, and each process counts for itself."""
    monkeypatch.setattr(rate_limit, "_PATIENCE_S", patience)
    server = start_redis(aof=False)
    client = await serve(stack, server.url, **SLOW)
    assert (await client.get("/", headers=bearer("x"))).status == 200
    if how == "killed":
        server.kill()
    else:
        server.signal(signal.SIGSTOP)
    took = []
    asked = []
    for _ in range(4):
        began = time.monotonic()
        asked.append(await client.get("/", headers=bearer("a")))
        took.append(time.monotonic() - began)
    assert statuses(asked) == [200, 200, 200, 429]
    assert max(took) < 4.0
    if how == "killed":
        server.start()
    else:
        server.signal(signal.SIGCONT)
    async with asyncio.timeout(10):  # it is used again
        while True:
            headers = bearer(f"back-{time.monotonic()}")
            await client.get("/", headers=headers)
            probe = await stack.enter_async_context(Redis.from_url(server.url))
            if await probe.keys("rate:read:*"):
                break
            await asyncio.sleep(0.1)


async def test_a_wiped_redis_only_forgets(
    stack: AsyncExitStack, any_redis_server: RedisServer, any_redis: Redis
) -> None:
    """After FLUSHALL and SCRIPT FLUSH callers start anew; nothing fails."""
    client = await serve(stack, any_redis_server.url, **SLOW)
    asked = [await client.get("/", headers=bearer("a")) for _ in range(4)]
    assert asked[-1].status == 429
    await any_redis.flushall()
    await any_redis.script_flush()
    assert (await client.get("/", headers=bearer("a"))).status == 200


async def test_redis_and_here_agree(any_redis: Redis) -> None:
    """The script's sums are those of ``token_bucket``, at the time that Redis has."""
    limit, limiter = Limit(20.0, 7), RateLimiter(any_redis)
    bucket = None
    for number in range(60):
        verdict = await limiter.take("rate:test", limit)
        at = float(await command(any_redis, "HGET", "rate:test", "at"))
        bucket, expected = take(bucket, limit, at)
        assert verdict.allowed is expected.allowed, number
        assert verdict.remaining == expected.remaining
        assert verdict.wait_s == pytest.approx(expected.wait_s, abs=0.002)
        await asyncio.sleep(0.01 * (number % 5))
    ttl = await any_redis.pttl("rate:test")
    assert 0 < ttl <= 1350, "a bucket that is full again need not be kept"


async def test_local_buckets_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ever new callers cannot fill the memory while Redis is away."""
    monkeypatch.setattr("shared.rate_limit._LOCAL_BUCKETS", 10)
    limiter = RateLimiter(None)
    for number in range(100):
        assert (await limiter.take(str(number), Limit(1.0, 1))).allowed
    assert not (await limiter.take("99", Limit(1.0, 1))).allowed
    assert (await limiter.take("0", Limit(1.0, 1))).allowed


@pytest.mark.parametrize(
    ("method", "override", "kind"),
    [
        ("OPTIONS", "", None),
        ("OPTIONS", "PATCH", "change"),
        ("POST", "", "create"),
        ("POST", "patch", "change"),
        ("POST", "OPTIONS", "create"),
        ("GET", "", "read"),
        ("HEAD", "", "change"),
        ("PROPFIND", "", "change"),
    ],
)
def test_classes(method: str, override: str, kind: str | None) -> None:
    """Each method has its class; no name that a client gives makes a request free."""
    assert class_of(method, override.upper() or method) == kind


def test_class_of_a_marked_handler() -> None:
    """A handler may say what its requests are, whatever their method."""
    assert class_of("POST", "POST", counts_as("change")(lambda: None)) == "change"
