"""Django Channels with channels_redis: every socket is a consumer in one group.

Usage: ``python server.py PORT LAYER REDIS_URL``; LAYER: ``core`` or ``pubsub``.
"""

# mypy: ignore-errors
# What it imports is installed where the benchmark runs it, and nowhere else.

import sys

from django.conf import settings

_LAYERS = {
    "core": "channels_redis.core.RedisChannelLayer",
    "pubsub": "channels_redis.pubsub.RedisPubSubChannelLayer",
}
_, port, layer, redis_url = sys.argv
_HOST = {"address": redis_url, "max_connections": 100_000}  # redis-py's 100 would be its limit
settings.configure(
    CHANNEL_LAYERS={"default": {"BACKEND": _LAYERS[layer], "CONFIG": {"hosts": [_HOST]}}}
)

import uvicorn  # noqa: E402 - what follows reads the settings
from channels.generic.websocket import AsyncWebsocketConsumer  # noqa: E402


class Watcher(AsyncWebsocketConsumer):
    """One socket."""

    groups = ("bench",)

    async def tell(self, event: dict) -> None:
        """Pass an event of the group on."""
        await self.send(text_data=event["text"])


if __name__ == "__main__":
    uvicorn.run(
        Watcher.as_asgi(),
        host="127.0.0.1",
        port=int(port),
        loop="uvloop",
        lifespan="off",
        log_level="warning",
        backlog=4096,
    )
