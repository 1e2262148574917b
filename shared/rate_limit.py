"""How often a caller may ask: a token bucket in Redis for each caller and class of requests.

The classes are few, and apart where one must not starve another: however many uploads a caller
opens, those that run go on. A caller is a user of a tenant; who shows no credentials counts by
address. OPTIONS is free, since browsers send it on their own.

While Redis is away or slow, a request waits for it for a moment at most and each process
counts for itself (security item 29); after that Redis is left alone for a while.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Final, TypeVar

import structlog
from aiohttp import hdrs, web
from aiohttp.typedefs import Handler
from prometheus_client import Counter
from redis.asyncio import Redis

from shared.errors import RateLimited, Unauthorized
from shared.identity import PRINCIPAL, method_of
from shared.proxies import TrustedProxies
from shared.redis_script import RedisScript
from shared.streams import REDIS_FAILURES, connect, retry_delay
from shared.token_bucket import Bucket, Limit, Verdict, take

__all__ = ["RateLimiter", "RateLimits", "class_of", "count_too", "counts_as"]

log = structlog.stdlib.get_logger(__name__)

REFUSED = Counter("rate_limited_total", "Requests that came too often.", ["kind"])
COUNTED_HERE = Counter("rate_limit_local_total", "Requests counted without Redis.")

_PATIENCE_S: Final = 0.1
"""How long a request waits for Redis: it usually answers within a millisecond."""
_LOCAL_BUCKETS: Final = 20_000
_SCRIPT: Final = RedisScript(Path(__file__).with_suffix(".lua"))

_CLASSES: Final = {
    "POST": "create",
    "HEAD": "change",
    "PATCH": "change",
    "PUT": "change",
    "DELETE": "change",
    "GET": "read",
}
_LOGIN: Final = "login"
_MARK: Final = "_counts_as"
_Marked = TypeVar("_Marked", bound=Callable[..., object])
_VERDICT: Final = web.RequestKey("rate_limit", tuple[str, Limit, Verdict])


def class_of(method: str, heeded: str, handler: object = None) -> str | None:
    """Return the class of a request: ``create``, ``change`` or ``read``; ``None`` is free.

    HEAD goes with PATCH: a client that resumes needs both, whatever a dashboard reads.

    Args:
        method: The real one. No other makes a request free.
        heeded: The one that the handler goes by.
        handler: Of its route; it may be marked by ``counts_as``.

    """
    if heeded == hdrs.METH_OPTIONS:
        if method == heeded:
            return None
        heeded = method
    marked: str | None = getattr(handler, _MARK, None)
    return marked or _CLASSES.get(heeded, "change")


def counts_as(kind: str) -> Callable[[_Marked], _Marked]:
    """Have the requests that a handler answers count as another class than their method's."""

    def mark(handler: _Marked) -> _Marked:
        setattr(handler, _MARK, kind)
        return handler

    return mark


class RateLimiter:
    """Counts in Redis, and here while that does not work.

    Args:
        redis: Client made by ``shared.streams.connect``; ``None`` counts here only.

    """

    def __init__(self, redis: Redis | None) -> None:
        self._redis: Final = redis
        self._buckets: Final[OrderedDict[str, Bucket]] = OrderedDict()
        """Those that were used last."""
        self._failures = 0
        self._try_again_at = 0.0

    async def take(self, key: str, limit: Limit) -> Verdict:
        """Count one request of a bucket; never fails, and never takes long."""
        if self._redis is not None and time.monotonic() >= self._try_again_at:
            try:
                async with asyncio.timeout(_PATIENCE_S):
                    reply = await _SCRIPT.run(self._redis, [key], limit.rate, limit.burst)
            except (TimeoutError, *REDIS_FAILURES) as exc:
                self._give_up_for_now(exc)
            else:
                self._failures = 0
                return Verdict(bool(reply[0]), reply[1], reply[2] / 1000)
        return self._take_here(key, limit)

    def _give_up_for_now(self, exc: Exception) -> None:
        if self._failures == 0:
            log.warning("rate_limits_without_redis", error=repr(exc))
        self._try_again_at = time.monotonic() + retry_delay(self._failures)
        self._failures += 1

    def _take_here(self, key: str, limit: Limit) -> Verdict:
        COUNTED_HERE.inc()
        bucket = self._buckets.pop(key, None)
        self._buckets[key], verdict = take(bucket, limit, time.monotonic())
        if len(self._buckets) > _LOCAL_BUCKETS:
            self._buckets.popitem(last=False)
        return verdict


class RateLimits:
    """The two middlewares, around and behind the one that finds out who is calling.

    Args:
        limits: By class, with one for ``login``: requests whose credentials are refused.
        proxies: Whose word on a client's address is taken.
        redis_url: Where the buckets are.

    """

    def __init__(
        self, limits: Mapping[str, Limit], proxies: TrustedProxies, redis_url: str | None
    ) -> None:
        self._limits: Final = limits
        self._proxies: Final = proxies
        self._redis_url: Final = redis_url
        self._limiter = RateLimiter(None)

    def add_to(self, app: web.Application) -> None:
        """Begin and end with the application, and put the headers on its answers."""
        app.cleanup_ctx.append(self._count_in_redis)
        app.on_response_prepare.append(_tell)

    async def _count_in_redis(self, _: web.Application) -> AsyncIterator[None]:
        redis = connect(self._redis_url) if self._redis_url else None
        self._limiter = RateLimiter(redis)
        yield
        if redis is not None:
            await redis.aclose()

    @web.middleware
    async def refused_logins(
        self, request: web.Request, handler: Handler
    ) -> web.StreamResponse:
        """Count requests with bad credentials, by address: guessing must not be cheap.

        Raises:
            RateLimited: There were too many of them.

        """
        try:
            return await handler(request)
        except Unauthorized:
            await self.count(request, _LOGIN, self._address(request))
            raise

    @web.middleware
    async def requests(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Count requests by caller.

        Raises:
            RateLimited: There were too many of them.

        """
        kind = class_of(request.method, method_of(request), request.match_info.handler)
        if kind is not None:
            principal = request.get(PRINCIPAL)
            caller = self._address(request)
            if principal is not None:
                caller = f"{principal.tenant} {principal.user_id}"  # neither holds a space
            request[_COUNTED_BY] = (self, caller)
            await self.count(request, kind, caller)
        return await handler(request)

    def _address(self, request: web.Request) -> str:
        return self._proxies.client(request.headers, request.remote)

    async def count(self, request: web.Request, kind: str, caller: str) -> None:
        """Count one request of a caller.

        Raises:
            RateLimited: There were too many of that class.

        """
        limit = self._limits[kind]
        digest = hashlib.blake2b(caller.encode(), digest_size=16).hexdigest()
        verdict = await self._limiter.take(f"rate:{kind}:{digest}", limit)
        request[_VERDICT] = (kind, limit, verdict)
        if not verdict.allowed:
            REFUSED.labels(kind).inc()
            raise RateLimited(
                "There were too many requests. Wait a moment.",
                retry_after=max(math.ceil(verdict.wait_s), 1),
            )


_COUNTED_BY: Final = web.RequestKey("counted_by", tuple[RateLimits, str])


async def count_too(request: web.Request, kind: str) -> None:
    """Count a request in a second class, now that its body has shown what it is.

    Raises:
        RateLimited: There were too many of that class.

    """
    if _COUNTED_BY in request:  # else there are no limits
        limits, caller = request[_COUNTED_BY]
        await limits.count(request, kind, caller)


async def _tell(request: web.Request, response: web.StreamResponse) -> None:
    """Say what is left (draft-ietf-httpapi-ratelimit-headers-10).

    The policy's quota is the burst, and its window the time in which that is earned again.
    """
    if _VERDICT in request:
        kind, limit, verdict = request[_VERDICT]
        reset = math.ceil((limit.burst - verdict.remaining) / limit.rate)
        response.headers["RateLimit-Policy"] = f'"{kind}";q={limit.burst};w={limit.window_s}'
        response.headers["RateLimit"] = f'"{kind}";r={verdict.remaining};t={reset}'
